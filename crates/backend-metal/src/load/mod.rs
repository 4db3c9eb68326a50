//! From a model's folder to an [`Architecture`]: reads the weights and binds them.

use inference_core::{ModelManifest, Result};

use crate::arch::Architecture;

/// How far a load has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of weights read.
    pub bytes: u64,
    /// Bytes of weights in all.
    pub total: u64,
}

/// Loads the model that the manifest describes, on this thread and MLX's default device.
///
/// `observe` is called after every tensor; the load ends with [`Error::Cancelled`](inference_core::Error::Cancelled) once it
/// returns `false`.
///
/// # Errors
/// [`Error::UnsupportedModel`](inference_core::Error::UnsupportedModel) where the architecture is unknown,
/// [`Error::InvalidModel`](inference_core::Error::InvalidModel) with the file and the key or tensor at fault.
pub fn load(
    manifest: &ModelManifest,
    observe: &mut dyn FnMut(Progress) -> bool,
) -> Result<Box<dyn Architecture>> {
    let _ = (manifest, observe);
    Err(inference_core::Error::backend("mlx", "load the weights", "not built yet"))
}
