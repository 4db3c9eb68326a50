//! A checkpoint in another form: quantised from dense, or back.
//!
//! Tensors go through memory one by one. The new folder is written beside its place under another name and moved there when
//! it is complete, so that there is never half of one.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
};

use inference_core::{Dtype, Error, ModelManifest, Quantization, Result, TensorInfo};
use mlx_rs::Array;
use serde_json::{Map, Value, json};

use super::{Progress, Reader, mlx_dtype};
use crate::nn::{
    FLOATS,
    ops::{self, Mode, Packed, Scheme},
};

/// Bytes after which the next tensor begins another file.
const SHARD_BYTES: u64 = 5 << 30;

/// What a checkpoint becomes.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ConvertOptions {
    /// How matrices are quantised; unset: not at all.
    pub quantization: Option<Quantization>,
    /// Exceptions: how the matrices whose name fits the pattern are quantised, or that they are not. Of several that fit, the
    /// last counts. A `*` in a pattern stands for any characters.
    pub rules: Vec<(String, Option<Quantization>)>,
    /// The type of weights that are not quantised; unset: as they are.
    pub dtype: Option<Dtype>,
}

/// Writes the model of `source` to the new folder `target`, in the form that `options` ask for: what `mlx_lm` reads too.
/// Blocks until done; `observe` is called as tensors are read, and ends the conversion with [`Error::Cancelled`] by returning
/// `false`.
///
/// # Errors
/// [`Error::InvalidOption`] where the target exists or MLX lacks the quantisation; [`Error::InvalidModel`] where the source is
/// quantised and not to become dense, or broken; [`Error::Io`].
pub fn convert(
    source: &ModelManifest,
    target: &Path,
    options: &ConvertOptions,
    observe: &mut dyn FnMut(Progress) -> bool,
) -> Result<()> {
    let plan = Plan::new(source, options)?;
    let staging = Staging::new(target)?;
    let reader = Reader::new(source, observe);
    plan.write_tensors(&reader, &staging.path)?;
    write_json(&staging.path.join("config.json"), &plan.config(source, options))?;
    copy_others(source.path(), &staging.path)?;
    staging.publish(target)
}

/// What is to be written, known before anything is.
struct Plan {
    jobs: Vec<Job>,
    /// What the config says of single matrices.
    settings: Map<String, Value>,
}

/// Tensors that are read together, and those that they become.
struct Job {
    sources: Vec<TensorInfo>,
    work: Work,
    /// Name, type and shape.
    outputs: Vec<(String, Dtype, Vec<usize>)>,
}

enum Work {
    /// As it is, but for its type.
    Copy,
    /// The sources stacked, and packed.
    Quantize(Scheme),
    /// Weight, scales and biases, unpacked, and unstacked.
    Dequantize(Scheme),
}

impl Plan {
    fn new(source: &ModelManifest, options: &ConvertOptions) -> Result<Self> {
        let default = options.quantization.as_ref().map(|q| scheme("quantization", q)).transpose()?;
        let rules = options.rules.iter().map(|(pattern, quantization)| {
            Ok((pattern, quantization.as_ref().map(|q| scheme("rules", q)).transpose()?))
        });
        let rules = rules.collect::<Result<Vec<_>>>()?;
        if options.dtype.is_some_and(|dtype| !FLOATS.contains(&dtype)) {
            return Err(invalid_option("dtype", format!("expected one of {FLOATS:?}")));
        }
        let packed = source.tensors().keys().any(|name| name.ends_with(".scales"));
        let method = source.config().pointer("/quantization_config/quant_method");
        if default.is_some() && (packed || method.is_some()) {
            return Err(Error::invalid_file(source.path(), "is quantised already: make it dense first"));
        }
        if !packed && method.is_some() {
            let reason = "is quantised in a form that cannot be converted";
            return Err(Error::invalid_key(source.config_path(), "quantization_config", reason));
        }
        let mut plan = Self { jobs: Vec::new(), settings: Map::new() };
        let mut experts: BTreeMap<String, Vec<(usize, &TensorInfo)>> = BTreeMap::new();
        for (name, tensor) in source.tensors() {
            let Some(stem) = name.strip_suffix(".weight") else {
                if packed && is_part_of_packed(source, name) {
                    continue;
                }
                plan.copy(name, tensor, options.dtype);
                continue;
            };
            if source.tensors().contains_key(&format!("{stem}.scales")) {
                plan.dequantize(source, stem, options.dtype)?;
            } else if let (Some(_), Some((stacked, index))) = (default, stacked_name(stem)) {
                experts.entry(stacked).or_default().push((index, tensor));
            } else {
                let chosen = choose(stem, &[tensor], default, &rules);
                plan.quantize_or_copy(name, stem, &[tensor], chosen, default, options.dtype);
            }
        }
        for (stem, mut parts) in experts {
            parts.sort_by_key(|(index, _)| *index);
            let complete = parts.iter().enumerate().all(|(i, (index, part))| {
                i == *index && part.shape == parts[0].1.shape && part.dtype == parts[0].1.dtype
            });
            if !complete {
                return Err(Error::invalid_key(
                    source.path(),
                    stem,
                    "the experts are not all there, or not alike",
                ));
            }
            let parts: Vec<_> = parts.into_iter().map(|(_, tensor)| tensor).collect();
            let chosen = choose(&stem, &parts, default, &rules);
            plan.quantize_or_copy(&format!("{stem}.weight"), &stem, &parts, chosen, default, options.dtype);
        }
        plan.jobs.sort_by(|a, b| a.outputs[0].0.cmp(&b.outputs[0].0));
        Ok(plan)
    }

