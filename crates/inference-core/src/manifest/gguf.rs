//! Models in GGUF files, in the terms of a published folder.

mod tensors;

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use gguf::{Header, MAGIC, Metadata, Tensor, hf};
use serde_json::{Map, Value, json};

pub(super) use self::tensors::Form;
use super::{Config, GenerationConfig, Settings, quantization};
use crate::{
    Dtype, Error, Result,
    files::open_regular,
    safetensors::{TensorInfo, most_floats},
};

/// What files tell of a model.
pub(super) struct GgufModel {
    pub(super) files: Vec<PathBuf>,
    pub(super) config: Value,
    pub(super) model_type: String,
    pub(super) quantization: Option<Settings>,
    pub(super) generation: GenerationConfig,
    pub(super) tensors: BTreeMap<String, TensorInfo>,
    /// The type of the activations, where the tensors do not decide it.
    pub(super) float: Option<Dtype>,
    /// Why the tensors are none, where they cannot be read.
    pub(super) unread: Option<String>,
}

/// The headers of a model's files.
struct Parts {
    files: Vec<PathBuf>,
    metadata: Metadata,
    tensors: Vec<Tensor>,
    /// The file of each tensor.
    places: Vec<usize>,
}

/// Whether a file begins as GGUF does.
pub(super) fn is_gguf(path: &Path) -> bool {
    let mut first = [0; MAGIC.len()];
    open_regular(path).is_ok_and(|(mut file, _)| file.read_exact(&mut first).is_ok()) && first == *MAGIC
}

/// The models among a folder's `*.gguf`: the first file of each. Encoders of images (`mmproj`) are parts of others.
pub(crate) fn models(folder: &Path, names: impl Iterator<Item = String>) -> Vec<PathBuf> {
    let is_model = |name: &String| {
        let part = split(name).map_or(1, |(_, number, _)| number);
        name.ends_with(".gguf") && !name.starts_with("mmproj") && part == 1
    };
    let mut found: Vec<_> = names.filter(is_model).map(|name| folder.join(name)).collect();
    found.sort();
    found
}

/// The metadata of a model, of whose files this is one.
pub(crate) fn metadata(path: &Path) -> Result<Metadata> {
    Ok(open(&files(path)?[0])?.metadata)
}

/// Reads the headers of the files of which `path` is one.
///
/// # Errors
/// [`Error::InvalidModel`] and [`Error::Io`], where a file is missing or broken. What is whole but of no known family is no error.
pub(super) fn read(path: &Path, form: Form) -> Result<GgufModel> {
    let parts = Parts::read(path)?;
    match parts.model(form) {
        Ok(model) => Ok(model),
        Err(error @ Error::Io { .. }) => Err(error),
        Err(error) => {
            let name = parts.metadata.text("general.architecture").ok().flatten().unwrap_or_default();
            let reason = match error {
                Error::InvalidModel { key: Some(key), reason, .. } => format!("{key} {reason}"),
                other => other.to_string(),
            };
            Ok(GgufModel {
                files: parts.files,
                config: json!({"model_type": name}),
                model_type: name.to_owned(),
                quantization: None,
                generation: GenerationConfig::default(),
                tensors: BTreeMap::new(),
                float: None,
                unread: Some(reason),
            })
        }
    }
}

impl Parts {
    fn read(path: &Path) -> Result<Self> {
        let files = files(path)?;
        let (mut metadata, mut tensors, mut places) = (None, Vec::new(), Vec::new());
        for (index, file) in files.iter().enumerate() {
            let header = open(file)?;
            let count = header.metadata.unsigned("split.count").map_err(|error| failed(file, error))?;
            if let Some(count) = count.filter(|count| *count > 1 && *count != files.len() as u64) {
                let reason =
                    format!("is {count}, but by its name the file is one of {}: keep the names", files.len());
                return Err(Error::invalid_key(file, "split.count", reason));
            }
            places.extend(header.tensors.iter().map(|_| index));
            tensors.extend(header.tensors);
            metadata.get_or_insert(header.metadata);
        }
        let mut names = HashMap::new();
        for (tensor, place) in tensors.iter().zip(&places) {
            if let Some(other) = names.insert(&tensor.name, *place) {
                let reason = format!("is in {} too", files[other].display());
                return Err(Error::invalid_key(&files[*place], &tensor.name, reason));
            }
        }
        Ok(Self { files, metadata: metadata.unwrap_or_default(), tensors, places })
    }

