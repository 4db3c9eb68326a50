//! Output memory that the tasks of a kernel share.

/// A slice that several tasks write, each a part of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SharedSlice<T> {
    data: *mut T,
    len: usize,
}

// SAFETY: memory is reached through `part` alone, whose callers promise that no two tasks hold the same part.
unsafe impl<T: Send> Send for SharedSlice<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedSlice<T> {}

impl<T: Copy> SharedSlice<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self { data: slice.as_mut_ptr(), len: slice.len() }
    }

    /// The part `start..start + len`.
    ///
    /// # Safety
    /// The slice is still borrowed, and nothing else reads or writes this part at the same time.
    #[allow(clippy::mut_from_ref, reason = "the caller promises that parts do not overlap")]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len), "a part beyond the end");
        // SAFETY: the part lies within the slice, by the assertion. The rest is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }
}
