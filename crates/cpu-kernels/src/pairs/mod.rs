//! Products of a few rows of bf16 with many rows of a matrix whose elements bf16 holds exactly, before they are scaled: pairs
//! of them are multiplied at once. Integers of 4 bits become the highest digits of a number whose exponent is fixed, which
//! takes one instruction; what that adds to each element is taken back with the bias.

mod gemv;
mod lanes;
mod rows;

pub(crate) use gemv::{MOST, PairGemv};
pub(crate) use lanes::{LaneGemv, Lanes};
pub(crate) use rows::{PairedRows, arrange, sum_groups};

use std::arch::x86_64::*;

use half::bf16;

use crate::{
    Matrices, Weights,
    storage::{Dense, Fp4, Storage, Whole},
    unpack::FP4,
};

/// Elements that are unpacked at once: two vectors.
pub(crate) const BLOCK: usize = 64;
/// Bytes of the largest block.
pub(crate) const LARGEST: usize = 2 * BLOCK;

/// How the elements of a block become two vectors of bf16.
pub(crate) trait Pairs: Copy + Send + Sync + 'static {
    /// The storage of the same matrices.
    type Storage: Storage;
    /// Bytes of a block.
    const BYTES: usize = BLOCK * Self::Storage::BITS / 8;
    /// Whether groups of elements have a scale.
    const SCALED: bool = Self::Storage::SCALED;
    /// What each element is too large by.
    const EXCESS: f32 = 0.0;
    /// Which element of a block is where. Where groups have a scale, a lane holds four neighbours, pairs in each vector.
    const ORDER: [u16; BLOCK];

    /// # Safety
    /// The machine has the instructions, and the block is whole.
    unsafe fn values(from: *const u8) -> [__m512i; 2];
}

/// Integers of 4 bits, two in a byte.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nibble;
/// Floats of 4 bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Float;
/// Integers of 8 bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Byte;
/// bf16 itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Brain;

/// A lane's pair in the first vector and the one in the second, of its four elements.
const fn order(pairs: [[u16; 2]; 2]) -> [u16; BLOCK] {
    let mut order = [0; BLOCK];
    let mut at = 0;
    while at < BLOCK {
        order[at] = (at % 32 / 2 * 4) as u16 + pairs[at / 32][at % 2];
        at += 1;
    }
    order
}

/// The halves of bytes, widened to words: the lower ones, then the higher ones.
const HALVES: [u16; BLOCK] = order([[0, 2], [1, 3]]);

#[allow(clippy::undocumented_unsafe_blocks, reason = "the trait's contract is that of what it calls")]
impl Pairs for Nibble {
    type Storage = Whole<4>;
    const EXCESS: f32 = 16.0;
    const ORDER: [u16; BLOCK] = HALVES;

    #[inline(always)]
    unsafe fn values(from: *const u8) -> [__m512i; 2] {
        unsafe {
            let words = _mm512_cvtepu8_epi16(_mm256_loadu_si256(from.cast()));
            // Which bits of a word digits are: the others are those of the exponent.
            let mask = _mm512_set1_epi16(0x78);
            // 16 in bf16: its digit at the fourth highest place is worth 8.
            let sixteen = _mm512_set1_epi16(0x4180);
            let with = |digits| _mm512_ternarylogic_epi32::<0xf8>(sixteen, digits, mask);
            [with(_mm512_slli_epi16::<3>(words)), with(_mm512_srli_epi16::<1>(words))]
        }
    }
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "the trait's contract is that of what it calls")]
impl Pairs for Float {
    type Storage = Fp4;
    const ORDER: [u16; BLOCK] = HALVES;

