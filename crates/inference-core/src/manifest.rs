//! What a model's folder says about itself, read from its config and tensor headers alone.

mod compressed;
mod config;
mod context;
mod estimate;
mod fingerprint;
mod generation;
mod gguf;
mod layers;
mod layout;
mod packed;
mod quantization;
mod read;
mod shards;
mod side_parts;
mod unpacked;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use self::{
    config::Config,
    gguf::Form,
    layout::{Layout, look},
    quantization::Settings,
};
pub use self::{
    estimate::MemoryEstimate,
    generation::GenerationConfig,
    layers::LayerKind,
    quantization::{QuantMode, Quantization},
    side_parts::SidePart,
};
pub(crate) use self::{
    gguf::{TEXT_FILES, metadata, models, text_file},
    read::read_tensor,
    shards::INDEX,
};
use crate::{
    Dtype, Error, Result,
    files::{from_value, read_value},
    safetensors::{TensorInfo, most_floats},
};

/// The longest config.json, in bytes; published ones stay under 100 kB. In memory, JSON can take twenty times its
/// length.
const LONGEST_CONFIG: u64 = 4 << 20;

/// The `model_type`s of encoders.
const ENCODERS: [&str; 7] =
    ["bert", "distilbert", "modernbert", "mpnet", "nomic_bert", "roberta", "xlm-roberta"];

/// A folder in the published layout, config.json and safetensors files, or a GGUF file. Nothing of the weights is read. What they
/// say is parsed and checked here once, for backends and programs alike.
///
/// Matrices of GPTQ, AWQ and block-scaled FP8 are shown in the form that MLX computes with. A GGUF file is shown as the folder that
/// it was made of: config.json and the tensors have the form that transformers and MLX know. A folder that holds one GGUF model and
/// no safetensors is that model.
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
    no_safetensors: Option<&'static str>,
    /// Why there are no tensors here, though the files may have some.
    unread: Option<String>,
    /// The GGUF file, or the first of several.
    gguf: Option<PathBuf>,
    /// The type of the activations, where the tensors do not decide it.
    float: Option<Dtype>,
}

