//! Loading a model from a folder, or by its name on the Hugging Face Hub.

use std::{future::IntoFuture, path::PathBuf, pin::Pin, sync::Arc};

use inference_core::{Error, LoadOptions, Result, TextModel, backend::spawn_blocking};
use inference_hub::{Hub, HubError, ModelName, PullOptions};

/// Loads a model: await it, or set options first. `model` is a folder, or the name of a model on the Hugging Face Hub
/// (`mlx-community/Qwen3-0.6B-4bit`, with `@revision` if need be), which is looked for in the cache that Python's package uses.
///
/// # Errors
/// As [`inference_core::load_model`]; the model is not in the cache, or cannot be downloaded.
pub fn load_model(model: impl Into<PathBuf>) -> Load {
    Load { model: model.into(), backend: None, options: LoadOptions::new(), download: false }
}

/// A load that is being set up; `.await` runs it.
#[derive(Debug, Clone)]
#[must_use = "a load does nothing until it is awaited"]
pub struct Load {
    model: PathBuf,
    backend: Option<String>,
    options: LoadOptions,
    download: bool,
}

impl Load {
    /// Uses this backend instead of the first that is available and supports the model.
    pub fn backend(mut self, id: impl Into<String>) -> Self {
        self.backend = Some(id.into());
        self
    }

    /// Loads with these options.
    pub fn options(mut self, options: LoadOptions) -> Self {
        self.options = options;
        self
    }

    /// Whether a model of the Hub is downloaded if it is not in the cache.
    pub fn download(mut self, download: bool) -> Self {
        self.download = download;
        self
    }

    async fn run(self) -> Result<Arc<dyn TextModel>> {
        let Self { model, backend, options, download } = self;
        let cancel = options.cancel.clone();
        let folder = spawn_blocking(move || {
            let pull = download.then(|| PullOptions::new().cancel(cancel));
            find_model(model, pull.as_ref())
        });
        let mut load = inference_core::load_model(folder.await?).options(options);
        if let Some(backend) = backend {
            load = load.backend(backend);
        }
        load.await
    }
}

impl IntoFuture for Load {
    type Output = Result<Arc<dyn TextModel>>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// The folder of a model: the path itself if something is there, else that of the Hub's model of this name, downloaded if `pull`
/// says how. Blocks.
///
/// # Errors
/// [`Error::InvalidModel`]: the name is that of no model in the cache, or the download fails.
pub fn find_model(model: impl Into<PathBuf>, pull: Option<&PullOptions>) -> Result<PathBuf> {
    let model = model.into();
    let name = model.to_str().and_then(|text| text.parse::<ModelName>().ok());
    // What is no name is a path, and its own error says what is wrong with it.
    let Some(name) = name.filter(|_| !model.exists()) else { return Ok(model) };
    let failed = |error: HubError| match error {
        HubError::Cancelled => Error::Cancelled,
        error => Error::invalid_file(&model, error.to_string()),
    };
    let hub = Hub::from_env().map_err(failed)?;
    match (hub.find(&name), pull) {
        (Some(folder), _) => Ok(folder),
        (None, Some(pull)) => hub.pull(&name, pull).map_err(failed),
        (None, None) => {
            let cache = hub.cache().display();
            let reason = format!("is no folder, and no model in the cache {cache}; download it first");
            Err(Error::invalid_file(model, reason))
        }
    }
}
