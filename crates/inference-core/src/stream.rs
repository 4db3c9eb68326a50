//! One generation in flight: the caller's [`TokenStream`] and the engine's [`TokenSink`].
//!
//! Tokens travel through a bounded channel, so a slow reader holds back its own row and nothing else. The end travels on
//! a channel of its own together with what did not fit: a stream that is held but not read never blocks an engine.

use std::{
    any::Any,
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{Stream, StreamExt as _};
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Error, Feature, Finish, FinishReason, Metrics, Result, Token,
    chat::{OutputParser, PlainTextParser},
};

/// The tokens of one generation, in order.
///
/// It yields `Ok(token)` until the generation ends, then `None` and [`finish`](Self::finish) says how; or one `Err`, then
/// `None`. `next()` is cancel-safe. Dropping the stream cancels the generation, but not the caller's token. Until it has
/// ended, the stream keeps its model loaded.
#[derive(Debug)]
#[must_use = "a stream that is dropped cancels its generation"]
pub struct TokenStream {
    tokens: mpsc::Receiver<Token>,
    end: oneshot::Receiver<End>,
    backend: String,
    parser: Box<dyn OutputParser>,
    state: State,
    request: u64,
    without_effect: Vec<Feature>,
    /// What must live until the generation has ended: the model.
    owner: Option<Box<dyn Any + Send + Sync>>,
}

#[derive(Debug)]
enum State {
    Running,
    /// The engine is done; these tokens had not fitted into the channel.
    Draining(VecDeque<Token>, Result<Finish>),
    Finished(Finish),
    /// The error was delivered.
    Failed,
}

#[derive(Debug)]
struct End {
    tail: VecDeque<Token>,
    result: Result<Finish>,
}

impl TokenStream {
    /// A connected pair for a backend. `capacity` (at least 1) is how many tokens wait for a slow reader before
    /// [`TokenSink::is_full`]; `cancel` is the caller's token.
    pub fn channel(backend: &str, capacity: usize, cancel: CancellationToken) -> (TokenSink, Self) {
        let (tokens_in, tokens) = mpsc::channel(capacity.max(1));
        let (end_in, end) = oneshot::channel();
        let sink = TokenSink { tokens: tokens_in, end: end_in, overflow: VecDeque::new(), cancel };
        let (backend, parser) = (backend.to_owned(), Box::new(PlainTextParser));
        let (state, request, without_effect, owner) = (State::Running, 0, Vec::new(), None);
        (sink, Self { tokens, end, backend, parser, state, request, without_effect, owner })
    }

    /// The stream of a call that may have been cancelled before the backend took the request in: cancelling is a finish reason
    /// and no error.
    pub(crate) fn from_call(called: Result<Self>, backend: &str) -> Result<Self> {
        if !matches!(called, Err(Error::Cancelled)) {
            return called;
        }
        let (sink, stream) = Self::channel(backend, 1, CancellationToken::new());
        sink.end(Ok(Finish::new(FinishReason::Cancelled, Metrics::default())));
        Ok(stream)
    }

    /// The same stream with a parser for the parts of its answer, from a backend that knows its model's delimiters.
    pub fn with_parser(mut self, parser: impl OutputParser + 'static) -> Self {
        self.parser = Box::new(parser);
        self
    }

    /// The same stream of a request with options that have no effect on it: they are reported in
    /// [`Finish::without_effect`].
    pub fn with_options_without_effect(mut self, options: impl IntoIterator<Item = Feature>) -> Self {
        self.without_effect.extend(options);
        self
    }

    /// The same stream, of the request with this number.
    pub(crate) fn with_request(mut self, number: u64) -> Self {
        self.request = number;
        self
    }

    /// The same stream, which keeps `owner` until the generation has ended.
    pub(crate) fn keeping(mut self, owner: impl Any + Send + Sync) -> Self {
        self.owner = Some(Box::new(owner));
        self
    }

    /// The request's number in this process, as spans and logs have it.
    #[must_use]
    pub fn request(&self) -> u64 {
        self.request
    }

    /// The parser behind [`events`](Self::events), for callers that want both tokens and events: give it every token, in order.
    #[must_use]
    pub fn take_parser(&mut self) -> Box<dyn OutputParser> {
        std::mem::replace(&mut self.parser, Box::new(PlainTextParser))
    }

    /// How the generation ended. Reads and drops the tokens that are left; call it after the last one to lose none.
    ///
    /// # Errors
    /// The error that ended the generation; where the stream has delivered that already, [`Error::Closed`].
    pub async fn finish(&mut self) -> Result<Finish> {
        while let Some(token) = self.next().await {
            token?;
        }
        match &self.state {
            State::Finished(finish) => Ok(finish.clone()),
            State::Running | State::Draining(..) | State::Failed => Err(Error::Closed),
        }
    }
}

impl Stream for TokenStream {
    type Item = Result<Token>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let State::Running = self.state {
            // The sink sends the end before it closes the channel, so one wait serves both.
            if let Some(token) = ready!(self.tokens.poll_recv(cx)) {
                return Poll::Ready(Some(Ok(token)));
            }
            let end = ready!(Pin::new(&mut self.end).poll(cx)).unwrap_or_else(|_| End {
                tail: VecDeque::new(),
                result: Err(Error::stopped(
                    self.backend.clone(),
                    "the engine ended without finishing the request",
                )),
            });
            self.state = State::Draining(end.tail, end.result);
        }
        if let State::Draining(tail, _) = &mut self.state {
            if let Some(token) = tail.pop_front() {
                return Poll::Ready(Some(Ok(token)));
            }
            if let State::Draining(_, result) = std::mem::replace(&mut self.state, State::Failed) {
                self.owner = None;
                match result {
                    Ok(mut finish) => {
                        finish.request = self.request;
                        finish.without_effect.append(&mut self.without_effect);
                        self.state = State::Finished(finish);
                    }
                    Err(error) => return Poll::Ready(Some(Err(error))),
                }
            }
        }
        Poll::Ready(None)
    }
}

