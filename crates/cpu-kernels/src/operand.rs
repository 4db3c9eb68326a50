//! The operands of kernels: plain memory in row-major order, with its element type known at run time.

use half::{bf16, f16};

use crate::{
    error::{Error, Result},
    quantization::{QuantMode, Quantization},
};

/// Input floats.
#[derive(Debug, Clone, Copy)]
pub enum Floats<'a> {
    /// `f32`
    F32(&'a [f32]),
    /// IEEE 754 half precision.
    F16(&'a [f16]),
    /// bfloat16: the upper half of an `f32`.
    Bf16(&'a [bf16]),
}

/// Output floats.
#[derive(Debug)]
pub enum FloatsMut<'a> {
    /// `f32`
    F32(&'a mut [f32]),
    /// IEEE 754 half precision.
    F16(&'a mut [f16]),
    /// bfloat16: the upper half of an `f32`.
    Bf16(&'a mut [bf16]),
}

/// The type of floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FloatType {
    F32,
    F16,
    Bf16,
}

/// Runs `$body` with `$slice` bound to the slice inside of any [`Floats`] or [`FloatsMut`].
macro_rules! with_slice {
    ($floats:expr, $kind:ident, $slice:ident => $body:expr) => {
        match $floats {
            $kind::F32($slice) => $body,
            $kind::F16($slice) => $body,
            $kind::Bf16($slice) => $body,
        }
    };
}
pub(crate) use with_slice;

impl Floats<'_> {
    pub(crate) fn float_type(&self) -> FloatType {
        match self {
            Self::F32(_) => FloatType::F32,
            Self::F16(_) => FloatType::F16,
            Self::Bf16(_) => FloatType::Bf16,
        }
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        with_slice!(self, Floats, slice => slice.len())
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl FloatsMut<'_> {
    /// The same memory, to be lent once more.
    pub fn reborrow(&mut self) -> FloatsMut<'_> {
        match self {
            Self::F32(slice) => FloatsMut::F32(slice),
            Self::F16(slice) => FloatsMut::F16(slice),
            Self::Bf16(slice) => FloatsMut::Bf16(slice),
        }
    }

    /// The same memory, to be read.
    #[must_use]
    pub fn as_floats(&self) -> Floats<'_> {
        match self {
            Self::F32(slice) => Floats::F32(slice),
            Self::F16(slice) => Floats::F16(slice),
            Self::Bf16(slice) => Floats::Bf16(slice),
        }
    }

    pub(crate) fn float_type(&self) -> FloatType {
        match self {
            Self::F32(_) => FloatType::F32,
            Self::F16(_) => FloatType::F16,
            Self::Bf16(_) => FloatType::Bf16,
        }
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        with_slice!(self, FloatsMut, slice => slice.len())
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The scales of groups, and their biases.
#[derive(Debug, Clone, Copy)]
pub enum Scales<'a> {
    /// Those of [`QuantMode::Affine`], of one float type.
    Affine {
        /// `[.., outputs, inputs / group_size]`
        scales: Floats<'a>,
        /// As the scales.
        biases: Floats<'a>,
    },
    /// The scales of the other modes: `[.., outputs, inputs / group_size]`.
    Bytes(&'a [u8]),
}

/// The elements of matrices.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    /// Floats `[.., outputs, inputs]`.
    Dense(Floats<'a>),
    /// Quantised.
    Quantized {
        /// The encoding.
        quantization: Quantization,
        /// `[.., outputs, inputs · bits / 32]`: each row a string of bits, element 0 in the lowest bits.
        words: &'a [u32],
        /// The scales of the groups.
        scales: Scales<'a>,
    },
}

/// A stack of matrices `[count, outputs, inputs]`.
#[derive(Debug, Clone, Copy)]
pub struct Matrices<'a> {
    /// The number of matrices.
    pub count: usize,
    /// Rows of each matrix.
    pub outputs: usize,
    /// Columns of each matrix.
    pub inputs: usize,
    /// Their elements.
    pub weights: Weights<'a>,
}

impl Matrices<'_> {
    /// Checks that the stack is one matrix, and the rest as [`check`](Self::check).
    pub(crate) fn check_single(&self) -> Result<()> {
        if self.count != 1 {
            let name = "the number of matrices";
            return Err(Error::Invalid { name, found: self.count, expected: "1".into() });
        }
        self.check()
    }

    /// Checks the encoding, and that every part is as long as the sizes require.
    pub(crate) fn check(&self) -> Result<()> {
        let rows = product("outputs", &[self.count, self.outputs])?;
        match &self.weights {
            Weights::Dense(floats) => {
                length("weights", floats.len(), product("inputs", &[rows, self.inputs])?)
            }
            Weights::Quantized { quantization, words, scales } => {
                if !quantization.is_supported() {
                    return Err(Error::Quantization(*quantization));
                }
                if !self.inputs.is_multiple_of(quantization.group_size) {
                    let expected = format!("a multiple of the group size {}", quantization.group_size);
                    return Err(Error::Invalid { name: "inputs", found: self.inputs, expected });
                }
                // A group fills whole words: 16 elements of 4 bits, or 32 elements of any size.
                let per_row = product("inputs", &[self.inputs, quantization.bits])? / 32;
                length("words", words.len(), product("inputs", &[rows, per_row])?)?;
                let groups = rows * (self.inputs / quantization.group_size);
                match (quantization.mode, scales) {
                    (QuantMode::Affine, Scales::Affine { scales, biases }) => {
                        length("scales", scales.len(), groups)?;
                        length("biases", biases.len(), groups)?;
                        if std::mem::discriminant(scales) != std::mem::discriminant(biases) {
                            return Err(Error::Quantization(*quantization));
                        }
                        Ok(())
                    }
                    (QuantMode::Mxfp4 | QuantMode::Nvfp4 | QuantMode::Mxfp8, Scales::Bytes(bytes)) => {
                        length("scales", bytes.len(), groups)
                    }
                    _ => Err(Error::Quantization(*quantization)),
                }
            }
        }
    }
}

/// The number of rows, `width` elements each.
pub(crate) fn row_count(width: usize, len: usize, operand: &'static str) -> Result<usize> {
    let rows = len.checked_div(width).unwrap_or(0);
    length(operand, len, rows * width)?;
    Ok(rows)
}

/// Checks `found == expected`.
pub(crate) fn length(operand: &'static str, found: usize, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(Error::Length { operand, found, expected }) }
}

/// The product of sizes, or an error if no memory is that large.
pub(crate) fn product(name: &'static str, sizes: &[usize]) -> Result<usize> {
    let product = sizes.iter().try_fold(1_usize, |product, size| product.checked_mul(*size));
    product.filter(|product| *product <= isize::MAX as usize / 4).ok_or_else(|| Error::Invalid {
        name,
        found: sizes.last().copied().unwrap_or(0),
        expected: "a size that fits in memory".into(),
    })
}
