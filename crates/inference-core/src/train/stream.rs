//! A run of training under way.

use std::{
    any::Any,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{Stream, StreamExt as _, stream::BoxStream};

use super::event::TrainEvent;
use crate::{Error, Result};

/// What a run of training tells, in order. Dropping it cancels the run; until it has ended, it keeps its model loaded.
///
/// It begins with [`TrainEvent::Started`] and ends with [`TrainEvent::Finished`] and `None`, or with one `Err`.
#[must_use = "a stream that is dropped cancels its run"]
pub struct TrainStream {
    events: BoxStream<'static, Result<TrainEvent>>,
    /// The last event, once it was read.
    last: Option<TrainEvent>,
    owner: Option<Box<dyn Any + Send + Sync>>,
}

impl TrainStream {
    /// The stream of a backend's events.
    pub fn new(events: impl Stream<Item = Result<TrainEvent>> + Send + 'static) -> Self {
        Self { events: events.boxed(), last: None, owner: None }
    }

    /// The same stream, which keeps `owner` until the run has ended.
    pub(crate) fn keeping(mut self, owner: impl Any + Send + Sync) -> Self {
        self.owner = Some(Box::new(owner));
        self
    }

    /// Reads the run to its end and returns its last event, a [`TrainEvent::Finished`].
    ///
    /// # Errors
    /// The error that ended the run; where the stream has delivered that already, [`Error::Closed`].
    pub async fn finish(&mut self) -> Result<TrainEvent> {
        while let Some(event) = self.next().await {
            event?;
        }
        self.last.clone().ok_or(Error::Closed)
    }
}

impl Stream for TrainStream {
    type Item = Result<TrainEvent>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let event = ready!(self.events.as_mut().poll_next(cx));
        match &event {
            Some(Ok(event @ TrainEvent::Finished { .. })) => self.last = Some(event.clone()),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => self.owner = None,
        }
        Poll::Ready(event)
    }
}

impl fmt::Debug for TrainStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrainStream").field("last", &self.last).finish_non_exhaustive()
    }
}
