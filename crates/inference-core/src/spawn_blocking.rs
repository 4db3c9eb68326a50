//! Blocking work without a runtime.

use std::future::Future;

use tokio::sync::oneshot;

use crate::{Error, Result};

/// Runs blocking work on a thread of its own, so that no executor is held and none is needed. The work begins at once; the
/// future waits for it, and dropping the future does not stop it.
///
/// # Errors
/// The work's own; no thread can be started; [`Error::Stopped`] if the work panics.
pub fn spawn_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> impl Future<Output = Result<T>> + Send {
    let (done, result) = oneshot::channel();
    let spawned = std::thread::Builder::new().name("inference-read".to_owned()).spawn(move || {
        // The caller may have gone; then nobody needs the result.
        let _ = done.send(work());
    });
    async {
        spawned.map_err(|error| Error::backend("inference", "start a thread", error))?;
        let reason = "reading the model's folder panicked".to_owned();
        result.await.map_err(|_| Error::stopped("inference", reason))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_needs_no_runtime_and_survives_a_panic() {
        use futures::executor::block_on;
        assert_eq!(block_on(spawn_blocking(|| Ok(4))).unwrap(), 4);
        assert!(matches!(block_on(spawn_blocking::<()>(|| panic!("a test"))), Err(Error::Stopped { .. })));
    }
}
