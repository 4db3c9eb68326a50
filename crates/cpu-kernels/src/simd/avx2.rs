//! AVX2, FMA and F16C: eight lanes.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::traits::{Kernel, Simd};

/// Eight lanes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2;

/// Compiles a kernel with these instructions.
///
/// # Safety
/// The machine has the instruction set.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx2>()
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "the contract of `Simd`")]
impl Simd for Avx2 {
    const LANES: usize = 8;
    const REGISTERS: usize = 16;
    const FAST_LOOKUP: bool = false;
    type F = __m256;
    type U = __m256i;
    /// The low and the high half.
    type Table = [__m256; 2];

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::F {
        unsafe { _mm256_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self::F {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self::F {
        unsafe {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::F) {
        unsafe { _mm256_storeu_ps(to, value) }
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut f16, value: Self::F) {
        unsafe { _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value)) }
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut bf16, value: Self::F) {
        unsafe {
            // Round to nearest, ties to even. NaN stays NaN.
            let bits = _mm256_castps_si256(value);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(value, value));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(1 << 22));
            let rounded = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(up, quiet, nan));
            let packed = _mm256_packus_epi32(rounded, rounded);
            let halves = _mm256_permute4x64_epi64::<0b1000>(packed);
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(halves));
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn reduce_add(value: Self::F) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps::<1>(value));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    unsafe fn reduce_max(value: Self::F) -> f32 {
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps::<1>(value));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    unsafe fn permute(value: Self::F, index: Self::U) -> Self::F {
        unsafe { _mm256_permutevar8x32_ps(value, index) }
    }
    #[inline(always)]
    unsafe fn load_strided(from: *const f32, stride: usize) -> Self::F {
        unsafe { _mm256_i32gather_ps::<4>(from, steps(stride)) }
    }

    #[inline(always)]
    unsafe fn splat_u(value: u32) -> Self::U {
        unsafe { _mm256_set1_epi32(value as i32) }
    }
    #[inline(always)]
    unsafe fn load_u(from: *const u32) -> Self::U {
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load_u24(from: *const u8) -> Self::U {
        unsafe {
            // Six words: three for each half.
            let words = _mm256_maskload_epi32(from.cast(), _mm256_setr_epi32(-1, -1, -1, -1, -1, -1, 0, 0));
            let halves = _mm256_permutevar8x32_epi32(words, _mm256_setr_epi32(0, 1, 2, 0, 3, 4, 5, 0));
            let bytes = _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1);
            _mm256_shuffle_epi8(halves, _mm256_broadcastsi128_si256(bytes))
        }
    }
    #[inline(always)]
    unsafe fn load_u40(from: *const u8) -> [Self::U; 2] {
        unsafe {
            let lanes = steps(5);
            [
                _mm256_i32gather_epi32::<1>(from.cast(), lanes),
                _mm256_i32gather_epi32::<1>(from.add(1).cast(), lanes),
            ]
        }
    }
    #[inline(always)]
    unsafe fn and(a: Self::U, b: Self::U) -> Self::U {
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn add_u(a: Self::U, b: Self::U) -> Self::U {
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn shl(value: Self::U, bits: u32) -> Self::U {
        unsafe { _mm256_sllv_epi32(value, _mm256_set1_epi32(bits as i32)) }
    }
    #[inline(always)]
    unsafe fn shr(value: Self::U, bits: u32) -> Self::U {
        unsafe { _mm256_srlv_epi32(value, _mm256_set1_epi32(bits as i32)) }
    }
    #[inline(always)]
    unsafe fn to_f32(value: Self::U) -> Self::F {
        unsafe { _mm256_cvtepi32_ps(value) }
    }
    #[inline(always)]
    unsafe fn from_bits(value: Self::U) -> Self::F {
        unsafe { _mm256_castsi256_ps(value) }
    }
    #[inline(always)]
    unsafe fn to_bits(value: Self::F) -> Self::U {
        unsafe { _mm256_castps_si256(value) }
    }
    #[inline(always)]
    unsafe fn flip_sign(value: Self::F, by: Self::U) -> Self::F {
        unsafe { _mm256_xor_ps(value, _mm256_and_ps(_mm256_castsi256_ps(by), _mm256_set1_ps(-0.0))) }
    }

    #[inline(always)]
    unsafe fn table(values: &[f32; 16]) -> Self::Table {
        unsafe { [_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values.as_ptr().add(8))] }
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::Table, index: Self::U) -> Self::F {
        unsafe {
            // The low three bits index both halves, and the fourth selects one of them.
            let low = _mm256_permutevar8x32_ps(table[0], index);
            let high = _mm256_permutevar8x32_ps(table[1], index);
            _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index)))
        }
    }
}

/// 0, `stride`, 2 · `stride`, …
///
/// # Safety
/// The machine has the instruction set.
#[inline(always)]
unsafe fn steps(stride: usize) -> __m256i {
    // SAFETY: the caller's.
    unsafe {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_mullo_epi32(lanes, _mm256_set1_epi32(stride as i32))
    }
}
