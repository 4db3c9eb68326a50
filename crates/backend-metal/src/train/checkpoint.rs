//! A run's adapters and checkpoints on disk. Each appears complete, by a rename, or not at all.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use inference_core::{
    Dtype, Error, Result,
    backend::{ADAPTER_FILE, AdapterConfig, TensorInfo, TrainState, read_tensors},
    train::TrainOptions,
};
use mlx_rs::Array;

use super::{optimizer::Optimizer, trainable::TrainableParams};
use crate::{
    load::Writer,
    mlx::{Tensors, mlx_dtype},
    nn::{Architecture, layer_of},
};

/// The file of the optimiser's state in a checkpoint.
const OPTIMIZER: &str = "optimizer.safetensors";

/// The adapter in the output while it is written.
const PARTIAL_ADAPTER: &str = ".adapters.safetensors.partial";

/// The extension of a checkpoint's folder while it is written.
const PARTIAL: &str = "partial";

/// Writes a checkpoint, and the adapter to the run's output. Returns the checkpoint's folder. Older checkpoints keep their adapters
/// and lose their optimiser state.
///
/// # Errors
/// [`Error::Io`]; earlier checkpoints stay as they were.
pub(super) fn save(
    model: &dyn Architecture,
    trainable: &TrainableParams,
    values: &[Array],
    optimizer: &Optimizer,
    options: &TrainOptions,
    state: &TrainState,
) -> Result<PathBuf> {
    let config = adapter_config(model, trainable, options);
    let adapter: Vec<_> =
        trainable.params().iter().map(|param| param.name().to_owned()).zip(values).collect();
    let output = &options.output;
    let folder = TrainState::folder(output, state.step);
    let partial = folder.with_extension(PARTIAL);
    remove(&partial)?;
    fs::create_dir_all(&partial).map_err(|source| Error::io("create", &partial, source))?;
    write(&partial.join(ADAPTER_FILE), &adapter)?;
    config.write(&partial)?;
    write(&partial.join(OPTIMIZER), &optimizer_tensors(trainable, values, optimizer))?;
    state.write(&partial)?;
    remove(&folder)?;
    rename(&partial, &folder)?;
    let fresh = output.join(PARTIAL_ADAPTER);
    write(&fresh, &adapter)?;
    config.write(output)?;
    rename(&fresh, &output.join(ADAPTER_FILE))?;
    remove_older_optimizers(&folder)?;
    Ok(folder)
}

/// Removes files that a killed run left half written. The output must be locked.
///
/// # Errors
/// [`Error::Io`]
pub(super) fn remove_partial(output: &Path) -> Result<()> {
    let adapter = output.join(PARTIAL_ADAPTER);
    match fs::remove_file(&adapter) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io("remove", adapter, source));
        }
        _ => {}
    }
    let checkpoints = TrainState::folder(output, 0);
    let Some(Ok(entries)) = checkpoints.parent().map(fs::read_dir) else { return Ok(()) };
    let partial = entries.flatten().map(|entry| entry.path());
    partial
        .filter(|path| path.extension().is_some_and(|end| end == PARTIAL))
        .try_for_each(|path| remove(&path))
}

/// Reads a checkpoint into tensors of the same names and shapes.
///
/// # Errors
/// [`Error::InvalidModel`] names the file and the tensor that is missing or does not fit; [`Error::Io`].
pub(super) fn restore(
    folder: &Path,
    trainable: &TrainableParams,
    values: &mut [Array],
    optimizer: &mut Optimizer,
) -> Result<()> {
    let names: Vec<_> = trainable.params().iter().map(|param| param.name().to_owned()).collect();
    let shapes: Vec<_> = values.iter().map(|value| optimizer.state_shapes(value.shape())).collect();
    let adapter = SavedTensors::open(folder.join(ADAPTER_FILE))?;
    for (name, value) in names.iter().zip(values) {
        *value = adapter.read(name, value)?;
    }
    let saved = SavedTensors::open(folder.join(OPTIMIZER))?;
    for ((name, shapes), state) in names.iter().zip(shapes).zip(&mut optimizer.state) {
        for ((part, _), value) in shapes.iter().zip(state) {
            *value = saved.read(&format!("{name}.{part}"), value)?;
        }
    }
    Ok(())
}

