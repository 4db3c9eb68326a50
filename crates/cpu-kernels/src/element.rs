//! The float types of memory. Registers hold `f32`.

use half::{bf16, f16};

use crate::{
    operand::{Floats, with_slice},
    simd::Simd,
};

/// A float type.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// The exact value in `f32`.
    fn widen(self) -> f32;
    /// Rounds to the nearest, ties to even.
    fn round(value: f32) -> Self;
    /// Loads `LANES` elements.
    ///
    /// # Safety
    /// `from` is valid for `LANES` elements, and the machine has the instruction set.
    unsafe fn load<S: Simd>(from: *const Self) -> S::F;
    /// Stores `LANES` elements.
    ///
    /// # Safety
    /// As for [`load`](Self::load).
    unsafe fn store<S: Simd>(to: *mut Self, value: S::F);
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn round(value: f32) -> Self {
        value
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load(from) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut Self, value: S::F) {
        // SAFETY: the caller's.
        unsafe { S::store(to, value) }
    }
}

impl Element for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn round(value: f32) -> Self {
        Self::from_f32(value)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load_f16(from) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut Self, value: S::F) {
        // SAFETY: the caller's.
        unsafe { S::store_f16(to, value) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn round(value: f32) -> Self {
        Self::from_f32(value)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load_bf16(from) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut Self, value: S::F) {
        // SAFETY: the caller's.
        unsafe { S::store_bf16(to, value) }
    }
}

/// Converts to `f32`.
#[inline(always)]
pub(crate) fn widen<E: Element, S: Simd>(from: &[E], to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "operands of one length");
    let whole = from.len() - from.len() % S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: see `Isa::run`; `LANES` elements begin here in both slices.
        unsafe { S::store(to.as_mut_ptr().add(i), E::load::<S>(from.as_ptr().add(i))) };
    }
    for (to, from) in to[whole..].iter_mut().zip(&from[whole..]) {
        *to = from.widen();
    }
}

/// Converts from `f32`, rounding each to the nearest.
#[inline(always)]
pub(crate) fn narrow<E: Element, S: Simd>(from: &[f32], to: &mut [E]) {
    assert_eq!(from.len(), to.len(), "operands of one length");
    let whole = from.len() - from.len() % S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: see `Isa::run`; `LANES` elements begin here in both slices.
        unsafe { E::store::<S>(to.as_mut_ptr().add(i), S::load(from.as_ptr().add(i))) };
    }
    for (to, from) in to[whole..].iter_mut().zip(&from[whole..]) {
        *to = E::round(*from);
    }
}

/// Adds elements to sums.
#[inline(always)]
pub(crate) fn add_to<E: Element, S: Simd>(from: &[E], sums: &mut [f32]) {
    assert_eq!(from.len(), sums.len(), "operands of one length");
    let whole = from.len() - from.len() % S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: see `Isa::run`; `LANES` elements begin here in both slices.
        unsafe {
            let sum = sums.as_mut_ptr().add(i);
            S::store(sum, S::add(S::load(sum), E::load::<S>(from.as_ptr().add(i))));
        }
    }
    for (sum, from) in sums[whole..].iter_mut().zip(&from[whole..]) {
        *sum += from.widen();
    }
}

/// A copy in `f32`.
pub(crate) fn to_f32_vec(floats: Floats<'_>) -> Vec<f32> {
    with_slice!(floats, Floats, floats => floats.iter().map(|x| x.widen()).collect())
}