    fn copy(&mut self, name: &str, tensor: &TensorInfo, dtype: Option<Dtype>) {
        let dtype = dtype.filter(|_| FLOATS.contains(&tensor.dtype)).unwrap_or(tensor.dtype);
        let outputs = vec![(name.to_owned(), dtype, tensor.shape.clone())];
        self.jobs.push(Job { sources: vec![tensor.clone()], work: Work::Copy, outputs });
    }

    fn quantize_or_copy(
        &mut self,
        name: &str,
        stem: &str,
        tensors: &[&TensorInfo],
        chosen: Option<Scheme>,
        default: Option<Scheme>,
        dtype: Option<Dtype>,
    ) {
        let first = tensors[0];
        let stack =
            if tensors.len() > 1 || name.contains(".switch_mlp.") { vec![tensors.len()] } else { vec![] };
        let shape: Vec<_> = stack.iter().chain(&first.shape).copied().collect();
        let dtype = dtype.filter(|_| FLOATS.contains(&first.dtype)).unwrap_or(first.dtype);
        let sources = tensors.iter().map(|tensor| (*tensor).clone()).collect();
        let Some(scheme) = chosen else {
            // Said only of what would else be taken for one of the others.
            if default.is_some() && is_matrix(stem, first) {
                self.settings.insert(stem.to_owned(), json!(false));
            }
            self.jobs.push(Job { sources, work: Work::Copy, outputs: vec![(name.to_owned(), dtype, shape)] });
            return;
        };
        if default != Some(scheme) {
            self.settings.insert(stem.to_owned(), Value::Object(describe(scheme)));
        }
        let last = shape.len() - 1;
        let with_last = |size| {
            let mut shape = shape.clone();
            shape[last] = size;
            shape
        };
        let groups = with_last(shape[last] / scheme.group_size);
        let scales = if scheme.mode.has_biases() { dtype } else { Dtype::U8 };
        let mut outputs = vec![
            (format!("{stem}.weight"), Dtype::U32, with_last(shape[last] * scheme.bits / 32)),
            (format!("{stem}.scales"), scales, groups.clone()),
        ];
        if scheme.mode.has_biases() {
            outputs.push((format!("{stem}.biases"), scales, groups));
        }
        self.jobs.push(Job { sources, work: Work::Quantize(scheme), outputs });
    }

