//! The thread pool that kernels share. The process has one, so that two models do not compete for the cores.

use std::{
    any::Any,
    cell::UnsafeCell,
    ffi::OsString,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use crate::{
    ahead::{Next, Order, Span},
    error::{Error, Result},
};

/// The environment variable with the number of threads.
const VARIABLE: &str = "INFERENCE_NUM_THREADS";
/// The most threads that the variable may ask for, unless the machine has more processors. More only cost memory.
const MAX_THREADS: usize = 1024;
/// How long an idle thread spins before it sleeps. A model's next product comes within microseconds, and waking a thread costs
/// more.
const SPIN: Duration = Duration::from_micros(200);
/// The bit of the gate that is set while threads may join the job.
const OPEN: usize = 1 << (usize::BITS - 1);

/// The pool: the calling thread and the workers.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    /// Held by the caller whose job the workers do. It knows in which order matrices are read.
    turn: Mutex<Order>,
}

struct Worker {
    thread: Thread,
    asleep: Arc<AtomicBool>,
}

struct Shared {
    /// [`OPEN`], and the number of workers inside the job.
    gate: AtomicUsize,
    /// The number of jobs so far, so that a worker joins each job only once.
    epoch: AtomicUsize,
    job: UnsafeCell<Job>,
    /// The tasks of the job that are left: a part for each thread, the caller's first. Neighbouring tasks mostly read neighbouring
    /// memory.
    parts: Box<[Part]>,
    /// What is read after this job.
    next: Next,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Workers that have begun to run.
    started: AtomicUsize,
}

// SAFETY: only the holder of `turn` writes the job, while the gate is closed and no worker is inside. Workers read it inside only.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in the job refers to a `Sync` function, see `Pool::run`.
unsafe impl Send for Shared {}

#[derive(Clone, Copy)]
struct Job {
    /// Valid while the gate is open or a worker is inside.
    work: *const (dyn Fn(usize) + Sync),
}

/// A range of tasks that nobody took yet: the start in the low half, the end in the high half. Aligned to a cache line.
#[repr(align(64))]
struct Part(AtomicU64);

impl Part {
    fn set(&self, start: usize, end: usize) {
        self.0.store((end as u64) << 32 | start as u64, Relaxed);
    }

    /// Takes the first task, or the last.
    fn take(&self, last: bool) -> Option<usize> {
        let mut taken = 0;
        let take = |part: u64| {
            let (start, end) = (part & u64::from(u32::MAX), part >> 32);
            taken = if last { end.wrapping_sub(1) } else { start };
            (start < end).then(|| if last { part - (1 << 32) } else { part + 1 })
        };
        self.0.fetch_update(Relaxed, Relaxed, take).ok()?;
        Some(taken as usize)
    }
}

