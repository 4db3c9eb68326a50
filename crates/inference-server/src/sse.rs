//! Server-sent events from code that reads from top to bottom.

use std::{convert::Infallible, time::Duration};

use axum::response::{
    IntoResponse as _, Response,
    sse::{Event, KeepAlive, Sse},
};
use futures::{SinkExt as _, StreamExt as _, channel::mpsc, stream};
use serde::Serialize;
use tracing::Instrument as _;

/// Where a stream's events go.
#[derive(Debug)]
pub(crate) struct Events(mpsc::Sender<Event>);

/// The client is gone.
#[derive(Debug)]
pub(crate) struct Gone;

impl Events {
    /// Sends an event without a name.
    pub(crate) async fn data(&mut self, data: &impl Serialize) -> Result<(), Gone> {
        self.send(Event::default(), data).await
    }

    /// Sends an event with a name.
    pub(crate) async fn named(&mut self, name: &str, data: &impl Serialize) -> Result<(), Gone> {
        self.send(Event::default().event(name), data).await
    }

    /// Sends a text as it is.
    pub(crate) async fn text(&mut self, text: &str) -> Result<(), Gone> {
        self.0.send(Event::default().data(text)).await.map_err(|_| Gone)
    }

    async fn send(&mut self, event: Event, data: &impl Serialize) -> Result<(), Gone> {
        // What is sent is made here, of maps with names for keys: it is JSON.
        let event = event.json_data(data).map_err(|_| Gone)?;
        self.0.send(event).await.map_err(|_| Gone)
    }
}

/// A response with the events that `write` sends. It runs as the client reads: one that is slow holds it back, and one that
/// leaves ends it.
pub(crate) fn respond<F>(write: impl FnOnce(Events) -> F, every: Duration, keep_alive: Event) -> Response
where
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(0);
    // The request's span lasts as long as its stream.
    let work =
        stream::once(write(Events(sender)).in_current_span()).filter_map(|()| std::future::ready(None));
    let events = stream::select(receiver, work).map(Ok::<_, Infallible>);
    let keep_alive = KeepAlive::new().interval(every).event(keep_alive);
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    // A proxy that collects the answer before it passes it on would undo the stream.
    response.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    response
}

/// A comment, which clients skip.
pub(crate) fn comment() -> Event {
    Event::default().comment("keep-alive")
}