    fn dequantize(&mut self, source: &ModelManifest, stem: &str, dtype: Option<Dtype>) -> Result<()> {
        let scheme = crate::nn::scheme(source, stem)?;
        let part = |name: &str| {
            let name = format!("{stem}.{name}");
            let missing = || Error::invalid_key(source.path(), name.clone(), "is missing");
            source.tensors().get(&name).cloned().ok_or_else(missing)
        };
        let (weight, scales) = (part("weight")?, part("scales")?);
        let mut shape = weight.shape.clone();
        let fits = weight.dtype == Dtype::U32
            && weight.shape.len() == scales.shape.len()
            && shape.last().is_some_and(|words| {
                Some(words * 32 / scheme.bits) == scales.shape.last().map(|groups| groups * scheme.group_size)
            });
        if !fits {
            let reason =
                format!("{:?} does not fit scales of {:?} with {scheme:?}", weight.shape, scales.shape);
            return Err(Error::invalid_key(&source.files()[weight.file], format!("{stem}.weight"), reason));
        }
        if let (Some(last), Some(groups)) = (shape.last_mut(), scales.shape.last()) {
            *last = groups * scheme.group_size;
        }
        let float = if scheme.mode.has_biases() { scales.dtype } else { Dtype::Bf16 };
        let dtype = dtype.unwrap_or(float);
        let whole = format!("{stem}.weight");
        let outputs = match unstacked_names(stem, &shape) {
            None => vec![(whole, dtype, shape)],
            Some(names) => {
                let single = shape[1..].to_vec();
                names.into_iter().map(|name| (format!("{name}.weight"), dtype, single.clone())).collect()
            }
        };
        let mut sources = vec![weight, scales];
        if scheme.mode.has_biases() {
            sources.push(part("biases")?);
        }
        self.jobs.push(Job { sources, work: Work::Dequantize(scheme), outputs });
        Ok(())
    }

    /// The config with what the new form changes in it.
    fn config(&self, source: &ModelManifest, options: &ConvertOptions) -> Value {
        let mut config = source.config().clone();
        let Value::Object(fields) = &mut config else { return config };
        for key in ["quantization", "quantization_config"] {
            fields.remove(key);
        }
        if let Some(default) = options.quantization.as_ref().and_then(|q| scheme("quantization", q).ok()) {
            let mut settings = describe(default);
            settings.extend(self.settings.clone());
            // The first is read by MLX's programs, the second by others.
            fields.insert("quantization".to_owned(), Value::Object(settings.clone()));
            fields.insert("quantization_config".to_owned(), Value::Object(settings));
        }
        if let Some(dtype) = options.dtype {
            let name = match dtype {
                Dtype::F16 => "float16",
                Dtype::Bf16 => "bfloat16",
                _ => "float32",
            };
            let key = if fields.contains_key("dtype") { "dtype" } else { "torch_dtype" };
            fields.insert(key.to_owned(), json!(name));
        }
        config
    }

    fn write_tensors(&self, reader: &Reader<'_>, folder: &Path) -> Result<()> {
        let mut shards: Vec<&[Job]> = Vec::new();
        let (mut start, mut bytes) = (0, 0);
        for (i, job) in self.jobs.iter().enumerate() {
            let size: u64 = job.outputs.iter().map(size).sum();
            if bytes > 0 && bytes + size > SHARD_BYTES {
                shards.push(&self.jobs[start..i]);
                (start, bytes) = (i, 0);
            }
            bytes += size;
        }
        shards.push(&self.jobs[start..]);
        let mut places = Map::new();
        let mut total = 0;
        for (i, jobs) in shards.iter().enumerate() {
            let name = match shards.len() {
                1 => "model.safetensors".to_owned(),
                count => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
            };
            write_shard(reader, jobs, &folder.join(&name))?;
            for output in jobs.iter().flat_map(|job| &job.outputs) {
                places.insert(output.0.clone(), json!(name));
                total += size(output);
            }
        }
        if shards.len() > 1 {
            let index = json!({"metadata": {"total_size": total}, "weight_map": places});
            write_json(&folder.join("model.safetensors.index.json"), &index)?;
        }
        Ok(())
    }
}

