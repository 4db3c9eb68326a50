//! The vector operations that kernels are written with, the same for every instruction set.

use half::{bf16, f16};

/// A computation with its operands, written once for all instruction sets. `Isa::run` calls it, and says there why `run` and
/// everything that it calls must be `inline(always)`.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self) -> Self::Output;
}

/// The vectors of an instruction set. Every function needs a machine that has the instruction set. Functions that take a
/// pointer read or write `LANES` elements there, at any alignment.
#[allow(clippy::missing_safety_doc, reason = "above, for all at once")]
pub(crate) trait Simd: Copy + 'static {
    /// Elements of a vector.
    const LANES: usize;
    /// Number of vector registers.
    const REGISTERS: usize;
    /// Whether a table fits in one register, so that a lookup costs no more than converting an integer.
    const FAST_LOOKUP: bool;
    /// `f32` in each lane.
    type F: Copy;
    /// `u32` in each lane.
    type U: Copy;
    /// Sixteen `f32`.
    type Table: Copy;

    /// Fetches memory, at any address, into the second-level cache. The first level keeps what is in use.
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}

    unsafe fn splat(value: f32) -> Self::F;
    unsafe fn load(from: *const f32) -> Self::F;
    unsafe fn load_f16(from: *const f16) -> Self::F;
    unsafe fn load_bf16(from: *const bf16) -> Self::F;
    unsafe fn store(to: *mut f32, value: Self::F);
    unsafe fn store_f16(to: *mut f16, value: Self::F);
    unsafe fn store_bf16(to: *mut bf16, value: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// The larger value of each lane.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The sum of all lanes.
    unsafe fn reduce_add(value: Self::F) -> f32;
    /// The largest lane.
    unsafe fn reduce_max(value: Self::F) -> f32;
    /// Lane `i` becomes lane `index[i]` of the value. Each index is below `LANES`.
    unsafe fn permute(value: Self::F, index: Self::U) -> Self::F;
    /// Loads every `stride`-th element.
    unsafe fn load_strided(from: *const f32, stride: usize) -> Self::F;
    /// Transposes `LANES` vectors, which are `stride` apart, into `LANES` vectors that are `to_stride` apart.
    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        for i in 0..Self::LANES {
            // SAFETY: the caller's.
            unsafe { Self::store(to.add(i * to_stride), Self::load_strided(from.add(i), stride)) };
        }
    }

    unsafe fn splat_u(value: u32) -> Self::U;
    unsafe fn load_u(from: *const u32) -> Self::U;
    /// Loads three bytes for each lane, one lane after the other, into its low bits.
    unsafe fn load_u24(from: *const u8) -> Self::U;
    /// Loads five bytes for each lane, one lane after the other: the first four of each, and the last four.
    unsafe fn load_u40(from: *const u8) -> [Self::U; 2];
    unsafe fn and(a: Self::U, b: Self::U) -> Self::U;
    unsafe fn add_u(a: Self::U, b: Self::U) -> Self::U;
    unsafe fn shl(value: Self::U, bits: u32) -> Self::U;
    unsafe fn shr(value: Self::U, bits: u32) -> Self::U;
    /// Converts integers to floats.
    unsafe fn to_f32(value: Self::U) -> Self::F;
    /// Reinterprets bits as floats.
    unsafe fn from_bits(value: Self::U) -> Self::F;
    /// Reinterprets floats as bits.
    unsafe fn to_bits(value: Self::F) -> Self::U;
    /// Flips the sign of each lane whose highest bit is set in `by`.
    unsafe fn flip_sign(value: Self::F, by: Self::U) -> Self::F;

    unsafe fn table(values: &[f32; 16]) -> Self::Table;
    /// The table's element at the low four bits of each lane.
    unsafe fn lookup(table: Self::Table, index: Self::U) -> Self::F;
}
