//! What the files of sentence-transformers beside a model say about its embeddings.
//!
//! - `modules.json` lists the steps from a text to its vector: `Transformer`, `Pooling`, `Dense`, `Normalize`.
//! - The folders that it names have a `config.json` each, and `Dense` a `model.safetensors`.
//! - `sentence_bert_config.json` says how many tokens a text may have.
//! - `config_sentence_transformers.json` has the prefixes of texts, which it calls prompts.

use std::{
    collections::BTreeMap,
    fs,
    path::{Component, Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;

use crate::{
    EmbedOptions, Error, Pooling, Result,
    files::{read_json, read_value},
    manifest::read_tensor,
    safetensors::{TensorInfo, read_tensors},
};

/// The longest of these files, in bytes; published ones stay under 2 kB.
const LONGEST: u64 = 1 << 20;

/// The largest dimension of a vector.
const WIDEST: usize = 1 << 20;

/// What a model's folder says about its embeddings. The default is that of a folder without such files.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct EmbeddingConfig {
    /// How the vectors of tokens become one.
    pub pooling: Option<Pooling>,
    /// Layers that the pooled vector goes through, in their order.
    pub dense: Vec<DenseConfig>,
    /// Whether vectors have the length 1; `None` where the folder has no `modules.json`.
    pub normalize: Option<bool>,
    /// The most tokens of a text, special tokens included.
    pub max_tokens: Option<usize>,
    /// Whether texts are put into lower case.
    pub lowercase: bool,
    /// Prefixes of texts by name.
    pub prefixes: BTreeMap<String, String>,
    /// The name of the prefix of texts that no other is asked for.
    pub default_prefix: Option<String>,
}

/// A layer behind the pooling: act(W · x + b).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DenseConfig {
    /// Its config.json, for errors.
    pub config_path: PathBuf,
    /// The safetensors file of its weights.
    pub weights_path: PathBuf,
    /// Elements of its input.
    pub inputs: usize,
    /// Elements of its output.
    pub outputs: usize,
    /// `[outputs, inputs]`
    pub weight: TensorInfo,
    /// `[outputs]`
    pub bias: Option<TensorInfo>,
    /// What is applied to each element.
    pub activation: DenseActivation,
}

/// What a [`DenseConfig`] layer applies to each element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DenseActivation {
    /// Nothing.
    Identity,
    /// tanh
    Tanh,
    /// max(x, 0)
    Relu,
}

