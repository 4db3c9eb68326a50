//! What a model's folder says about itself, read from its config and tensor headers alone.

mod config;
mod estimate;
mod fingerprint;
mod generation;
mod quantization;
mod shards;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use serde_json::Value;

pub(crate) use self::shards::INDEX;
use self::{config::Config, quantization::Settings};
pub use self::{estimate::MemoryEstimate, generation::GenerationConfig};
use crate::{
    Dtype, Error, KvBits, Quantization, Result,
    files::{from_value, read_json},
    safetensors::TensorInfo,
};

/// The longest config.json, in bytes; published ones stay under 100 kB. In memory, JSON can take twenty times its
/// length.
const LONGEST_CONFIG: u64 = 4 << 20;

/// A folder in the published layout: config.json and safetensors files. Nothing of the weights is read.
///
/// The tensors are those of the files that `model.safetensors.index.json` names; without an index those of
/// `model.safetensors`; without that those of every `model*.safetensors`.
#[derive(Debug, Clone)]
pub struct ModelManifest {
    path: PathBuf,
    config: Value,
    model_type: String,
    quantization: Option<Settings>,
    generation: GenerationConfig,
    files: Vec<PathBuf>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl ModelManifest {
    /// Reads the folder's config and tensor headers.
    ///
    /// A config that asks for code from the folder to be run, or for a quantisation that no backend here can read, is
    /// refused. `auto_map` is allowed where it names the modules of the architecture itself (`modeling_phi3` for `phi3`):
    /// that is code which a backend that knows the `model_type` replaces.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the file and the key at fault and what to do; [`Error::Io`] if one is unreadable.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().to_owned();
        check_folder(&path)?;
        let config_path = path.join("config.json");
        let config: Value = read_json(&config_path, LONGEST_CONFIG)?;
        if !config.is_object() {
            return Err(Error::invalid_file(
                config_path,
                "is no JSON object, expected a model's configuration",
            ));
        }
        let reader = Config::new(&config_path, &config);
        let model_type = reader.model_type()?.to_owned();
        reader.refuse_code(&model_type)?;
        let quantization = quantization::read(&reader)?;
        let generation = GenerationConfig::read(&path)?;
        let (files, tensors) = shards::read(&path)?;
        Ok(Self { path, config, model_type, quantization, generation, files, tensors })
    }

    /// The model with these tensors of a safetensors file, such as a full training's, in place of its own.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names one that the model has not, or in another shape.
    pub fn with_tensors(mut self, file: PathBuf, tensors: &BTreeMap<String, TensorInfo>) -> Result<Self> {
        for (name, tensor) in tensors {
            match self.tensors.get_mut(name) {
                Some(own) if own.shape == tensor.shape => {
                    *own = TensorInfo { file: self.files.len(), ..tensor.clone() };
                }
                Some(own) => {
                    let reason = format!("has shape {:?}, the model's own {:?}", tensor.shape, own.shape);
                    return Err(Error::invalid_key(file, name, reason));
                }
                None => return Err(Error::invalid_key(file, name, "is no tensor of the model")),
            }
        }
        self.files.push(file);
        Ok(self)
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// config.json as it stands: an object.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// config.json as a type; unknown keys are the type's affair.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] with the key at fault and serde's reason.
    pub fn parse_config<T: DeserializeOwned>(&self) -> Result<T> {
        from_value(&self.config_path(), &self.config)
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

    /// generation_config.json: the sampling values that the model's publisher recommends. All unset where there is none.
    #[must_use]
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.generation
    }

    /// The ids that end a text: `eos_token_id` of generation_config.json, else of config.json or its `text_config`. Empty where
    /// neither has it.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] if it is neither a token id nor a list of token ids.
    pub fn eos_token_ids(&self) -> Result<Vec<u32>> {
        if let Some(ids) = &self.generation.eos_token_ids {
            return Ok(ids.clone());
        }
        let path = self.config_path();
        Ok(Config::new(&path, &self.config).ids("eos_token_id")?.unwrap_or_default())
    }

    /// The default quantisation, where config.json has one (`quantization`, else `quantization_config`).
    #[must_use]
    pub fn quantization(&self) -> Option<&Quantization> {
        self.quantization.as_ref().map(|settings| &settings.default)
    }

    /// How one layer, such as `model.layers.0.self_attn.q_proj`, is quantised; `None` if it is not.
    ///
    /// A layer is quantised if the files hold its `.scales`. How, is what config.json says of that layer, else its default.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] if config.json and the tensors disagree on whether it is.
    pub fn quantization_of(&self, layer: &str) -> Result<Option<Quantization>> {
        let holds = |part: &str| self.tensors.contains_key(&format!("{layer}.{part}"));
        let invalid = |key: String, reason: String| Err(Error::invalid_key(self.config_path(), key, reason));
        let Some(settings) = &self.quantization else {
            if holds("scales") {
                let reason = format!("is missing, but the files hold {layer:?} with scales, as quantised");
                return invalid("quantization".to_owned(), reason);
            }
            return Ok(None);
        };
        match (settings.layers.get(layer), holds("scales")) {
            (Some(Some(own)), true) => Ok(Some(own.clone())),
            (None, true) => Ok(Some(settings.default.clone())),
            (Some(None), true) => {
                let reason = "is false, but the files hold its scales, as quantised";
                invalid(format!("{}.{layer}", settings.key), reason.to_owned())
            }
            (Some(Some(_)), false) if holds("weight") => {
                let reason = "says how it is quantised, but the files hold its weight without scales";
                invalid(format!("{}.{layer}", settings.key), reason.to_owned())
            }
            (_, false) => Ok(None),
        }
    }

    /// The element type of weights that are not quantised: `dtype` or `torch_dtype` of config.json, else the type that
    /// most bytes of floating-point tensors have. `None` if there are none.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] if config.json names no known type.
    pub fn dtype(&self) -> Result<Option<Dtype>> {
        let path = self.config_path();
        Ok(Config::new(&path, &self.config).dtype()?.or_else(|| self.stored_dtype()))
    }

    /// The tokens that the model was made for, prompt and answer together: `max_position_embeddings` of config.json or of
    /// its `text_config`, or an older name of it. `None` where config.json leaves it to the architecture.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] if it is no whole number from 1 to 2³¹ − 1.
    pub fn context_length(&self) -> Result<Option<usize>> {
        let path = self.config_path();
        let names = ["max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx"];
        Config::new(&path, &self.config).count(&names)
    }

    /// The model's blocks: `num_hidden_layers` of config.json or of its `text_config`. `None` where it does not say.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] if it is no whole number from 1 to 2³¹ − 1.
    pub fn layers(&self) -> Result<Option<usize>> {
        let path = self.config_path();
        Config::new(&path, &self.config).count(&["num_hidden_layers", "n_layer", "num_layers"])
    }

    /// The shape of a layer's weight, such as `model.layers.0.self_attn.q_proj`'s, before quantisation: [outputs, inputs], of
    /// experts [experts, outputs, inputs]. `None` where the files hold no weight of that name.
    ///
    /// # Errors
    /// As [`quantization_of`](Self::quantization_of).
    pub fn weight_shape(&self, layer: &str) -> Result<Option<Vec<usize>>> {
        let Some(weight) = self.tensors.get(&format!("{layer}.weight")) else { return Ok(None) };
        let mut shape = weight.shape.clone();
        if let (Dtype::U32, Some(packed), Some(quantization)) =
            (weight.dtype, shape.last_mut(), self.quantization_of(layer)?)
        {
            *packed = packed.saturating_mul(32) / (quantization.bits.max(1) as usize);
        }
        Ok(Some(shape))
    }

    /// The weights of the model before quantisation, by the tensors' shapes: a word that packs eight 4-bit weights counts
    /// as eight, and scales and biases of a quantisation as none.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        let parameters = self.tensors.iter().map(|(name, tensor)| self.parameters_of(name, tensor));
        parameters.fold(0, u64::saturating_add)
    }

