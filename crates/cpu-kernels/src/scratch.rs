//! Memory that kernels compute with, which a thread keeps for its next kernel.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
};

/// Elements that a thread keeps in one buffer, at most: 4 MiB.
const MOST_KEPT: usize = 1 << 20;

thread_local! {
    /// The buffers that are not in use, as few as kernels use at once.
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of the thread. It goes back when it is dropped.
pub(crate) struct Scratch {
    memory: Vec<f32>,
    len: usize,
}

impl Scratch {
    /// `len` elements of any value: what a kernel left there before, or 0.
    pub(crate) fn new(len: usize) -> Self {
        let mut memory = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
        if memory.len() < len {
            // What is there is not wanted: it is not copied.
            memory.clear();
            memory.resize(len, 0.0);
        }
        Self { memory, len }
    }

    /// `len` zeros.
    pub(crate) fn zeroed(len: usize) -> Self {
        let mut scratch = Self::new(len);
        scratch.fill(0.0);
        scratch
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        if memory.len() <= MOST_KEPT {
            // A thread that ends keeps nothing.
            let _ = FREE.try_with(|free| free.borrow_mut().push(memory));
        }
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.memory[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_uses_its_buffers_again() {
        let mut first = Scratch::new(100);
        first.fill(3.0);
        let at = first.as_ptr();
        drop(first);
        let (second, third) = (Scratch::new(50), Scratch::zeroed(7));
        assert_eq!((second.as_ptr(), second.len(), third.len()), (at, 50, 7));
        assert!(third.iter().all(|x| *x == 0.0));
        drop((second, third));
        // One that is too small grows.
        assert_eq!(Scratch::zeroed(200).iter().sum::<f32>(), 0.0);
    }
}
