//! How blocks of a matrix are unpacked into vectors of bf16.

use std::arch::x86_64::*;

use half::bf16;

use crate::{
    minifloat::FP4,
    operand::{Matrices, Weights},
    storage::{AlignedInt, Dense, Fp4, Storage},
};

/// Elements of a block, which unpacks into two vectors.
pub(crate) const BF16_BLOCK: usize = 64;
/// Bytes of the largest block.
pub(crate) const MAX_BF16_BLOCK_BYTES: usize = 2 * BF16_BLOCK;

/// A storage whose elements bf16 holds exactly, before they are scaled.
pub(crate) trait Bf16Dot: Storage {
    /// Bytes of a block.
    const BLOCK_BYTES: usize = BF16_BLOCK * Self::BITS / 8;
    /// What unpacking adds to each element. The bias of a group takes it back.
    const OFFSET: f32 = 0.0;
    /// The element of a block at each place of the two vectors. If groups have a scale, a lane holds four neighbours: a pair in
    /// each vector.
    const ORDER: [u16; BF16_BLOCK];

    /// Unpacks a block into two vectors of bf16.
    ///
    /// # Safety
    /// The machine has AVX-512 bf16, and the block is whole.
    unsafe fn unpack(from: *const u8) -> [__m512i; 2];
}

/// The order in which a lane's four elements are `pairs`: one pair in the first vector, and one in the second.
const fn order(pairs: [[u16; 2]; 2]) -> [u16; BF16_BLOCK] {
    let mut order = [0; BF16_BLOCK];
    let mut at = 0;
    while at < BF16_BLOCK {
        order[at] = (at % 32 / 2 * 4) as u16 + pairs[at / 32][at % 2];
        at += 1;
    }
    order
}

/// The order of 4-bit elements: the low halves of bytes in the first vector, the high halves in the second.
const NIBBLE_ORDER: [u16; BF16_BLOCK] = order([[0, 2], [1, 3]]);

#[allow(clippy::undocumented_unsafe_blocks, reason = "the contract of `Bf16Dot`")]
impl Bf16Dot for AlignedInt<4> {
    const OFFSET: f32 = 16.0;
    const ORDER: [u16; BF16_BLOCK] = NIBBLE_ORDER;

    #[inline(always)]
    unsafe fn unpack(from: *const u8) -> [__m512i; 2] {
        unsafe {
            let words = _mm512_cvtepu8_epi16(_mm256_loadu_si256(from.cast()));
            // The high bits of the mantissa hold the integer; the other bits hold the exponent.
            let mask = _mm512_set1_epi16(0x78);
            // 16 in bf16: the highest bit of its mantissa is worth 8.
            let sixteen = _mm512_set1_epi16(0x4180);
            let with = |integers| _mm512_ternarylogic_epi32::<0xf8>(sixteen, integers, mask);
            [with(_mm512_slli_epi16::<3>(words)), with(_mm512_srli_epi16::<1>(words))]
        }
    }
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "the contract of `Bf16Dot`")]
impl Bf16Dot for Fp4 {
    const ORDER: [u16; BF16_BLOCK] = NIBBLE_ORDER;

    #[inline(always)]
    unsafe fn unpack(from: *const u8) -> [__m512i; 2] {
        // Twice, as the lookup takes five bits.
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

#[allow(clippy::undocumented_unsafe_blocks, reason = "the contract of `Bf16Dot`")]
impl Bf16Dot for AlignedInt<8> {
    const ORDER: [u16; BF16_BLOCK] = order([[0, 1], [2, 3]]);

    #[inline(always)]
    unsafe fn unpack(from: *const u8) -> [__m512i; 2] {
        unsafe {
            let words = _mm512_loadu_si512(from.cast());
            let byte = _mm512_set1_epi32(0xff);
            // The upper half of the `f32` is the bf16, as 8 bits fit its mantissa.
            let float = |code| _mm512_castps_si512(_mm512_cvtepi32_ps(code));
            let pair = |low, high| _mm512_or_si512(_mm512_srli_epi32::<16>(float(low)), float(high));
            [
                pair(_mm512_and_si512(words, byte), _mm512_and_si512(_mm512_srli_epi32::<8>(words), byte)),
                pair(_mm512_and_si512(_mm512_srli_epi32::<16>(words), byte), _mm512_srli_epi32::<24>(words)),
            ]
        }
    }
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "the contract of `Bf16Dot`")]
impl Bf16Dot for Dense<bf16> {
    const ORDER: [u16; BF16_BLOCK] = {
        let mut order = [0; BF16_BLOCK];
        let mut at = 0;
        while at < BF16_BLOCK {
            order[at] = at as u16;
            at += 1;
        }
        order
    };

    #[inline(always)]
    unsafe fn unpack(from: *const u8) -> [__m512i; 2] {
        unsafe { [_mm512_loadu_si512(from.cast()), _mm512_loadu_si512(from.add(64).cast())] }
    }
}

/// Elements that share a scale; a block, if there are no scales.
pub(super) fn group_size(w: &Matrices<'_>) -> usize {
    match &w.weights {
        Weights::Quantized { quantization, .. } => quantization.group_size,
        Weights::Dense(_) => BF16_BLOCK,
    }
}

/// Adds the products of a pair of elements to each lane (`VDPBF16PS`).
///
/// # Safety
/// The machine has AVX-512 bf16, and `x` is valid for 32 elements.
#[inline(always)]
pub(super) unsafe fn dot(sum: __m512, w: __m512i, x: *const bf16) -> __m512 {
    // SAFETY: the caller's; both types are 512 bits.
    unsafe {
        let x: __m512bh = std::mem::transmute(_mm512_loadu_si512(x.cast()));
        _mm512_dpbf16_ps(sum, std::mem::transmute::<__m512i, __m512bh>(w), x)
    }
}
