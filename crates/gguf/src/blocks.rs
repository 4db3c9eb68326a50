//! The types of tensors: names, and how many elements and bytes a block has.

use std::fmt;

use half::f16;

/// How the elements of a tensor are stored. Rows consist of whole blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, non_camel_case_types, reason = "the names are the format's own")]
#[non_exhaustive]
pub enum TensorType {
    F32,
    F16,
    BF16,
    F64,
    I8,
    I16,
    I32,
    I64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    MXFP4,
    NVFP4,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    Q1_0,
}

use TensorType::*;

/// The type, its number in files, elements of a block, bytes of a block.
const TYPES: [(TensorType, u32, usize, usize); 34] = [
    (F32, 0, 1, 4),
    (F16, 1, 1, 2),
    (Q4_0, 2, 32, 18),
    (Q4_1, 3, 32, 20),
    (Q5_0, 6, 32, 22),
    (Q5_1, 7, 32, 24),
    (Q8_0, 8, 32, 34),
    (Q8_1, 9, 32, 40),
    (Q2_K, 10, 256, 84),
    (Q3_K, 11, 256, 110),
    (Q4_K, 12, 256, 144),
    (Q5_K, 13, 256, 176),
    (Q6_K, 14, 256, 210),
    (Q8_K, 15, 256, 292),
    (IQ2_XXS, 16, 256, 66),
    (IQ2_XS, 17, 256, 74),
    (IQ3_XXS, 18, 256, 98),
    (IQ1_S, 19, 256, 50),
    (IQ4_NL, 20, 32, 18),
    (IQ3_S, 21, 256, 110),
    (IQ2_S, 22, 256, 82),
    (IQ4_XS, 23, 256, 136),
    (I8, 24, 1, 1),
    (I16, 25, 1, 2),
    (I32, 26, 1, 4),
    (I64, 27, 1, 8),
    (F64, 28, 1, 8),
    (IQ1_M, 29, 256, 56),
    (BF16, 30, 1, 2),
    (TQ1_0, 34, 256, 54),
    (TQ2_0, 35, 256, 66),
    (MXFP4, 39, 32, 17),
    (NVFP4, 40, 64, 36),
    (Q1_0, 41, 128, 18),
];

impl TensorType {
    /// The type that files give this number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        TYPES.iter().find(|entry| entry.1 == number).map(|entry| entry.0)
    }

    /// Its number in files.
    #[must_use]
    pub fn number(self) -> u32 {
        self.entry().1
    }

    /// Elements of one block.
    #[must_use]
    pub fn block_len(self) -> usize {
        self.entry().2
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        self.entry().3
    }

    /// Whether elements share scales.
    #[must_use]
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Whether [`dequantize`](Self::dequantize) knows it.
    #[must_use]
    pub fn is_readable(self) -> bool {
        matches!(self, F32 | F16 | BF16 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | MXFP4)
            || matches!(self, Q2_K | Q3_K | Q4_K | Q5_K | Q6_K | Q8_K)
    }

    fn entry(self) -> &'static (Self, u32, usize, usize) {
        // Each type stands in the table: a test looks.
        TYPES.iter().find(|entry| entry.0 == self).unwrap_or(&TYPES[0])
    }
}

/// The format's own name, such as `Q4_K`.
impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The half-precision number at a place of a block.
pub(crate) fn half_at(block: &[u8], place: usize) -> f32 {
    f16::from_le_bytes([block[place], block[place + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_numbers_belong_together() {
        for (kind, number, ..) in TYPES {
            assert_eq!((TensorType::from_number(number), kind.number()), (Some(kind), number));
        }
        assert_eq!(TensorType::from_number(4), None);
        // The last of the enumeration: none was left out of the table.
        assert_eq!(TYPES.len(), Q1_0 as usize + 1);
    }
}
