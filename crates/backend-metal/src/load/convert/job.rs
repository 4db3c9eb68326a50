//! One step of a conversion: tensors that are read together, and the tensors written from them.

use inference_core::{Dtype, Error, Result, backend::TensorInfo};
use mlx_rs::{Array, error::Exception};

use super::{delta::Delta, layout::Layout};
use crate::{
    load::writer::size,
    mlx::{QuantizationScheme, QuantizedMatrix, Reader, dequantize, mlx_dtype, quantize},
};

/// Tensors that are read together, and the tensors written from them.
#[derive(Debug)]
pub(super) struct Job {
    /// Those of a packed matrix, or those that follow each other in one array.
    pub(super) sources: Vec<TensorInfo>,
    /// The shape of that array.
    pub(super) shape: Vec<usize>,
    pub(super) layout: Layout,
    pub(super) work: Work,
    /// Name, type and shape.
    pub(super) outputs: Vec<(String, Dtype, Vec<usize>)>,
}

/// What is done to each matrix.
#[derive(Debug, Clone)]
pub(super) enum Work {
    /// As it is, but for its type.
    Copy,
    /// A quantised matrix: weight, scales and biases.
    Quantize(QuantizationScheme),
    /// Weight, scales and biases unpacked; a stack cut to as many pieces as there are outputs.
    Dequantize(QuantizationScheme),
    /// Unpacked where it is packed, given what an adapter adds, and packed again or cut as [`Work::Dequantize`] has it.
    Fuse { packed: Option<QuantizationScheme>, delta: Box<Delta> },
}

impl Job {
    /// The tensors' new form, in the order of `outputs`.
    pub(super) fn run(&self, reader: &Reader<'_>) -> Result<Vec<Array>> {
        let source = &self.sources[0];
        match &self.work {
            Work::Copy => {
                let parts = self.layout.split(&self.read(reader)?).map_err(mlx)?;
                parts.iter().zip(&self.outputs).map(|(part, (_, dtype, _))| cast(part, *dtype)).collect()
            }
            Work::Quantize(scheme) => {
                let dtype = if scheme.mode.has_biases() { self.outputs[1].1 } else { source.dtype };
                let mut arrays = Vec::new();
                for part in self.layout.split(&self.read(reader)?).map_err(mlx)? {
                    let packed = quantize(&cast(&part, dtype)?.contiguous().map_err(mlx)?, *scheme);
                    let QuantizedMatrix { weight, scales, biases, .. } = packed.map_err(mlx)?;
                    arrays.extend([weight, scales].into_iter().chain(biases));
                }
                Ok(arrays)
            }
            Work::Dequantize(scheme) => {
                let dtype = mlx_dtype(self.outputs[0].1).unwrap_or(mlx_rs::Dtype::Float32);
                self.pieces(self.unpack(reader, *scheme, dtype)?)
            }
            Work::Fuse { packed, delta } => {
                let wide = mlx_rs::Dtype::Float32;
                let before = match packed {
                    Some(scheme) => self.unpack(reader, *scheme, wide)?.remove(0),
                    None => self.read(reader)?.as_dtype(wide).map_err(mlx)?,
                };
                let after = delta.apply(&before).map_err(mlx)?;
                let Some(scheme) = packed.filter(|_| self.outputs[0].1 == Dtype::U32) else {
                    return self.pieces(vec![cast(&after, self.outputs[0].1)?]);
                };
                let after = if scheme.mode.has_biases() { cast(&after, self.outputs[1].1)? } else { after };
                let QuantizedMatrix { weight, scales, biases, .. } = quantize(&after, scheme).map_err(mlx)?;
                Ok([weight, scales].into_iter().chain(biases).collect())
            }
        }
    }

    /// Bytes of the outputs.
    pub(super) fn output_bytes(&self) -> u64 {
        self.outputs.iter().map(size).fold(0, u64::saturating_add)
    }

    /// Bytes that are in memory at once: sources and outputs.
    pub(super) fn bytes(&self) -> u64 {
        self.sources.iter().map(TensorInfo::bytes).fold(self.output_bytes(), u64::saturating_add)
    }

    /// The parts of packed sources in full.
    fn unpack(
        &self,
        reader: &Reader<'_>,
        scheme: QuantizationScheme,
        dtype: mlx_rs::Dtype,
    ) -> Result<Vec<Array>> {
        let read = |source: &TensorInfo| {
            let array = reader.read(&[source], source.dtype, &mlx_shape(&source.shape)?)?;
            self.layout.split(&array).map_err(mlx)
        };
        let sources = self.sources.iter().map(read).collect::<Result<Vec<_>>>()?;
        let parts = sources[0].iter().enumerate().map(|(i, weight)| {
            let part = |source: usize| sources.get(source).map(|parts| parts[i].clone());
            let scales = part(1).ok_or_else(|| mlx(Exception::custom("there are no scales")))?;
            let packed = QuantizedMatrix { weight: weight.clone(), scales, biases: part(2), scheme };
            dequantize(&packed, dtype).map_err(mlx)
        });
        parts.collect()
    }

    /// The parts; or a single one cut to as many pieces as there are outputs.
    fn pieces(&self, parts: Vec<Array>) -> Result<Vec<Array>> {
        match self.outputs.len() / parts.len() {
            0 | 1 => Ok(parts),
            pieces => parts[0].split_equal(pieces as i32, 0).map_err(mlx),
        }
    }

    fn read(&self, reader: &Reader<'_>) -> Result<Array> {
        let sources: Vec<_> = self.sources.iter().collect();
        reader.read(&sources, sources[0].dtype, &mlx_shape(&self.shape)?)
    }
}

fn cast(array: &Array, dtype: Dtype) -> Result<Array> {
    match mlx_dtype(dtype) {
        Some(dtype) => array.as_dtype(dtype).map_err(mlx),
        None => Ok(array.clone()),
    }
}

fn mlx_shape(shape: &[usize]) -> Result<Vec<i32>> {
    let shape: Option<Vec<_>> = shape.iter().map(|n| i32::try_from(*n).ok()).collect();
    shape.ok_or_else(|| Error::backend("mlx", "convert a tensor", "it has a dimension that MLX cannot hold"))
}

fn mlx(error: Exception) -> Error {
    Error::backend("mlx", "convert a tensor", error)
}
