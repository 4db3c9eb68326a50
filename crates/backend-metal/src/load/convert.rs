//! Converts a checkpoint: quantises it, or makes it dense again.
//!
//! Tensors go through memory one by one. The new folder is written under a temporary name and renamed once it is complete.

mod companions;
mod delta;
mod experts;
mod fuse;
mod job;
mod layout;
mod options;
mod plan;

use std::{fs, io, path::Path};

use inference_core::{Error, ModelManifest, Result};
use serde_json::{Map, Value, json};

pub use self::{
    fuse::{FuseOptions, fuse},
    options::ConvertOptions,
};
use self::{job::Job, options::invalid_option, plan::Plan};
use super::{
    Progress, Reader, check_free_memory,
    staging::Staging,
    writer::{Writer, size},
};

/// The size at which a new file of tensors is begun, in bytes.
const SHARD_BYTES: u64 = 5 << 30;

/// Writes the model of `source`, converted as `options` say, to the new folder `target`, which `mlx_lm` reads too. Blocks until it is
/// done. `observe` is called as tensors are read; when it returns `false`, the conversion ends with [`Error::Cancelled`].
///
/// Of the other files in the source's folder, regular ones are copied, and links that resolve inside the model's own folder or its
/// entry in a Hugging Face cache. What a process that died left of an earlier conversion to `target` is removed.
///
/// # Errors
/// [`Error::InvalidOption`] if the target exists or MLX lacks the quantisation; [`Error::InvalidModel`] if the source is broken, or is
/// quantised and is to be quantised again; [`Error::OutOfMemory`] if a tensor does not fit into memory; [`Error::Io`].
pub fn convert(
    source: &ModelManifest,
    target: &Path,
    options: &ConvertOptions,
    observe: &mut dyn FnMut(Progress) -> bool,
) -> Result<()> {
    let full;
    // What is to be quantised anew comes from the values in full.
    let source = if source.is_gguf() && options.quantization.is_some() {
        full = source.in_full()?;
        &full
    } else {
        source
    };
    if let Some(reason) = source.unread() {
        return Err(Error::invalid_file(source.path(), reason));
    }
    let plan = Plan::new(source, options)?;
    publish(&plan, &Reader::new(source, observe), &plan.config(source), target)
}

/// Writes the planned tensors, this config and the model's companion files to the new folder `target`.
fn publish(plan: &Plan, reader: &Reader<'_>, config: &Value, target: &Path) -> Result<()> {
    let (source, staging) = (reader.manifest().path(), Staging::new(target)?);
    check_resources(&plan.jobs, source, staging.path())?;
    companions::copy(source, staging.path())?;
    if reader.manifest().is_gguf() {
        companions::make(source, staging.path())?;
    }
    write_json(&staging.path().join("config.json"), config)?;
    write_tensors(&plan.jobs, reader, staging.path())?;
    staging.publish()
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

/// Refuses a conversion that does not fit into memory or on the disk, before anything is written.
fn check_resources(jobs: &[Job], source: &Path, target: &Path) -> Result<()> {
    if let Some(job) = jobs.iter().max_by_key(|job| job.bytes()) {
        check_free_memory(job.bytes(), || {
            format!("converting {} of {}", job.outputs[0].0, source.display())
        })?;
    }
    let needed = jobs.iter().map(Job::output_bytes).fold(0, u64::saturating_add);
    // Where the filesystem does not tell, writing fails when the disk is full.
    let disk = rustix::fs::statvfs(target).map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    match disk.ok().filter(|available| *available < needed) {
        None => Ok(()),
        Some(available) => {
            let reason = format!("the copy has {needed} bytes, the disk has {available} free");
            let source = io::Error::new(io::ErrorKind::StorageFull, reason);
            Err(Error::io("write", target, source))
        }
    }
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text =
        serde_json::to_string_pretty(value).map_err(|error| Error::invalid_file(path, error.to_string()))?;
    fs::write(path, text + "\n").map_err(|source| Error::io("write", path, source))
}