impl Pool {
    /// The pool of this process, which the first call starts. It has as many threads as `INFERENCE_NUM_THREADS` says, or else as
    /// this process may run at once.
    pub(crate) fn global() -> Result<&'static Self> {
        static POOL: OnceLock<Result<Pool>> = OnceLock::new();
        let pool = POOL.get_or_init(|| {
            let processors = thread::available_parallelism().map_or(1, usize::from);
            Ok(Self::new(thread_count(std::env::var_os(VARIABLE), processors)?))
        });
        pool.as_ref().map_err(Error::clone)
    }

    /// A pool of so many threads, or fewer if the system refuses some.
    fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            gate: AtomicUsize::new(0),
            epoch: AtomicUsize::new(0),
            job: UnsafeCell::new(Job { work: &|_| {} }),
            parts: (0..threads).map(|_| Part(AtomicU64::new(0))).collect(),
            next: Next::default(),
            panic: Mutex::new(None),
            started: AtomicUsize::new(0),
        });
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let workers = (1..threads).map_while(|index| {
            let asleep = Arc::new(AtomicBool::new(false));
            let (worker, flag) = (Arc::clone(&shared), Arc::clone(&asleep));
            let thread = thread::Builder::new().name(format!("kernels-{index}"));
            let handle = thread.spawn(move || worker.serve(index, &flag)).ok()?;
            // Near a limit of memory, a thread that was spawned aborts the process if it cannot get its signal stack. So unusually
            // many threads start one by one: then the limit shows at `spawn`, which needs far more memory.
            while threads > 2 * processors && shared.started.load(Acquire) < index {
                thread::yield_now();
            }
            Some(Worker { thread: handle.thread().clone(), asleep })
        });
        let workers = workers.collect();
        Self { shared, workers, turn: Mutex::default() }
    }

    /// The number of threads, with the caller's.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work` for each of `0..tasks`, in any order, and returns when all are done. While another caller has the workers,
    /// the calling thread does all tasks itself.
    pub(crate) fn run(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        self.run_reading(None, tasks, work);
    }

    /// [`run`](Self::run), where the tasks read a matrix from its beginning to its end. Workers that wait after it fetch the one
    /// that came next the last time.
    pub(crate) fn run_reading(&self, matrix: Option<Span>, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        let shareable = tasks > 1 && tasks < u32::MAX as usize && !self.workers.is_empty();
        let turn = shareable.then(|| try_lock(&self.turn)).flatten();
        let Some(mut order) = turn else {
            return (0..tasks).for_each(work);
        };
        let shared = &*self.shared;
        if let Some(matrix) = matrix {
            shared.next.set(order.note(matrix));
        }
        // SAFETY: only the lifetime changes. The job is not used beyond this call, which ends with the gate closed and no worker
        // inside.
        let work: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(work) };
        // SAFETY: this thread holds `turn`, and the job before left the gate closed and no worker inside.
        unsafe { *shared.job.get() = Job { work } };
        let threads = self.threads().min(tasks);
        for (index, part) in shared.parts.iter().enumerate() {
            let [start, end] = [index, index + 1].map(|index| tasks * index.min(threads) / threads);
            part.set(start, end);
        }
        shared.gate.store(OPEN, SeqCst);
        shared.epoch.fetch_add(1, SeqCst);
        for worker in self.workers.iter().take(tasks - 1) {
            if worker.asleep.swap(false, SeqCst) {
                worker.thread.unpark();
            }
        }
        shared.take_tasks(0, Job { work });
        shared.gate.fetch_and(!OPEN, AcqRel);
        let mut spins = 0;
        while shared.gate.load(Acquire) != 0 {
            pause(&mut spins);
        }
        if let Some(panic) = lock(&shared.panic).take() {
            resume_unwind(panic);
        }
    }
}

impl Shared {
    /// The loop of worker `index`.
    fn serve(&self, index: usize, asleep: &AtomicBool) {
        self.started.fetch_add(1, Release);
        let (mut seen, mut fetched) = (0, Span::default());
        loop {
            self.next.fetch(index, self.parts.len(), &mut fetched, || self.epoch.load(Relaxed) == seen);
            seen = self.await_job(seen, asleep);
            let enter = |gate: usize| (gate & OPEN != 0).then_some(gate + 1);
            if self.gate.fetch_update(AcqRel, Acquire, enter).is_ok() {
                // SAFETY: this worker is inside, so nobody writes the job.
                self.take_tasks(index, unsafe { *self.job.get() });
                self.gate.fetch_sub(1, AcqRel);
            }
        }
    }

    /// Waits for a job after number `seen`, and returns its number.
    fn await_job(&self, seen: usize, asleep: &AtomicBool) -> usize {
        let mut spins = 0;
        let start = Instant::now();
        loop {
            let epoch = self.epoch.load(SeqCst);
            if epoch != seen {
                return epoch;
            }
            if spins < 1 << 10 || start.elapsed() < SPIN {
                pause(&mut spins);
                continue;
            }
            asleep.store(true, SeqCst);
            // A job that began before this store does not wake the worker, so the loop looks at the epoch, too.
            while asleep.load(SeqCst) && self.epoch.load(SeqCst) == seen {
                thread::park();
            }
            asleep.store(false, SeqCst);
        }
    }

