//! The one function of macOS's kernel that mlx-rs calls, where there is no such kernel.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds of a clock, from which mlx-rs seeds a random state that was given no seed.
#[unsafe(no_mangle)]
extern "C" fn mach_approximate_time() -> u64 {
    // Two programs that start in one moment after boot must differ, so not the monotonic clock.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_nanos() as u64)
}
