//! One generation: the child's tokens in, the caller's text out.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use inference_core::{
    Alternative, CancellationToken, Error, Finish, FinishReason, Metrics, Percentiles, Result, StopCause,
    Token, backend::TokenSink,
};
use inference_text::{TextAssembler, TextEvent};

use crate::{
    ID,
    client::{Answers, Client},
    failure::error_of,
    protocol::{Event, Finished, Reason, Request, or_minus_infinity},
    totals::Totals,
};

/// How many tokens the child may be ahead of the reader, beyond those in the stream's channel.
pub(crate) const CREDIT: usize = 128;

/// How long a cancelled request waits for the child's last message. A child that is stopped or busy must not delay the caller.
const CANCEL_GRACE: Duration = Duration::from_secs(1);

/// The log-probabilities that go with a token.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scores {
    chosen: Option<f32>,
    top: Vec<Alternative>,
}

/// What is needed to serve one request to its end.
pub(crate) struct Generation {
    pub(crate) client: Arc<Client>,
    pub(crate) answers: Answers,
    pub(crate) sink: TokenSink,
    pub(crate) assembler: TextAssembler<Scores>,
    pub(crate) totals: Arc<Totals>,
    /// Cancelled when the model is closed or dropped.
    pub(crate) shutdown: CancellationToken,
    pub(crate) stop_tokens: Option<Arc<[u32]>>,
    pub(crate) prompt_tokens: usize,
    /// When the caller called, and when the request was sent.
    pub(crate) called: Instant,
    pub(crate) sent: Instant,
    pub(crate) span: tracing::Span,
}

/// What has come of a request so far.
struct Progress {
    events: Vec<TextEvent<Scores>>,
    generated: usize,
    /// Tokens that the child may still send.
    credit: usize,
    /// The stop string that ended the text.
    stop: Option<String>,
    first: Option<Instant>,
    last: Instant,
    gaps: Vec<Duration>,
}

impl Generation {
    /// Serves the request; ends the stream, whatever happens.
    pub(crate) async fn run(mut self) {
        let mut progress = Progress {
            events: Vec::new(),
            generated: 0,
            credit: CREDIT,
            stop: None,
            first: None,
            last: self.sent,
            gaps: Vec::new(),
        };
        let outcome = self.serve(&mut progress).await;
        let late_stop = self.assembler.finish(&mut progress.events);
        self.deliver(&mut progress);
        let mut metrics =
            self.metrics(&mut progress, outcome.as_ref().ok().and_then(|(_, finished)| finished.as_ref()));
        let result = outcome.map(|(reason, _)| match (reason, late_stop) {
            (FinishReason::Length, Some(stop)) => FinishReason::Stop(StopCause::StopString(stop)),
            (reason, _) => reason,
        });
        self.totals.ended(&metrics, result.as_ref());
        metrics.record(&self.span, result.as_ref());
        self.sink.end(result.map(|reason| Finish::new(reason, std::mem::take(&mut metrics))));
    }

