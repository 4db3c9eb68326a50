//! The handle that all kernels are methods of.

use crate::{error::Result, isa::Isa, pool::Pool};

/// Elements of one task, at least: fewer take less time than handing the task to a thread.
const TASK_ELEMENTS: usize = 1 << 14;

/// The CPU kernels: an instruction set, and the threads that share the work.
#[derive(Clone, Copy)]
pub struct Kernels {
    pub(crate) isa: Isa,
    pub(crate) pool: &'static Pool,
}

impl Kernels {
    /// The kernels of the fastest instruction set of this machine.
    ///
    /// # Errors
    /// [`Error::Threads`](crate::Error::Threads)
    pub fn new() -> Result<Self> {
        Ok(Self { isa: Isa::best(), pool: Pool::global()? })
    }

    /// The kernels of one instruction set, or `None` if this machine lacks it.
    ///
    /// # Errors
    /// [`Error::Threads`](crate::Error::Threads)
    pub fn with_isa(isa: Isa) -> Result<Option<Self>> {
        let pool = Pool::global()?;
        Ok(isa.is_available().then_some(Self { isa, pool }))
    }

    /// The instruction set in use.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The number of threads that share a kernel's work.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Calls `work` for each of `count` rows of `size` elements. Threads share the rows if there are many.
    pub(crate) fn for_each_row(&self, count: usize, size: usize, work: &(dyn Fn(usize) + Sync)) {
        let rows = (TASK_ELEMENTS / size.max(1)).max(1);
        self.pool
            .run(count.div_ceil(rows), &|task| (task * rows..count.min((task + 1) * rows)).for_each(work));
    }
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernels").field("isa", &self.isa).field("threads", &self.threads()).finish()
    }
}
