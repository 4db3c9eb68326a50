//! How matrices are quantised.

/// The encodings of quantised matrices, as MLX stores them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuantMode {
    /// `scale · q + bias`, where `q` is an unsigned integer of `bits` bits. Scales and biases are floats.
    Affine,
    /// Floats of type E2M1. Scales are of type E8M0: powers of two, stored as the exponent biased by 127.
    Mxfp4,
    /// Floats of type E2M1. Scales are floats of type E4M3.
    Nvfp4,
    /// Floats of type E4M3. Scales are those of [`QuantMode::Mxfp4`].
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
    /// Whether the kernels support this encoding.
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
