//! Quantised matrices of every mode that MLX has.

use std::ffi::CStr;

use inference_core::{QuantMode, Quantization};
use mlx_rs::{
    Array, Dtype, Stream,
    error::{Exception, Result},
};

use super::array::{call, handle};

/// How a matrix is quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct QuantizationScheme {
    /// The mode.
    pub(crate) mode: QuantizationMode,
    /// Bits per element.
    pub(crate) bits: usize,
    /// Elements of a row per scale.
    pub(crate) group_size: usize,
}

/// MLX's modes of quantisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum QuantizationMode {
    /// Integers with a scale and a bias per group.
    Affine,
    /// Four-bit floats; scales are powers of two.
    Mxfp4,
    /// Four-bit floats; scales are eight-bit floats.
    Nvfp4,
    /// Eight-bit floats; scales are powers of two.
    Mxfp8,
}

impl QuantizationMode {
    /// Whether groups have a bias.
    pub(crate) fn has_biases(self) -> bool {
        self == Self::Affine
    }

    fn c_name(self) -> &'static CStr {
        match self {
            Self::Affine => c"affine",
            Self::Mxfp4 => c"mxfp4",
            Self::Nvfp4 => c"nvfp4",
            Self::Mxfp8 => c"mxfp8",
        }
    }
}

/// MXFP4 as gpt-oss checkpoints store it and MLX reads it.
pub(crate) const MXFP4: QuantizationScheme =
    QuantizationScheme { mode: QuantizationMode::Mxfp4, bits: 4, group_size: 32 };

/// What MLX has kernels for. The error says what it lacks.
impl TryFrom<Quantization> for QuantizationScheme {
    type Error = String;

    fn try_from(quantization: Quantization) -> std::result::Result<Self, String> {
        let Quantization { mode, bits, group_size, .. } = quantization;
        let (known, supported) = match mode {
            QuantMode::Affine => {
                (QuantizationMode::Affine, matches!(bits, 2..=6 | 8) && matches!(group_size, 32 | 64 | 128))
            }
            QuantMode::Mxfp4 => (QuantizationMode::Mxfp4, (bits, group_size) == (4, 32)),
            QuantMode::Nvfp4 => (QuantizationMode::Nvfp4, (bits, group_size) == (4, 16)),
            QuantMode::Mxfp8 => (QuantizationMode::Mxfp8, (bits, group_size) == (8, 32)),
            _ => (QuantizationMode::Affine, false),
        };
        if supported {
            return Ok(Self { mode: known, bits: bits as usize, group_size: group_size as usize });
        }
        Err(format!("MLX has no {mode} with {bits} bits in groups of {group_size}"))
    }
}

impl From<QuantizationScheme> for Quantization {
    fn from(QuantizationScheme { mode, bits, group_size }: QuantizationScheme) -> Self {
        let mode = match mode {
            QuantizationMode::Affine => QuantMode::Affine,
            QuantizationMode::Mxfp4 => QuantMode::Mxfp4,
            QuantizationMode::Nvfp4 => QuantMode::Nvfp4,
            QuantizationMode::Mxfp8 => QuantMode::Mxfp8,
        };
        Self::new(bits as u32, group_size as u32, mode)
    }
}

impl QuantizationScheme {
    fn bits(self) -> mlx_sys::mlx_optional_int {
        mlx_sys::mlx_optional_int { value: self.bits as i32, has_value: true }
    }

    fn group_size(self) -> mlx_sys::mlx_optional_int {
        mlx_sys::mlx_optional_int { value: self.group_size as i32, has_value: true }
    }
}

/// A quantised matrix `[out, in]`, or a stack of them `[n, out, in]`.
#[derive(Debug, Clone)]
pub(crate) struct QuantizedMatrix {
    /// Elements, packed into u32: `[.., out, in * bits / 32]`.
    pub(crate) weight: Array,
    /// `[.., out, in / group_size]`
    pub(crate) scales: Array,
    /// Shaped like the scales; affine only.
    pub(crate) biases: Option<Array>,
    /// How it is quantised.
    pub(crate) scheme: QuantizationScheme,
}

