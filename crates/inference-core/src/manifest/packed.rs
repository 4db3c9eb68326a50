//! Quantised safetensors of other programs, in the forms that MLX computes with: GPTQ, AWQ and block-scaled FP8.
//!
//! - GPTQ packs eight inputs into a word `[in / 8, out]`, zeros eight outputs `[groups, out / 8]`, less one:
//!   `w = scale · (q - (zero + 1))`.
//! - AWQ packs eight outputs into a word `[in, out / 8]`, in the order 0, 2, 4, 6, 1, 3, 5, 7, zeros likewise: `w = scale · (q - zero)`.
//! - FP8 as DeepSeek publishes it: `w = e4m3 · scale`, one scale `weight_scale_inv` for a block of rows and columns.
//!
//! The first two are affine groups: `scale · q + bias` with `bias = -scale · zero`. Where zeros are not in the middle, the product needs
//! more than half precision: scales and biases are in single precision then.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Value, json};

use super::{
    compressed,
    quantization::{QuantMode, Settings},
    unpacked::{Tensors, Unpacked, number, put, refused, scaled},
};
use crate::{
    Dtype, Error, Result,
    safetensors::TensorInfo,
    tensor_source::{ReadAt, TensorSource},
};

/// Bits of every value that is packed.
const BITS: usize = 4;

/// Values in a word.
const PER_WORD: usize = 32 / BITS;

/// The output behind each place of a word of AWQ.
const AWQ_ORDER: [usize; PER_WORD] = [0, 2, 4, 6, 1, 3, 5, 7];

/// How a method packs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    /// `offset` is added to zeros: 1, but for the second version of the format.
    Gptq {
        offset: u32,
    },
    Awq,
}

/// The tensors of GPTQ, AWQ, FP8 and compressed-tensors in MLX's form. `None` for other methods, which backends name.
///
/// # Errors
/// [`Error::InvalidModel`] names the setting or tensor that has no such form.
pub(super) fn unpack(
    config_path: &Path,
    config: &Value,
    files: &[PathBuf],
    tensors: &Tensors,
    settings: &Settings,
) -> Result<Option<Unpacked>> {
    if settings.method.is_none() {
        return Ok(None);
    }
    let (found, mut tensors) = (settings.default, tensors.clone());
    let fields = config.get(&settings.key).cloned().unwrap_or_default();
    let files: Arc<[PathBuf]> = files.into();
    if found.mode == QuantMode::CompressedTensors {
        return compressed::unpack(config_path, &fields, &files, tensors).map(Some);
    }
    let end = if found.mode == QuantMode::Fp8 { ".weight_scale_inv" } else { ".qweight" };
    let stems = tensors.keys().filter_map(|name| name.strip_suffix(end)).map(str::to_owned);
    let stems: Vec<String> = stems.collect();
    match found.mode {
        _ if stems.is_empty() => Ok(None),
        QuantMode::Gptq | QuantMode::Awq => {
            let packing = packing(config_path, &fields, found.mode)?;
            if found.bits as usize != BITS {
                let reason = format!("is {}, of which only 4 can be read", found.bits);
                return Err(refused(config_path, "bits", reason));
            }
            if !matches!(found.group_size, 32 | 64 | 128) {
                let given = fields.get("group_size").unwrap_or(&Value::Null);
                return Err(refused(
                    config_path,
                    "group_size",
                    format!("is {given}, expected 32, 64 or 128"),
                ));
            }
            // Only GPTQ has zeros in the middle, and says so.
            let centred = fields.get("sym").and_then(Value::as_bool) == Some(true) && packing != Packing::Awq;
            for stem in stems {
                affine(&files, &mut tensors, &stem, packing, found.group_size as usize, centred)?;
            }
            let quantization = Some(json!({"bits": BITS, "group_size": found.group_size, "mode": "affine"}));
            let float = (!centred).then_some(Dtype::F32);
            Ok(Some(Unpacked { tensors, quantization, float }))
        }
        QuantMode::Fp8 if fields.get("weight_block_size").is_some_and(|size| !size.is_null()) => {
            let block = block_size(config_path, &fields)?;
            for stem in stems {
                let scales = format!("{stem}.weight_scale_inv");
                scaled(&files, &mut tensors, &stem, &scales, block)?;
            }
            Ok(Some(Unpacked { tensors, quantization: None, float: None }))
        }
        _ => Ok(None),
    }
}

fn packing(path: &Path, fields: &Value, mode: QuantMode) -> Result<Packing> {
    let text = |key: &str| fields.get(key).and_then(Value::as_str);
    if mode == QuantMode::Awq {
        return match text("version").or_else(|| text("backend")) {
            None | Some("gemm" | "GEMM" | "autoawq") => Ok(Packing::Awq),
            Some(other) => Err(refused(path, "version", format!("is {other:?}, expected gemm"))),
        };
    }
    if fields.get("desc_act").and_then(Value::as_bool) == Some(true) {
        let reason = "is true: groups are of inputs in another order, for which MLX has no form";
        return Err(refused(path, "desc_act", reason));
    }
    match text("checkpoint_format") {
        None | Some("gptq") => Ok(Packing::Gptq { offset: 1 }),
        Some("gptq_v2") => Ok(Packing::Gptq { offset: 0 }),
        Some(other) => {
            Err(refused(path, "checkpoint_format", format!("is {other:?}, expected gptq or gptq_v2")))
        }
    }
}

