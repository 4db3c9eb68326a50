//! adapter_config.json, as mlx_lm writes it and reads it.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    files::{from_value, read_value},
    train::{AdapterOptions, FullOptions, Method},
};

/// The configuration's name in an adapter's folder.
const CONFIG: &str = "adapter_config.json";

/// The longest adapter_config.json, in bytes. mlx_lm writes all its arguments into it: some 2 kB.
const LONGEST_CONFIG: u64 = 1 << 20;

/// What is said of an adapter in peft's format.
pub(super) const PEFT: &str = "is an adapter in peft's format, expected mlx_lm's (adapter_config.json with \
    fine_tune_type and lora_parameters, adapters.safetensors): train it here, or merge it into its model with peft";

/// adapter_config.json of an adapter's folder.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AdapterConfig {
    /// How it was trained. What the file does not say of it is as by default: an adapter of the embedding is among the keys, and
    /// the type is that of the tensors.
    pub method: Method,
}

#[derive(Serialize, Deserialize)]
struct File {
    /// Files of mlx_lm from before DoRA do not say.
    #[serde(default)]
    fine_tune_type: FineTuneType,
    /// How many of the last blocks have adapters; 0 or less means all.
    num_layers: Option<i64>,
    lora_parameters: Option<LoraParameters>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum FineTuneType {
    #[default]
    Lora,
    Dora,
    Full,
}

#[derive(Serialize, Deserialize)]
struct LoraParameters {
    rank: usize,
    scale: f32,
    dropout: f32,
    keys: Option<Vec<String>>,
}

impl AdapterConfig {
    /// The configuration of what was trained with `method` on a model of `blocks` blocks. `keys` are the layers that have adapters,
    /// as the model has them; they are written out, so that every reader adapts the same ones.
    #[must_use]
    pub fn new(method: &Method, blocks: usize, keys: Vec<String>) -> Self {
        let layers = Some(method.layers().unwrap_or(blocks));
        let adapted =
            |adapter: &AdapterOptions| AdapterOptions { keys: Some(keys), layers, ..adapter.clone() };
        let method = match method {
            Method::Lora(adapter) => Method::Lora(adapted(adapter)),
            Method::Dora(adapter) => Method::Dora(adapted(adapter)),
            Method::Full(full) => Method::Full(FullOptions { layers, ..full.clone() }),
        };
        Self { method }
    }

    /// Reads adapter_config.json of an adapter's folder. Fields that do not change how it is applied are ignored.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the key that is missing or makes no sense; [`Error::Io`] if the file is unreadable.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG);
        let value = read_value(&path, LONGEST_CONFIG)?;
        if value.get("peft_type").is_some() {
            return Err(Error::invalid_key(path, "peft_type", PEFT));
        }
        let wrong = |key: &str, reason: String| Error::invalid_key(&path, key, reason);
        let File { fine_tune_type, num_layers, lora_parameters } = from_value(&path, &value)?;
        let layers = num_layers.filter(|layers| *layers > 0).and_then(|layers| usize::try_from(layers).ok());
        let adapter = |kind: &str| {
            let Some(LoraParameters { rank, scale, dropout, keys }) = lora_parameters else {
                let reason =
                    format!("is missing, and fine_tune_type is {kind:?}: expected rank, scale and dropout");
                return Err(wrong("lora_parameters", reason));
            };
            if num_layers.is_none() {
                return Err(wrong(
                    "num_layers",
                    "is missing, expected the number of adapted blocks".to_owned(),
                ));
            }
            Ok(AdapterOptions {
                keys,
                layers,
                ..AdapterOptions::new().rank(rank).scale(scale).dropout(dropout)
            })
        };
        let method = match fine_tune_type {
            FineTuneType::Lora => Method::Lora(adapter("lora")?),
            FineTuneType::Dora => Method::Dora(adapter("dora")?),
            FineTuneType::Full => Method::Full(FullOptions { layers, ..FullOptions::new() }),
        };
        match method.validate() {
            Err(Error::InvalidOption { option, reason, .. }) => {
                Err(wrong(&format!("lora_parameters.{option}"), reason))
            }
            Err(error) => Err(error),
            Ok(()) => Ok(Self { method }),
        }
    }

    /// Writes adapter_config.json into a folder.
    ///
    /// # Errors
    /// [`Error::Io`]: the file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(CONFIG);
        let (fine_tune_type, adapter) = match &self.method {
            Method::Lora(adapter) => (FineTuneType::Lora, Some(adapter)),
            Method::Dora(adapter) => (FineTuneType::Dora, Some(adapter)),
            Method::Full(_) => (FineTuneType::Full, None),
        };
        let file = File {
            fine_tune_type,
            num_layers: Some(self.method.layers().map_or(-1, |layers| layers as i64)),
            lora_parameters: adapter.map(|adapter| LoraParameters {
                rank: adapter.rank,
                scale: adapter.scale,
                dropout: adapter.dropout,
                keys: adapter.keys.clone(),
            }),
        };
        let text =
            serde_json::to_string_pretty(&file).map_err(|error| Error::io("write", &path, error.into()))?;
        fs::write(&path, text + "\n").map_err(|source| Error::io("write", path, source))
    }
}