    /// Takes events until the end; how it ended, and the child's account of it where there is one.
    async fn serve(&mut self, progress: &mut Progress) -> Result<(FinishReason, Option<Finished>)> {
        let mut cancelled = false;
        loop {
            let full = self.sink.is_full();
            if !full {
                self.give_credit(progress);
            }
            let Self { answers, sink, shutdown, client, .. } = self;
            let event = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok((FinishReason::Cancelled, None)),
                () = sink.cancelled(), if !cancelled => {
                    cancelled = true;
                    client.cancel(answers.id, CANCEL_GRACE);
                    continue;
                }
                event = answers.next() => event,
                () = sink.ready(), if full && !cancelled => continue,
            };
            match event {
                None if answers.has_stopped() => return Err(answers.stopped()),
                None => return Ok((self.cancel_reason(progress), None)),
                Some(Event::Token { token, logprob, top, .. }) => {
                    let top = top.into_iter();
                    let scores = Scores {
                        chosen: logprob.map(or_minus_infinity),
                        top: top.map(|(id, p)| Alternative::new(id, or_minus_infinity(p))).collect(),
                    };
                    if self.take(progress, token, scores) {
                        // The text is complete; only the child's last message is still to come.
                        cancelled = true;
                        self.client.cancel(self.answers.id, CANCEL_GRACE);
                    }
                }
                Some(Event::Finished(finished)) => {
                    return Ok((self.reason(progress, &finished), Some(finished)));
                }
                Some(Event::Progress { .. }) => {}
                Some(Event::Error { kind, message, needed, .. }) => {
                    return Err(error_of(kind, message, needed, "generate"));
                }
                Some(event) => {
                    self.client.report_violation(format!("it answered a generation with {event:?}"));
                    let reason = "the Python process answered a generation with something else".to_owned();
                    return Err(Error::Stopped { backend: ID.to_owned(), reason });
                }
            }
        }
    }

    /// Takes a token; whether a stop string ended the text with it.
    fn take(&mut self, progress: &mut Progress, token: u32, scores: Scores) -> bool {
        progress.credit = progress.credit.saturating_sub(1);
        if progress.credit == 0 {
            self.client.set_awaiting_reply(self.answers.id, false);
        }
        if progress.stop.is_some() {
            return false;
        }
        let now = Instant::now();
        if progress.first.is_none() {
            progress.first = Some(now);
        } else {
            progress.gaps.push(now - progress.last);
        }
        progress.last = now;
        progress.generated += 1;
        progress.stop = self.assembler.push(token, scores, &mut progress.events);
        self.deliver(progress);
        progress.stop.is_some()
    }

    fn deliver(&mut self, progress: &mut Progress) {
        for TextEvent { id, text, data } in progress.events.drain(..) {
            let mut token = Token::new(id, text);
            token.log_probability = data.chosen;
            token.top = data.top;
            self.sink.send(token);
        }
    }

    /// Lets the child go on when the reader keeps up.
    fn give_credit(&self, progress: &mut Progress) {
        if progress.credit > CREDIT / 2 {
            return;
        }
        let tokens = CREDIT - progress.credit;
        if progress.credit == 0 {
            self.client.set_awaiting_reply(self.answers.id, true);
        }
        progress.credit = CREDIT;
        self.client.send(&Request::Credit { id: self.answers.id, tokens });
    }

    /// How a request ended whose cancellation the child has not confirmed.
    fn cancel_reason(&self, progress: &Progress) -> FinishReason {
        match &progress.stop {
            Some(stop) => FinishReason::Stop(StopCause::StopString(stop.clone())),
            None => FinishReason::Cancelled,
        }
    }

    fn reason(&self, progress: &Progress, finished: &Finished) -> FinishReason {
        if progress.stop.is_some() {
            return self.cancel_reason(progress);
        }
        match (finished.reason, finished.token) {
            (Reason::Cancelled, _) => FinishReason::Cancelled,
            (Reason::Stop, Some(id)) if self.stop_tokens.iter().any(|ids| ids.contains(&id)) => {
                FinishReason::Stop(StopCause::StopToken(id))
            }
            (Reason::Stop, Some(id)) => FinishReason::Stop(StopCause::EndOfSequence(id)),
            (Reason::Length, _) | (Reason::Stop, None) => FinishReason::Length,
        }
    }

    fn metrics(&self, progress: &mut Progress, finished: Option<&Finished>) -> Metrics {
        let mut metrics = Metrics::default();
        metrics.prompt_tokens = self.prompt_tokens;
        metrics.generated_tokens = progress.generated;
        metrics.decode = progress.first.map(|first| progress.last - first).unwrap_or_default();
        metrics.time_to_first_token = progress.first.map(|first| first - self.called);
        metrics.inter_token = Percentiles::from_durations(&mut progress.gaps);
        if let Some(finished) = finished {
            let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or_default();
            metrics.queued = (self.sent - self.called) + seconds(finished.queued);
            metrics.prefill = seconds(finished.prefill);
            metrics.peak_memory_bytes = finished.peak_memory;
            metrics.active_memory_bytes = finished.active_memory;
        }
        metrics
    }
}
