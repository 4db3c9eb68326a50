//! One model that a server offers: its name, and how it is loaded.

use std::{fmt, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use inference_core::{LoadOptions, ModelManifest, Result, TextModel, backend::ADAPTER_FILE, load_model};

/// Loads a model when the first request asks for it, and again after it was unloaded.
#[async_trait]
pub trait ModelLoader: fmt::Debug + Send + Sync {
    /// The bytes that the model will take, as a budget counts them.
    ///
    /// # Errors
    /// Nothing can be known of the model.
    async fn bytes(&self) -> Result<u64>;

    /// Loads it. Dropping the future ends the load.
    ///
    /// # Errors
    /// As [`load_model`].
    async fn load(&self) -> Result<Arc<dyn TextModel>>;
}

/// A model that a server offers.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ModelEntry {
    /// The name by which requests ask for it.
    pub name: String,
    /// Further names.
    pub aliases: Vec<String>,
    /// Whether it stays loaded when another one needs the memory.
    pub pinned: bool,
    /// Whether it is loaded at the start, not at the first request.
    pub preload: bool,
    pub(crate) source: Source,
}

#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// It is loaded, and never unloaded.
    Loaded(Arc<dyn TextModel>),
    OnDemand(Arc<dyn ModelLoader>),
}

impl ModelEntry {
    /// A model that is loaded, and stays so.
    pub fn loaded(name: impl Into<String>, model: Arc<dyn TextModel>) -> Self {
        Self::new(name.into(), Source::Loaded(model))
    }

    /// A model folder, loaded on demand with these options, by this backend if one is named.
    ///
    /// An engine applies one adapter to all of a model's requests: a model with an adapter ([`LoadOptions::adapter`]) is an entry
    /// of its own, with weights of its own in the memory budget. Where it is called `model:adapter`, requests may name the model
    /// and the adapter apart.
    pub fn folder(
        name: impl Into<String>,
        path: impl Into<PathBuf>,
        backend: Option<String>,
        options: LoadOptions,
    ) -> Self {
        Self::with_loader(name, FolderLoader { path: path.into(), backend, options })
    }

    /// A model of any origin, loaded on demand.
    pub fn with_loader(name: impl Into<String>, loader: impl ModelLoader + 'static) -> Self {
        Self::new(name.into(), Source::OnDemand(Arc::new(loader)))
    }

    /// Adds another name.
    #[must_use]
    pub fn alias(mut self, name: impl Into<String>) -> Self {
        self.aliases.push(name.into());
        self
    }

    /// Whether the model stays loaded when another one needs the memory.
    #[must_use]
    pub fn pinned(mut self, pinned: bool) -> Self {
        self.pinned = pinned;
        self
    }

    /// Whether the model is loaded at the start.
    #[must_use]
    pub fn preload(mut self, preload: bool) -> Self {
        self.preload = preload;
        self
    }

    fn new(name: String, source: Source) -> Self {
        Self { name, aliases: Vec::new(), pinned: false, preload: false, source }
    }
}

#[derive(Debug)]
struct FolderLoader {
    path: PathBuf,
    backend: Option<String>,
    options: LoadOptions,
}

#[async_trait]
impl ModelLoader for FolderLoader {
    async fn bytes(&self) -> Result<u64> {
        // Headers only, a few milliseconds.
        let weights = ModelManifest::read(&self.path)?.weight_bytes();
        let adapter = self.options.adapter.as_ref().map(|folder| folder.join(ADAPTER_FILE));
        // One that is missing or cannot be read is the load's to tell.
        let adapter = adapter.and_then(|file| std::fs::metadata(file).ok()).map_or(0, |file| file.len());
        Ok(weights.saturating_add(adapter))
    }

    async fn load(&self) -> Result<Arc<dyn TextModel>> {
        let mut load = load_model(&self.path).options(self.options.clone());
        if let Some(backend) = &self.backend {
            load = load.backend(backend);
        }
        load.await
    }
}
