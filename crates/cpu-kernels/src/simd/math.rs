//! Functions of vectors.

use super::traits::Simd;

/// eˣ, within 2 units in the last place for x from −87 to 88. Below −87 it is e⁻⁸⁷.
///
/// # Safety
/// The machine has the instruction set.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller's.
    unsafe {
        // x = n ln 2 + r with an integer n. The sum with a large number holds n in its low bits.
        const LARGE: f32 = 12_582_912.0;
        let x = S::max(x, S::splat(-87.0));
        let sum = S::fma(x, S::splat(std::f32::consts::LOG2_E), S::splat(LARGE));
        let n = S::sub(sum, S::splat(LARGE));
        // ln 2 in two parts. The first has few bits, so that its product with n is exact.
        let r = S::fma(n, S::splat(-0.693_359_4), x);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let factors = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
        let mut power = S::splat(factors[0]);
        for factor in &factors[1..] {
            power = S::fma(power, r, S::splat(*factor));
        }
        S::from_bits(S::add_u(S::to_bits(power), S::shl(S::to_bits(sum), 23)))
    }
}

/// tanh x, within 2⁻²³.
///
/// # Safety
/// The machine has the instruction set.
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
