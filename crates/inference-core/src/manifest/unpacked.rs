//! What quantised safetensors of other programs become, and what their formats share: scales, and floats of eight bits.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use half::{bf16, f16};
use serde_json::Value;

use crate::{
    Dtype, Error, Result,
    safetensors::TensorInfo,
    tensor_source::{ReadAt, TensorSource},
};

pub(super) type Tensors = BTreeMap<String, TensorInfo>;

/// What a model is in MLX's form.
pub(super) struct Unpacked {
    pub(super) tensors: Tensors,
    /// How it is quantised then, as MLX writes it into config.json.
    pub(super) quantization: Option<Value>,
    /// The type of the activations, where the tensors do not decide it.
    pub(super) float: Option<Dtype>,
}

/// Why matrices cannot be represented.
pub(super) fn refused(path: &Path, key: &str, reason: impl Into<String>) -> Error {
    let advice = "use the weights that it was made of, or MLX's quantisation of them";
    Error::invalid_key(path, format!("quantization_config.{key}"), format!("{}: {advice}", reason.into()))
}

/// A number of a float's type.
pub(super) fn number(dtype: Dtype, bytes: &[u8]) -> f32 {
    match (dtype, bytes) {
        (Dtype::F16, [a, b]) => f16::from_le_bytes([*a, *b]).to_f32(),
        (Dtype::Bf16, [a, b]) => bf16::from_le_bytes([*a, *b]).to_f32(),
        (_, [a, b, c, d]) => f32::from_le_bytes([*a, *b, *c, *d]),
        _ => f32::NAN,
    }
}

/// Writes a number in a type; whether that holds it.
pub(super) fn put(dtype: Dtype, value: f32, out: &mut [u8]) -> bool {
    let kept = match dtype {
        Dtype::F16 => {
            let half = f16::from_f32(value);
            out.copy_from_slice(&half.to_le_bytes());
            half.to_f32()
        }
        Dtype::Bf16 => {
            let half = bf16::from_f32(value);
            out.copy_from_slice(&half.to_le_bytes());
            half.to_f32()
        }
        _ => {
            out.copy_from_slice(&value.to_le_bytes());
            value
        }
    };
    kept == value && value.is_finite()
}

/// Puts one matrix of scaled FP8 in full, in bfloat16, which is what its publishers' own conversion writes.
pub(super) fn scaled(
    files: &Arc<[PathBuf]>,
    tensors: &mut Tensors,
    stem: &str,
    scales: &str,
    block: [usize; 2],
) -> Result<()> {
    let name = format!("{stem}.weight");
    let scales = tensors.remove(scales);
    let Some((weight, scales)) = tensors.get(&name).cloned().zip(scales) else {
        return Err(Error::invalid_key(files[0].clone(), name, "is missing, but the files hold its scales"));
    };
    let blocks: Vec<usize> = weight.shape.iter().zip(block).map(|(n, size)| n.div_ceil(size)).collect();
    let floats = [Dtype::F32, Dtype::Bf16, Dtype::F16];
    if weight.dtype != Dtype::F8E4m3
        || weight.shape.len() != 2
        || scales.shape != blocks
        || !floats.contains(&scales.dtype)
    {
        let reason = format!(
            "has {:?} of {}, and scales {:?} of {}, expected a scale for each block of {block:?} in F8_E4M3",
            weight.shape, weight.dtype, scales.shape, scales.dtype
        );
        return Err(Error::invalid_key(&files[weight.file], name, reason));
    }
    let mut info = TensorInfo::in_file(weight.file, Dtype::Bf16, weight.shape.clone(), weight.range.clone());
    info.source = Some(Arc::new(Scaled { weight, scales, block }));
    tensors.insert(name, info);
    Ok(())
}

/// A matrix of FP8 with a scale for each block.
#[derive(Debug)]
struct Scaled {
    weight: TensorInfo,
    scales: TensorInfo,
    block: [usize; 2],
}

impl TensorSource for Scaled {
    fn unit(&self) -> usize {
        self.weight.shape[1].max(1) * 2
    }

    fn read(&self, files: &dyn ReadAt, position: u64, memory: &mut [u8]) -> Result<()> {
        let columns = self.weight.shape[1];
        let first = (position / self.unit() as u64) as usize;
        let (size, per_row) = (self.scales.dtype.size(), self.scales.shape[1]);
        let (mut codes, mut bytes) = (vec![0; columns], vec![0; per_row * size]);
        for (row, out) in (first..).zip(memory.chunks_exact_mut(self.unit())) {
            files.read_at(self.weight.file, self.weight.range.start + (row * columns) as u64, &mut codes)?;
            let start = self.scales.range.start + (row / self.block[0] * per_row * size) as u64;
            files.read_at(self.scales.file, start, &mut bytes)?;
            for (column, (out, code)) in out.as_chunks_mut::<2>().0.iter_mut().zip(&codes).enumerate() {
                let at = column / self.block[1] * size;
                let scale = number(self.scales.dtype, &bytes[at..at + size]);
                *out = bf16::from_f32(e4m3(*code) * scale).to_le_bytes();
            }
        }
        Ok(())
    }
}

/// An eight-bit float with four bits of exponent and three of mantissa, without infinities.
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * (-6.0_f32).exp2(),
        _ => (1.0 + mantissa / 8.0) * ((exponent - 7) as f32).exp2(),
    };
    if code & 0x80 == 0 { size } else { -size }
}
