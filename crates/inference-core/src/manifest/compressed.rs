//! Safetensors of compressed-tensors (llm-compressor, vLLM), in the forms that MLX computes with.
//!
//! - Whole numbers `q` with a scale for each group, row or matrix: `w = scale · (q - zero)`. `pack-quantized` has them less than a byte
//!   wide in words, `q + 2^(bits - 1)`, the first input lowest, and so MLX has them: the words are taken as they are. `int-quantized`
//!   has a byte each. Zeros are bytes, or packed like values, eight rows to a word.
//! - Floats of eight bits with a scale for each row, matrix or block: `w = e4m3 · scale`. They are put in full.
//! - Groups of inputs in another order (`weight_g_idx`) have no form of MLX's: they are put in full, in the type of the scales, by the
//!   format's own formula.
//!
//! Scales and zeros of activations, keys and values are left out: only the weights are of that precision.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Map, Value, json};

use super::unpacked::{Tensors, Unpacked, number, put, refused, scaled};
use crate::{
    Dtype, Error, Result,
    safetensors::TensorInfo,
    tensor_source::{ReadAt, TensorSource},
};

/// Formats whose tensors are those of this module.
const FORMATS: [&str; 6] =
    ["pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision", "dense"];

/// Inputs that MLX lets share a scale.
const GROUPS: [usize; 3] = [128, 64, 32];

/// Parts of a layer that say nothing of its weights.
const LEFT_OUT: [&str; 8] = [
    ".input_scale",
    ".input_zero_point",
    ".output_scale",
    ".output_zero_point",
    ".q_scale",
    ".k_scale",
    ".v_scale",
    ".weight_shape",
];

/// Types of scales.
const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

/// The tensors of a model in MLX's form.
///
/// # Errors
/// [`Error::InvalidModel`] names the setting or tensor that has no such form.
pub(super) fn unpack(
    config_path: &Path,
    fields: &Value,
    files: &Arc<[PathBuf]>,
    mut tensors: Tensors,
) -> Result<Unpacked> {
    check(config_path, fields)?;
    let stems = |tensors: &Tensors, end: &str| -> Vec<String> {
        tensors.keys().filter_map(|name| name.strip_suffix(end)).map(str::to_owned).collect()
    };
    let blocks = block_structure(fields);
    let (mut settings, mut wide) = (BTreeMap::new(), false);
    for stem in stems(&tensors, ".weight_packed") {
        wide |= matrix(files, &mut tensors, &stem, &mut settings)?;
    }
    for stem in stems(&tensors, ".weight_scale") {
        let name = format!("{stem}.weight");
        match tensors.get(&name).map(|weight| (weight.dtype, weight.shape.clone())) {
            Some((Dtype::I8, _)) => wide |= matrix(files, &mut tensors, &stem, &mut settings)?,
            Some((Dtype::F8E4m3, shape)) => floats(files, &mut tensors, &stem, &shape, blocks)?,
            other => {
                let found = other.map_or("is missing".to_owned(), |(dtype, _)| format!("is of {dtype}"));
                let reason = format!("{found}, expected I8 or F8_E4M3 beside its scale");
                return Err(Error::invalid_key(files[0].clone(), name, reason));
            }
        }
    }
    tensors.retain(|name, _| !LEFT_OUT.iter().any(|end| name.ends_with(end)));
    Ok(Unpacked { tensors, quantization: describe(&settings), float: wide.then_some(Dtype::F32) })
}

/// Refuses settings under which the tensors mean something else.
fn check(path: &Path, fields: &Value) -> Result<()> {
    let groups = fields.get("config_groups").and_then(Value::as_object);
    let own = groups.into_iter().flat_map(Map::values).filter_map(|group| group.get("format"));
    for format in fields.get("format").into_iter().chain(own).filter(|format| !format.is_null()) {
        if !format.as_str().is_some_and(|format| FORMATS.contains(&format)) {
            return Err(refused(
                path,
                "format",
                format!("is {format}, expected one of {}", FORMATS.join(", ")),
            ));
        }
    }
    let sparse = fields.get("sparsity_config").and_then(|sparsity| sparsity.get("format"));
    if let Some(format) = sparse.filter(|format| !format.is_null() && *format != "dense") {
        return Err(refused(path, "sparsity_config.format", format!("is {format}, expected dense")));
    }
    let transforms = fields.get("transform_config").and_then(|config| config.get("config_groups"));
    if transforms.and_then(Value::as_object).is_some_and(|groups| !groups.is_empty()) {
        return Err(refused(path, "transform_config", "turns activations, which no model here does"));
    }
    Ok(())
}