/// A step of modules.json.
#[derive(Debug, Deserialize)]
struct Module {
    #[serde(default)]
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Default, Deserialize)]
struct PoolingFile {
    pooling_mode: Option<String>,
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
    include_prompt: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct DenseFile {
    in_features: usize,
    out_features: usize,
    #[serde(default = "yes")]
    bias: bool,
    #[serde(default)]
    use_residual: bool,
    module_input_name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct TextFile {
    max_seq_length: Option<usize>,
    do_lower_case: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
struct PromptsFile {
    prompts: Option<BTreeMap<String, String>>,
    default_prompt_name: Option<String>,
}

fn yes() -> bool {
    true
}

impl EmbeddingConfig {
    /// Reads these files of a folder, of which none has to be there. Those of a GGUF file are none.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the file, the key and what was expected there: a step that is not known, a path that leads out of
    /// the folder, tensors of another shape. [`Error::Io`].
    pub fn read(folder: &Path) -> Result<Self> {
        let mut config = Self::default();
        if !folder.is_dir() {
            return Ok(config);
        }
        let modules = folder.join("modules.json");
        if fs::symlink_metadata(&modules).is_ok() {
            config.read_modules(folder, &modules)?;
        }
        let text: TextFile = optional(&folder.join("sentence_bert_config.json"))?;
        let path = folder.join("config_sentence_transformers.json");
        let prompts: PromptsFile = optional(&path)?;
        if text.max_seq_length == Some(0) {
            let path = folder.join("sentence_bert_config.json");
            return Err(Error::invalid_key(path, "max_seq_length", "is 0, expected at least 1"));
        }
        config.max_tokens = text.max_seq_length;
        config.lowercase = text.do_lower_case.unwrap_or(false);
        config.prefixes = prompts.prompts.unwrap_or_default();
        if let Some(name) = &prompts.default_prompt_name
            && !config.prefixes.contains_key(name)
        {
            let reason = format!("is {name:?}, which is none of the prompts");
            return Err(Error::invalid_key(path, "default_prompt_name", reason));
        }
        config.default_prefix = prompts.default_prompt_name;
        Ok(config)
    }

    fn read_modules(&mut self, folder: &Path, path: &Path) -> Result<()> {
        let modules: Vec<Module> = read_json(path, LONGEST)?;
        let mut normalize = false;
        for (at, Module { path: own, kind }) in modules.iter().enumerate() {
            let invalid =
                |key: &str, reason: String| Err(Error::invalid_key(path, format!("[{at}].{key}"), reason));
            let Some(own) = within(folder, own) else {
                return invalid("path", format!("is {own:?}, expected a folder in this one"));
            };
            let kind = kind.rsplit('.').next().unwrap_or(kind);
            if normalize && kind != "Normalize" {
                return invalid("type", format!("is {kind:?} behind \"Normalize\", which is the last step"));
            }
            match kind {
                "Transformer" if at == 0 && own == folder => {}
                "Transformer" => {
                    let reason = "is a transformer in a folder of its own, expected one, in the model's";
                    return invalid("path", reason.to_owned());
                }
                "Pooling" if self.pooling.is_none() && self.dense.is_empty() => {
                    self.pooling = Some(pooling(&own.join("config.json"))?);
                }
                "Dense" if self.pooling.is_some() => self.dense.push(DenseConfig::read(&own)?),
                "Normalize" if self.pooling.is_some() => normalize = true,
                // It does nothing but in training.
                "Dropout" => {}
                _ => {
                    let reason = format!(
                        "is {kind:?} at place {at}, expected \"Transformer\", \"Pooling\", any \"Dense\" and \"Normalize\", in this order"
                    );
                    return invalid("type", reason);
                }
            }
        }
        if self.pooling.is_none() {
            return Err(Error::invalid_file(path, "has no \"Pooling\", which makes one vector of a text"));
        }
        self.normalize = Some(normalize);
        Ok(())
    }

    /// The folders in this one that the steps of `modules.json` have, relative to it: a copy of the model needs their files, too.
    ///
    /// # Errors
    /// [`Error::InvalidModel`]: `modules.json` is broken, or a path leads out of the folder; [`Error::Io`].
    pub fn module_folders(folder: &Path) -> Result<Vec<PathBuf>> {
        let path = folder.join("modules.json");
        if fs::symlink_metadata(&path).is_err() {
            return Ok(Vec::new());
        }
        let modules: Vec<Module> = read_json(&path, LONGEST)?;
        let own = modules.iter().map(|module| module.path.as_str()).filter(|own| !own.is_empty());
        let checked = own.map(|own| match within(folder, own) {
            Some(_) => Ok(PathBuf::from(own)),
            None => Err(Error::invalid_file(
                &path,
                format!("has the path {own:?}, expected a folder in this one"),
            )),
        });
        checked.collect()
    }

    /// What these options put before each text.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] names a prefix that the folder does not have, and those that it has.
    pub fn prefix<'a>(&'a self, options: &'a EmbedOptions) -> Result<&'a str> {
        match (&options.prefix, &options.prefix_name, &self.default_prefix) {
            (Some(prefix), ..) => Ok(prefix),
            (None, Some(name), _) => self.prefixes.get(name).map(String::as_str).ok_or_else(|| {
                let known: Vec<_> = self.prefixes.keys().map(|name| format!("{name:?}")).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                let reason = format!("{name:?} is no prefix of this model; it has {known}");
                Error::invalid_option("prefix_name", reason)
            }),
            (None, None, Some(name)) => Ok(self.prefixes.get(name).map_or("", String::as_str)),
            (None, None, None) => Ok(""),
        }
    }
}

/// The folder that a path of modules.json names, where it is one of this folder.
fn within(folder: &Path, path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    let inside = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    inside.then(|| if path.as_os_str().is_empty() { folder.to_owned() } else { folder.join(path) })
}

/// A file that need not be there.
fn optional<T: Default + for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    if fs::symlink_metadata(path).is_ok() { read_json(path, LONGEST) } else { Ok(T::default()) }
}

fn pooling(path: &Path) -> Result<Pooling> {
    let file: PoolingFile = read_json(path, LONGEST)?;
    if file.include_prompt == Some(false) {
        let reason = "is false: a prefix would be left out of the vector, which is not supported";
        return Err(Error::invalid_key(path, "include_prompt", reason));
    }
    let names = [
        ("cls", file.pooling_mode_cls_token, Pooling::Cls),
        ("mean", file.pooling_mode_mean_tokens, Pooling::Mean),
        ("max", file.pooling_mode_max_tokens, Pooling::Max),
        ("mean_sqrt_len_tokens", file.pooling_mode_mean_sqrt_len_tokens, Pooling::MeanSqrtLen),
        ("weightedmean", file.pooling_mode_weightedmean_tokens, Pooling::WeightedMean),
        ("lasttoken", file.pooling_mode_lasttoken, Pooling::Last),
    ];
    if let Some(mode) = &file.pooling_mode {
        let known = names.iter().find(|(name, ..)| name == mode).map(|(.., pooling)| *pooling);
        return known.ok_or_else(|| {
            let names: Vec<_> = names.iter().map(|(name, ..)| *name).collect();
            let reason = format!("is {mode:?}, expected one of {}", names.join(", "));
            Error::invalid_key(path, "pooling_mode", reason)
        });
    }
    let mut set = names.iter().filter(|(_, set, _)| *set).map(|(.., pooling)| *pooling);
    match (set.next(), set.next()) {
        (Some(pooling), None) => Ok(pooling),
        (None, _) => Err(Error::invalid_file(path, "sets no `pooling_mode_…`, expected one")),
        (Some(_), Some(_)) => {
            Err(Error::invalid_file(path, "sets several `pooling_mode_…`, expected one: none are joined"))
        }
    }
}

impl DenseConfig {
    /// The bytes of one of its tensors, little-endian.
    ///
    /// # Errors
    /// [`Error::InvalidModel`]: the file became shorter; [`Error::Io`].
    pub fn read_tensor(&self, tensor: &TensorInfo) -> Result<Vec<u8>> {
        read_tensor(std::slice::from_ref(&self.weights_path), tensor)
    }

    fn read(folder: &Path) -> Result<Self> {
        let (config_path, weights_path) = (folder.join("config.json"), folder.join("model.safetensors"));
        let value = read_value(&config_path, LONGEST)?;
        let file: DenseFile = crate::files::from_value(&config_path, &value)?;
        for (key, size) in [("in_features", file.in_features), ("out_features", file.out_features)] {
            if size == 0 || size > WIDEST {
                let reason = format!("is {size}, expected a number from 1 to {WIDEST}");
                return Err(Error::invalid_key(&config_path, key, reason));
            }
        }
        if file.use_residual {
            let reason = "is true: the input would be added to the output, which is not supported";
            return Err(Error::invalid_key(&config_path, "use_residual", reason));
        }
        if let Some(name) = file.module_input_name.filter(|name| name != "sentence_embedding") {
            let reason = format!("is {name:?}, expected \"sentence_embedding\"");
            return Err(Error::invalid_key(&config_path, "module_input_name", reason));
        }
        let activation = DenseActivation::read(&config_path, value.get("activation_function"))?;
        let mut tensors = read_tensors(&weights_path)?;
        let mut take = |name: &str, shape: &[usize]| {
            let Some(tensor) = tensors.remove(name) else {
                return Err(Error::invalid_key(&weights_path, name, "is missing"));
            };
            if tensor.shape != shape || !tensor.dtype.is_float() {
                let (found, dtype) = (&tensor.shape, tensor.dtype);
                let reason = format!("has {found:?} of type {dtype:?}, expected {shape:?} of floats");
                return Err(Error::invalid_key(&weights_path, name, reason));
            }
            Ok(tensor)
        };
        let (inputs, outputs) = (file.in_features, file.out_features);
        let weight = take("linear.weight", &[outputs, inputs])?;
        let bias = file.bias.then(|| take("linear.bias", &[outputs])).transpose()?;
        Ok(Self { config_path, weights_path, inputs, outputs, weight, bias, activation })
    }
}

impl DenseActivation {
    /// By the name of its class in torch.
    fn read(path: &Path, value: Option<&Value>) -> Result<Self> {
        let name = match value {
            // Files of the first versions do not say.
            None => return Ok(Self::Tanh),
            Some(Value::Null) => return Ok(Self::Identity),
            Some(value) => value.as_str().unwrap_or_default(),
        };
        match name.rsplit('.').next().unwrap_or_default() {
            "Identity" => Ok(Self::Identity),
            "Tanh" => Ok(Self::Tanh),
            "ReLU" => Ok(Self::Relu),
            _ => {
                let reason = format!("is {name:?}, expected Identity, Tanh or ReLU");
                Err(Error::invalid_key(path, "activation_function", reason))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn write(folder: &Path, name: &str, value: &Value) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, value.to_string()).unwrap();
    }

    fn modules(steps: &[(&str, &str)]) -> Value {
        let step = |(path, kind): &(&str, &str)| json!({"path": path, "type": format!("sentence_transformers.models.{kind}")});
        steps.iter().map(step).collect()
    }

    const USUAL: &[(&str, &str)] =
        &[("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")];

    #[test]
    fn a_folder_says_how_its_texts_become_vectors() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let nothing = EmbeddingConfig::read(folder).unwrap();
        assert!(nothing.pooling.is_none() && nothing.normalize.is_none());
        write(folder, "modules.json", &modules(USUAL));
        write(
            folder,
            "1_Pooling/config.json",
            &json!({"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}),
        );
        write(folder, "sentence_bert_config.json", &json!({"max_seq_length": 256, "do_lower_case": false}));
        let prompts = json!({"prompts": {"query": "find: ", "document": ""}, "default_prompt_name": "query"});
        write(folder, "config_sentence_transformers.json", &prompts);
        let config = EmbeddingConfig::read(folder).unwrap();
        assert_eq!((config.pooling, config.normalize), (Some(Pooling::Mean), Some(true)));
        assert_eq!(config.max_tokens, Some(256));
        let folders = EmbeddingConfig::module_folders(folder).unwrap();
        assert_eq!(folders, [PathBuf::from("1_Pooling"), "2_Normalize".into()]);
        assert_eq!(config.prefix(&EmbedOptions::new()).unwrap(), "find: ");
        assert_eq!(config.prefix(&EmbedOptions::new().prefix_name("document")).unwrap(), "");
        let error = config.prefix(&EmbedOptions::new().prefix_name("other")).unwrap_err();
        assert!(error.to_string().contains("it has \"document\", \"query\""), "{error}");
        write(folder, "1_Pooling/config.json", &json!({"pooling_mode": "lasttoken"}));
        assert_eq!(EmbeddingConfig::read(folder).unwrap().pooling, Some(Pooling::Last));
    }

    #[test]
    fn what_would_have_to_be_ignored_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let mean = json!({"pooling_mode_mean_tokens": true});
        let refused = |steps: &[(&str, &str)], pooling: &Value, said: &str| {
            write(folder, "modules.json", &modules(steps));
            write(folder, "1_Pooling/config.json", pooling);
            let error = EmbeddingConfig::read(folder).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        };
        refused(&[("", "Transformer"), ("../1_Pooling", "Pooling")], &mean, "[1].path");
        refused(&[("", "Transformer"), ("/etc", "Pooling")], &mean, "[1].path");
        refused(&[("0", "Transformer"), ("1_Pooling", "Pooling")], &mean, "[0].path");
        refused(&[("", "Transformer"), ("1", "LSTM")], &mean, "\"LSTM\"");
        refused(&[("", "Transformer")], &mean, "has no \"Pooling\"");
        refused(&[USUAL, &[("3", "Dense")]].concat(), &mean, "behind \"Normalize\"");
        let both = json!({"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true});
        refused(USUAL, &both, "several");
        refused(USUAL, &json!({}), "sets no");
        refused(USUAL, &json!({"pooling_mode": "median"}), "\"median\"");
        refused(USUAL, &json!({"pooling_mode": "mean", "include_prompt": false}), "include_prompt");
        let dense = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")];
        write(folder, "2_Dense/config.json", &json!({"in_features": 0, "out_features": 2}));
        refused(&dense, &mean, "in_features");
        write(
            folder,
            "2_Dense/config.json",
            &json!({"in_features": 2, "out_features": 2, "activation_function": "x.Sin"}),
        );
        refused(&dense, &mean, "Sin");
    }
}
