//! Vectors of `f32` and `u32`, for every instruction set the same.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
mod portable;

pub(crate) use portable::Portable;

use half::{bf16, f16};

/// The vectors of an instruction set. All functions need a machine that has it; those that take pointers read or write
/// `LANES` elements there, with any alignment.
#[allow(clippy::missing_safety_doc, reason = "above, for all at once")]
pub(crate) trait Simd: Copy + 'static {
    /// Elements of a vector.
    const LANES: usize;
    /// Vectors that registers hold.
    const REGISTERS: usize;
    /// Whether a table is one register, so that looking up is no dearer than converting integers.
    const FAST_LOOKUP: bool;
    /// `f32` in each lane.
    type F: Copy;
    /// `u32` in each lane.
    type U: Copy;
    /// Sixteen `f32`.
    type Table: Copy;

    /// Brings the memory, which may be any, into the caches, but for the first one: what is in use stays there.
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
    /// The larger one.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The sum of all lanes.
    unsafe fn sum(value: Self::F) -> f32;
    /// The largest lane.
    unsafe fn largest(value: Self::F) -> f32;
    /// Lane `i` is lane `index[i]`, below `LANES`, of the value.
    unsafe fn permute(value: Self::F, index: Self::U) -> Self::F;
    /// Every `stride`-th element.
    unsafe fn load_strided(from: *const f32, stride: usize) -> Self::F;
    /// As many vectors as there are lanes, `stride` apart, as columns: vectors that are `to_stride` apart.
    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        for i in 0..Self::LANES {
            // SAFETY: the caller's.
            unsafe { Self::store(to.add(i * to_stride), Self::load_strided(from.add(i), stride)) };
        }
    }

    unsafe fn splat_u(value: u32) -> Self::U;
    unsafe fn load_u(from: *const u32) -> Self::U;
    /// In each lane the three bytes of its own, which lie behind each other, in its lowest bits.
    unsafe fn load_threes(from: *const u8) -> Self::U;
    /// In each lane the first four and the last four of its own five bytes.
    unsafe fn load_fives(from: *const u8) -> [Self::U; 2];
    unsafe fn and(a: Self::U, b: Self::U) -> Self::U;
    unsafe fn add_u(a: Self::U, b: Self::U) -> Self::U;
    unsafe fn shl(value: Self::U, bits: u32) -> Self::U;
    unsafe fn shr(value: Self::U, bits: u32) -> Self::U;
    /// The value as a number.
    unsafe fn convert(value: Self::U) -> Self::F;
    /// The value as the bits of an `f32`.
    unsafe fn cast(value: Self::U) -> Self::F;
    /// The bits of the value.
    unsafe fn bits(value: Self::F) -> Self::U;
    /// The value with its sign flipped where the highest bit is set.
    unsafe fn flip_sign(value: Self::F, by: Self::U) -> Self::F;

    unsafe fn table(values: &[f32; 16]) -> Self::Table;
    /// The element that the lowest four bits of each lane say.
    unsafe fn lookup(table: Self::Table, index: Self::U) -> Self::F;
}

/// eˣ to 2 units in the last place, for x from −87 to 88; below, e⁻⁸⁷.
///
/// # Safety
/// The machine has the instructions.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller's.
    unsafe {
        // x is n ln 2 + r with a whole n, which the lowest bits of a sum with a large number are.
        const LARGE: f32 = 12_582_912.0;
        let x = S::max(x, S::splat(-87.0));
        let sum = S::fma(x, S::splat(std::f32::consts::LOG2_E), S::splat(LARGE));
        let n = S::sub(sum, S::splat(LARGE));
        // ln 2 in two parts, the first short enough for exact products.
        let r = S::fma(n, S::splat(-0.693_359_4), x);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let factors = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
        let mut power = S::splat(factors[0]);
        for factor in &factors[1..] {
            power = S::fma(power, r, S::splat(*factor));
        }
        S::cast(S::add_u(S::bits(power), S::shl(S::bits(sum), 23)))
    }
}

/// tanh x to 2⁻²³.
///
/// # Safety
/// The machine has the instructions.
#[inline(always)]
pub(crate) unsafe fn tanh<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller's.
    unsafe {
        // Beyond ±10 it is ±1.
        let limit =
            |x: S::F, sign: f32| S::mul(S::splat(-1.0), S::max(S::mul(x, S::splat(-1.0)), S::splat(sign)));
        let x = S::max(limit(x, -10.0), S::splat(-10.0));
        let double = exp::<S>(S::add(x, x));
        S::div(S::sub(double, S::splat(1.0)), S::add(double, S::splat(1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, isa::Kernel};

    struct Check;

    impl Kernel for Check {
        type Output = ();

        fn run<S: Simd>(self) {
            let each = |f: unsafe fn(S::F) -> S::F, x: f32| {
                let mut lanes = vec![0.0; S::LANES];
                // SAFETY: the machine has the instructions, or this were not run.
                unsafe { S::store(lanes.as_mut_ptr(), f(S::splat(x))) };
                assert!(lanes.iter().all(|lane| lane.to_bits() == lanes[0].to_bits()));
                f64::from(lanes[0])
            };
            for i in -8700..=8800 {
                let x = i as f32 / 100.0;
                let (found, expected) = (each(exp::<S>, x), f64::from(x).exp());
                assert!((found - expected).abs() <= 3e-7 * expected, "e^{x}: {found} for {expected}");
                let (found, expected) = (each(tanh::<S>, x), f64::from(x).tanh());
                assert!((found - expected).abs() <= 3e-7, "tanh {x}: {found} for {expected}");
            }
            assert!(each(exp::<S>, f32::NEG_INFINITY) < 2e-38);
        }
    }

    #[test]
    fn functions_are_exact_to_a_few_units() {
        for isa in Isa::ALL.iter().filter(|isa| isa.is_available()) {
            isa.run(Check);
        }
    }
}