/// `quantization` of config.json: what most matrices have, and those that differ.
fn describe(settings: &BTreeMap<String, (usize, usize)>) -> Option<Value> {
    let mut counts = BTreeMap::new();
    settings.values().for_each(|setting| *counts.entry(*setting).or_insert(0_usize) += 1);
    let (default, _) = counts.into_iter().max_by_key(|(_, count)| *count)?;
    let describe =
        |(bits, group): (usize, usize)| json!({"bits": bits, "group_size": group, "mode": "affine"});
    let mut config = describe(default);
    for (stem, setting) in settings.iter().filter(|(_, setting)| **setting != default) {
        config[stem.as_str()] = describe(*setting);
    }
    Some(config)
}

/// Puts one matrix of whole numbers into MLX's form, and notes its bits and its group; whether its biases need single precision.
fn matrix(
    files: &Arc<[PathBuf]>,
    tensors: &mut Tensors,
    stem: &str,
    settings: &mut BTreeMap<String, (usize, usize)>,
) -> Result<bool> {
    let matrix = Matrix::take(files, tensors, stem)?;
    if matrix.order.is_some() {
        let part = (Part::Dense, "weight", matrix.scales.dtype, matrix.inputs);
        tensors.insert(format!("{stem}.weight"), matrix.clone().part(part));
        return Ok(false);
    }
    settings.insert(stem.to_owned(), (matrix.bits, matrix.group));
    let (centred, groups) = (matrix.zeros.is_none(), matrix.inputs / matrix.group);
    let float = if centred { matrix.scales.dtype } else { Dtype::F32 };
    for part in [
        (Part::Values, "weight", Dtype::U32, matrix.inputs * matrix.bits / 32),
        (Part::Scales, "scales", float, groups),
        (Part::Biases, "biases", float, groups),
    ] {
        tensors.insert(format!("{stem}.{}", part.1), matrix.clone().part(part));
    }
    Ok(!centred)
}

/// A matrix of whole numbers.
#[derive(Debug, Clone)]
struct Matrix {
    files: Arc<[PathBuf]>,
    stem: String,
    outputs: usize,
    inputs: usize,
    bits: usize,
    /// Inputs that share a scale here.
    group: usize,
    /// Words of packed values, or a byte for each.
    values: TensorInfo,
    /// Rows, or one for all, of scales for as many groups as there are in the file.
    scales: TensorInfo,
    zeros: Option<TensorInfo>,
    /// The group of each input, where that is not that of its place.
    order: Option<TensorInfo>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Values,
    Scales,
    Biases,
    Dense,
}

/// One tensor of MLX's form, row by row.
#[derive(Debug)]
struct PartOf {
    matrix: Matrix,
    part: Part,
    dtype: Dtype,
    /// Elements of a row.
    width: usize,
}

impl TensorSource for PartOf {
    fn unit(&self) -> usize {
        self.width * self.dtype.size()
    }

    fn read(&self, files: &dyn ReadAt, position: u64, memory: &mut [u8]) -> Result<()> {
        let first = (position / self.unit() as u64) as usize;
        let order = match self.part {
            Part::Dense => self.matrix.order(files)?,
            _ => Vec::new(),
        };
        for (row, out) in (first..).zip(memory.chunks_exact_mut(self.unit())) {
            match self.part {
                Part::Values => self.matrix.value_bytes(files, row, out)?,
                Part::Dense => self.matrix.dense(files, row, &order, self.dtype, out)?,
                part => self.matrix.floats(files, row, part, self.dtype, out)?,
            }
        }
        Ok(())
    }
}