/// The engine's end of a [`TokenStream`]. No call blocks, so it serves a thread and a task alike.
#[derive(Debug)]
pub struct TokenSink {
    tokens: mpsc::Sender<Token>,
    end: oneshot::Sender<End>,
    overflow: VecDeque<Token>,
    cancel: CancellationToken,
}

impl TokenSink {
    /// Delivers a token, or keeps it where the reader is behind. Never fails and never blocks: ask [`is_full`](Self::is_full)
    /// before producing more.
    pub fn send(&mut self, token: Token) {
        if !self.flush() {
            self.overflow.push_back(token);
        } else if let Err(TrySendError::Full(token)) = self.tokens.try_send(token) {
            self.overflow.push_back(token);
        }
    }

    /// Whether the reader is behind: tokens that were sent wait outside the channel.
    pub fn is_full(&mut self) -> bool {
        !self.flush()
    }

    /// Whether nobody wants more: the caller cancelled, or dropped the stream.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled() || self.tokens.is_closed()
    }

    /// Waits until [`is_cancelled`](Self::is_cancelled).
    pub async fn cancelled(&self) {
        let dropped = std::pin::pin!(self.tokens.closed());
        let cancelled = std::pin::pin!(self.cancel.cancelled());
        futures::future::select(dropped, cancelled).await;
    }

    /// Waits until the reader has made room, or [`is_cancelled`](Self::is_cancelled).
    pub async fn ready(&self) {
        let room = std::pin::pin!(self.tokens.reserve());
        let cancelled = std::pin::pin!(self.cancel.cancelled());
        futures::future::select(room, cancelled).await;
    }

    /// Ends the stream. A sink that is dropped without it ends the stream with [`Error::Stopped`].
    pub fn end(self, result: Result<Finish>) {
        // Nobody listening is no failure.
        let _ = self.end.send(End { tail: self.overflow, result });
    }

    /// Moves kept tokens into the channel; whether all went.
    fn flush(&mut self) -> bool {
        while let Some(token) = self.overflow.pop_front() {
            match self.tokens.try_send(token) {
                Ok(()) => {}
                Err(TrySendError::Full(token)) => {
                    self.overflow.push_front(token);
                    return false;
                }
                Err(TrySendError::Closed(_)) => {
                    self.overflow.clear();
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FinishReason, Metrics};

    fn finish() -> Finish {
        Finish::new(FinishReason::Length, Metrics::default())
    }

    fn pair(capacity: usize) -> (TokenSink, TokenStream) {
        TokenStream::channel("test", capacity, CancellationToken::new())
    }

    #[tokio::test]
    async fn tokens_arrive_in_order_then_the_finish() {
        let (mut sink, mut stream) = pair(2);
        for id in 0..5 {
            sink.send(Token::new(id, ""));
        }
        assert!(sink.is_full());
        sink.end(Ok(finish()));
        let ids: Vec<_> = stream.by_ref().map(|token| token.unwrap().id).collect().await;
        assert_eq!(ids, [0, 1, 2, 3, 4]);
        assert_eq!(stream.finish().await.unwrap(), finish());
        assert_eq!(stream.finish().await.unwrap(), finish());
    }

    #[tokio::test]
    async fn an_unread_stream_does_not_hold_the_engine() {
        let (mut sink, mut stream) = pair(1);
        sink.send(Token::new(1, "a"));
        sink.send(Token::new(2, "b"));
        sink.end(Ok(finish()));
        assert_eq!(stream.next().await.unwrap().unwrap().id, 1);
        assert_eq!(stream.next().await.unwrap().unwrap().id, 2);
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn a_sink_that_vanishes_is_one_error() {
        let (mut sink, mut stream) = pair(4);
        sink.send(Token::new(7, "x"));
        drop(sink);
        assert_eq!(stream.next().await.unwrap().unwrap().id, 7);
        assert!(matches!(stream.next().await, Some(Err(Error::Stopped { .. }))));
        assert!(stream.next().await.is_none());
        assert!(matches!(stream.finish().await, Err(Error::Closed)));
    }

    #[tokio::test]
    async fn dropping_the_stream_tells_the_engine_and_not_the_callers_token() {
        let cancel = CancellationToken::new();
        let (sink, stream) = TokenStream::channel("test", 1, cancel.clone());
        assert!(!sink.is_cancelled());
        drop(stream);
        sink.cancelled().await;
        assert!(sink.is_cancelled() && !cancel.is_cancelled());
    }

    #[tokio::test]
    async fn room_or_cancellation_wakes_a_waiting_engine() {
        let cancel = CancellationToken::new();
        let (mut sink, mut stream) = TokenStream::channel("test", 1, cancel.clone());
        sink.send(Token::new(1, ""));
        sink.send(Token::new(2, ""));
        assert!(futures::poll!(std::pin::pin!(sink.ready())).is_pending());
        stream.next().await.unwrap().unwrap();
        sink.ready().await;
        assert!(!sink.is_full());
        assert!(futures::poll!(std::pin::pin!(sink.ready())).is_pending());
        cancel.cancel();
        sink.ready().await;
        assert!(sink.is_cancelled());
    }
}
