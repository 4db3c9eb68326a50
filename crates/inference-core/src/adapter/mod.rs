//! What an adapter's folder says about itself: adapter_config.json and the header of adapters.safetensors, held against
//! the model that it is for. Nothing of the weights is read.

mod config;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

pub use self::config::AdapterConfig;
use crate::{
    Dtype, Error, ModelManifest, Result,
    safetensors::{TensorInfo, read_tensors},
    train::Method,
};

/// The name of an adapter's weights in its folder.
pub const ADAPTER_FILE: &str = "adapters.safetensors";

/// An adapter's folder in mlx_lm's format, checked against a model.
///
/// Of low-rank adapters every `lora_a` has its `lora_b`, of the configured rank, of floating-point numbers, in a block and
/// layer that the configuration names; DoRA's have their `m`. The tensors of a full training are the model's own. Shapes are
/// checked for layers that the model's files hold under the same name; a backend checks those that it renames.
#[derive(Debug, Clone)]
pub struct AdapterManifest {
    path: PathBuf,
    config: AdapterConfig,
    tensors: BTreeMap<String, TensorInfo>,
    layers: Vec<AdaptedLayer>,
}

/// One layer with a low-rank adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdaptedLayer {
    /// The layer: `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// The width of what goes in; of an embedding the number of its tokens.
    pub inputs: usize,
    /// The width of what comes out.
    pub outputs: usize,
    /// Its experts, where it is a layer of experts: A is [experts, rank, inputs] and B [experts, outputs, rank] then.
    pub experts: Option<usize>,
}

impl AdapterManifest {
    /// Reads the folder's configuration and tensor header, and checks them against the model.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the file and the key or tensor at fault, with what was found and expected; [`Error::Io`]
    /// if a file is missing or unreadable.
    pub fn read(folder: impl AsRef<Path>, model: &ModelManifest) -> Result<Self> {
        let path = folder.as_ref().to_owned();
        check_folder(&path)?;
        let config = AdapterConfig::read(&path)?;
        let tensors = read_tensors(path.join(ADAPTER_FILE))?;
        let mut manifest = Self { path, config, tensors, layers: Vec::new() };
        manifest.check_tensors()?;
        match manifest.config.method {
            Method::Lora(_) | Method::Dora(_) => manifest.layers = manifest.read_layers(model)?,
            Method::Full(_) => manifest.check_weights(model)?,
        }
        Ok(manifest)
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file with the weights.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.path.join(ADAPTER_FILE)
    }

    /// adapter_config.json.
    #[must_use]
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// Every tensor by name.
    #[must_use]
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The layers with low-rank adapters; none after a full training.
    #[must_use]
    pub fn layers(&self) -> &[AdaptedLayer] {
        &self.layers
    }

