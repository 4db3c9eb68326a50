//! Quantised matrices of every mode that MLX has.

use std::ffi::CStr;

use mlx_rs::{
    Array, Dtype, Stream,
    error::{Exception, Result},
};

use super::array::{call, handle};

/// How a matrix is quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Scheme {
    /// The mode.
    pub(crate) mode: Mode,
    /// Bits per element.
    pub(crate) bits: usize,
    /// Elements of a row per scale.
    pub(crate) group_size: usize,
}

/// MLX's modes of quantisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    /// Integers with a scale and a bias per group.
    Affine,
    /// Four-bit floats; scales are powers of two.
    Mxfp4,
    /// Four-bit floats; scales are eight-bit floats.
    Nvfp4,
    /// Eight-bit floats; scales are powers of two.
    Mxfp8,
}

impl Mode {
    /// The mode with this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Affine, Self::Mxfp4, Self::Nvfp4, Self::Mxfp8].into_iter().find(|mode| mode.name() == name)
    }

    /// Whether groups have a bias.
    pub(crate) fn has_biases(self) -> bool {
        self == Self::Affine
    }

    /// Its name in config.json.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Affine => "affine",
            Self::Mxfp4 => "mxfp4",
            Self::Nvfp4 => "nvfp4",
            Self::Mxfp8 => "mxfp8",
        }
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
pub(crate) const MXFP4: Scheme = Scheme { mode: Mode::Mxfp4, bits: 4, group_size: 32 };

impl Scheme {
    /// Whether MLX has kernels for it.
    pub(crate) fn is_supported(self) -> bool {
        match self.mode {
            Mode::Affine => matches!(self.bits, 2..=6 | 8) && matches!(self.group_size, 32 | 64 | 128),
            Mode::Mxfp4 => (self.bits, self.group_size) == (4, 32),
            Mode::Nvfp4 => (self.bits, self.group_size) == (4, 16),
            Mode::Mxfp8 => (self.bits, self.group_size) == (8, 32),
        }
    }

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
    pub(crate) scheme: Scheme,
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

/// `x · w[i]ᵀ` with one `i` of `indices` for each matrix of x: `[.., M, in]`, `[..]` → `[.., M, out]`.
pub(crate) fn gather_qmm(x: &Array, w: &QuantizedMatrix, indices: &Array, sorted: bool) -> Result<Array> {
    let stream = Stream::thread_local_or_default();
    // SAFETY: as in `quantized_matmul`.
    call("gather_qmm", |result| unsafe {
        mlx_sys::mlx_gather_qmm(
            result,
            x.as_ptr(),
            w.weight.as_ptr(),
            w.scales.as_ptr(),
            handle(w.biases.as_ref()),
            handle(None),
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
pub(crate) fn quantize(w: &Array, scheme: Scheme) -> Result<QuantizedMatrix> {
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
