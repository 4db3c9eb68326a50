//! AVX-512 F, BW, DQ and VL: sixteen lanes.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::traits::{Kernel, Simd};

/// Sixteen lanes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512;

/// Compiles a kernel with these instructions.
///
/// # Safety
/// The machine has the instruction set.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512>()
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "the contract of `Simd`")]
impl Simd for Avx512 {
    const LANES: usize = 16;
    const REGISTERS: usize = 32;
    const FAST_LOOKUP: bool = true;
    type F = __m512;
    type U = __m512i;
    type Table = __m512;

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::F {
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self::F {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::F) {
        unsafe { _mm512_storeu_ps(to, value) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self::F {
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut f16, value: Self::F) {
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value)) }
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut bf16, value: Self::F) {
        unsafe {
            // Round to nearest, ties to even. NaN stays NaN.
            let bits = _mm512_castps_si512(value);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(value, value);
            let rounded = _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(1 << 22));
            let halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded));
            _mm256_storeu_si256(to.cast(), halves);
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn reduce_max(value: Self::F) -> f32 {
        unsafe { _mm512_reduce_max_ps(value) }
    }
    #[inline(always)]
    unsafe fn add_u(a: Self::U, b: Self::U) -> Self::U {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn to_bits(value: Self::F) -> Self::U {
        unsafe { _mm512_castps_si512(value) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn reduce_add(value: Self::F) -> f32 {
        unsafe { _mm512_reduce_add_ps(value) }
    }
    #[inline(always)]
    unsafe fn permute(value: Self::F, index: Self::U) -> Self::F {
        unsafe { _mm512_permutexvar_ps(index, value) }
    }
    #[inline(always)]
    unsafe fn load_strided(from: *const f32, stride: usize) -> Self::F {
        unsafe { _mm512_i32gather_ps::<4>(steps(stride), from) }
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        unsafe {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = _mm512_loadu_si512(from.add(i * stride).cast());
            }
            for (i, row) in transpose(rows).into_iter().enumerate() {
                _mm512_storeu_si512(to.add(i * to_stride).cast(), row);
            }
        }
    }

    #[inline(always)]
    unsafe fn splat_u(value: u32) -> Self::U {
        unsafe { _mm512_set1_epi32(value as i32) }
    }
    #[inline(always)]
    unsafe fn load_u(from: *const u32) -> Self::U {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load_u24(from: *const u8) -> Self::U {
        unsafe {
            let words = _mm512_maskz_loadu_epi32(0xfff, from.cast());
            let quarters = _mm512_setr_epi32(0, 1, 2, 0, 3, 4, 5, 0, 6, 7, 8, 0, 9, 10, 11, 0);
            let bytes = _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1);
            let spread = _mm512_permutexvar_epi32(quarters, words);
            _mm512_shuffle_epi8(spread, _mm512_broadcast_i32x4(bytes))
        }
    }
    #[inline(always)]
    unsafe fn load_u40(from: *const u8) -> [Self::U; 2] {
        unsafe {
            let lanes = steps(5);
            [
                _mm512_i32gather_epi32::<1>(lanes, from.cast()),
                _mm512_i32gather_epi32::<1>(lanes, from.add(1).cast()),
            ]
        }
    }
    #[inline(always)]
    unsafe fn and(a: Self::U, b: Self::U) -> Self::U {
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn shl(value: Self::U, bits: u32) -> Self::U {
        unsafe { _mm512_sllv_epi32(value, _mm512_set1_epi32(bits as i32)) }
    }
    #[inline(always)]
    unsafe fn shr(value: Self::U, bits: u32) -> Self::U {
        unsafe { _mm512_srlv_epi32(value, _mm512_set1_epi32(bits as i32)) }
    }
    #[inline(always)]
    unsafe fn to_f32(value: Self::U) -> Self::F {
        unsafe { _mm512_cvtepi32_ps(value) }
    }
    #[inline(always)]
    unsafe fn from_bits(value: Self::U) -> Self::F {
        unsafe { _mm512_castsi512_ps(value) }
    }
    #[inline(always)]
    unsafe fn flip_sign(value: Self::F, by: Self::U) -> Self::F {
        unsafe {
            let sign = _mm512_and_si512(by, _mm512_set1_epi32(i32::MIN));
            _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(value), sign))
        }
    }

    #[inline(always)]
    unsafe fn table(values: &[f32; 16]) -> Self::Table {
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::Table, index: Self::U) -> Self::F {
        unsafe { _mm512_permutexvar_ps(index, table) }
    }
}

/// 0, `stride`, 2 · `stride`, …
///
/// # Safety
/// The machine has the instruction set.
#[inline(always)]
unsafe fn steps(stride: usize) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        _mm512_mullo_epi32(lanes, _mm512_set1_epi32(stride as i32))
    }
}

/// Transposes 16 rows of 16 words.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    // First words within pairs of rows, then pairs of words within four rows, then quarters of registers.
    let mut a = rows;
    for i in (0..16).step_by(2) {
        a[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    let mut b = a;
    for i in (0..16).step_by(4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    // Register 4 r + c now holds column c of each quarter, for rows 4 r to 4 r + 3.
    let mut out = b;
    for c in 0..4 {
        let low = _mm512_shuffle_i32x4::<0x88>(b[c], b[4 + c]);
        let high = _mm512_shuffle_i32x4::<0xdd>(b[c], b[4 + c]);
        let low2 = _mm512_shuffle_i32x4::<0x88>(b[8 + c], b[12 + c]);
        let high2 = _mm512_shuffle_i32x4::<0xdd>(b[8 + c], b[12 + c]);
        out[c] = _mm512_shuffle_i32x4::<0x88>(low, low2);
        out[8 + c] = _mm512_shuffle_i32x4::<0xdd>(low, low2);
        out[4 + c] = _mm512_shuffle_i32x4::<0x88>(high, high2);
        out[12 + c] = _mm512_shuffle_i32x4::<0xdd>(high, high2);
    }
    out
}