impl Matrix {
    /// Takes a matrix out of the tensors, checked.
    fn take(files: &Arc<[PathBuf]>, tensors: &mut Tensors, stem: &str) -> Result<Self> {
        let mut part = |part: &str| tensors.remove(&format!("{stem}.{part}"));
        let missing =
            |part: &str| Error::invalid_key(files[0].clone(), format!("{stem}.{part}"), "is missing");
        let packed = part("weight_packed");
        let is_packed = packed.is_some();
        let values = packed.or_else(|| part("weight")).ok_or_else(|| missing("weight"))?;
        let scales = part("weight_scale").ok_or_else(|| missing("weight_scale"))?;
        let (zeros, order) = (part("weight_zero_point"), part("weight_g_idx"));
        let shape = part("weight_shape");
        let invalid =
            |reason: String| Error::invalid_key(&files[values.file], format!("{stem}.weight_packed"), reason);
        let unknown = |what: &TensorInfo| {
            let reason =
                format!("has {:?} of {}, expected words of 2, 4 or 8 bits a value", what.shape, what.dtype);
            invalid(reason)
        };
        let [outputs, columns] = values.shape[..] else { return Err(unknown(&values)) };
        let (inputs, bits) = if is_packed {
            let shape = shape.ok_or_else(|| missing("weight_shape"))?;
            let inputs = read_shape(files, &shape)?[1];
            let bits = (columns * 32).checked_div(inputs).filter(|bits| inputs * bits == columns * 32);
            let bits = bits.filter(|bits| matches!(bits, 2 | 4 | 8)).ok_or_else(|| unknown(&values))?;
            if values.dtype != Dtype::I32 {
                return Err(unknown(&values));
            }
            (inputs, bits)
        } else {
            (columns, 8)
        };
        let stored = scales.shape.get(1).copied().unwrap_or(1);
        let size = inputs.checked_div(stored).filter(|size| size * stored == inputs);
        let group = size.and_then(|size| GROUPS.into_iter().find(|group| size.is_multiple_of(*group)));
        let rows = scales.shape.first().copied().unwrap_or(1);
        let per_word = 32 / bits;
        let fits = FLOATS.contains(&scales.dtype)
            && scales.shape.len() <= 2
            && (rows == outputs || rows * stored == 1)
            && zeros.as_ref().is_none_or(|zeros| match zeros.dtype {
                Dtype::I8 => zeros.shape == scales.shape,
                Dtype::I32 => zeros.shape == [outputs.div_ceil(per_word), stored],
                _ => false,
            })
            && order.as_ref().is_none_or(|order| order.dtype == Dtype::I32 && order.shape == [inputs]);
        let (Some(group), true) = (group, fits) else {
            let found = format!(
                "has {outputs} rows of {inputs} inputs in {bits} bits, scales {:?} of {} and zeros {:?}",
                scales.shape,
                scales.dtype,
                zeros.map(|zeros| zeros.shape)
            );
            let reason = format!(
                "{found}: expected scales for groups that divide by 32: use the weights that it was made of"
            );
            return Err(invalid(reason));
        };
        let (files, stem) = (files.clone(), stem.to_owned());
        Ok(Self { files, stem, outputs, inputs, bits, group, values, scales, zeros, order })
    }

    /// One of the tensors that it becomes.
    fn part(self, (part, _, dtype, width): (Part, &str, Dtype, usize)) -> TensorInfo {
        let at = if matches!(part, Part::Values | Part::Dense) { &self.values } else { &self.scales };
        let mut info = TensorInfo::in_file(at.file, dtype, vec![self.outputs, width], at.range.clone());
        info.source = Some(Arc::new(PartOf { matrix: self, part, dtype, width }));
        info
    }

    /// Groups of a row in the file.
    fn stored(&self) -> usize {
        self.scales.shape.get(1).copied().unwrap_or(1)
    }

    /// Bytes of a row's values, as MLX packs them.
    fn value_bytes(&self, files: &dyn ReadAt, row: usize, out: &mut [u8]) -> Result<()> {
        files.read_at(self.values.file, self.values.range.start + (row * out.len()) as u64, out)?;
        if self.values.dtype == Dtype::I8 {
            // q + 128
            out.iter_mut().for_each(|byte| *byte ^= 0x80);
        }
        Ok(())
    }

    /// The scales of a row and its zeros, as many as there are in the file; zeros count from the lowest value.
    fn row(&self, files: &dyn ReadAt, row: usize) -> Result<Vec<(f32, f32)>> {
        let (stored, size) = (self.stored(), self.scales.dtype.size());
        let own_row = if self.scales.shape.first().copied().unwrap_or(1) == self.outputs { row } else { 0 };
        let mut bytes = vec![0; stored * size];
        let start = self.scales.range.start + (own_row * bytes.len()) as u64;
        files.read_at(self.scales.file, start, &mut bytes)?;
        let middle = 1_i32 << (self.bits - 1);
        let zeros = match &self.zeros {
            None => vec![middle; stored],
            Some(zeros) if zeros.dtype == Dtype::I8 => {
                let mut bytes = vec![0; stored];
                files.read_at(zeros.file, zeros.range.start + (own_row * stored) as u64, &mut bytes)?;
                bytes.into_iter().map(|byte| i32::from(byte.cast_signed()) + middle).collect()
            }
            Some(zeros) => {
                let per_word = 32 / self.bits;
                let mut bytes = vec![0; stored * 4];
                let start = zeros.range.start + (row / per_word * bytes.len()) as u64;
                files.read_at(zeros.file, start, &mut bytes)?;
                let (shift, mask) = (self.bits * (row % per_word), (1_u32 << self.bits) - 1);
                let words = bytes.as_chunks::<4>().0.iter();
                words.map(|word| (u32::from_le_bytes(*word) >> shift & mask).cast_signed()).collect()
            }
        };
        let scales = bytes.chunks_exact(size).map(|bytes| number(self.scales.dtype, bytes));
        Ok(scales.zip(zeros).map(|(scale, zero)| (scale, zero as f32)).collect())
    }

