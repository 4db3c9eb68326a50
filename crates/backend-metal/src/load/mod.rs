//! Loads a model's folder: reads the weights and binds them to an [`Architecture`]. Also converts checkpoints and fuses adapters.

mod adapter;
mod convert;
mod dense;
mod lock;
mod staging;
mod writer;

use inference_core::{Error, ModelManifest, Result, backend::free_memory};

pub use self::convert::{ConvertOptions, FuseOptions, convert, fuse};
pub(crate) use self::{
    adapter::{attach, with_trained_weights},
    dense::{default_pooling, load_dense},
    lock::lock_folder,
    writer::Writer,
};
pub use crate::mlx::Progress;
use crate::{
    arch,
    mlx::Reader,
    nn::{Architecture, Source},
};

/// Loads the model that the manifest describes, on this thread and MLX's default device.
///
/// `observe` is called as the weights come in; the load ends with [`Error::Cancelled`] once it returns `false`. Memory at its
/// highest is that of the weights: each byte is read to where it stays.
///
/// # Errors
/// [`Error::UnsupportedModel`] where the architecture is unknown, [`Error::InvalidModel`] with the file and the key or tensor
/// at fault.
pub(crate) fn load(
    backend: &str,
    manifest: &ModelManifest,
    observe: &mut dyn FnMut(Progress) -> bool,
) -> Result<Box<dyn Architecture>> {
    let family =
        arch::lookup(manifest.model_type()).map_err(|reason| Error::unsupported_model(backend, reason))?;
    let source = Source::new(Reader::new(manifest, observe));
    let weights = source.weights();
    // Positions are computed, not loaded; old checkpoints carry them all the same.
    weights.skip(|name| name.ends_with(".rotary_emb.inv_freq"));
    tracing::debug!(family = family.name, model = %manifest.path().display(), "bind the weights");
    for part in family.skips {
        weights.skip(|name| part.holds(name));
    }
    let model = (family.load)(&weights)?;
    weights.finish()?;
    Ok(model)
}

/// Refuses to read `needed` bytes where less memory is free: MLX does not survive a failed allocation on the CPU, and a sparse file
/// can hold tensors of any size. `what` is for the error.
///
/// # Errors
/// [`Error::OutOfMemory`]
pub(crate) fn check_free_memory(needed: u64, what: impl FnOnce() -> String) -> Result<()> {
    match free_memory().filter(|available| *available < needed) {
        None => Ok(()),
        Some(available) => Err(Error::out_of_memory(what(), needed, available)),
    }
}
