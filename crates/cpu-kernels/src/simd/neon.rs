//! NEON: four lanes.

use std::arch::aarch64::*;

use half::{bf16, f16};

use super::traits::{Kernel, Simd};

/// Four lanes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon;

/// Compiles a kernel with these instructions.
///
/// # Safety
/// The machine has the instruction set.
#[target_feature(enable = "neon")]
pub(crate) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Neon>()
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "the contract of `Simd`")]
impl Simd for Neon {
    const LANES: usize = 4;
    const REGISTERS: usize = 32;
    const FAST_LOOKUP: bool = false;
    type F = float32x4_t;
    type U = uint32x4_t;
    /// Byte `i` of all sixteen elements, for each `i`.
    type Table = [uint8x16_t; 4];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::F {
        unsafe { vdupq_n_f32(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        unsafe { vld1q_f32(from) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self::F {
        unsafe {
            let bits = vmovl_u16(vld1_u16(from.cast()));
            let (sign, rest) = (vandq_u32(bits, vdupq_n_u32(0x8000)), vandq_u32(bits, vdupq_n_u32(0x7fff)));
            // The bias of the exponent is 15 in f16 and 127 in f32. A product corrects it, for subnormal numbers too. Infinity
            // and NaN have the largest exponent in f16, and need the largest one of f32.
            let scaled =
                vmulq_f32(vreinterpretq_f32_u32(vshlq_n_u32::<13>(rest)), vdupq_n_f32(5.192_296_9e33));
            let not_finite = vcgeq_u32(rest, vdupq_n_u32(0x7c00));
            let scaled = vreinterpretq_u32_f32(scaled);
            let value = vorrq_u32(scaled, vandq_u32(not_finite, vdupq_n_u32(0x7f80_0000)));
            vreinterpretq_f32_u32(vorrq_u32(value, vshlq_n_u32::<16>(sign)))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self::F {
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::F) {
        unsafe { vst1q_f32(to, value) }
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut f16, value: Self::F) {
        let mut lanes = [0.0; 4];
        unsafe {
            vst1q_f32(lanes.as_mut_ptr(), value);
            to.cast::<[f16; 4]>().write_unaligned(lanes.map(f16::from_f32));
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut bf16, value: Self::F) {
        unsafe {
            // Round to nearest, ties to even. NaN stays NaN.
            let bits = vreinterpretq_u32_f32(value);
            let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
            let quiet = vorrq_u32(bits, vdupq_n_u32(1 << 22));
            vst1_u16(to.cast(), vshrn_n_u32::<16>(vbslq_u32(vceqq_f32(value, value), up, quiet)));
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        unsafe { vdivq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        unsafe { vmaxq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    unsafe fn reduce_add(value: Self::F) -> f32 {
        unsafe { vaddvq_f32(value) }
    }
    #[inline(always)]
    unsafe fn reduce_max(value: Self::F) -> f32 {
        unsafe { vmaxvq_f32(value) }
    }
    #[inline(always)]
    unsafe fn permute(value: Self::F, index: Self::U) -> Self::F {
        unsafe {
            // Lane i consists of bytes 4 i to 4 i + 3.
            let first = vmulq_u32(index, vdupq_n_u32(0x0404_0404));
            let bytes = vaddq_u32(first, vdupq_n_u32(0x0302_0100));
            let found = vqtbl1q_u8(vreinterpretq_u8_f32(value), vreinterpretq_u8_u32(bytes));
            vreinterpretq_f32_u8(found)
        }
    }
    #[inline(always)]
    unsafe fn load_strided(from: *const f32, stride: usize) -> Self::F {
        let lanes: [f32; 4] = std::array::from_fn(|i| unsafe { from.add(i * stride).read_unaligned() });
        unsafe { vld1q_f32(lanes.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn splat_u(value: u32) -> Self::U {
        unsafe { vdupq_n_u32(value) }
    }
    #[inline(always)]
    unsafe fn load_u(from: *const u32) -> Self::U {
        unsafe { vld1q_u32(from) }
    }
    #[inline(always)]
    unsafe fn load_u24(from: *const u8) -> Self::U {
        let bytes = unsafe { from.cast::<[[u8; 3]; 4]>().read_unaligned() };
        let lanes = bytes.map(|[a, b, c]| u32::from_le_bytes([a, b, c, 0]));
        unsafe { vld1q_u32(lanes.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load_u40(from: *const u8) -> [Self::U; 2] {
        let word = |i: usize| unsafe { from.add(i).cast::<u32>().read_unaligned() };
        [0, 1].map(|start| {
            let lanes: [u32; 4] = std::array::from_fn(|i| word(5 * i + start));
            unsafe { vld1q_u32(lanes.as_ptr()) }
        })
    }
    #[inline(always)]
    unsafe fn and(a: Self::U, b: Self::U) -> Self::U {
        unsafe { vandq_u32(a, b) }
    }
    #[inline(always)]
    unsafe fn add_u(a: Self::U, b: Self::U) -> Self::U {
        unsafe { vaddq_u32(a, b) }
    }
    #[inline(always)]
    unsafe fn shl(value: Self::U, bits: u32) -> Self::U {
        unsafe { vshlq_u32(value, vdupq_n_s32(bits as i32)) }
    }
    #[inline(always)]
    unsafe fn shr(value: Self::U, bits: u32) -> Self::U {
        unsafe { vshlq_u32(value, vdupq_n_s32(-(bits as i32))) }
    }
    #[inline(always)]
    unsafe fn to_f32(value: Self::U) -> Self::F {
        unsafe { vcvtq_f32_u32(value) }
    }
    #[inline(always)]
    unsafe fn from_bits(value: Self::U) -> Self::F {
        unsafe { vreinterpretq_f32_u32(value) }
    }
    #[inline(always)]
    unsafe fn to_bits(value: Self::F) -> Self::U {
        unsafe { vreinterpretq_u32_f32(value) }
    }
    #[inline(always)]
    unsafe fn flip_sign(value: Self::F, by: Self::U) -> Self::F {
        unsafe {
            let sign = vandq_u32(by, vdupq_n_u32(1 << 31));
            vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(value), sign))
        }
    }

    #[inline(always)]
    unsafe fn table(values: &[f32; 16]) -> Self::Table {
        [0, 1, 2, 3].map(|byte| {
            let bytes = values.map(|value| value.to_le_bytes()[byte]);
            unsafe { vld1q_u8(bytes.as_ptr()) }
        })
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::Table, index: Self::U) -> Self::F {
        unsafe {
            // The index goes into one byte of its lane. The other bytes hold an index beyond the table, which gives zero.
            let index = vandq_u32(index, vdupq_n_u32(15));
            let byte = |byte: usize, others: u32| {
                let index = vorrq_u32(vshlq_u32(index, vdupq_n_s32(8 * byte as i32)), vdupq_n_u32(others));
                vreinterpretq_u32_u8(vqtbl1q_u8(table[byte], vreinterpretq_u8_u32(index)))
            };
            let low = vorrq_u32(byte(0, 0xffff_ff00), byte(1, 0xffff_00ff));
            let high = vorrq_u32(byte(2, 0xff00_ffff), byte(3, 0x00ff_ffff));
            vreinterpretq_f32_u32(vorrq_u32(low, high))
        }
    }
}