impl ModelManifest {
    /// Reads the folder's config and tensor headers.
    ///
    /// A folder without safetensors files, and a GGUF file of a family that is not known here, are read as far as they go: without
    /// tensors, without config where there is none. [`unread`](Self::unread) then says why, and a backend that reads that format
    /// can say that it [supports](crate::backend::Backend::supports) it.
    ///
    /// A config that asks for code from the folder to be run is refused. `auto_map` is allowed where it names the modules of
    /// the architecture itself (`modeling_phi3` for `phi3`): that is code which a backend that knows the `model_type`
    /// replaces.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the file and the key at fault and what to do; [`Error::Io`] if one is unreadable.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let other = match look(&path)? {
            Layout::Published => None,
            Layout::Gguf(file) => return Self::of_gguf(path, &file, Form::Packed),
            Layout::Other { reason, files } => Some((reason, files)),
        };
        let mut manifest = Self {
            config: Value::Object(Map::new()),
            model_type: String::new(),
            quantization: None,
            generation: GenerationConfig::default(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            no_safetensors: None,
            unread: None,
            gguf: None,
            float: None,
            path,
        };
        if manifest.path.is_dir() {
            manifest.read_config()?;
        }
        match other {
            None => {
                (manifest.files, manifest.tensors) = shards::read(&manifest.path)?;
                manifest.unpack()?;
            }
            Some((reason, files)) => {
                (manifest.no_safetensors, manifest.files) = (Some(reason), files);
                manifest.unread = Some(reason.to_owned());
            }
        }
        Ok(manifest)
    }

    /// Puts what other programs quantised into MLX's form, where it has one; else says why not.
    fn unpack(&mut self) -> Result<()> {
        let Some(settings) = &self.quantization else { return Ok(()) };
        let path = self.config_path();
        let unpacked = match packed::unpack(&path, &self.config, &self.files, &self.tensors, settings) {
            Ok(None) => return Ok(()),
            Ok(Some(unpacked)) => unpacked,
            Err(error) => {
                self.unread = Some(error.to_string());
                return Ok(());
            }
        };
        if let Value::Object(config) = &mut self.config {
            config.remove(&settings.key);
            if let Some(quantization) = unpacked.quantization {
                config.insert("quantization".to_owned(), quantization);
            }
        }
        (self.tensors, self.float) = (unpacked.tensors, unpacked.float);
        self.quantization = quantization::read(&Config::new(&path, &self.config))?;
        Ok(())
    }

    fn of_gguf(path: PathBuf, file: &Path, form: Form) -> Result<Self> {
        let model = gguf::read(file, form)?;
        Ok(Self {
            config: model.config,
            model_type: model.model_type,
            quantization: model.quantization,
            generation: model.generation,
            files: model.files,
            tensors: model.tensors,
            no_safetensors: Some(
                "has its weights in GGUF: `inference convert --keep` writes them as safetensors",
            ),
            unread: model.unread,
            gguf: Some(file.to_owned()),
            float: model.float,
            path,
        })
    }

    /// The same model with every matrix in full, in single precision, where a GGUF file has it quantised; any other as it is.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn in_full(&self) -> Result<Self> {
        match &self.gguf {
            Some(file) => Self::of_gguf(self.path.clone(), file, Form::Full),
            None => Ok(self.clone()),
        }
    }

    /// Reads config.json and generation_config.json, where there are any.
    fn read_config(&mut self) -> Result<()> {
        let path = self.config_path();
        if fs::symlink_metadata(&path).is_err() {
            return Ok(());
        }
        let config = read_value(&path, LONGEST_CONFIG)?;
        if !config.is_object() {
            return Err(Error::invalid_file(path, "is no JSON object, expected a model's configuration"));
        }
        let reader = Config::new(&path, &config);
        reader.model_type()?.clone_into(&mut self.model_type);
        reader.refuse_code(&self.model_type)?;
        self.quantization = quantization::read(&reader)?;
        self.generation = GenerationConfig::read(&self.path)?;
        self.config = config;
        Ok(())
    }

    /// Why the model has no safetensors weights, where it has none: a reason for
    /// [`Support::No`](crate::backend::Support::No) of a backend that reads safetensors only.
    #[must_use]
    pub fn no_safetensors(&self) -> Option<&str> {
        self.no_safetensors
    }

    /// Why the [`tensors`](Self::tensors) are none, or not in a form of MLX's: the files are of a format, a GGUF file of a family, or
    /// quantised in a way that is not known here. It is a reason for [`Support::No`](crate::backend::Support::No) of a backend that reads tensors by this manifest.
    #[must_use]
    pub fn unread(&self) -> Option<&str> {
        self.unread.as_deref()
    }

    /// Whether the weights lie in GGUF files.
    #[must_use]
    pub fn is_gguf(&self) -> bool {
        self.gguf.is_some()
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

    /// The folder, or the GGUF file.
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

    /// The path of config.json, for errors about it; of a GGUF file its own.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.gguf.clone().unwrap_or_else(|| self.path.join("config.json"))
    }

    /// The architecture's name: `model_type` of config.json.
    #[must_use]
    pub fn model_type(&self) -> &str {
        &self.model_type
    }

    /// Whether the model reads texts as a whole and generates none: it makes embeddings, or scores pairs of texts.
    #[must_use]
    pub fn is_encoder(&self) -> bool {
        ENCODERS.contains(&self.model_type())
            || self.config.get("use_bidirectional_attention").is_some_and(|both| *both == Value::Bool(true))
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

    /// `quant_method` of `quantization_config`, as the publisher wrote it: `gptq`, `awq`, …. `None` where config.json has MLX's own
    /// quantisation, or none.
    #[must_use]
    pub fn quant_method(&self) -> Option<&str> {
        self.quantization.as_ref()?.method.as_deref()
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
            (Some(Some(own)), true) => Ok(Some(*own)),
            (None, true) => Ok(Some(settings.default)),
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

    /// The floating-point type that activations take: the one that most bytes of the tensors have, and single precision for what
    /// is quantised in GGUF. `None` where there is none.
    #[must_use]
    pub fn float_dtype(&self) -> Option<Dtype> {
        self.float.or_else(|| most_floats(&self.tensors))
    }

    /// The tokens that the model was made for, prompt and answer together: `max_position_embeddings` of config.json or of
    /// its `text_config`, or an older name of it, times the factor by which `rope_scaling` stretches the positions (linear,
    /// dynamic, yarn). `None` where config.json leaves it to the architecture.
    ///
    /// Rotary embeddings have no last position: [`LoadOptions::context_length`](crate::LoadOptions::context_length) may ask for
    /// more, as with transformers and mlx_lm, and answers get worse.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] if it is no whole number from 1 to 2³¹ − 1.
    pub fn context_length(&self) -> Result<Option<usize>> {
        let path = self.config_path();
        context::length(&Config::new(&path, &self.config), &self.model_type)
    }

    /// What each layer remembers of a text. `None` where config.json does not say how many layers there are.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the key of config.json that makes no sense.
    pub fn layer_kinds(&self) -> Result<Option<Vec<LayerKind>>> {
        let path = self.config_path();
        let layers = self.layers()?.filter(|layers| *layers <= self.tensors.len());
        layers.map(|layers| layers::kinds(&Config::new(&path, &self.config), layers)).transpose()
    }

    /// The ids of the vocabulary: `vocab_size` of config.json or of its `text_config`. `None` where it does not say.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] if it is no whole number from 1 to 2³¹ − 1.
    pub fn vocab_size(&self) -> Result<Option<usize>> {
        self.count(&["vocab_size", "padded_vocab_size", "n_vocab"])
    }

    /// The width of the residual stream: `hidden_size` of config.json or of its `text_config`. `None` where it does not say.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] if it is no whole number from 1 to 2³¹ − 1.
    pub fn hidden_size(&self) -> Result<Option<usize>> {
        self.count(&["hidden_size", "n_embd", "d_model", "model_dim", "hidden_dim", "dim"])
    }

    /// The model's blocks: `num_hidden_layers` of config.json or of its `text_config`. `None` where it does not say.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] if it is no whole number from 1 to 2³¹ − 1.
    pub fn layers(&self) -> Result<Option<usize>> {
        self.count(&["num_hidden_layers", "n_layers", "n_layer", "num_layers"])
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

    /// The files of the weights, in order.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Every tensor by name.
    #[must_use]
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The bytes of one of its [`tensors`](Self::tensors), little-endian, for engines that hold a tensor as a whole.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), and [`Error::InvalidModel`](crate::Error::InvalidModel) where the file has changed.
    pub fn read_tensor(&self, tensor: &TensorInfo) -> Result<Vec<u8>> {
        read_tensor(&self.files, tensor)
    }

    /// Bytes of all tensors in memory.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.tensors.values().map(TensorInfo::bytes).fold(0, u64::saturating_add)
    }

    fn count(&self, names: &[&str]) -> Result<Option<usize>> {
        let path = self.config_path();
        Config::new(&path, &self.config).count(names)
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
                let bits =
                    self.quantization_of(layer).ok().flatten().map_or(32, |setting| setting.bits.max(1));
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