    fn model(&self, form: Form) -> Result<GgufModel> {
        let path = &self.files[0];
        let wrong = |error| failed(path, error);
        let mut read = |tensor: &Tensor| self.numbers(tensor);
        let model = hf::Model::new(&self.metadata, &self.tensors, &mut read).map_err(wrong)?;
        let text = hf::TextFiles::read(&self.metadata).map_err(wrong)?;
        let generation = Value::Object(text.generation_config().map_err(wrong)?);
        let generation = GenerationConfig::from_value(path, &generation)?;
        let mut config = model.config.clone();
        let mut tensors = BTreeMap::new();
        let mut settings = tensors::Settings::default();
        for named in &model.tensors {
            let (file, stored) = (self.places[named.tensor], &self.tensors[named.tensor]);
            let added = tensors::infos(path, named, file, stored, form, &mut settings)?;
            for (name, info) in added {
                if tensors.contains_key(&name) {
                    return Err(Error::invalid_key(path, name, "is what two tensors of the file mean"));
                }
                tensors.insert(name, info);
            }
        }
        for constant in &model.constants {
            tensors.insert(constant.name.clone(), tensors::constant(constant));
        }
        let float = float(&tensors, settings.is_quantized(), model.needs_wide_activations);
        if let Some(quantization) = settings.config() {
            config.insert("quantization".to_owned(), Value::Object(quantization));
        }
        let config = Value::Object(config);
        let quantization = quantization::read(&Config::new(path, &config))?;
        let (files, model_type) = (self.files.clone(), model.model_type.to_owned());
        Ok(GgufModel { files, config, model_type, quantization, generation, tensors, float, unread: None })
    }

    /// The elements of a small tensor.
    fn numbers(&self, tensor: &Tensor) -> gguf::Result<Vec<f32>> {
        let place = self.tensors.iter().position(|other| other.name == tensor.name).unwrap_or_default();
        let mut file = File::open(&self.files[self.places[place]])?;
        file.seek(SeekFrom::Start(tensor.range.start))?;
        let mut bytes = Vec::new();
        file.take(tensor.range.end - tensor.range.start).read_to_end(&mut bytes)?;
        let mut numbers = vec![0.0; tensor.shape.iter().product()];
        let known = tensor.kind.dequantize(&bytes, &mut numbers);
        // A file that became shorter, or a type that rope's factors never have.
        known.map(|()| numbers).ok_or_else(|| std::io::Error::other("cannot be read as numbers").into())
    }
}

/// The type of the activations: llama.cpp computes in single precision between quantised matrices, and so do their exact values here.
/// Some families leave the range of half precision, which their publishers do not compute in.
fn float(tensors: &BTreeMap<String, TensorInfo>, quantized: bool, wide: bool) -> Option<Dtype> {
    let half = most_floats(tensors) == Some(Dtype::F16);
    (quantized || half && wide).then_some(Dtype::F32)
}

fn open(path: &Path) -> Result<Header> {
    let (file, length) = open_regular(path)?;
    Header::read(&file, length).map_err(|error| failed(path, error))
}

/// The error of a file.
fn failed(path: &Path, error: gguf::Error) -> Error {
    match error {
        gguf::Error::Io(source) => Error::io("read", path, source),
        gguf::Error::Invalid { key: Some(key), reason } => Error::invalid_key(path, key, reason),
        gguf::Error::Invalid { reason, .. } => Error::invalid_file(path, reason),
        other => Error::invalid_file(path, other.to_string()),
    }
}

/// All files of the model that this one is a part of, in order.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some((stem, _, count)) = split(name) else { return Ok(vec![path.to_owned()]) };
    let mut files = Vec::new();
    for number in 1..=count {
        let sibling = path.with_file_name(format!("{stem}-{number:05}-of-{count:05}.gguf"));
        if fs::symlink_metadata(&sibling).is_err() {
            let reason =
                format!("is missing, but {name:?} is one of {count} files: download the model again");
            return Err(Error::invalid_file(sibling, reason));
        }
        files.push(sibling);
    }
    Ok(files)
}

/// `model-00002-of-00003.gguf`: the stem, the number and how many there are.
fn split(name: &str) -> Option<(&str, u32, u32)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| {
        (text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit()))
            .then(|| text.parse().ok())
            .flatten()
    };
    let (number, count) = (digits(number)?, digits(count)?);
    (number >= 1 && number <= count).then_some((stem, number, count))
}

/// The JSON files that stand for what a GGUF file says of text, by name.
pub(crate) const TEXT_FILES: [&str; 3] =
    ["tokenizer.json", "tokenizer_config.json", "generation_config.json"];

/// One of [`TEXT_FILES`]; `None` for any other name.
pub(crate) fn text_file(path: &Path, metadata: &Metadata, name: &str) -> Result<Option<Vec<u8>>> {
    let wrong = |error| failed(path, error);
    let json = |object: Map<String, Value>| serde_json::to_vec(&object).unwrap_or_default();
    let text = || hf::TextFiles::read(metadata).map_err(wrong);
    Ok(Some(match name {
        "tokenizer.json" => text()?.tokenizer().map_err(wrong)?,
        "tokenizer_config.json" => json(text()?.tokenizer_config().map_err(wrong)?),
        "generation_config.json" => json(text()?.generation_config().map_err(wrong)?),
        _ => return Ok(None),
    }))
}