/// Rows and columns of a block.
fn block_size(path: &Path, fields: &Value) -> Result<[usize; 2]> {
    let sizes = fields.get("weight_block_size").and_then(Value::as_array);
    let size = |i: usize| sizes?.get(i)?.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
    match (size(0), size(1)) {
        (Some(rows), Some(columns)) if sizes.is_some_and(|sizes| sizes.len() == 2) => Ok([rows, columns]),
        _ => Err(refused(path, "weight_block_size", "is no pair of sizes")),
    }
}

/// Puts one matrix of GPTQ or AWQ into MLX's form.
fn affine(
    files: &Arc<[PathBuf]>,
    tensors: &mut Tensors,
    stem: &str,
    packing: Packing,
    group: usize,
    centred: bool,
) -> Result<()> {
    let mut take = |part: &str, dtypes: &[Dtype]| {
        let name = format!("{stem}.{part}");
        let found =
            tensors.remove(&name).filter(|info| info.shape.len() == 2 && dtypes.contains(&info.dtype));
        found.ok_or_else(|| {
            Error::invalid_key(files[0].clone(), name, format!("is missing, or no matrix of {dtypes:?}"))
        })
    };
    let words = take("qweight", &[Dtype::I32, Dtype::U32])?;
    let zeros = take("qzeros", &[Dtype::I32, Dtype::U32])?;
    let scales = take("scales", &[Dtype::F16, Dtype::Bf16, Dtype::F32])?;
    let order = tensors.remove(&format!("{stem}.g_idx"));
    let (inputs, outputs) = match packing {
        Packing::Gptq { .. } => (words.shape[0] * PER_WORD, words.shape[1]),
        Packing::Awq => (words.shape[0], words.shape[1] * PER_WORD),
    };
    let groups = inputs / group;
    let fits = inputs.is_multiple_of(group)
        && outputs.is_multiple_of(PER_WORD)
        && groups > 0
        && scales.shape == [groups, outputs]
        && zeros.shape == [groups, outputs / PER_WORD]
        && order.as_ref().is_none_or(|order| order.dtype == Dtype::I32 && order.shape == [inputs]);
    if !fits {
        let shapes = [&words.shape, &zeros.shape, &scales.shape];
        let reason = format!(
            "has words, zeros and scales of {shapes:?}, which do not belong together in groups of {group}"
        );
        return Err(Error::invalid_key(&files[words.file], format!("{stem}.qweight"), reason));
    }
    // With zeros in the middle, biases are scales times a power of two.
    let float = if centred { scales.dtype } else { Dtype::F32 };
    let (files, stem) = (files.clone(), stem.to_owned());
    let packed = Packed { files, stem, packing, inputs, outputs, group, words, zeros, scales, order, float };
    packed.insert(tensors);
    Ok(())
}

/// A matrix of GPTQ or AWQ.
#[derive(Debug, Clone)]
struct Packed {
    files: Arc<[PathBuf]>,
    stem: String,
    packing: Packing,
    inputs: usize,
    outputs: usize,
    group: usize,
    words: TensorInfo,
    zeros: TensorInfo,
    scales: TensorInfo,
    /// The group of each input, which has to be that of its place.
    order: Option<TensorInfo>,
    float: Dtype,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Values,
    Scales,
    Biases,
}

/// One tensor of MLX's form, row by row: a row has one output.
#[derive(Debug)]
struct PartOf {
    packed: Packed,
    part: Part,
    /// Bytes of a row.
    width: usize,
}

impl TensorSource for PartOf {
    fn unit(&self) -> usize {
        self.width
    }

    fn read(&self, files: &dyn ReadAt, position: u64, memory: &mut [u8]) -> Result<()> {
        let first = (position / self.width as u64) as usize;
        let rows = memory.len() / self.width;
        match self.part {
            Part::Values => self.packed.values(files, first, rows, memory),
            part => self.packed.floats(files, first, rows, part, memory),
        }
    }
}

impl Packed {
    /// Adds the tensors of MLX's form.
    fn insert(self, tensors: &mut Tensors) {
        let groups = self.inputs / self.group;
        for (name, part, dtype, width) in [
            ("weight", Part::Values, Dtype::U32, self.inputs / PER_WORD),
            ("scales", Part::Scales, self.float, groups),
            ("biases", Part::Biases, self.float, groups),
        ] {
            let at = if part == Part::Values { &self.words } else { &self.scales };
            let mut info = TensorInfo::in_file(at.file, dtype, vec![self.outputs, width], at.range.clone());
            info.source = Some(Arc::new(PartOf { packed: self.clone(), part, width: width * dtype.size() }));
            tensors.insert(format!("{}.{name}", self.stem), info);
        }
    }