/// adapter_config.json of a run.
fn adapter_config(
    model: &dyn Architecture,
    trainable: &TrainableParams,
    options: &TrainOptions,
) -> AdapterConfig {
    let mut keys: Vec<String> = Vec::new();
    for param in trainable.params() {
        let name = param.name().rsplit_once('.').map_or(param.name(), |(layer, _)| layer);
        // For a layer in a block, mlx_lm wants the name after the block's number.
        let key = match (layer_of(name), name.split_once("layers.")) {
            (Some(_), Some((_, rest))) => rest.split_once('.').map_or(rest, |(_, key)| key),
            _ => name,
        };
        if !keys.iter().any(|known| known == key) {
            keys.push(key.to_owned());
        }
    }
    AdapterConfig::new(&options.method, model.config().layers, keys)
}

fn optimizer_tensors<'a>(
    trainable: &TrainableParams,
    values: &[Array],
    optimizer: &'a Optimizer,
) -> Vec<(String, &'a Array)> {
    let params = trainable.params().iter().zip(values).zip(&optimizer.state);
    let tensors = params.flat_map(|((param, value), state)| {
        let shapes = optimizer.state_shapes(value.shape()).into_iter();
        shapes.zip(state).map(move |((part, _), array)| (format!("{}.{part}", param.name()), array))
    });
    tensors.collect()
}

fn write(path: &Path, tensors: &[(String, &Array)]) -> Result<()> {
    let described: Vec<_> = tensors
        .iter()
        .map(|(name, array)| {
            let shape: Vec<_> = array.shape().iter().map(|n| *n as usize).collect();
            (name.clone(), float(array), shape)
        })
        .collect();
    let mut writer = Writer::create(path, described.iter())?;
    for (_, array) in tensors {
        writer.add(array)?;
    }
    writer.finish()
}

fn float(array: &Array) -> Dtype {
    match array.dtype() {
        mlx_rs::Dtype::Float16 => Dtype::F16,
        mlx_rs::Dtype::Bfloat16 => Dtype::Bf16,
        _ => Dtype::F32,
    }
}

/// A safetensors file that a run wrote.
struct SavedTensors {
    path: PathBuf,
    infos: BTreeMap<String, TensorInfo>,
}

impl SavedTensors {
    fn open(path: PathBuf) -> Result<Self> {
        Ok(Self { infos: read_tensors(&path)?, path })
    }

    /// Reads a tensor, which must have the type and shape of `like`.
    fn read(&self, name: &str, like: &Array) -> Result<Array> {
        let info = self.infos.get(name);
        let info = info.ok_or_else(|| Error::invalid_key(&self.path, name, "is missing"))?;
        let shape: Vec<_> = like.shape().iter().map(|n| *n as usize).collect();
        if info.shape != shape || info.dtype != float(like) {
            let (found, dtype, expected) = (&info.shape, info.dtype, float(like));
            let reason = format!("is {found:?} of {dtype}, expected {shape:?} of {expected}");
            return Err(Error::invalid_key(&self.path, name, reason));
        }
        Tensors::open(&self.path)?.read(info, mlx_dtype(info.dtype).unwrap_or(mlx_rs::Dtype::Float32))
    }
}

/// Removes the optimiser state of all checkpoints but this one.
fn remove_older_optimizers(newest: &Path) -> Result<()> {
    let Some(checkpoints) = newest.parent() else { return Ok(()) };
    let entries = fs::read_dir(checkpoints).map_err(|source| Error::io("list", checkpoints, source))?;
    for folder in entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|folder| folder != newest) {
        let file = folder.join(OPTIMIZER);
        match fs::remove_file(&file) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", file, source));
            }
            _ => {}
        }
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", folder, source)),
        _ => Ok(()),
    }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|source| Error::io("create", to, source))
}
