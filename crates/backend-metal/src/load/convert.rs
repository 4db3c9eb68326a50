//! A checkpoint in another form: quantised from dense, or back.
//!
//! Tensors go through memory one by one. The new folder is written beside its place under another name and moved there when
//! it is complete, so that there is never half of one.

mod delta;
mod experts;
mod fuse;
mod job;
mod layout;
mod plan;

use std::{
    fs,
    path::{Path, PathBuf},
};

use inference_core::{Dtype, Error, ModelManifest, Quantization, Result};
use serde_json::{Map, Value, json};

pub use self::fuse::{FuseOptions, fuse};
use self::{job::Job, plan::Plan};
use super::{
    Progress, Reader,
    writer::{Writer, size},
};

/// Bytes after which the next tensor begins another file.
const SHARD_BYTES: u64 = 5 << 30;

/// What a checkpoint becomes. Experts that their publisher packed, gpt-oss's, stay so where other matrices are quantised.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ConvertOptions {
    /// How matrices are quantised; unset: not at all.
    pub quantization: Option<Quantization>,
    /// Exceptions: how the matrices whose name fits the pattern are quantised, or that they are not. Of several that fit, the
    /// last counts. A `*` in a pattern stands for any characters.
    pub rules: Vec<(String, Option<Quantization>)>,
    /// The type of weights that are not quantised; unset: as they are.
    pub dtype: Option<Dtype>,
}

/// Writes the model of `source` to the new folder `target`, in the form that `options` ask for: what `mlx_lm` reads too.
/// Blocks until done; `observe` is called as tensors are read, and ends the conversion with [`Error::Cancelled`] by returning
/// `false`.
///
/// # Errors
/// [`Error::InvalidOption`] where the target exists or MLX lacks the quantisation; [`Error::InvalidModel`] where the source is
/// quantised and not to become dense, or broken; [`Error::Io`].
pub fn convert(
    source: &ModelManifest,
    target: &Path,
    options: &ConvertOptions,
    observe: &mut dyn FnMut(Progress) -> bool,
) -> Result<()> {
    let plan = Plan::new(source, options)?;
    publish(&plan, &Reader::new(source, observe), &plan.config(source), target)
}

/// Writes what is planned, with this config and everything else that lies in the folder of the reader's model, to the new folder
/// `target`.
fn publish(plan: &Plan, reader: &Reader<'_>, config: &Value, target: &Path) -> Result<()> {
    let staging = Staging::new(target)?;
    write_tensors(&plan.jobs, reader, &staging.path)?;
    write_json(&staging.path.join("config.json"), config)?;
    copy_others(reader.manifest().path(), &staging.path)?;
    staging.publish(target)
}

fn write_tensors(jobs: &[Job], reader: &Reader<'_>, folder: &Path) -> Result<()> {
    let mut shards: Vec<&[Job]> = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (i, job) in jobs.iter().enumerate() {
        let size: u64 = job.outputs.iter().map(size).sum();
        if bytes > 0 && bytes + size > SHARD_BYTES {
            shards.push(&jobs[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += size;
    }
    shards.push(&jobs[start..]);
    let mut places = Map::new();
    let mut total = 0;
    for (i, jobs) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        write_shard(reader, jobs, &folder.join(&name))?;
        for output in jobs.iter().flat_map(|job| &job.outputs) {
            places.insert(output.0.clone(), json!(name));
            total += size(output);
        }
    }
    if shards.len() > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": places});
        write_json(&folder.join("model.safetensors.index.json"), &index)?;
    }
    Ok(())
}

fn write_shard(reader: &Reader<'_>, jobs: &[Job], path: &Path) -> Result<()> {
    let mut file = Writer::create(path, jobs.iter().flat_map(|job| &job.outputs))?;
    for job in jobs {
        for array in job.run(reader)? {
            file.add(&array)?;
        }
    }
    file.finish()
}

/// The folder under its passing name; removed unless it was published.
struct Staging {
    path: PathBuf,
}

impl Staging {
    fn new(target: &Path) -> Result<Self> {
        let exists = || invalid_option("target", format!("{} exists already", target.display()));
        if target.symlink_metadata().is_ok() {
            return Err(exists());
        }
        let name = target.file_name().ok_or_else(exists)?.to_string_lossy().into_owned();
        let path = target.with_file_name(format!(".{name}.{}.partial", std::process::id()));
        fs::create_dir_all(&path).map_err(|source| Error::io("create", &path, source))?;
        Ok(Self { path })
    }

    fn publish(self, target: &Path) -> Result<()> {
        fs::rename(&self.path, target).map_err(|source| Error::io("create", target, source))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Gone already where it was published; where it cannot be removed there is nothing more to do.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Everything that is neither weights nor config: tokenizer, templates, card.
fn copy_others(source: &Path, target: &Path) -> Result<()> {
    const WEIGHTS: &[&str] = &["safetensors", "bin", "pt", "pth", "gguf", "h5", "msgpack", "onnx"];
    let entries = fs::read_dir(source).map_err(|error| Error::io("read", source, error))?;
    for entry in entries {
        let path = entry.map_err(|error| Error::io("read", source, error))?.path();
        let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else { continue };
        let weights = path.extension().is_some_and(|e| WEIGHTS.contains(&&*e.to_string_lossy()));
        let regular = fs::metadata(&path).is_ok_and(|metadata| metadata.is_file());
        if !regular
            || weights
            || name.starts_with('.')
            || name == "config.json"
            || name.ends_with(".index.json")
        {
            continue;
        }
        fs::copy(&path, target.join(&name)).map_err(|error| Error::io("copy", &path, error))?;
    }
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text =
        serde_json::to_string_pretty(value).map_err(|error| Error::invalid_file(path, error.to_string()))?;
    fs::write(path, text + "\n").map_err(|source| Error::io("write", path, source))
}

fn invalid_option(option: &'static str, reason: String) -> Error {
    Error::InvalidOption { option, reason }
}