    #[inline(always)]
    unsafe fn values(from: *const u8) -> [__m512i; 2] {
        // Twice over: the lowest five bits are looked up.
        const TABLE: [u16; 32] = {
            let mut table = [0; 32];
            let mut i = 0;
            while i < 32 {
                table[i] = (FP4[i % 16].to_bits() >> 16) as u16;
                i += 1;
            }
            table
        };
        unsafe {
            let words = _mm512_cvtepu8_epi16(_mm256_loadu_si256(from.cast()));
            let table = _mm512_loadu_si512(TABLE.as_ptr().cast());
            let high = _mm512_srli_epi16::<4>(words);
            [_mm512_permutexvar_epi16(words, table), _mm512_permutexvar_epi16(high, table)]
        }
    }
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "the trait's contract is that of what it calls")]
impl Pairs for Byte {
    type Storage = Whole<8>;
    const ORDER: [u16; BLOCK] = order([[0, 1], [2, 3]]);

    #[inline(always)]
    unsafe fn values(from: *const u8) -> [__m512i; 2] {
        unsafe {
            let words = _mm512_loadu_si512(from.cast());
            let byte = _mm512_set1_epi32(0xff);
            // The upper halves of the numbers are all of them.
            let number = |code| _mm512_castps_si512(_mm512_cvtepi32_ps(code));
            let pair = |low, high| _mm512_or_si512(_mm512_srli_epi32::<16>(number(low)), number(high));
            [
                pair(_mm512_and_si512(words, byte), _mm512_and_si512(_mm512_srli_epi32::<8>(words), byte)),
                pair(_mm512_and_si512(_mm512_srli_epi32::<16>(words), byte), _mm512_srli_epi32::<24>(words)),
            ]
        }
    }
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "the trait's contract is that of what it calls")]
impl Pairs for Brain {
    type Storage = Dense<bf16>;
    const ORDER: [u16; BLOCK] = {
        let mut order = [0; BLOCK];
        let mut at = 0;
        while at < BLOCK {
            order[at] = at as u16;
            at += 1;
        }
        order
    };

    #[inline(always)]
    unsafe fn values(from: *const u8) -> [__m512i; 2] {
        unsafe { [_mm512_loadu_si512(from.cast()), _mm512_loadu_si512(from.add(64).cast())] }
    }
}

/// Runs `$body` with the type `$pairs` bound to how such weights are unpacked here, where they are.
macro_rules! with_pairs {
    ($weights:expr, $pairs:ident => $body:expr) => {{
        use $crate::{Floats, QuantMode, Quantization, Weights, pairs};
        match $weights {
            Weights::Quantized {
                quantization: Quantization { mode: QuantMode::Affine, bits: 4, .. },
                ..
            } => {
                type $pairs = pairs::Nibble;
                Some($body)
            }
            Weights::Quantized {
                quantization: Quantization { mode: QuantMode::Affine, bits: 8, .. },
                ..
            } => {
                type $pairs = pairs::Byte;
                Some($body)
            }
            Weights::Quantized {
                quantization: Quantization { mode: QuantMode::Mxfp4 | QuantMode::Nvfp4, .. },
                ..
            } => {
                type $pairs = pairs::Float;
                Some($body)
            }
            Weights::Dense(Floats::Bf16(_)) => {
                type $pairs = pairs::Brain;
                Some($body)
            }
            _ => None,
        }
    }};
}
pub(crate) use with_pairs;

/// Elements that share a scale, or a block where none has one.
fn group_size(w: &Matrices<'_>) -> usize {
    match &w.weights {
        Weights::Quantized { quantization, .. } => quantization.group_size,
        Weights::Dense(_) => BLOCK,
    }
}

/// Adds to each lane the products of a pair.
///
/// # Safety
/// The machine has the instructions, and 32 elements are there.
#[inline(always)]
unsafe fn dot(sum: __m512, w: __m512i, x: *const bf16) -> __m512 {
    // SAFETY: the caller's; both types are 512 bits.
    unsafe {
        let x: __m512bh = std::mem::transmute(_mm512_loadu_si512(x.cast()));
        _mm512_dpbf16_ps(sum, std::mem::transmute::<__m512i, __m512bh>(w), x)
    }
}
