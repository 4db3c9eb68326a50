//! Time that a thread has worked.

use std::time::{Duration, Instant};

/// How many times as long as it works a thread may be kept from working.
const PATIENCE: u32 = 10;

/// Measures how long this thread has worked. On a machine that is busy with something else it takes longer, and nobody is to
/// blame. Where the system does not tell, the wall clock stands in.
#[derive(Debug, Clone, Copy)]
pub struct WorkClock {
    begun: Instant,
    worked: Option<Duration>,
}

impl WorkClock {
    /// Begins to measure.
    #[must_use]
    pub fn start() -> Self {
        Self { begun: Instant::now(), worked: worked() }
    }

    /// Whether this thread has worked for longer than `limit`, or ten times as long has gone by in any case.
    #[must_use]
    pub fn exceeds(&self, limit: Duration) -> bool {
        let elapsed = self.begun.elapsed();
        if elapsed <= limit {
            return false;
        }
        let worked = worked().zip(self.worked).map_or(elapsed, |(now, begun)| now.saturating_sub(begun));
        worked > limit || elapsed > limit.saturating_mul(PATIENCE)
    }
}

/// How long this thread has worked so far.
#[cfg(unix)]
fn worked() -> Option<Duration> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
}

#[cfg(not(unix))]
fn worked() -> Option<Duration> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_not_working() {
        let clock = WorkClock::start();
        assert!(!clock.exceeds(Duration::from_secs(1_000)));
        let limit = Duration::from_millis(20);
        let begun = |ago| WorkClock { begun: Instant::now() - ago, ..WorkClock::start() };
        assert_eq!(begun(2 * limit).exceeds(limit), cfg!(not(unix)));
        assert!(begun(2 * PATIENCE * limit).exceeds(limit));
        let clock = WorkClock::start();
        while !clock.exceeds(limit) {}
    }
}