fn write_shard(reader: &Reader<'_>, jobs: &[Job], path: &Path) -> Result<()> {
    let io = |source| Error::io("write", path, source);
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "mlx"}));
    let mut offset = 0;
    for output in jobs.iter().flat_map(|job| &job.outputs) {
        let end = offset + size(output);
        let (name, dtype, shape) = output;
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::new(File::create(path).map_err(io)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    file.write_all(&header).map_err(io)?;
    for job in jobs {
        for array in job.run(reader)? {
            ops::with_bytes(&array, |bytes| file.write_all(bytes)).map_err(mlx)?.map_err(io)?;
        }
    }
    let file = file.into_inner().map_err(|error| io(error.into_error()))?;
    file.sync_all().map_err(io)
}

impl Job {
    /// The tensors' new form, in the order of `outputs`.
    fn run(&self, reader: &Reader<'_>) -> Result<Vec<Array>> {
        match self.work {
            Work::Copy => {
                let (_, dtype, shape) = &self.outputs[0];
                Ok(vec![cast(&self.read(reader, shape)?, *dtype)?])
            }
            Work::Quantize(scheme) => {
                let stack = self.outputs[0].2.len() - self.sources[0].shape.len();
                let shape: Vec<_> =
                    self.outputs[0].2[..stack].iter().chain(&self.sources[0].shape).copied().collect();
                let dtype = if scheme.mode.has_biases() { self.outputs[1].1 } else { self.sources[0].dtype };
                let dense = cast(&self.read(reader, &shape)?, dtype)?;
                let Packed { weight, scales, biases, .. } = ops::quantize(&dense, scheme).map_err(mlx)?;
                Ok([weight, scales].into_iter().chain(biases).collect())
            }
            Work::Dequantize(scheme) => {
                let part = |i: usize| {
                    let source = &self.sources[i];
                    reader.read(&[source], source.dtype, &mlx_shape(&source.shape)?)
                };
                let biases = (self.sources.len() > 2).then(|| part(2)).transpose()?;
                let packed = Packed { weight: part(0)?, scales: part(1)?, biases, scheme };
                let dtype = mlx_dtype(self.outputs[0].1).unwrap_or(mlx_rs::Dtype::Float32);
                let dense = ops::dequantize(&packed, dtype).map_err(mlx)?;
                if self.outputs.len() == 1 {
                    return Ok(vec![dense]);
                }
                dense.split_equal(self.outputs.len() as i32, 0).map_err(mlx)
            }
        }
    }

    fn read(&self, reader: &Reader<'_>, shape: &[usize]) -> Result<Array> {
        let sources: Vec<_> = self.sources.iter().collect();
        reader.read(&sources, sources[0].dtype, &mlx_shape(shape)?)
    }
}

/// The folder under its passing name; removed unless it was published.
struct Staging {
    path: PathBuf,
}

impl Staging {
    fn new(target: &Path) -> Result<Self> {
        let exists = || invalid_option("target", format!("{} exists already", target.display()));
        if target.symlink_metadata().is_ok() {
            return Err(exists());
        }
        let name = target.file_name().ok_or_else(exists)?.to_string_lossy().into_owned();
        let path = target.with_file_name(format!(".{name}.{}.partial", std::process::id()));
        fs::create_dir_all(&path).map_err(|source| Error::io("create", &path, source))?;
        Ok(Self { path })
    }

    fn publish(self, target: &Path) -> Result<()> {
        fs::rename(&self.path, target).map_err(|source| Error::io("create", target, source))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Gone already where it was published; where it cannot be removed there is nothing more to do.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Everything that is neither weights nor config: tokenizer, templates, card.
fn copy_others(source: &Path, target: &Path) -> Result<()> {
    const WEIGHTS: &[&str] = &["safetensors", "bin", "pt", "pth", "gguf", "h5", "msgpack", "onnx"];
    let entries = fs::read_dir(source).map_err(|error| Error::io("read", source, error))?;
    for entry in entries {
        let path = entry.map_err(|error| Error::io("read", source, error))?.path();
        let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else { continue };
        let weights = path.extension().is_some_and(|e| WEIGHTS.contains(&&*e.to_string_lossy()));
        let regular = fs::metadata(&path).is_ok_and(|metadata| metadata.is_file());
        if !regular
            || weights
            || name.starts_with('.')
            || name == "config.json"
            || name.ends_with(".index.json")
        {
            continue;
        }
        fs::copy(&path, target.join(&name)).map_err(|error| Error::io("copy", &path, error))?;
    }
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text =
        serde_json::to_string_pretty(value).map_err(|error| Error::invalid_file(path, error.to_string()))?;
    fs::write(path, text + "\n").map_err(|source| Error::io("write", path, source))
}

/// The scheme of a matrix: that of the last rule that fits, or the default; none for what is no matrix of the language model.
fn choose(
    stem: &str,
    tensors: &[&TensorInfo],
    default: Option<Scheme>,
    rules: &[(&String, Option<Scheme>)],
) -> Option<Scheme> {
    let rule = rules.iter().rev().find(|(pattern, _)| fits(pattern, stem));
    let scheme = rule.map_or(default, |(_, scheme)| *scheme)?;
    let columns = tensors[0].shape.last().copied().unwrap_or(0);
    let divides = columns % scheme.group_size == 0 && columns * scheme.bits % 32 == 0;
    (default.is_some() && is_matrix(stem, tensors[0]) && divides).then_some(scheme)
}

/// Whether it is a matrix that tokens are multiplied with. Routers stay as they are: they are small, and a wrong pick costs more
/// than it saves.
fn is_matrix(stem: &str, tensor: &TensorInfo) -> bool {
    let foreign = ["vision_tower", "vision_model", "multi_modal_projector"];
    let router = stem.ends_with(".gate") || stem.ends_with(".router");
    tensor.shape.len() == 2
        && FLOATS.contains(&tensor.dtype)
        && !router
        && !stem.split('.').any(|part| foreign.contains(&part))
}

/// Whether the name fits the pattern, in which `*` stands for any characters.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name.strip_prefix(head).is_some_and(|rest| {
            rest.char_indices().map(|(i, _)| i).chain([rest.len()]).any(|i| fits(tail, &rest[i..]))
        }),
    }
}

