//! One answer: tokens in as the engine chooses them, the caller's stream out.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{executor::block_on, future::select};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use super::{Detokenize, SharedStats, StopStrings, StreamDecoder, stats::ActiveRequest};
use crate::{
    ContextOverflow, Finish, FinishReason, GenerateOptions, Metrics, ModelInfo, Percentiles, Result,
    StopCause, Token, TokenStream, stream::TokenSink,
};

/// Tokens that wait for a slow reader before the engine does.
const CAPACITY: usize = 64;

/// Writes the answer to one request: text, stop conditions, metrics, totals and the end of the stream.
///
/// An engine calls [`begin`](Self::begin) when it takes the request up, [`push`](Self::push) with each token that it
/// chooses, and [`end`](Self::end). A writer that is dropped before that ends the stream with
/// [`Error::Stopped`](crate::Error::Stopped), and the request counts as failed. No call blocks but
/// [`wait`](Self::wait).
///
/// ```
/// use std::time::Instant;
/// use inference_core::{FinishReason, GenerateOptions, ModelInfo, Token, backend::{ResponseWriter, SharedStats, Verbatim}};
///
/// # futures::executor::block_on(async {
/// # let mut info = ModelInfo::default();
/// # info.context_length = 100;
/// let options = GenerateOptions::new().max_tokens(3);
/// let stats = SharedStats::default();
/// let (mut writer, mut stream) = ResponseWriter::channel(&info, &stats, Verbatim::default(), &options, 1, Instant::now())?;
///
/// // The engine's side.
/// writer.begin(0);
/// let reason = loop {
///     if let Some(reason) = writer.wait() {
///         break reason;
///     }
///     writer.push(Token::new(7, "ha"));
/// };
/// writer.end(Ok(reason));
///
/// // The caller's side.
/// let finish = stream.finish().await?;
/// assert_eq!((finish.reason, finish.metrics.generated_tokens), (FinishReason::Length, 3));
/// # Ok::<(), inference_core::Error>(()) }).unwrap();
/// ```
#[derive(Debug)]
pub struct ResponseWriter {
    sink: TokenSink,
    decoder: StreamDecoder,
    /// Tokens on their way from the decoder to the sink; empty between calls.
    decoded: Vec<Token>,
    /// Ends running requests when the model is closed.
    shutdown: Option<CancellationToken>,
    eos: Vec<u32>,
    stop_tokens: Option<Arc<[u32]>>,
    max_tokens: usize,
    prompt_tokens: usize,
    cached_tokens: usize,
    generated_tokens: usize,
    /// Why the answer is complete.
    reason: Option<FinishReason>,
    called: Instant,
    began: Option<Instant>,
    first: Option<Instant>,
    last: Instant,
    gaps: Vec<Duration>,
    /// The span in which the caller called.
    span: Span,
    active: ActiveRequest,
}

impl ResponseWriter {
    /// A writer and the caller's stream. The request counts as active in `stats` until the writer is gone. Call it in the
    /// caller's span, which metrics are recorded in.
    ///
    /// `model` says which tokens end a text and how many the context holds; `called` is when the caller called.
    ///
    /// # Errors
    /// As [`StopStrings::new`].
    pub fn channel(
        model: &ModelInfo,
        stats: &SharedStats,
        detokenizer: impl Detokenize + 'static,
        options: &GenerateOptions,
        prompt_tokens: usize,
        called: Instant,
    ) -> Result<(Self, TokenStream)> {
        let (sink, stream) = TokenStream::channel(&model.backend, CAPACITY, options.cancel.clone());
        let stops = options.stop.as_ref().map(|stops| StopStrings::new(stops.iter().cloned())).transpose()?;
        let room = match options.context_overflow {
            Some(ContextOverflow::Rotate { .. }) => usize::MAX,
            _ => model.context_length.saturating_sub(prompt_tokens),
        };
        let writer = Self {
            sink,
            decoder: StreamDecoder::new(detokenizer, stops),
            decoded: Vec::new(),
            shutdown: None,
            eos: if options.ignore_eos { Vec::new() } else { model.eos_token_ids.clone() },
            stop_tokens: options.stop_tokens.clone(),
            max_tokens: options.max_tokens_or_default().min(room),
            prompt_tokens,
            cached_tokens: 0,
            generated_tokens: 0,
            reason: None,
            called,
            began: None,
            first: None,
            last: called,
            gaps: Vec::new(),
            span: Span::current(),
            active: stats.begin(),
        };
        Ok((writer, stream))
    }

    /// The same writer, whose request is also cancelled by this token: the model's, which its `close` cancels.
    #[must_use]
    pub fn with_shutdown(mut self, shutdown: CancellationToken) -> Self {
        self.shutdown = Some(shutdown);
        self
    }

    /// The engine takes the request up. `cached_tokens` of the prompt need not be computed. Later calls change nothing.
    pub fn begin(&mut self, cached_tokens: usize) {
        if self.began.is_none() {
            self.began = Some(Instant::now());
            self.cached_tokens = cached_tokens;
        }
    }

