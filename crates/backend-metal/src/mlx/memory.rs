//! MLX's allocator: process-wide, and safe to ask from any thread.

use std::sync::atomic::{AtomicU64, Ordering};

use inference_core::{
    Error, MemoryUsage, Result,
    backend::{MemoryControl, MemoryLimits},
};
use mlx_rs::{error::Exception, memory};

/// The highest peak before the engine last reset MLX's own, which it does to measure each request.
static PEAK: AtomicU64 = AtomicU64::new(0);

/// The limit that was set; [`u64::MAX`] is none.
static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);

/// The bytes that all models together may use, where that was limited. MLX itself only frees its cache earlier.
pub(crate) fn limit() -> Option<u64> {
    Some(LIMIT.load(Ordering::Relaxed)).filter(|limit| *limit != u64::MAX)
}

/// Puts back a limit that was in force.
pub(crate) fn restore_limit(limit: Option<u64>) {
    LIMIT.store(limit.unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// Control over MLX's memory.
#[derive(Debug)]
pub(crate) struct Memory;

/// The memory in use; zeros if MLX cannot tell.
pub(crate) fn usage() -> MemoryUsage {
    // SAFETY: it may be called at any time.
    let kept = unsafe { mlx_primitive_sys::mlx_primitive_cached_bytes() } as u64;
    let mut usage = MemoryUsage::default();
    usage.active_bytes = (memory::active_memory().unwrap_or(0) as u64).saturating_sub(kept);
    usage.peak_bytes = PEAK.load(Ordering::Relaxed).max(memory::peak_memory().unwrap_or(0) as u64);
    usage.cache_bytes = memory::cache_memory().unwrap_or(0) as u64 + kept;
    usage
}

/// Frees the memory that is kept for later arrays: MLX's cache, that of primitives, and the heap on a CPU.
pub(crate) fn clear_cache() -> mlx_rs::error::Result<()> {
    // SAFETY: it may be called at any time.
    unsafe { mlx_primitive_sys::mlx_primitive_clear_cache() };
    heap::trim();
    memory::clear_cache()
}

/// The C library's heap, which holds MLX's arrays on a CPU.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) mod heap {
    use std::sync::OnceLock;

    /// The largest array that the heap holds; glibc maps larger ones. More than half of a thread's arena is not possible.
    const LARGEST: i32 = 32 << 20;
    /// Bytes that may stay free.
    const KEPT: i32 = 256 << 20;

    static KEEPS: OnceLock<()> = OnceLock::new();

    /// Keeps freed memory in the heap. By default glibc maps and unmaps each large array, and the system zeroes its pages each time.
    pub(crate) fn keep() {
        // SAFETY: both settings may change at any time; what is refused stays as it was.
        KEEPS.get_or_init(|| unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST);
            libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
        });
    }

    /// Returns free memory to the system.
    pub(super) fn trim() {
        if KEEPS.get().is_some() {
            // SAFETY: malloc_trim only releases free memory.
            unsafe { libc::malloc_trim(0) };
        }
    }
}

/// No-op with other allocators.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) mod heap {
    pub(crate) fn keep() {}
    pub(super) fn trim() {}
}

/// The peak since it was last taken, in bytes.
pub(crate) fn peak() -> u64 {
    memory::peak_memory().unwrap_or(0) as u64
}

/// The same, and resets it.
pub(crate) fn take_peak() -> u64 {
    let peak = peak();
    PEAK.fetch_max(peak, Ordering::Relaxed);
    // If it fails the next peak is too high, which does not fail the request.
    let _ = memory::reset_peak_memory();
    peak
}

impl MemoryControl for Memory {
    fn usage(&self) -> Result<MemoryUsage> {
        Ok(usage())
    }

    fn set_limits(&self, limits: MemoryLimits) -> Result<MemoryLimits> {
        let apply = |limit: Option<u64>, set: fn(usize) -> mlx_rs::error::Result<usize>, action| {
            limit
                .map(|bytes| {
                    set(usize::try_from(bytes).unwrap_or(usize::MAX))
                        .map(|old| old as u64)
                        .map_err(failed(action))
                })
                .transpose()
        };
        let mut before = MemoryLimits::new();
        before.memory = apply(limits.memory, memory::set_memory_limit, "set the memory limit")?;
        if let Some(limit) = limits.memory {
            LIMIT.store(limit, Ordering::Relaxed);
        }
        before.cache = apply(limits.cache, memory::set_cache_limit, "set the cache limit")?;
        before.wired = apply(limits.wired, memory::set_wired_limit, "set the wired limit")?;
        Ok(before)
    }

    fn clear_cache(&self) -> Result<()> {
        clear_cache().map_err(failed("clear the allocator's cache"))
    }

    fn reset_peak(&self) -> Result<()> {
        PEAK.store(0, Ordering::Relaxed);
        memory::reset_peak_memory().map_err(failed("reset the peak"))
    }
}

fn failed(action: &'static str) -> impl Fn(Exception) -> Error {
    move |error| Error::backend("mlx", action, error)
}