    /// The bytes needed to run `batch` texts of `context` tokens each, with keys and values in so many bits, or as they are
    /// computed.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the key of config.json that is missing or makes no sense; [`Error::InvalidOption`] if
    /// `context` or `batch` is zero or beyond what 64 bits count, or heads cannot be quantised.
    pub fn estimate(&self, context: usize, batch: usize, kv_bits: Option<KvBits>) -> Result<MemoryEstimate> {
        estimate::estimate(self, context, batch, kv_bits)
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
        self.tensors.values().map(TensorInfo::bytes).fold(0, u64::saturating_add)
    }

    /// The type that most bytes of floating-point tensors have, which is the one that activations take.
    fn stored_dtype(&self) -> Option<Dtype> {
        let mut bytes = BTreeMap::new();
        for tensor in self.tensors.values().filter(|tensor| tensor.dtype.is_float()) {
            *bytes.entry(tensor.dtype).or_insert(0) += tensor.bytes();
        }
        bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(dtype, _)| dtype)
    }

    fn parameters_of(&self, name: &str, tensor: &TensorInfo) -> u64 {
        let packed = |layer: &str| {
            let weight = self.tensors.get(&format!("{layer}.weight"));
            let scales = self.tensors.contains_key(&format!("{layer}.scales"));
            scales && weight.is_some_and(|weight| weight.dtype == Dtype::U32)
        };
        let stored = tensor.elements();
        let (layer, part) = name.rsplit_once('.').unwrap_or(("", name));
        match part {
            "weight" if packed(layer) => {
                let bits = self.quantization_of(layer).ok().flatten().map_or(32, |setting| setting.bits);
                stored.saturating_mul(32) / u64::from(bits)
            }
            "scales" | "biases" if packed(layer) => 0,
            // The layout of mxfp4 experts before MLX packs them: two weights in a byte, beside their scales.
            _ => match name.strip_suffix("_blocks").map(|stem| format!("{stem}_scales")) {
                Some(scales) if self.tensors.contains_key(&scales) => stored.saturating_mul(2),
                _ => match name.strip_suffix("_scales").map(|stem| format!("{stem}_blocks")) {
                    Some(blocks) if self.tensors.contains_key(&blocks) => 0,
                    _ => stored,
                },
            },
        }
    }
}

/// Says what is wrong with a path that cannot be a model's folder, before its parts are looked for.
fn check_folder(path: &Path) -> Result<()> {
    let metadata = fs::metadata(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => {
            let reason = "does not exist: give the folder of a model, for example one made by \
                          `hf download ORGANISATION/NAME --local-dir FOLDER`";
            Error::invalid_file(path, reason)
        }
        _ => Error::io("read", path, source),
    })?;
    if !metadata.is_dir() {
        let reason = "is no folder: give the folder that holds config.json and the safetensors files";
        return Err(Error::invalid_file(path, reason));
    }
    let config = fs::symlink_metadata(path.join("config.json"));
    if config.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        let reason = if path.join("snapshots").is_dir() {
            "is an entry of a Hugging Face cache: give one of the folders in its snapshots/"
        } else {
            shards::other_formats(path).unwrap_or("has no config.json: give the folder of a model")
        };
        return Err(Error::invalid_file(path, reason));
    }
    Ok(())
}