    /// The scales or biases of a row.
    fn floats(&self, files: &dyn ReadAt, row: usize, part: Part, dtype: Dtype, out: &mut [u8]) -> Result<()> {
        let stored = self.row(files, row)?;
        let size = self.inputs / stored.len();
        for (group, out) in out.chunks_exact_mut(dtype.size()).enumerate() {
            let (scale, zero) = stored[group * self.group / size];
            let value = if part == Part::Biases { -scale * zero } else { scale };
            if !put(dtype, value, out) {
                let reason = format!("is {scale}, of which {dtype} cannot hold {value}");
                let key = format!("{}.weight_scale", self.stem);
                return Err(Error::invalid_key(&self.files[self.scales.file], key, reason));
            }
        }
        Ok(())
    }

    /// A row in full.
    fn dense(
        &self,
        files: &dyn ReadAt,
        row: usize,
        order: &[usize],
        dtype: Dtype,
        out: &mut [u8],
    ) -> Result<()> {
        let mut bytes = vec![0; self.inputs * self.bits / 8];
        self.value_bytes(files, row, &mut bytes)?;
        let stored = self.row(files, row)?;
        let (per_byte, mask) = (8 / self.bits, u8::MAX >> (8 - self.bits));
        for (input, out) in out.chunks_exact_mut(dtype.size()).enumerate() {
            let code = bytes[input / per_byte] >> (self.bits * (input % per_byte)) & mask;
            let Some((scale, zero)) = stored.get(order[input]) else {
                let reason = format!("has group {}, of {}", order[input], stored.len());
                let key = format!("{}.weight_g_idx", self.stem);
                return Err(Error::invalid_key(&self.files[self.values.file], key, reason));
            };
            put(dtype, scale * (f32::from(code) - zero), out);
        }
        Ok(())
    }

    /// The group of each input.
    fn order(&self, files: &dyn ReadAt) -> Result<Vec<usize>> {
        let Some(order) = &self.order else { return Ok(Vec::new()) };
        let mut bytes = vec![0; self.inputs * 4];
        files.read_at(order.file, order.range.start, &mut bytes)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|group| u32::from_le_bytes(*group) as usize).collect())
    }
}

/// `weight_shape`: rows and columns before they were packed.
fn read_shape(files: &[PathBuf], info: &TensorInfo) -> Result<[usize; 2]> {
    let wrong = || Error::invalid_key(&files[info.file], "weight_shape", "is no pair of sizes");
    if info.dtype != Dtype::I64 || info.shape != [2] {
        return Err(wrong());
    }
    let bytes = super::read_tensor(files, info)?;
    let size = |at: usize| {
        let number = bytes.as_chunks::<8>().0.get(at).map(|bytes| i64::from_le_bytes(*bytes));
        number.and_then(|number| usize::try_from(number).ok()).filter(|size| (1..1 << 31).contains(size))
    };
    size(0).zip(size(1)).map(|(rows, columns)| [rows, columns]).ok_or_else(wrong)
}

/// Rows and columns of a block, where the settings have blocks.
fn block_structure(fields: &Value) -> Option<[usize; 2]> {
    let groups = fields.get("config_groups")?.as_object()?;
    groups.values().find_map(|group| {
        let sizes = group.get("weights")?.get("block_structure")?.as_array()?;
        let size =
            |at: usize| sizes.get(at)?.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        Some([size(0)?, size(1)?])
    })
}

/// Puts one matrix of eight-bit floats in full: a scale for all of it, for each row or a part of one, or for each block.
fn floats(
    files: &Arc<[PathBuf]>,
    tensors: &mut Tensors,
    stem: &str,
    shape: &[usize],
    blocks: Option<[usize; 2]>,
) -> Result<()> {
    let name = format!("{stem}.weight_scale");
    let (Some(mut scales), [rows, columns]) = (tensors.remove(&name), shape) else {
        return Err(Error::invalid_key(files[0].clone(), name, "belongs to no matrix"));
    };
    if scales.shape.iter().product::<usize>() == 1 {
        scales.shape = vec![1, 1];
    }
    let of_block = |block: &[usize; 2]| scales.shape == [rows.div_ceil(block[0]), columns.div_ceil(block[1])];
    let block = match scales.shape[..] {
        [1, 1] => Some([*rows, *columns]),
        [down, across] if down == *rows && across > 0 && columns.is_multiple_of(across) => {
            Some([1, columns / across])
        }
        _ => blocks.filter(of_block),
    };
    let Some(block) = block else {
        let reason = format!(
            "has {:?} for {shape:?}, expected one scale, some for each row, or one for each block",
            scales.shape
        );
        return Err(Error::invalid_key(files[scales.file].clone(), name, reason));
    };
    tensors.insert(name.clone(), scales);
    scaled(files, tensors, stem, &name, block)
}
