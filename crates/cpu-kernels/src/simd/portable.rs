//! Plain Rust: eight lanes, which the compiler maps to the vectors of the target.

use half::{bf16, f16};

use super::traits::Simd;

/// Arrays as vectors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

const LANES: usize = 8;

#[inline(always)]
fn each<T>(f: impl Fn(usize) -> T) -> [T; LANES] {
    std::array::from_fn(f)
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "the contract of `Simd`")]
impl Simd for Portable {
    const LANES: usize = LANES;
    const REGISTERS: usize = 16;
    const FAST_LOOKUP: bool = false;
    type F = [f32; LANES];
    type U = [u32; LANES];
    type Table = [f32; 16];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::F {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        unsafe { from.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self::F {
        let halves = unsafe { from.cast::<[f16; LANES]>().read_unaligned() };
        each(|i| halves[i].to_f32())
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::F) {
        unsafe { to.cast::<Self::F>().write_unaligned(value) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self::F {
        let halves = unsafe { from.cast::<[bf16; LANES]>().read_unaligned() };
        each(|i| f32::from_bits(u32::from(halves[i].to_bits()) << 16))
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut f16, value: Self::F) {
        unsafe { to.cast::<[f16; LANES]>().write_unaligned(each(|i| f16::from_f32(value[i]))) }
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut bf16, value: Self::F) {
        unsafe { to.cast::<[bf16; LANES]>().write_unaligned(each(|i| bf16::from_f32(value[i]))) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn reduce_max(value: Self::F) -> f32 {
        value.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn add_u(a: Self::U, b: Self::U) -> Self::U {
        each(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    unsafe fn to_bits(value: Self::F) -> Self::U {
        each(|i| value[i].to_bits())
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] * b[i])
    }
    /// Two roundings: without an FMA instruction, `mul_add` is a function call.
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn reduce_add(value: Self::F) -> f32 {
        value.iter().sum()
    }
    #[inline(always)]
    unsafe fn permute(value: Self::F, index: Self::U) -> Self::F {
        each(|i| value[index[i] as usize % LANES])
    }
    #[inline(always)]
    unsafe fn load_strided(from: *const f32, stride: usize) -> Self::F {
        each(|i| unsafe { from.add(i * stride).read_unaligned() })
    }

    #[inline(always)]
    unsafe fn splat_u(value: u32) -> Self::U {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn load_u(from: *const u32) -> Self::U {
        unsafe { from.cast::<Self::U>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_u24(from: *const u8) -> Self::U {
        let bytes = unsafe { from.cast::<[[u8; 3]; LANES]>().read_unaligned() };
        each(|i| u32::from_le_bytes([bytes[i][0], bytes[i][1], bytes[i][2], 0]))
    }
    #[inline(always)]
    unsafe fn load_u40(from: *const u8) -> [Self::U; 2] {
        let bytes = unsafe { from.cast::<[[u8; 5]; LANES]>().read_unaligned() };
        [0, 1].map(|start| each(|i| u32::from_le_bytes(std::array::from_fn(|byte| bytes[i][start + byte]))))
    }
    #[inline(always)]
    unsafe fn and(a: Self::U, b: Self::U) -> Self::U {
        each(|i| a[i] & b[i])
    }
    #[inline(always)]
    unsafe fn shl(value: Self::U, bits: u32) -> Self::U {
        each(|i| value[i] << bits)
    }
    #[inline(always)]
    unsafe fn shr(value: Self::U, bits: u32) -> Self::U {
        each(|i| value[i] >> bits)
    }
    #[inline(always)]
    unsafe fn to_f32(value: Self::U) -> Self::F {
        // Converting from i32 is cheaper, and exact for all codes.
        each(|i| value[i] as i32 as f32)
    }
    #[inline(always)]
    unsafe fn from_bits(value: Self::U) -> Self::F {
        each(|i| f32::from_bits(value[i]))
    }
    #[inline(always)]
    unsafe fn flip_sign(value: Self::F, by: Self::U) -> Self::F {
        each(|i| f32::from_bits(value[i].to_bits() ^ (by[i] & 1 << 31)))
    }

    #[inline(always)]
    unsafe fn table(values: &[f32; 16]) -> Self::Table {
        *values
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::Table, index: Self::U) -> Self::F {
        each(|i| table[(index[i] & 15) as usize])
    }
}
