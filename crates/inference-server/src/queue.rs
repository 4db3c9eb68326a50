//! Who may run now, who waits, and who is asked to come back later.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{ApiError, ApiResult};

/// The share that the newest request has in the typical duration.
const WEIGHT: f64 = 0.2;
/// The longest wait that is advised, in seconds.
const LONGEST_ADVICE: f64 = 60.0;

/// The line in front of one model.
#[derive(Debug)]
pub(crate) struct Queue {
    slots: Arc<Semaphore>,
    capacity: usize,
    waiting: Arc<AtomicUsize>,
    max_waiting: usize,
    /// How long a request typically runs, in seconds.
    typical: Arc<Mutex<f64>>,
}

/// A place among the running. Dropping it lets the next one in.
#[derive(Debug)]
pub(crate) struct Slot {
    _permit: OwnedSemaphorePermit,
    began: Instant,
    typical: Arc<Mutex<f64>>,
}

struct Waiting(Arc<AtomicUsize>);

impl Queue {
    /// Runs `capacity` answers at once; `max_waiting` requests may wait.
    pub(crate) fn new(capacity: usize, max_waiting: usize) -> Self {
        let capacity = capacity.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            slots: Arc::new(Semaphore::new(capacity)),
            capacity,
            waiting: Arc::default(),
            max_waiting,
            typical: Arc::new(Mutex::new(1.0)),
        }
    }

    /// Waits for room for this many answers.
    ///
    /// # Errors
    /// Too many requests wait already, or more answers are asked for than ever run at once.
    pub(crate) async fn enter(&self, answers: usize) -> ApiResult<Slot> {
        let permits = u32::try_from(answers).ok().filter(|_| answers <= self.capacity).ok_or_else(|| {
            let message = format!("{answers} answers at once, expected at most {}", self.capacity);
            ApiError::invalid("n", message)
        })?;
        let permit = match self.slots.clone().try_acquire_many_owned(permits) {
            Ok(permit) => permit,
            Err(_) => {
                let _waiting = self.wait()?;
                let acquired = self.slots.clone().acquire_many_owned(permits).await;
                acquired.map_err(|_| ApiError::shutting_down())?
            }
        };
        Ok(Slot { _permit: permit, began: Instant::now(), typical: self.typical.clone() })
    }

    /// Requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Answers that run.
    pub(crate) fn running(&self) -> usize {
        self.capacity - self.slots.available_permits()
    }

    fn wait(&self) -> ApiResult<Waiting> {
        let more = |waiting: usize| (waiting < self.max_waiting).then_some(waiting + 1);
        match self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(Waiting(self.waiting.clone())),
            Err(waiting) => {
                let message = format!("{waiting} requests wait already, which is the limit; try again later");
                let typical = *self.typical.lock().unwrap_or_else(PoisonError::into_inner);
                let rounds = (waiting / self.capacity + 1) as f64;
                let seconds = (typical * rounds).clamp(1.0, LONGEST_ADVICE).ceil() as u64;
                let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message);
                Err(ApiError { retry_after: Some(seconds), ..error })
            }
        }
    }
}

impl Slot {
    /// How long ago it was given.
    pub(crate) fn age(&self) -> Duration {
        self.began.elapsed()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut typical = self.typical.lock().unwrap_or_else(PoisonError::into_inner);
        *typical += WEIGHT * (self.age().as_secs_f64() - *typical);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;

    use super::*;

    #[tokio::test]
    async fn who_finds_no_room_waits_and_who_finds_no_place_to_wait_is_sent_away() {
        let queue = Queue::new(2, 1);
        let first = queue.enter(2).await.unwrap();
        let mut second = std::pin::pin!(queue.enter(1));
        assert!(poll!(second.as_mut()).is_pending());
        assert_eq!((queue.waiting(), queue.running()), (1, 2));
        let third = queue.enter(1).await.unwrap_err();
        assert_eq!((third.status.as_u16(), third.code), (429, "queue_full"));
        assert!(third.retry_after.is_some_and(|seconds| seconds >= 1));
        drop(first);
        let second = second.await.unwrap();
        assert_eq!((queue.waiting(), queue.running()), (0, 1));
        drop(second);
        assert_eq!(queue.enter(3).await.unwrap_err().param.as_deref(), Some("n"));
    }

    #[tokio::test]
    async fn who_leaves_the_line_makes_room() {
        let queue = Queue::new(1, 1);
        let _running = queue.enter(1).await.unwrap();
        {
            let mut leaving = std::pin::pin!(queue.enter(1));
            assert!(poll!(leaving.as_mut()).is_pending());
        }
        assert_eq!(queue.waiting(), 0);
    }
}
