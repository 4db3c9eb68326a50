//! How much work, memory and time a rendering may take.

use std::{cell::Cell, fmt, rc::Rc};

use crate::{
    clock::WorkClock,
    environment::{Cancelled, Limits},
    error::{Error, ErrorKind, Result},
};

/// What one evaluated expression or statement costs, and one call of a built-in function.
pub(crate) const STEP: usize = 32;

/// What one element of a list costs beside its memory.
pub(crate) const ELEMENT: usize = 16;

/// Units of work between two looks at the clock: some ten microseconds.
const LOOK: u64 = 1 << 14;

/// What is left of the limits of one rendering.
///
/// Work is charged before it is done, and bytes are held before they are allocated. Values can be made through the budget
/// alone (see `Heap`), so that a new filter cannot make one for nothing.
pub(crate) struct Budget {
    limits: Limits,
    work: Cell<u64>,
    /// The clock is looked at when less work than this is left.
    look: Cell<u64>,
    held: Cell<usize>,
    clock: WorkClock,
    cancelled: Option<Cancelled>,
}

impl Budget {
    pub(crate) fn new(limits: Limits, cancelled: Option<Cancelled>) -> Rc<Self> {
        Rc::new(Self {
            limits,
            work: Cell::new(limits.work),
            look: Cell::new(u64::MAX),
            held: Cell::new(0),
            clock: WorkClock::start(),
            cancelled,
        })
    }

    /// The longest text in bytes.
    pub(crate) fn max_text(&self) -> usize {
        self.limits.text
    }

    /// Takes units for work about to be done.
    pub(crate) fn charge(&self, units: usize) -> Result<()> {
        let Some(left) = self.work.get().checked_sub(units as u64) else {
            self.work.set(0);
            return Err(Error::limit(format_args!("the template exceeded its limit of work")));
        };
        self.work.set(left);
        if left < self.look.get() { self.look_at_clock(left) } else { Ok(()) }
    }

    /// Takes units for work that grows with the product of two sizes.
    pub(crate) fn charge_product(&self, a: usize, b: usize) -> Result<()> {
        self.charge(a.saturating_mul(b))
    }

    /// Takes bytes that are about to be allocated, until the hold is dropped.
    pub(crate) fn hold(self: &Rc<Self>, bytes: usize) -> Result<Hold> {
        let mut hold = self.hold_nothing();
        hold.grow(bytes)?;
        Ok(hold)
    }

    /// A hold that can grow.
    pub(crate) fn hold_nothing(self: &Rc<Self>) -> Hold {
        Hold { budget: Rc::clone(self), bytes: 0 }
    }

    #[cold]
    fn look_at_clock(&self, left: u64) -> Result<()> {
        self.look.set(left.saturating_sub(LOOK));
        if self.cancelled.as_ref().is_some_and(|cancelled| cancelled()) {
            return Err(Error::new(ErrorKind::Cancelled, format_args!("the rendering was cancelled")));
        }
        if self.clock.exceeds(self.limits.time) {
            return Err(Error::limit(format_args!(
                "the template exceeded its limit of time, {:?}",
                self.limits.time
            )));
        }
        Ok(())
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget").field("work", &self.work).field("held", &self.held).finish_non_exhaustive()
    }
}

/// Bytes taken from a budget; dropping it gives them back.
#[derive(Debug)]
pub(crate) struct Hold {
    budget: Rc<Budget>,
    bytes: usize,
}

impl Hold {
    pub(crate) fn budget(&self) -> &Rc<Budget> {
        &self.budget
    }

    /// Takes more bytes.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<()> {
        self.budget.charge(8 + bytes / 16)?;
        let held = self.budget.held.get().saturating_add(bytes);
        if held > self.budget.limits.memory {
            return Err(Error::limit(format_args!(
                "the template exceeded its limit of memory, {} bytes",
                self.budget.limits.memory
            )));
        }
        self.budget.held.set(held);
        self.bytes += bytes;
        Ok(())
    }

    /// Gives bytes back.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.budget.held.set(self.budget.held.get().saturating_sub(bytes));
    }

    /// Makes room for one more element in a vector that doubles when it is full.
    pub(crate) fn make_room<T>(&mut self, vector: &mut Vec<T>, more: usize) -> Result<()> {
        let needed = vector.len().saturating_add(more);
        let before = vector.capacity();
        if needed > before {
            let after = needed.max(before.saturating_mul(2)).max(4);
            // While it moves, both are in memory.
            self.grow(after.saturating_mul(size_of::<T>()))?;
            vector.reserve_exact(after - vector.len());
            self.shrink(before * size_of::<T>());
        }
        Ok(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn limits(work: u64, memory: usize) -> Limits {
        Limits { work, memory, ..Limits::default() }
    }

    #[test]
    fn bytes_come_back_and_work_does_not() {
        let budget = Budget::new(limits(1_000, 100), None);
        for _ in 0..10 {
            let hold = budget.hold(100).unwrap();
            assert!(budget.hold(1).is_err());
            drop(hold);
        }
        assert!(budget.charge(1_000).is_err());
        assert_eq!(
            budget.charge(1).unwrap_err().kind(),
            ErrorKind::LimitExceeded,
            "what failed once stays spent"
        );
    }

    #[test]
    fn sums_do_not_wrap() {
        let budget = Budget::new(limits(u64::MAX, 100), None);
        assert!(budget.hold(usize::MAX).is_err());
        let budget = Budget::new(limits(u64::MAX, 100), None);
        budget.charge_product(usize::MAX, usize::MAX).unwrap();
        assert!(budget.charge(1).is_err());
    }

    #[test]
    fn time_and_cancelling_end_it() {
        let late = Limits { time: Duration::ZERO, ..Limits::default() };
        std::thread::yield_now();
        assert_eq!(Budget::new(late, None).charge(1).unwrap_err().kind(), ErrorKind::LimitExceeded);
        let cancelled: Cancelled = std::sync::Arc::new(|| true);
        let budget = Budget::new(Limits::default(), Some(cancelled));
        assert_eq!(budget.charge(1).unwrap_err().kind(), ErrorKind::Cancelled);
    }
}
