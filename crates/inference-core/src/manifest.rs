//! What a model's folder says about itself, read from its config and tensor headers alone.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{Error, Quantization, Result, files::read_json, safetensors, safetensors::TensorInfo};

/// A folder in the published layout: config.json and safetensors files. Nothing of the weights is read.
#[derive(Debug, Clone)]
pub struct ModelManifest {
    path: PathBuf,
    config: Value,
    model_type: String,
    quantization: Option<Quantization>,
    files: Vec<PathBuf>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl ModelManifest {
    /// Reads the folder's config and tensor headers.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the file and the key at fault.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().to_owned();
        let config_path = path.join("config.json");
        let config: Value = read_json(&config_path, 16 << 20)?;
        let Some(model_type) = config.get("model_type").and_then(Value::as_str).map(str::to_owned) else {
            return Err(Error::invalid_key(
                config_path,
                "model_type",
                "is missing, expected the architecture's name",
            ));
        };
        let quantization = read_quantization(&config, &config_path)?;
        let files = find_files(&path)?;
        let mut tensors = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            tensors.extend(safetensors::read_header(file, index)?);
        }
        Ok(Self { path, config, model_type, quantization, files, tensors })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// config.json as it stands.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// config.json as a type; unknown keys are the type's affair.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] with serde's reason.
    pub fn parse_config<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(&self.config)
            .map_err(|error| Error::invalid_file(self.config_path(), error.to_string()))
    }

    /// The path of config.json, for errors about it.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// The architecture's name: `model_type` of config.json.
    #[must_use]
    pub fn model_type(&self) -> &str {
        &self.model_type
    }

    /// The default quantisation, where config.json has one.
    #[must_use]
    pub fn quantization(&self) -> Option<&Quantization> {
        self.quantization.as_ref()
    }

    /// The safetensors files, in order.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Every tensor by name.
    #[must_use]
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// Bytes of all tensors as stored.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.tensors.values().map(|tensor| tensor.range.end - tensor.range.start).sum()
    }
}

fn read_quantization(config: &Value, path: &Path) -> Result<Option<Quantization>> {
    let Some((key, value)) =
        ["quantization", "quantization_config"].iter().find_map(|key| Some((key, config.get(key)?)))
    else {
        return Ok(None);
    };
    let number = |field: &str, default: u32| match value.get(field) {
        None => Ok(default),
        Some(n) => n.as_u64().and_then(|n| u32::try_from(n).ok()).ok_or_else(|| {
            Error::invalid_key(path, format!("{key}.{field}"), format!("{n}, expected a whole number"))
        }),
    };
    let mode = value.get("mode").and_then(Value::as_str).unwrap_or("affine");
    Ok(Some(Quantization::new(number("bits", 4)?, number("group_size", 64)?, mode)))
}

fn find_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let index_path = folder.join("model.safetensors.index.json");
    if index_path.exists() {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let index: Index = read_json(&index_path, 64 << 20)?;
        let names: std::collections::BTreeSet<_> = index.weight_map.into_values().collect();
        return Ok(names.into_iter().map(|name| folder.join(name)).collect());
    }
    let entries = std::fs::read_dir(folder).map_err(|source| Error::io("read", folder, source))?;
    let mut files: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("model")))
        .collect();
    files.sort();
    if files.is_empty() {
        return Err(Error::invalid_file(folder, "has no model*.safetensors"));
    }
    Ok(files)
}
