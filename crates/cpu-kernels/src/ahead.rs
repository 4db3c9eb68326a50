//! What is read next: workers that have nothing to do fetch the beginning of the next matrix.
//!
//! Between two products of a decode step, one thread computes norms and the like, and memory rests. A step reads the matrices of the
//! step before in the same order, so the next one is known.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Bytes that a worker fetches, at most: half of what second-level caches of today hold at least.
const MAX_BYTES: usize = 512 << 10;
/// Bytes between two looks at whether there is a job.
const STEP_BYTES: usize = 4 << 10;
const LINE_BYTES: usize = 64;
/// Matrices whose successors are kept, at most. Then all are forgotten, those of closed models too.
const MAX_MATRICES: usize = 1 << 14;

/// A range of memory, which nobody may read by it: its owner may be gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) bytes: usize,
}

impl Span {
    pub(crate) fn of<T>(memory: &[T]) -> Self {
        Self { start: memory.as_ptr() as usize, bytes: size_of_val(memory) }
    }
}

/// The order in which matrices were read.
#[derive(Debug, Default)]
pub(crate) struct Order {
    last: usize,
    successors: HashMap<usize, Span>,
}

impl Order {
    /// Takes note of a matrix that is read now; the one that came after it last time.
    pub(crate) fn note(&mut self, read: Span) -> Option<Span> {
        if self.successors.len() >= MAX_MATRICES {
            self.successors.clear();
        }
        self.successors.insert(self.last, read);
        self.last = read.start;
        self.successors.get(&read.start).copied()
    }
}

/// The next matrix, as workers are told of it.
#[derive(Debug, Default)]
pub(crate) struct Next {
    start: AtomicUsize,
    bytes: AtomicUsize,
}

impl Next {
    pub(crate) fn set(&self, next: Option<Span>) {
        let Span { start, bytes } = next.unwrap_or_default();
        self.start.store(start, Relaxed);
        self.bytes.store(bytes, Relaxed);
    }

    /// Thread `index` of so many goes on to fetch its part of the next matrix while `is_idle`. `fetched` is what it remembers of
    /// it: the matrix, and how many bytes of the part it has fetched.
    pub(crate) fn fetch(
        &self,
        index: usize,
        threads: usize,
        fetched: &mut Span,
        mut is_idle: impl FnMut() -> bool,
    ) {
        let (start, bytes) = (self.start.load(Relaxed), self.bytes.load(Relaxed));
        if fetched.start != start {
            *fetched = Span { start, bytes: 0 };
        }
        let part = start.wrapping_add(bytes / threads * index);
        let end = MAX_BYTES.min(bytes / threads);
        while fetched.bytes < end && is_idle() {
            for line in (0..STEP_BYTES).step_by(LINE_BYTES) {
                prefetch(part.wrapping_add(fetched.bytes + line));
            }
            fetched.bytes += STEP_BYTES;
        }
    }
}

/// Fetches a line into the second-level cache. Any address will do: one that is not there is left alone.
#[cfg(target_arch = "x86_64")]
fn prefetch(address: usize) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: every x86-64 processor has the instruction, and it never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::without_provenance(address)) };
}

#[cfg(not(target_arch = "x86_64"))]
fn prefetch(_: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: usize) -> Span {
        Span { start, bytes: 1 << 20 }
    }

    #[test]
    fn the_order_of_a_step_foretells_the_next() {
        let mut order = Order::default();
        let first: Vec<_> = [10, 20, 30].map(|start| order.note(span(start))).into();
        assert_eq!(first, [None, None, None]);
        let second: Vec<_> = [10, 20, 30].map(|start| order.note(span(start))).into();
        assert_eq!(second, [Some(span(20)), Some(span(30)), Some(span(10))]);
    }

    #[test]
    fn a_part_is_fetched_once_and_only_while_idle() {
        let next = Next::default();
        let mut fetched = Span::default();
        next.set(Some(Span { start: 64, bytes: 40 << 10 }));
        let mut looks = 0;
        next.fetch(1, 4, &mut fetched, || {
            looks += 1;
            looks < 2
        });
        assert_eq!(fetched, Span { start: 64, bytes: STEP_BYTES });
        next.fetch(1, 4, &mut fetched, || true);
        assert_eq!(fetched, Span { start: 64, bytes: 12 << 10 }, "10 KiB in whole steps");
        next.fetch(1, 4, &mut fetched, || unreachable!("all of it was fetched"));
        next.set(Some(Span { start: 128, bytes: 1 << 30 }));
        next.fetch(1, 4, &mut fetched, || true);
        assert_eq!(fetched, Span { start: 128, bytes: MAX_BYTES });
        next.set(None);
        next.fetch(1, 4, &mut fetched, || unreachable!("there is nothing to fetch"));
    }
}