    /// The values of `rows` outputs from `first` on.
    fn values(&self, files: &dyn ReadAt, first: usize, rows: usize, memory: &mut [u8]) -> Result<()> {
        self.check_order(files)?;
        let width = self.inputs / PER_WORD;
        let out = memory.as_chunks_mut::<4>().0;
        if let Packing::Gptq { .. } = self.packing {
            for word in 0..width {
                let column = self.run(files, &self.words, word, first, rows)?;
                for (row, value) in column.into_iter().enumerate() {
                    out[row * width + word] = value.to_le_bytes();
                }
            }
            return Ok(());
        }
        let mut values = vec![0_u32; out.len()];
        for input in 0..self.inputs {
            for (row, value) in self.unpacked(files, &self.words, input, first, rows)?.into_iter().enumerate()
            {
                values[row * width + input / PER_WORD] |= value << (BITS * (input % PER_WORD));
            }
        }
        out.iter_mut().zip(values).for_each(|(out, value)| *out = value.to_le_bytes());
        Ok(())
    }

    /// Scales or biases of `rows` outputs from `first` on.
    fn floats(
        &self,
        files: &dyn ReadAt,
        first: usize,
        rows: usize,
        part: Part,
        memory: &mut [u8],
    ) -> Result<()> {
        let (groups, size) = (self.inputs / self.group, self.float.size());
        let stored = self.scales.dtype.size();
        for group in 0..groups {
            let mut bytes = vec![0; rows * stored];
            let start = self.scales.range.start + ((group * self.outputs + first) * stored) as u64;
            files.read_at(self.scales.file, start, &mut bytes)?;
            let zeros = match part {
                Part::Biases => self.unpacked(files, &self.zeros, group, first, rows)?,
                _ => vec![0; rows],
            };
            for (row, (bytes, zero)) in bytes.chunks_exact(stored).zip(zeros).enumerate() {
                let scale = number(self.scales.dtype, bytes);
                let value = match (part, self.packing) {
                    (Part::Biases, Packing::Gptq { offset }) => -scale * (zero + offset) as f32,
                    (Part::Biases, Packing::Awq) => -scale * zero as f32,
                    _ => scale,
                };
                let at = (row * groups + group) * size;
                self.put(value, &mut memory[at..at + size])?;
            }
        }
        Ok(())
    }

    /// Writes a scale or bias, unless its type cannot hold it.
    fn put(&self, value: f32, out: &mut [u8]) -> Result<()> {
        if put(self.float, value, out) {
            return Ok(());
        }
        let reason = format!(
            "has a zero that is not in the middle, though the config's `sym` says so, or a scale that is not finite: {value}"
        );
        Err(Error::invalid_key(&self.files[self.scales.file], format!("{}.qzeros", self.stem), reason))
    }

    /// The values of `rows` outputs from `first` on in a row that packs eight outputs into a word.
    fn unpacked(
        &self,
        files: &dyn ReadAt,
        info: &TensorInfo,
        row: usize,
        first: usize,
        rows: usize,
    ) -> Result<Vec<u32>> {
        let (from, to) = (first / PER_WORD, (first + rows).div_ceil(PER_WORD));
        let words = self.run(files, info, row, from, to - from)?;
        let place = |output: usize| match self.packing {
            Packing::Gptq { .. } => output % PER_WORD,
            Packing::Awq => AWQ_ORDER.iter().position(|place| *place == output % PER_WORD).unwrap_or(0),
        };
        let value = |output: usize| words[output / PER_WORD - from] >> (BITS * place(output)) & 15;
        Ok((first..first + rows).map(value).collect())
    }

    /// Some words of a row of a tensor.
    fn run(
        &self,
        files: &dyn ReadAt,
        info: &TensorInfo,
        row: usize,
        first: usize,
        count: usize,
    ) -> Result<Vec<u32>> {
        let mut bytes = vec![0; count * 4];
        let start = info.range.start + ((row * info.shape[1] + first) * 4) as u64;
        files.read_at(info.file, start, &mut bytes)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }

    /// Checks that the inputs of a group lie together.
    fn check_order(&self, files: &dyn ReadAt) -> Result<()> {
        let Some(order) = &self.order else { return Ok(()) };
        let mut bytes = vec![0; self.inputs * 4];
        files.read_at(order.file, order.range.start, &mut bytes)?;
        let found = bytes.as_chunks::<4>().0.iter().map(|group| u32::from_le_bytes(*group) as usize);
        if found.enumerate().all(|(input, group)| group == input / self.group) {
            return Ok(());
        }
        let reason = "has groups of inputs in another order, for which MLX has no form: use the weights that it was made of";
        Err(Error::invalid_key(&self.files[order.file], format!("{}.g_idx", self.stem), reason))
    }
}
