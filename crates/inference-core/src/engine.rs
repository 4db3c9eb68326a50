//! An engine, as programs and the registry see it.

use std::{any::TypeId, fmt::Debug, sync::Arc};

use async_trait::async_trait;
use serde::Serialize;

use crate::{
    KvBits, LoadOptions, MemoryEstimate, MemoryUsage, ModelManifest, Result, TextModel,
    capabilities::Capabilities,
};

/// An engine that runs models. Made by a [`BackendDescriptor`](crate::backend::BackendDescriptor) and cheap to make: the work begins
/// with [`load`](Self::load).
#[async_trait]
pub trait Backend: Debug + Send + Sync + 'static {
    /// What is known about it.
    fn info(&self) -> &BackendInfo;

    /// What it can do. Options that need more are refused before they reach it.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// The types of [extension options](crate::backend::Extensions) that it reads, by [`TypeId::of`]. Options of other types
    /// are refused before they reach it.
    fn extensions(&self) -> &'static [TypeId] {
        &[]
    }

    /// Whether it can run this model, judged by config and tensor headers alone: its architecture, its file format, how it is
    /// quantised.
    fn supports(&self, model: &ModelManifest) -> Support;

    /// The bytes needed to run `batch` texts of `context` tokens each. `kv_bits` is the width of a quantised KV cache; `None`:
    /// keys and values are not quantised. The default
    /// counts keys and values as [`ModelManifest::estimate`] does.
    ///
    /// # Errors
    /// As [`ModelManifest::estimate`].
    fn estimate(
        &self,
        model: &ModelManifest,
        context: usize,
        batch: usize,
        kv_bits: Option<KvBits>,
    ) -> Result<MemoryEstimate> {
        model.estimate(context, batch, kv_bits)
    }

    /// Loads the model. Options are validated and within the capabilities.
    ///
    /// # Errors
    /// A file of the folder is broken, an architecture or weight format is not supported, memory does not suffice, or the
    /// load was cancelled.
    async fn load(&self, model: ModelManifest, options: LoadOptions) -> Result<Arc<dyn TextModel>>;

    /// Control of the engine's memory; `None` if it has none.
    fn memory(&self) -> Option<&dyn MemoryControl> {
        None
    }
}

/// What is known about a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BackendInfo {
    /// The name by which it is asked for.
    pub id: &'static str,
    /// The engine and its version: `MLX 0.32.2`.
    pub version: String,
    /// The device it runs on: `NVIDIA H200`.
    pub device: String,
}

impl BackendInfo {
    /// A backend's description.
    pub fn new(id: &'static str, version: impl Into<String>, device: impl Into<String>) -> Self {
        Self { id, version: version.into(), device: device.into() }
    }
}

/// Whether a backend can run a model.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Support {
    /// It can.
    Yes,
    /// It cannot. The reason names what was found and what was expected.
    No(String),
}

/// Control over an engine's memory. Process-wide where the engine's allocator is.
pub trait MemoryControl: Debug + Send + Sync {
    /// What is in use now.
    ///
    /// # Errors
    /// The engine failed.
    fn usage(&self) -> Result<MemoryUsage>;

    /// Sets limits; `None` leaves one as it is. Returns the limits before.
    ///
    /// # Errors
    /// The engine failed, or has no such limit.
    fn set_limits(&self, limits: MemoryLimits) -> Result<MemoryLimits>;

    /// Gives the allocator's cache back to the system.
    ///
    /// # Errors
    /// The engine failed.
    fn clear_cache(&self) -> Result<()>;

    /// Resets the peak to the memory in use now.
    ///
    /// # Errors
    /// The engine failed.
    fn reset_peak(&self) -> Result<()>;
}

/// Limits on an engine's memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemoryLimits {
    /// On all memory in use.
    pub memory: Option<u64>,
    /// On what the allocator keeps for reuse.
    pub cache: Option<u64>,
    /// On memory kept resident for the GPU (macOS).
    pub wired: Option<u64>,
}

impl MemoryLimits {
    /// No limit changed.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Limits all memory in use.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// Limits what the allocator keeps for reuse.
    #[must_use]
    pub fn cache(mut self, bytes: u64) -> Self {
        self.cache = Some(bytes);
        self
    }

    /// Limits memory kept resident for the GPU.
    #[must_use]
    pub fn wired(mut self, bytes: u64) -> Self {
        self.wired = Some(bytes);
        self
    }
}
