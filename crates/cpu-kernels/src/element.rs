//! The float types that memory holds; registers hold `f32`.

use half::{bf16, f16};

use crate::simd::Simd;

/// A float type.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// Exact.
    fn widen(self) -> f32;
    /// To the nearest, ties to even.
    fn round(value: f32) -> Self;
    /// `LANES` elements.
    ///
    /// # Safety
    /// They are there, and the machine has the instructions.
    unsafe fn load<S: Simd>(from: *const Self) -> S::F;
    /// `LANES` elements.
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

/// Memory to write that tasks share, each writing places of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shared<T> {
    data: *mut T,
    len: usize,
}

// SAFETY: it is written through `write` alone, whose callers see to it that no two tasks write the same place.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T: Copy> Shared<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self { data: slice.as_mut_ptr(), len: slice.len() }
    }

    /// The part `start..start + len`.
    ///
    /// # Safety
    /// The slice that it was made of is still borrowed, and nothing else reads or writes this part meanwhile.
    #[allow(clippy::mut_from_ref, reason = "the caller answers for parts that do not overlap")]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len), "a part beyond the end");
        // SAFETY: it is within the slice, by the assertion; that it is borrowed and not shared is the caller's part.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }
}

/// Elements of any type in single precision.
#[inline(always)]
pub(crate) fn widen<E: Element, S: Simd>(from: &[E], to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "as many as there are");
    let whole = from.len() - from.len() % S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: `LANES` elements begin here in both.
        unsafe { S::store(to.as_mut_ptr().add(i), E::load::<S>(from.as_ptr().add(i))) };
    }
    for (to, from) in to[whole..].iter_mut().zip(&from[whole..]) {
        *to = from.widen();
    }
}

/// The other way round, each rounded to the nearest.
#[inline(always)]
pub(crate) fn narrow<E: Element, S: Simd>(from: &[f32], to: &mut [E]) {
    assert_eq!(from.len(), to.len(), "as many as there are");
    let whole = from.len() - from.len() % S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: `LANES` elements begin here in both.
        unsafe { E::store::<S>(to.as_mut_ptr().add(i), S::load(from.as_ptr().add(i))) };
    }
    for (to, from) in to[whole..].iter_mut().zip(&from[whole..]) {
        *to = E::round(*from);
    }
}
