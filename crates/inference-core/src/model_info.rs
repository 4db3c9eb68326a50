//! What is known about a loaded model.

use std::path::PathBuf;

use serde::Serialize;

use crate::{Dtype, Error, ModelManifest, Quantization, Result};

/// What is known about a loaded model.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ModelInfo {
    /// The folder it was loaded from.
    pub path: PathBuf,
    /// The id of the backend that runs it.
    pub backend: String,
    /// The `model_type` of config.json.
    pub architecture: String,
    /// Ids that the model can produce.
    pub vocab_size: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// The width of the residual stream.
    pub hidden_size: usize,
    /// Tokens of prompt and answer together.
    pub context_length: usize,
    /// Weights of the model before quantisation.
    pub parameters: u64,
    /// Bytes of the weights as stored.
    pub weight_bytes: u64,
    /// The element type of weights that are not quantised; `None` where there are none.
    pub dtype: Option<Dtype>,
    /// How the weights are quantised, where they are.
    pub quantization: Option<Quantization>,
    /// Ids that end a text.
    pub eos_token_ids: Vec<u32>,
    /// How the engine computes decode steps, in words, where it has several ways. It is decided when the model is loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode_steps: Option<String>,
}

impl ModelInfo {
    /// What the model's folder says of it. A backend sets what it knows better: the size of its vocabulary, the context that
    /// was asked for, the ids that end a text.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names a key of config.json that makes no sense.
    pub fn from_manifest(backend: impl Into<String>, manifest: &ModelManifest) -> Result<Self> {
        Ok(Self {
            path: manifest.path().to_owned(),
            backend: backend.into(),
            architecture: manifest.model_type().to_owned(),
            vocab_size: manifest.vocab_size()?.unwrap_or_default(),
            layers: manifest.layers()?.unwrap_or_default(),
            hidden_size: manifest.hidden_size()?.unwrap_or_default(),
            context_length: manifest.context_length()?.unwrap_or_default(),
            parameters: manifest.parameters(),
            weight_bytes: manifest.weight_bytes(),
            dtype: manifest.float_dtype(),
            quantization: manifest.quantization().copied(),
            eos_token_ids: manifest.eos_token_ids()?,
            decode_steps: None,
        })
    }

    /// Checks a prompt's ids, before an engine computes them: there are some, all are within the vocabulary, and the context
    /// holds them.
    ///
    /// # Errors
    /// [`Error::InvalidPrompt`], [`Error::ContextExceeded`].
    pub fn check_prompt(&self, ids: &[u32]) -> Result<()> {
        if ids.is_empty() {
            return Err(Error::invalid_prompt("it is empty"));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocab_size) {
            let reason = format!("token {id} is outside the vocabulary of {}", self.vocab_size);
            return Err(Error::invalid_prompt(reason));
        }
        if ids.len() > self.context_length {
            return Err(Error::context_exceeded(ids.len(), self.context_length));
        }
        Ok(())
    }
}
