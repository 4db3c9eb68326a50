//! One generation in flight: the caller's [`TokenStream`] and the engine's [`TokenSink`].
//!
//! Tokens travel through a bounded channel, so a slow reader holds back its own row and nothing else. The end travels on
//! a channel of its own together with what did not fit: a stream that is held but not read never blocks an engine.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{Stream, StreamExt as _};
use serde::Serialize;
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};
use tokio_util::sync::CancellationToken;

use crate::{
    ChatStream, Error, Metrics, Result,
    chat::{OutputParser, PlainTextParser},
};

/// One generated token.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Token {
    /// The id in the model's vocabulary.
    pub id: u32,
    /// Its text. A token is delivered once its text is certain: not while a character or a possible stop string is
    /// incomplete. A character that spans several tokens belongs to the token that completes it.
    pub text: String,
    /// The natural logarithm of its probability after bias and penalties, before filters and temperature, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_probability: Option<f32>,
    /// The likeliest tokens at this place, likeliest first, where asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<Alternative>,
}

impl Token {
    /// A token without log-probabilities.
    pub fn new(id: u32, text: impl Into<String>) -> Self {
        Self { id, text: text.into(), ..Self::default() }
    }
}

/// A token that might have been chosen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Alternative {
    /// The id in the model's vocabulary.
    pub id: u32,
    /// The natural logarithm of its probability.
    pub log_probability: f32,
}

/// How a generation ended, and what it cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finish {
    /// Why there is no further token.
    pub reason: FinishReason,
    /// What it cost.
    pub metrics: Metrics,
}

/// Why a generation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model or the caller's stop condition ended it.
    Stop(StopCause),
    /// The limit on tokens, or the context, was reached.
    Length,
    /// The caller cancelled; what was produced before was delivered.
    Cancelled,
}

/// What ended a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopCause {
    /// One of the model's end-of-sequence tokens, which is not part of the text.
    EndOfSequence(u32),
    /// One of the caller's stop tokens, which is not part of the text.
    StopToken(u32),
    /// One of the caller's stop strings, which is not part of the text.
    StopString(String),
}

/// The tokens of one generation, in order.
///
/// It yields `Ok(token)` until the generation ends, then `None` and [`finish`](Self::finish) says how; or one `Err`, then
/// `None`. `next()` is cancel-safe. Dropping the stream cancels the generation, but not the caller's token.
#[derive(Debug)]
pub struct TokenStream {
    tokens: mpsc::Receiver<Token>,
    end: oneshot::Receiver<End>,
    backend: String,
    parser: Box<dyn OutputParser>,
    state: State,
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
    #[must_use]
    pub fn channel(backend: &str, capacity: usize, cancel: CancellationToken) -> (TokenSink, Self) {
        let (tokens_in, tokens) = mpsc::channel(capacity.max(1));
        let (end_in, end) = oneshot::channel();
        let sink = TokenSink { tokens: tokens_in, end: end_in, overflow: VecDeque::new(), cancel };
        let (backend, parser) = (backend.to_owned(), Box::new(PlainTextParser));
        (sink, Self { tokens, end, backend, parser, state: State::Running })
    }

    /// The same stream with what tells the parts of its answer apart, from a backend that knows its model's marks.
    #[must_use]
    pub fn with_parser(mut self, parser: impl OutputParser + 'static) -> Self {
        self.parser = Box::new(parser);
        self
    }

    /// The answer's parts in place of its tokens: text, reasoning, calls of tools.
    #[must_use]
    pub fn events(self) -> ChatStream {
        ChatStream::new(self)
    }

    /// What tells the answer's parts apart, for who wants tokens and parts both: give it every token, in order.
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
                result: Err(Error::Stopped {
                    backend: self.backend.clone(),
                    reason: "the engine ended without finishing the request".to_owned(),
                }),
            });
            self.state = State::Draining(end.tail, end.result);
        }
        if let State::Draining(tail, _) = &mut self.state {
            if let Some(token) = tail.pop_front() {
                return Poll::Ready(Some(Ok(token)));
            }
            if let State::Draining(_, result) = std::mem::replace(&mut self.state, State::Failed) {
                match result {
                    Ok(finish) => self.state = State::Finished(finish),
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

    fn finish() -> Finish {
        Finish { reason: FinishReason::Length, metrics: Metrics::default() }
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
