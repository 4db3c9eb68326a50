//! MLX's allocator: process-wide, and safe to ask from any thread.

use std::sync::atomic::{AtomicU64, Ordering};

use inference_core::{Error, MemoryControl, MemoryLimits, MemoryUsage, Result};
use mlx_rs::{error::Exception, memory};

/// The peak before the engine last restarted MLX's own measurement, which it does to learn each request's peak.
static PEAK: AtomicU64 = AtomicU64::new(0);

/// Control over MLX's memory.
#[derive(Debug)]
pub(crate) struct Memory;

/// What is in use; zeros where MLX cannot tell.
pub(crate) fn usage() -> MemoryUsage {
    let mut usage = MemoryUsage::default();
    usage.active_bytes = memory::active_memory().unwrap_or(0) as u64;
    usage.peak_bytes = PEAK.load(Ordering::Relaxed).max(memory::peak_memory().unwrap_or(0) as u64);
    usage.cache_bytes = memory::cache_memory().unwrap_or(0) as u64;
    usage
}

/// The peak since the last call, in bytes.
pub(crate) fn take_peak() -> u64 {
    let peak = memory::peak_memory().unwrap_or(0) as u64;
    PEAK.fetch_max(peak, Ordering::Relaxed);
    // Without it the next peak is too high, which is no failure of the request.
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
        before.cache = apply(limits.cache, memory::set_cache_limit, "set the cache limit")?;
        before.wired = apply(limits.wired, memory::set_wired_limit, "set the wired limit")?;
        Ok(before)
    }

    fn clear_cache(&self) -> Result<()> {
        memory::clear_cache().map_err(failed("clear the allocator's cache"))
    }

    fn reset_peak(&self) -> Result<()> {
        PEAK.store(0, Ordering::Relaxed);
        memory::reset_peak_memory().map_err(failed("reset the peak"))
    }
}

fn failed(action: &'static str) -> impl Fn(Exception) -> Error {
    move |error| Error::backend("mlx", action, error)
}
