//! What kernels read and write: plain memory of the caller's, row by row, with its element type told at run time.

use half::{bf16, f16};

use crate::{Error, Result};

/// Floats to read.
#[derive(Debug, Clone, Copy)]
pub enum Floats<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// The upper half of single precision.
    Bf16(&'a [bf16]),
}

/// Floats to write.
#[derive(Debug)]
pub enum FloatsMut<'a> {
    /// Single precision.
    F32(&'a mut [f32]),
    /// IEEE half precision.
    F16(&'a mut [f16]),
    /// The upper half of single precision.
    Bf16(&'a mut [bf16]),
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
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        with_slice!(self, Floats, slice => slice.len())
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl FloatsMut<'_> {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        with_slice!(self, FloatsMut, slice => slice.len())
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The encodings of quantised matrices, as MLX stores them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuantMode {
    /// `scale · q + bias`, `q` an integer of `bits` bits without sign; scales and biases are floats.
    Affine,
    /// Floats with two bits of exponent and one of mantissa; a scale is the exponent of a power of two, biased by 127.
    Mxfp4,
    /// The same elements; a scale is a float with four bits of exponent and three of mantissa.
    Nvfp4,
    /// Floats with four bits of exponent and three of mantissa; scales as in [`QuantMode::Mxfp4`].
    Mxfp8,
}

/// How the elements of a quantised matrix are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quantization {
    /// The encoding.
    pub mode: QuantMode,
    /// Bits of one element.
    pub bits: usize,
    /// Elements of a row that share a scale.
    pub group_size: usize,
}

impl Quantization {
    /// Whether kernels know this storage.
    #[must_use]
    pub fn is_supported(self) -> bool {
        match self.mode {
            QuantMode::Affine => matches!(self.bits, 2..=6 | 8) && matches!(self.group_size, 32 | 64 | 128),
            QuantMode::Mxfp4 => (self.bits, self.group_size) == (4, 32),
            QuantMode::Nvfp4 => (self.bits, self.group_size) == (4, 16),
            QuantMode::Mxfp8 => (self.bits, self.group_size) == (8, 32),
        }
    }
}

/// What the elements of groups are multiplied by, and what is added.
#[derive(Debug, Clone, Copy)]
pub enum Scales<'a> {
    /// Scales and biases of [`QuantMode::Affine`], of one type.
    Affine {
        /// `[.., outputs, inputs / group_size]`
        scales: Floats<'a>,
        /// As the scales.
        biases: Floats<'a>,
    },
    /// Scales of the other modes, `[.., outputs, inputs / group_size]`.
    Bytes(&'a [u8]),
}

/// Elements of matrices.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    /// In full: `[.., outputs, inputs]`.
    Dense(Floats<'a>),
    /// Quantised.
    Quantized {
        /// The storage.
        quantization: Quantization,
        /// `[.., outputs, inputs · bits / 32]`: each row a string of bits, element 0 in the lowest.
        words: &'a [u32],
        /// Of the groups.
        scales: Scales<'a>,
    },
}

/// A stack of matrices `[count, outputs, inputs]`.
#[derive(Debug, Clone, Copy)]
pub struct Matrices<'a> {
    /// Matrices in the stack.
    pub count: usize,
    /// Rows of each.
    pub outputs: usize,
    /// Columns of each.
    pub inputs: usize,
    /// Their elements.
    pub weights: Weights<'a>,
}

impl Matrices<'_> {
    /// That every part is as long as the sizes ask for, and the storage one that exists.
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
                // Groups of 16 elements of 4 bits and groups of 32 elements of any are whole words.
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

/// `found == expected`, or the error that says so.
pub(crate) fn length(operand: &'static str, found: usize, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(Error::Length { operand, found, expected }) }
}

/// The product of sizes, or an error where no memory is that large.
pub(crate) fn product(name: &'static str, sizes: &[usize]) -> Result<usize> {
    let product = sizes.iter().try_fold(1_usize, |product, size| product.checked_mul(*size));
    product.filter(|product| *product <= isize::MAX as usize / 4).ok_or_else(|| Error::Invalid {
        name,
        found: sizes.last().copied().unwrap_or(0),
        expected: "a size that memory can hold".into(),
    })
}