    /// Takes the next token that the engine has chosen. Some: the answer is complete, and why; the engine calls
    /// [`end`](Self::end) with it, and later tokens change nothing.
    ///
    /// [`Token::text`] is for the [`Detokenize`] that the writer has: empty for a tokenizer, the text for
    /// [`Verbatim`](super::Verbatim).
    pub fn push(&mut self, token: Token) -> Option<FinishReason> {
        if self.reason.is_none() {
            self.note_time();
            self.reason = self.take(token);
        }
        self.reason.clone()
    }

    fn take(&mut self, token: Token) -> Option<FinishReason> {
        if let Some(cause) = self.stop_cause(token.id) {
            return Some(FinishReason::Stop(cause));
        }
        self.generated_tokens += 1;
        let stop = self.decoder.push(token, &mut self.decoded);
        self.deliver();
        match stop {
            Some(stop) => Some(FinishReason::Stop(StopCause::StopString(stop))),
            None => (self.generated_tokens >= self.max_tokens).then_some(FinishReason::Length),
        }
    }

    /// Ends the stream. Where [`push`](Self::push) has said why the answer is complete, that reason stands.
    pub fn end(mut self, result: Result<FinishReason>) {
        let metrics = self.metrics();
        self.end_with(result, metrics);
    }

    /// The same with metrics of the engine's own, [`metrics`](Self::metrics) with more in them.
    pub fn end_with(mut self, result: Result<FinishReason>, metrics: Metrics) {
        let stop = self.decoder.finish(&mut self.decoded);
        self.deliver();
        let end = result.map(|reason| match (self.reason.take().unwrap_or(reason), stop) {
            // A stop string that was complete but for the bytes of a character that might have followed.
            (FinishReason::Length, Some(stop)) => FinishReason::Stop(StopCause::StopString(stop)),
            (reason, _) => reason,
        });
        self.active.end(&metrics, end.as_ref());
        metrics.record(&self.span, end.as_ref());
        self.sink.end(end.map(|reason| Finish::new(reason, metrics)));
    }

    /// What the request has cost so far, without memory.
    pub fn metrics(&mut self) -> Metrics {
        let now = Instant::now();
        let began = self.began.unwrap_or(now);
        Metrics {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            generated_tokens: self.generated_tokens,
            queued: began - self.called,
            prefill: self.first.unwrap_or(now) - began,
            decode: self.first.map(|first| self.last - first).unwrap_or_default(),
            time_to_first_token: self
                .first
                .filter(|_| self.generated_tokens > 0)
                .map(|first| first - self.called),
            inter_token: Percentiles::from_durations(&mut self.gaps),
            ..Metrics::default()
        }
    }

    /// Tokens that are part of the answer so far: the step of the next one.
    #[must_use]
    pub fn generated_tokens(&self) -> usize {
        self.generated_tokens
    }

    /// Tokens that the answer may have, by the caller's limit and the context.
    #[must_use]
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Why this token would end the text, if it would: by the caller's stop tokens or the model's end-of-sequence tokens.
    #[must_use]
    pub fn stop_cause(&self, id: u32) -> Option<StopCause> {
        if self.stop_tokens.as_ref().is_some_and(|ids| ids.contains(&id)) {
            return Some(StopCause::StopToken(id));
        }
        self.eos.contains(&id).then_some(StopCause::EndOfSequence(id))
    }

