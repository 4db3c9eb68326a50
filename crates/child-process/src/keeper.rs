//! The child that serves a model, and the next one where it has ended.

use std::{
    fmt::Debug,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::lock::Mutex;
use inference_core::{Error, Result};

/// A connection to a child.
pub trait Child: Debug + Send + Sync + 'static {
    /// Why the child has ended, if it has.
    fn ended(&self) -> Option<Error>;

    /// Kills it.
    fn kill(&self);
}

/// Holds the child of a model. It is started again where it has ended.
#[derive(Debug)]
pub struct Keeper<C> {
    restart: bool,
    current: Mutex<Option<Arc<C>>>,
    closed: AtomicBool,
}

impl<C: Child> Keeper<C> {
    /// Holds nothing yet. With `restart`, [`get`](Self::get) starts a new child in the place of one that has ended.
    #[must_use]
    pub fn new(restart: bool) -> Self {
        Self { restart, current: Mutex::new(None), closed: AtomicBool::new(false) }
    }

    /// Holds this child from now on.
    pub async fn set(&self, child: Arc<C>) {
        *self.current.lock().await = Some(child);
    }

    /// Refuses calls of a closed model.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    /// The child; a new one by `start` where the last has ended.
    ///
    /// # Errors
    /// [`Error::Closed`]; why the last child ended, where none is started again; that of `start`.
    pub async fn get(&self, start: impl Future<Output = Result<Arc<C>>>) -> Result<Arc<C>> {
        let mut current = self.current.lock().await;
        self.check_open()?;
        if let Some(child) = current.as_ref() {
            match child.ended() {
                None => return Ok(child.clone()),
                Some(error) if !self.restart => return Err(error),
                Some(error) => tracing::warn!("starting again: {error}"),
            }
        }
        let child = start.await?;
        *current = Some(child.clone());
        Ok(child)
    }

    /// The child, unless it is being started.
    #[must_use]
    pub fn current(&self) -> Option<Arc<C>> {
        self.current.try_lock().as_deref().cloned().flatten()
    }

    /// Refuses calls from now on.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// The child that there was last, which this holds no longer. Waits for one that is being started.
    pub async fn take(&self) -> Option<Arc<C>> {
        self.current.lock().await.take()
    }
}

/// Kills a child that nobody waits for any more, unless it is kept.
#[derive(Debug)]
pub struct KillOnDrop<C: Child> {
    child: Arc<C>,
    kept: bool,
}

impl<C: Child> KillOnDrop<C> {
    /// Kills it on drop.
    #[must_use]
    pub fn new(child: Arc<C>) -> Self {
        Self { child, kept: false }
    }

    /// Lets it live.
    #[must_use]
    pub fn keep(mut self) -> Arc<C> {
        self.kept = true;
        self.child.clone()
    }
}

impl<C: Child> Deref for KillOnDrop<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.child
    }
}

impl<C: Child> Drop for KillOnDrop<C> {
    fn drop(&mut self) {
        if !self.kept {
            self.child.kill();
        }
    }
}