    /// Does tasks of a job on thread `index`: its own part from the front, then the rest of the other parts from the back.
    fn take_tasks(&self, index: usize, job: Job) {
        // SAFETY: the caller of `run` waits until no worker is inside.
        let work = unsafe { &*job.work };
        let (before, own) = self.parts.split_at(index);
        let all = catch_unwind(AssertUnwindSafe(|| {
            for (place, part) in own.iter().chain(before).enumerate() {
                while let Some(task) = part.take(place > 0) {
                    work(task);
                }
            }
        }));
        if let Err(panic) = all {
            self.parts.iter().for_each(|part| part.set(0, 0));
            *lock(&self.panic) = Some(panic);
        }
    }
}

/// A short wait. Now and then it lets other threads of this core run.
fn pause(spins: &mut u32) {
    *spins = spins.wrapping_add(1);
    if spins.is_multiple_of(128) { thread::yield_now() } else { std::hint::spin_loop() }
}

/// The number of threads that the variable's value asks for, or else one for each processor.
fn thread_count(value: Option<OsString>, processors: usize) -> Result<usize> {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(processors) };
    let max = MAX_THREADS.max(processors);
    match value.to_str().and_then(|text| text.trim().parse().ok()) {
        Some(threads) if (1..=max).contains(&threads) => Ok(threads),
        _ => Err(Error::Threads { found: value.to_string_lossy().into_owned(), max }),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(std::sync::TryLockError::WouldBlock) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_is_a_number_of_threads_or_empty() {
        let count = |value: &str| thread_count(Some(value.into()), 3);
        assert_eq!(thread_count(None, 3), Ok(3));
        for (value, expected) in [("", 3), ("1", 1), (" 7 ", 7), ("1024", 1024)] {
            assert_eq!(count(value), Ok(expected), "{value:?}");
        }
        for value in ["0", "1025", "99999999", "18446744073709551616", "-1", "two", "1.5", " "] {
            let error = count(value).unwrap_err().to_string();
            let expected = format!("{value:?}, expected a whole number from 1 to 1024");
            assert!(error.contains(VARIABLE) && error.contains(&expected), "{error}");
        }
        assert_eq!(thread_count(Some("2000".into()), 2000), Ok(2000));
    }

    #[test]
    fn more_threads_than_processors_share_the_work() {
        let pool = Pool::new(64);
        let sum = AtomicUsize::new(0);
        pool.run(1000, &|task| {
            sum.fetch_add(task, Relaxed);
        });
        assert_eq!(sum.load(Relaxed), 499_500);
    }

    #[test]
    fn every_task_runs_once() {
        let pool = Pool::new(4);
        for tasks in (0..300).chain([10_000]) {
            let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(tasks, &|task| {
                counts[task].fetch_add(1, Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Relaxed) == 1), "{tasks} tasks");
        }
    }

    #[test]
    fn callers_at_once_and_within_each_other_all_finish() {
        let pool = Pool::new(3);
        let sum = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(5, &|_| {
                            pool.run(3, &|task| {
                                sum.fetch_add(task, Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(sum.load(Relaxed), 4 * 200 * 5 * 3);
    }

    #[test]
    fn threads_that_slept_take_part_again() {
        let pool = Pool::new(2);
        let meet = std::sync::Barrier::new(2);
        for _ in 0..3 {
            // Neither of two tasks ends before the other has begun.
            pool.run(2, &|_| {
                meet.wait();
            });
            while !pool.workers[0].asleep.load(SeqCst) {
                thread::yield_now();
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        let caught = catch_unwind(AssertUnwindSafe(|| pool.run(8, &|task| assert_ne!(task, 5))));
        assert!(caught.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(8, &|task| {
            sum.fetch_add(task, Relaxed);
        });
        assert_eq!(sum.load(Relaxed), 28);
    }
}