/// For single experts, what names and places publishers and mlx_lm give them.
const EXPERT_NAMES: [(&str, &str); 3] = [("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")];

/// The name of the stack that an expert's matrix belongs to, and its place there.
fn stacked_name(stem: &str) -> Option<(String, usize)> {
    let (block, rest) = stem.split_once(".experts.")?;
    let (index, name) = rest.split_once('.')?;
    let name = EXPERT_NAMES.iter().find(|(short, _)| *short == name).map_or(name, |(_, long)| long);
    Some((format!("{block}.switch_mlp.{name}"), index.parse().ok()?))
}

/// The names of the single experts' matrices in a stack.
fn unstacked_names(stem: &str, shape: &[usize]) -> Option<Vec<String>> {
    let (block, name) = stem.split_once(".switch_mlp.")?;
    let short = EXPERT_NAMES.iter().find(|(_, long)| *long == name && block.ends_with(".block_sparse_moe"));
    let name = short.map_or(name, |(short, _)| short);
    (shape.len() == 3).then(|| (0..shape[0]).map(|i| format!("{block}.experts.{i}.{name}")).collect())
}

fn is_part_of_packed(source: &ModelManifest, name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(stem, last)| {
        matches!(last, "scales" | "biases") && source.tensors().contains_key(&format!("{stem}.scales"))
    })
}

fn scheme(option: &'static str, quantization: &Quantization) -> Result<Scheme> {
    let Quantization { bits, group_size, mode, .. } = quantization;
    let unsupported =
        || invalid_option(option, format!("MLX has no {mode} with {bits} bits in groups of {group_size}"));
    let mode = Mode::named(mode).ok_or_else(unsupported)?;
    let scheme = Scheme { mode, bits: *bits as usize, group_size: *group_size as usize };
    if scheme.is_supported() { Ok(scheme) } else { Err(unsupported()) }
}

fn describe(scheme: Scheme) -> Map<String, Value> {
    let mode = scheme.mode.name();
    let settings =
        [("group_size", json!(scheme.group_size)), ("bits", json!(scheme.bits)), ("mode", json!(mode))];
    settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn cast(array: &Array, dtype: Dtype) -> Result<Array> {
    match mlx_dtype(dtype) {
        Some(dtype) => array.as_dtype(dtype).map_err(mlx),
        None => Ok(array.clone()),
    }
}

fn size((_, dtype, shape): &(String, Dtype, Vec<usize>)) -> u64 {
    shape.iter().map(|n| *n as u64).product::<u64>() * dtype.size() as u64
}

fn mlx_shape(shape: &[usize]) -> Result<Vec<i32>> {
    let shape: Option<Vec<_>> = shape.iter().map(|n| i32::try_from(*n).ok()).collect();
    shape.ok_or_else(|| Error::backend("mlx", "convert a tensor", "it has a dimension that MLX cannot hold"))
}

fn mlx(error: mlx_rs::error::Exception) -> Error {
    Error::backend("mlx", "convert a tensor", error)
}

fn invalid_option(option: &'static str, reason: String) -> Error {
    Error::InvalidOption { option, reason }
}
