//! LoRA adapters in GGUF files, as llama.cpp's convert_lora_to_gguf.py writes them.

use std::path::{Path, PathBuf};

use inference_core::{Error, ModelManifest, Result};

use crate::config::OfFile;

/// An adapter that a child loads.
#[derive(Debug, Clone)]
pub(crate) struct Adapter {
    path: PathBuf,
    scale: f32,
    fingerprint: String,
}

impl Adapter {
    /// The adapters of these files for a model, each with what its effect is multiplied with.
    ///
    /// # Errors
    /// [`Error::InvalidModel`]: a file is no adapter, or one for another architecture; [`Error::InvalidOption`]: its path or its
    /// factor cannot be given to llama-server; [`Error::Io`].
    pub(crate) fn read(model: &ModelManifest, files: &[(PathBuf, f32)]) -> Result<Vec<Self>> {
        if files.is_empty() {
            return Ok(Vec::new());
        }
        let architecture = OfFile::read(model)?.architecture;
        files.iter().map(|(path, scale)| Self::one(&architecture, path, *scale)).collect()
    }

    fn one(architecture: &str, path: &Path, scale: f32) -> Result<Self> {
        let invalid = |reason: String| Err(Error::invalid_option("extension", format!("lora: {reason}")));
        let path = std::path::absolute(path).map_err(|source| Error::io("resolve", path, source))?;
        // llama-server lists files with commas, and their factors behind colons.
        if path.to_str().is_none_or(|path| path.contains([',', ':'])) {
            return invalid(format!("{} has a comma or a colon, which llama-server cuts at", path.display()));
        }
        if !scale.is_finite() {
            return invalid(format!("the factor is {scale}, expected a finite number"));
        }
        let manifest = ModelManifest::read(&path)?;
        let file = OfFile::read(&manifest)?;
        let kind = file.text("general.type")?;
        if kind.as_deref() != Some("adapter") {
            let found = kind.map_or("is missing".to_owned(), |kind| format!("is {kind:?}"));
            return Err(Error::invalid_key(&path, "general.type", format!("{found}, expected \"adapter\"")));
        }
        if file.architecture != architecture {
            let reason = format!("is {:?}, and the model's {architecture:?}", file.architecture);
            return Err(Error::invalid_key(&path, "general.architecture", reason));
        }
        let fingerprint = manifest.fingerprint()?;
        Ok(Self { path, scale, fingerprint })
    }

    /// llama-server's argument for the adapters.
    pub(crate) fn argument(adapters: &[Self]) -> String {
        let one = |adapter: &Self| format!("{}:{}", adapter.path.display(), adapter.scale);
        adapters.iter().map(one).collect::<Vec<_>>().join(",")
    }

    /// What the adapters mean for the state of a text.
    pub(crate) fn layout(adapters: &[Self]) -> String {
        let one = |adapter: &Self| format!(", adapter {} × {}", adapter.fingerprint, adapter.scale);
        adapters.iter().map(one).collect()
    }
}