    /// The numbers that were trained.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.tensors.values().map(TensorInfo::elements).fold(0, u64::saturating_add)
    }

    fn check_tensors(&self) -> Result<()> {
        if self.tensors.is_empty() {
            return Err(Error::invalid_file(self.file(), "holds no tensors, expected an adapter's"));
        }
        match self.tensors.iter().find(|(_, tensor)| !tensor.dtype.is_float() || tensor.dtype == Dtype::F64) {
            Some((name, tensor)) => {
                self.invalid(name, format!("has type {}, expected f32, bf16 or f16", tensor.dtype))
            }
            None => Ok(()),
        }
    }

    fn read_layers(&self, model: &ModelManifest) -> Result<Vec<AdaptedLayer>> {
        let dora = matches!(self.config.method, Method::Dora(_));
        let mut layers = Vec::new();
        for (name, tensor) in &self.tensors {
            let Some((path, part)) = name.rsplit_once('.') else {
                return self
                    .invalid(name, "expected a name that ends in .lora_a or .lora_b")
                    .map(|()| vec![]);
            };
            let sibling = |part: &str| self.tensors.get(&format!("{path}.{part}"));
            match (part, sibling("lora_a"), sibling("lora_b")) {
                ("lora_a", _, Some(b)) => {
                    let layer = self.layer(path, tensor, b)?;
                    self.check_place(name, path, model)?;
                    self.check_layer(&layer, model)?;
                    if dora {
                        self.check_magnitude(&layer, sibling("m"))?;
                    }
                    layers.push(layer);
                }
                ("lora_a", _, None) => self.invalid(name, "has no lora_b beside it")?,
                ("lora_b", None, _) => self.invalid(name, "has no lora_a beside it")?,
                ("lora_b", Some(_), _) => {}
                ("m", Some(_), Some(_)) if dora => {}
                ("m", ..) if !dora => {
                    self.invalid(name, "is DoRA's magnitude, but fine_tune_type is \"lora\"")?;
                }
                _ => self.invalid(name, "is no part of a low-rank adapter: lora_a, lora_b, with DoRA m")?,
            }
        }
        Ok(layers)
    }

    /// The layer that A and B describe.
    fn layer(&self, path: &str, a: &TensorInfo, b: &TensorInfo) -> Result<AdaptedLayer> {
        let rank = self.config.method.adapter().map_or(0, |adapter| adapter.rank);
        let (inputs, outputs, experts) = match (a.shape.as_slice(), b.shape.as_slice()) {
            (&[inputs, r], &[s, outputs]) if r == rank && s == rank => (inputs, outputs, None),
            (&[experts, r, inputs], &[n, outputs, s]) if r == rank && s == rank && n == experts => {
                (inputs, outputs, Some(experts))
            }
            (a, b) => {
                let reason = format!(
                    "lora_a has shape {a:?} and lora_b {b:?}, expected [inputs, {rank}] and [{rank}, outputs], with \
                     experts [experts, {rank}, inputs] and [experts, outputs, {rank}]"
                );
                return Err(Error::invalid_key(self.file(), path, reason));
            }
        };
        if inputs == 0 || outputs == 0 || experts == Some(0) {
            return Err(Error::invalid_key(self.file(), path, "has a dimension of 0"));
        }
        Ok(AdaptedLayer { path: path.to_owned(), inputs, outputs, experts })
    }

    /// That the configuration names the layer: mlx_lm would leave the tensor unused.
    fn check_place(&self, name: &str, path: &str, model: &ModelManifest) -> Result<()> {
        let Some(adapter) = self.config.method.adapter() else { return Ok(()) };
        let Some((block, key)) = block_of(path) else {
            let named = adapter.keys.as_ref().is_some_and(|keys| keys.iter().any(|key| key == path));
            return if named {
                Ok(())
            } else {
                self.invalid(name, "is of a layer outside the blocks that lora_parameters.keys does not name")
            };
        };
        if let Some(blocks) = model.layers()? {
            let first = adapter.layers.map_or(0, |layers| blocks.saturating_sub(layers));
            if !(first..blocks).contains(&block) {
                return self
                    .invalid(name, format!("is of block {block}, expected from {first} to {}", blocks - 1));
            }
        }
        match &adapter.keys {
            Some(keys) if !keys.iter().any(|known| known == key || known == path) => {
                self.invalid(name, format!("is of a layer that lora_parameters.keys does not name: {key}"))
            }
            _ => Ok(()),
        }
    }

    fn check_layer(&self, layer: &AdaptedLayer, model: &ModelManifest) -> Result<()> {
        let Some(shape) = model.weight_shape(&layer.path)? else { return Ok(()) };
        let embedding = layer.path.ends_with("embed_tokens");
        let fits = match *shape.as_slice() {
            [tokens, width] if embedding => {
                (layer.inputs, layer.outputs, layer.experts) == (tokens, width, None)
            }
            [outputs, inputs] => (layer.inputs, layer.outputs, layer.experts) == (inputs, outputs, None),
            [experts, outputs, inputs] => {
                (layer.inputs, layer.outputs, layer.experts) == (inputs, outputs, Some(experts))
            }
            _ => false,
        };
        if fits {
            return Ok(());
        }
        let reason = format!(
            "adapts {} inputs to {} outputs{}, but the model's weight has shape {shape:?}: it is another model's adapter",
            layer.inputs,
            layer.outputs,
            layer.experts.map_or(String::new(), |experts| format!(" of {experts} experts")),
        );
        self.invalid(&layer.path, reason)
    }

    fn check_magnitude(&self, layer: &AdaptedLayer, m: Option<&TensorInfo>) -> Result<()> {
        let Some(m) = m else { return self.invalid(&layer.path, "has no m, which DoRA needs") };
        if layer.experts.is_some() {
            return self.invalid(&layer.path, "is a layer of experts, which DoRA does not adapt");
        }
        let rows = if layer.path.ends_with("embed_tokens") { layer.inputs } else { layer.outputs };
        if m.shape != [rows] {
            let reason = format!("has shape {:?}, expected [{rows}]", m.shape);
            return self.invalid(&format!("{}.m", layer.path), reason);
        }
        Ok(())
    }

    /// That the tensors of a full training are weights of the model.
    fn check_weights(&self, model: &ModelManifest) -> Result<()> {
        for (name, tensor) in &self.tensors {
            let Some(own) = model.tensors().get(name) else { continue };
            if !own.dtype.is_float() {
                let reason =
                    format!("is {} in the model, quantised: there is no weight to replace", own.dtype);
                return self.invalid(name, reason);
            }
            if own.shape != tensor.shape {
                let reason = format!("has shape {:?}, the model's own {:?}", tensor.shape, own.shape);
                return self.invalid(name, reason);
            }
        }
        Ok(())
    }

    fn invalid(&self, key: &str, reason: impl Into<String>) -> Result<()> {
        Err(Error::invalid_key(self.file(), key, reason))
    }
}

/// The block that a layer is in and its name there: `(0, "self_attn.q_proj")` for `model.layers.0.self_attn.q_proj`.
fn block_of(path: &str) -> Option<(usize, &str)> {
    let (_, place) =
        path.split_once("layers.").filter(|(before, _)| before.is_empty() || before.ends_with('.'))?;
    let (block, key) = place.split_once('.')?;
    Some((block.parse().ok()?, key))
}

/// Says what is wrong with a path that cannot be an adapter's folder, before its files are looked for.
fn check_folder(path: &Path) -> Result<()> {
    let metadata = fs::metadata(path).map_err(|source| Error::io("read", path, source))?;
    let holds = |name: &str| path.join(name).exists();
    let reason = if !metadata.is_dir() {
        "is no folder: give the folder that holds adapter_config.json and adapters.safetensors"
    } else if !holds(ADAPTER_FILE) && (holds("adapter_model.safetensors") || holds("adapter_model.bin")) {
        config::PEFT
    } else if !holds(ADAPTER_FILE) && holds("config.json") {
        "is a model's folder, expected an adapter's: give it as the model"
    } else {
        return Ok(());
    };
    Err(Error::invalid_file(path, reason))
}
