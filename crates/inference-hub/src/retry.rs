//! Trying again.

use std::{
    thread,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use crate::{HubError, Result};

/// Tries without progress after which a request fails.
const TRIES: u32 = 5;
/// The first wait between tries; each is twice as long as the one before.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// How often a wait looks whether the caller has cancelled.
const GLANCE: Duration = Duration::from_millis(20);

/// Counts the tries of one request.
#[derive(Debug, Default)]
pub(crate) struct Tries(u32);

impl Tries {
    /// Waits before the next try; the error, where there is no use in one.
    pub(crate) fn again(
        &mut self,
        error: HubError,
        progress: bool,
        cancel: &CancellationToken,
    ) -> Result<()> {
        self.0 = if progress { 1 } else { self.0 + 1 };
        if !error.is_temporary() || self.0 >= TRIES {
            return Err(error);
        }
        let asked = match &error {
            HubError::RateLimited { retry_after, .. } => *retry_after,
            _ => None,
        };
        tracing::warn!("{error}; trying again");
        let until = Instant::now() + asked.unwrap_or(FIRST_WAIT * 2_u32.pow(self.0 - 1));
        while Instant::now() < until {
            if cancel.is_cancelled() {
                return Err(HubError::Cancelled);
            }
            thread::sleep(GLANCE.min(until.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }
}
