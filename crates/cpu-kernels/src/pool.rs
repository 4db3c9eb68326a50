//! The threads that share a kernel's work: one set for the whole process, so that two models do not take turns on a core.

use std::{
    any::Any,
    cell::UnsafeCell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use crate::{Error, Result};

/// How long an idle thread looks for work before it sleeps: a model's next product is a few microseconds away, and waking a
/// thread costs more than that.
const SPIN: Duration = Duration::from_micros(200);
/// Set in the gate while threads may join the job.
const OPEN: usize = 1 << (usize::BITS - 1);

/// Threads, the calling one among them.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    sleepers: Vec<Sleeper>,
    /// Held by the caller whose job it is.
    turn: Mutex<()>,
}

struct Sleeper {
    thread: Thread,
    asleep: Arc<AtomicBool>,
}

struct Shared {
    /// [`OPEN`] and the number of threads inside of the job.
    gate: AtomicUsize,
    /// Counts jobs, so that a thread joins each but once.
    epoch: AtomicUsize,
    job: UnsafeCell<Job>,
    /// The tasks of the job that are left, one part for each thread, the caller's first: neighbours mostly read memory that lies
    /// together.
    parts: Box<[Part]>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: the job is written only by the holder of `turn`, while the gate is shut and nobody inside; it is read only inside.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in the job refers to what is `Sync`, see `Pool::run`.
unsafe impl Send for Shared {}

#[derive(Clone, Copy)]
struct Job {
    /// Valid while the gate is open or a thread inside.
    work: *const (dyn Fn(usize) + Sync),
}

/// Tasks that follow each other and are not yet taken: the first in the lower half, the end in the upper one. On a cache line of
/// its own.
#[repr(align(64))]
struct Part(AtomicU64);

impl Part {
    fn set(&self, start: usize, end: usize) {
        self.0.store((end as u64) << 32 | start as u64, Relaxed);
    }

    /// Takes a task, the first or the last.
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
    /// The pool of this process, started by the first call. `INFERENCE_NUM_THREADS` says how many threads it has, and where
    /// it does not, as many as this process may run at once.
    pub(crate) fn global() -> Result<&'static Self> {
        static POOL: OnceLock<Result<Pool>> = OnceLock::new();
        let pool = POOL.get_or_init(|| {
            let threads = match std::env::var_os("INFERENCE_NUM_THREADS") {
                None => thread::available_parallelism().map_or(1, usize::from),
                Some(text) => match text.to_str().and_then(|text| text.trim().parse().ok()) {
                    Some(threads @ 1..) => threads,
                    _ => return Err(Error::Threads { found: text.to_string_lossy().into_owned() }),
                },
            };
            Ok(Self::new(threads))
        });
        pool.as_ref().map_err(Error::clone)
    }

    /// A pool of so many threads, or fewer where the system refuses some.
    fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            gate: AtomicUsize::new(0),
            epoch: AtomicUsize::new(0),
            job: UnsafeCell::new(Job { work: &|_| {} }),
            parts: (0..threads).map(|_| Part(AtomicU64::new(0))).collect(),
            panic: Mutex::new(None),
        });
        let sleepers = (1..threads).map_while(|index| {
            let asleep = Arc::new(AtomicBool::new(false));
            let (shared, flag) = (Arc::clone(&shared), Arc::clone(&asleep));
            let thread = thread::Builder::new().name(format!("kernels-{index}"));
            let handle = thread.spawn(move || shared.serve(index, &flag)).ok()?;
            Some(Sleeper { thread: handle.thread().clone(), asleep })
        });
        let sleepers = sleepers.collect();
        Self { shared, sleepers, turn: Mutex::new(()) }
    }

    /// Threads that share work.
    pub(crate) fn threads(&self) -> usize {
        self.sleepers.len() + 1
    }

    /// Runs `work` for each of `0..tasks`, in any order, and returns when all are done. While another caller has the threads,
    /// the calling thread does all itself.
    pub(crate) fn run(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        let shareable = tasks > 1 && tasks < u32::MAX as usize && !self.sleepers.is_empty();
        let turn = shareable.then(|| try_lock(&self.turn)).flatten();
        let Some(_turn) = turn else {
            return (0..tasks).for_each(work);
        };
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes: the job is not used beyond this call, which ends with the gate shut and empty.
        let work: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(work) };
        // SAFETY: this thread has the turn, and the gate was left shut and empty by the one before.
        unsafe { *shared.job.get() = Job { work } };
        let threads = self.threads().min(tasks);
        for (index, part) in shared.parts.iter().enumerate() {
            let [start, end] = [index, index + 1].map(|index| tasks * index.min(threads) / threads);
            part.set(start, end);
        }
        shared.gate.store(OPEN, SeqCst);
        shared.epoch.fetch_add(1, SeqCst);
        for sleeper in self.sleepers.iter().take(tasks - 1) {
            if sleeper.asleep.swap(false, SeqCst) {
                sleeper.thread.unpark();
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
    /// What a thread of the pool does.
    fn serve(&self, index: usize, asleep: &AtomicBool) {
        let mut seen = 0;
        loop {
            seen = self.await_job(seen, asleep);
            let enter = |gate: usize| (gate & OPEN != 0).then_some(gate + 1);
            if self.gate.fetch_update(AcqRel, Acquire, enter).is_ok() {
                // SAFETY: it is inside, so nobody writes the job.
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
            // A job that began before this thread was seen asleep does not wake it.
            while asleep.load(SeqCst) && self.epoch.load(SeqCst) == seen {
                thread::park();
            }
            asleep.store(false, SeqCst);
        }
    }

    /// What thread `index` does of a job: its own part from the front, and then what is left of the others' from behind.
    fn take_tasks(&self, index: usize, job: Job) {
        // SAFETY: see `Job`: the caller of `run` waits for the threads inside.
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

/// A short wait, and now and then a chance for other threads on this core.
fn pause(spins: &mut u32) {
    *spins = spins.wrapping_add(1);
    if spins.is_multiple_of(128) { thread::yield_now() } else { std::hint::spin_loop() }
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
            while !pool.sleepers[0].asleep.load(SeqCst) {
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
