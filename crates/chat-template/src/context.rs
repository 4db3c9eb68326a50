//! What filters and functions may use beside their arguments.

use std::cell::Cell;

use jiff::civil::DateTime;

use crate::{
    budget::STEP,
    error::{Error, Result},
    value::Heap,
};

/// How deep expressions, blocks, macro calls and filters that apply filters may lie within one another while a template runs. The
/// stack grows with it: some 600 KB at most, in a build without optimisation.
const MAX_NESTING: usize = 400;

#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) heap: Heap,
    /// What `strftime_now` tells, once it is asked.
    pub(crate) now: Cell<Option<DateTime>>,
    /// The state of the random numbers.
    pub(crate) random: Cell<u64>,
    pub(crate) nesting: Cell<usize>,
}

impl Context {
    /// Goes one level deeper. A failure ends the rendering, so that only what succeeds has to [`leave`](Self::leave).
    pub(crate) fn enter(&self) -> Result<()> {
        self.heap.charge(STEP)?;
        let nesting = self.nesting.get() + 1;
        self.nesting.set(nesting);
        if nesting > MAX_NESTING {
            return Err(Error::limit(format_args!("maximum recursion depth exceeded")));
        }
        Ok(())
    }

    pub(crate) fn leave(&self) {
        self.nesting.set(self.nesting.get().saturating_sub(1));
    }

    /// A number below `count`, which is above 0. One seed gives one sequence (splitmix64).
    pub(crate) fn below(&self, count: usize) -> usize {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let mixed = mixed ^ (mixed >> 31);
        usize::try_from(mixed % count.max(1) as u64).unwrap_or(0)
    }
}