/// `x · wᵀ`: `[.., in]` → `[.., out]`.
pub(crate) fn quantized_matmul(x: &Array, w: &QuantizedMatrix) -> Result<Array> {
    let stream = Stream::thread_local_or_default();
    // SAFETY: every handle belongs to an array that lives through the call; a null handle stands for an absent one.
    call("quantized_matmul", |result| unsafe {
        mlx_sys::mlx_quantized_matmul(
            result,
            x.as_ptr(),
            w.weight.as_ptr(),
            w.scales.as_ptr(),
            handle(w.biases.as_ref()),
            true,
            w.scheme.group_size(),
            w.scheme.bits(),
            w.scheme.mode.c_name().as_ptr(),
            stream.as_ref().as_ptr(),
        )
    })
}

/// `x[p] · w[i]ᵀ` with one `i` of `indices` and one `p` of `places` for each product: `[.., M, in]`, `[..]` → `[.., M, out]`. Without
/// places, each matrix of x has its turn.
pub(crate) fn gather_qmm(
    x: &Array,
    w: &QuantizedMatrix,
    places: Option<&Array>,
    indices: &Array,
    sorted: bool,
) -> Result<Array> {
    let stream = Stream::thread_local_or_default();
    // SAFETY: as in `quantized_matmul`.
    call("gather_qmm", |result| unsafe {
        mlx_sys::mlx_gather_qmm(
            result,
            x.as_ptr(),
            w.weight.as_ptr(),
            w.scales.as_ptr(),
            handle(w.biases.as_ref()),
            handle(places),
            indices.as_ptr(),
            true,
            w.scheme.group_size(),
            w.scheme.bits(),
            w.scheme.mode.c_name().as_ptr(),
            sorted,
            stream.as_ref().as_ptr(),
        )
    })
}

/// Dequantises to `[.., out, in]` of type `dtype`.
pub(crate) fn dequantize(w: &QuantizedMatrix, dtype: Dtype) -> Result<Array> {
    let stream = Stream::thread_local_or_default();
    // MLX multiplies in the type of the scales: in half precision it would round what the caller wants in full.
    let widened;
    let w = match &w.biases {
        Some(biases) if dtype == Dtype::Float32 && w.scales.dtype() != dtype => {
            let (scales, biases) = (w.scales.as_dtype(dtype)?, Some(biases.as_dtype(dtype)?));
            widened = QuantizedMatrix { weight: w.weight.clone(), scales, biases, scheme: w.scheme };
            &widened
        }
        _ => w,
    };
    // SAFETY: as in `quantized_matmul`.
    call("dequantize", |result| unsafe {
        mlx_sys::mlx_dequantize(
            result,
            w.weight.as_ptr(),
            w.scales.as_ptr(),
            handle(w.biases.as_ref()),
            w.scheme.group_size(),
            w.scheme.bits(),
            w.scheme.mode.c_name().as_ptr(),
            handle(None),
            mlx_sys::mlx_optional_dtype { value: dtype.into(), has_value: true },
            stream.as_ref().as_ptr(),
        )
    })
}

/// Quantises floats `[.., out, in]`.
pub(crate) fn quantize(w: &Array, scheme: QuantizationScheme) -> Result<QuantizedMatrix> {
    let stream = Stream::thread_local_or_default();
    // SAFETY: the vector is made, filled, read and freed here; its arrays get handles of their own.
    let mut arrays = unsafe {
        let mut vector = mlx_sys::mlx_vector_array_new();
        let status = mlx_sys::mlx_quantize(
            &raw mut vector,
            w.as_ptr(),
            scheme.group_size(),
            scheme.bits(),
            scheme.mode.c_name().as_ptr(),
            handle(None),
            stream.as_ref().as_ptr(),
        );
        let count = if status == 0 { mlx_sys::mlx_vector_array_size(vector) } else { 0 };
        let arrays: Result<Vec<_>> = (0..count)
            .map(|i| call("quantize", |result| mlx_sys::mlx_vector_array_get(result, vector, i)))
            .collect();
        mlx_sys::mlx_vector_array_free(vector);
        arrays?.into_iter()
    };
    let (Some(weight), Some(scales)) = (arrays.next(), arrays.next()) else {
        return Err(Exception::custom(format!(
            "quantize failed for {scheme:?} and the shape {:?}",
            w.shape()
        )));
    };
    Ok(QuantizedMatrix { weight, scales, biases: arrays.next(), scheme })
}