    /// Whether nobody wants more: the caller cancelled or dropped the stream, or the model was closed.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.sink.is_cancelled() || self.shutdown.as_ref().is_some_and(CancellationToken::is_cancelled)
    }

    /// Waits until [`is_cancelled`](Self::is_cancelled).
    pub async fn cancelled(&self) {
        self.unless_shut_down(self.sink.cancelled()).await;
    }

    /// Whether the reader is behind, so that the engine should leave this request out of its next step.
    pub fn is_full(&mut self) -> bool {
        self.sink.is_full()
    }

    /// Waits until the reader has made room, or [`is_cancelled`](Self::is_cancelled).
    pub async fn ready(&self) {
        self.unless_shut_down(self.sink.ready()).await;
    }

    /// For an engine with a thread for each request: blocks while the reader is behind. Some: no further token is wanted,
    /// and why.
    pub fn wait(&mut self) -> Option<FinishReason> {
        if self.reason.is_some() {
            return self.reason.clone();
        }
        while self.is_full() && !self.is_cancelled() {
            block_on(self.ready());
        }
        if self.is_cancelled() {
            return Some(FinishReason::Cancelled);
        }
        (self.generated_tokens >= self.max_tokens).then_some(FinishReason::Length)
    }

    async fn unless_shut_down(&self, event: impl Future<Output = ()>) {
        match &self.shutdown {
            None => event.await,
            Some(shutdown) => {
                select(std::pin::pin!(event), std::pin::pin!(shutdown.cancelled())).await;
            }
        }
    }

    fn note_time(&mut self) {
        let now = Instant::now();
        if self.first.is_none() {
            self.first = Some(now);
        } else {
            self.gaps.push(now - self.last);
        }
        self.last = now;
    }

    fn deliver(&mut self) {
        for token in self.decoded.drain(..) {
            self.sink.send(token);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, StreamExt as _};

    use super::*;
    use crate::{Error, backend::Verbatim};

    fn info() -> ModelInfo {
        ModelInfo { context_length: 10, eos_token_ids: vec![0], ..ModelInfo::default() }
    }

    fn channel(stats: &SharedStats, options: &GenerateOptions) -> (ResponseWriter, TokenStream) {
        ResponseWriter::channel(&info(), stats, Verbatim::default(), options, 4, Instant::now()).unwrap()
    }

    fn finish(stream: &mut TokenStream) -> (String, Result<Finish>) {
        let mut text = String::new();
        while let Some(token) = stream.next().now_or_never().expect("the stream has ended") {
            match token {
                Ok(token) => text.push_str(&token.text),
                Err(error) => return (text, Err(error)),
            }
        }
        (text, stream.finish().now_or_never().unwrap())
    }

    #[test]
    fn an_answer_ends_where_its_options_say() {
        let stop = |text: &str| FinishReason::Stop(StopCause::StopString(text.to_owned()));
        let cases = [
            (GenerateOptions::new(), vec![1, 2, 0], "ab", FinishReason::Stop(StopCause::EndOfSequence(0))),
            (
                GenerateOptions::new().stop_tokens([2]),
                vec![1, 2],
                "a",
                FinishReason::Stop(StopCause::StopToken(2)),
            ),
            (GenerateOptions::new().stop(["bc"]), vec![1, 2, 3], "a", stop("bc")),
            (GenerateOptions::new().max_tokens(2), vec![1, 2], "ab", FinishReason::Length),
            // The context holds six more tokens.
            (GenerateOptions::new().ignore_eos(true), vec![1, 0, 1, 2, 3, 1], "a`abca", FinishReason::Length),
        ];
        for (options, ids, expected, reason) in cases {
            let stats = SharedStats::default();
            let (mut writer, mut stream) = channel(&stats, &options);
            writer.begin(1);
            let last = ids.len() - 1;
            for (at, id) in ids.into_iter().enumerate() {
                assert_eq!(writer.wait(), None);
                let text = char::from(b'`' + id as u8);
                assert_eq!(writer.push(Token::new(id, text)), (at == last).then(|| reason.clone()));
            }
            assert_eq!(writer.wait(), Some(reason.clone()));
            assert_eq!(stats.snapshot().active, 1);
            // Whatever ends the engine's work: the answer was complete.
            writer.end(Ok(FinishReason::Cancelled));
            let (text, finish) = finish(&mut stream);
            let finish = finish.unwrap();
            assert_eq!((text.as_str(), &finish.reason), (expected, &reason));
            assert_eq!((finish.metrics.prompt_tokens, finish.metrics.cached_tokens), (4, 1));
            let stats = stats.snapshot();
            assert_eq!((stats.active, stats.cancelled, stats.failed), (0, 0, 0));
            assert_eq!(stats.generated_tokens, finish.metrics.generated_tokens as u64);
        }
    }

    #[test]
    fn text_that_might_have_become_a_stop_string_comes_at_the_end() {
        let options = GenerateOptions::new().stop(["ab"]).max_tokens(1);
        let (mut writer, mut stream) = channel(&SharedStats::default(), &options);
        writer.push(Token::new(1, "a"));
        writer.end(Ok(FinishReason::Length));
        assert_eq!(finish(&mut stream).0, "a");
    }

    #[test]
    fn what_is_cancelled_or_lost_is_counted_so() {
        let stats = SharedStats::default();
        let (mut cancelled, mut stream) = channel(&stats, &GenerateOptions::new());
        let shutdown = CancellationToken::new();
        cancelled = cancelled.with_shutdown(shutdown.clone());
        cancelled.push(Token::new(1, "a"));
        assert_eq!(cancelled.wait(), None);
        shutdown.cancel();
        assert_eq!(cancelled.wait(), Some(FinishReason::Cancelled));
        cancelled.end(Ok(FinishReason::Cancelled));
        let (text, end) = finish(&mut stream);
        assert_eq!((text.as_str(), end.unwrap().reason), ("a", FinishReason::Cancelled));

        let (lost, mut stream) = channel(&stats, &GenerateOptions::new());
        drop(lost);
        assert!(matches!(finish(&mut stream).1, Err(Error::Stopped { .. })));
        let stats = stats.snapshot();
        assert_eq!((stats.requests, stats.active, stats.cancelled, stats.failed), (2, 0, 1, 1));
    }

    #[test]
    fn an_answer_without_tokens_has_no_time_to_its_first() {
        let (mut writer, mut stream) = channel(&SharedStats::default(), &GenerateOptions::new());
        writer.begin(0);
        let reason = writer.push(Token::new(0, "")).unwrap();
        writer.end(Ok(reason));
        let metrics = finish(&mut stream).1.unwrap().metrics;
        assert_eq!((metrics.generated_tokens, metrics.time_to_first_token), (0, None));
    }
}
