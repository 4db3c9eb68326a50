//! One generation: the child's tokens in, the caller's text out.

use std::{sync::Arc, time::Duration};

use inference_core::{
    Alternative, CancellationToken, Error, FinishReason, Metrics, Result, StopCause, Token,
    backend::{ConstraintRun, ResponseWriter},
};

use crate::{
    ID,
    client::{Answers, Client},
    failure::error_of,
    protocol::{Event, Finished, Reason, Request, encode_words, or_minus_infinity},
};

/// How many tokens the child may be ahead of the reader, beyond those in the stream's channel.
pub(crate) const CREDIT: usize = 128;

/// How long a cancelled request waits for the child's last message. A child that is stopped or busy must not delay the caller.
const CANCEL_GRACE: Duration = Duration::from_secs(1);

/// What is needed to serve one request to its end.
pub(crate) struct Generation {
    client: Arc<Client>,
    answers: Answers,
    writer: ResponseWriter,
    /// Cancelled when the model is closed or dropped.
    shutdown: CancellationToken,
    /// Tokens that the child may still send.
    credit: usize,
    /// What holds the answer to a shape.
    shape: Option<Shape>,
}

/// What holds an answer to a shape, of which the child asks.
pub(crate) struct Shape {
    pub(crate) run: ConstraintRun,
    /// The ids that end the text.
    pub(crate) eos: Vec<u32>,
}

impl Shape {
    /// What may come after this token, the last that was chosen; nothing where the text has ended, and all may.
    fn after(&mut self, token: Option<u32>) -> Result<Option<String>> {
        if let Some(token) = token {
            self.run.accept(token)?;
            if self.eos.contains(&token) {
                return Ok(None);
            }
        }
        Ok(Some(encode_words(self.run.mask()?.words())))
    }
}

impl Generation {
    /// A request that was just sent to the child.
    pub(crate) fn new(
        client: Arc<Client>,
        answers: Answers,
        writer: ResponseWriter,
        shutdown: CancellationToken,
        shape: Option<Shape>,
    ) -> Self {
        Self { client, answers, writer, shutdown, credit: CREDIT, shape }
    }

    /// Serves the request; ends the stream, whatever happens.
    pub(crate) async fn run(mut self) {
        let outcome = self.serve().await;
        let finished = outcome.as_ref().ok().and_then(|(_, finished)| finished.as_ref());
        let metrics = add_child_metrics(self.writer.metrics(), finished);
        self.writer.end_with(outcome.map(|(reason, _)| reason), metrics);
    }

    /// Takes events until the end; how it ended, and the child's account of it where there is one.
    async fn serve(&mut self) -> Result<(FinishReason, Option<Finished>)> {
        let mut cancelled = false;
        loop {
            let full = self.writer.is_full();
            if !full {
                self.give_credit();
            }
            let Self { answers, writer, shutdown, client, .. } = self;
            let event = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok((FinishReason::Cancelled, None)),
                () = writer.cancelled(), if !cancelled => {
                    cancelled = true;
                    client.cancel(answers.id, CANCEL_GRACE);
                    continue;
                }
                event = answers.next() => event,
                () = writer.ready(), if full && !cancelled => continue,
            };
            match event {
                None if answers.has_stopped() => return Err(answers.stopped()),
                None => return Ok((FinishReason::Cancelled, None)),
                Some(Event::Token { token, logprob, top, .. }) => {
                    let top = top.into_iter().map(|(id, p)| Alternative::new(id, or_minus_infinity(p)));
                    let mut token = Token::new(token, "");
                    token.log_probability = logprob.map(or_minus_infinity);
                    token.top = top.collect();
                    if let Some(FinishReason::Stop(_)) = self.take(token)
                        && !cancelled
                    {
                        // The text is complete; only the child's last message is still to come.
                        cancelled = true;
                        self.client.cancel(self.answers.id, CANCEL_GRACE);
                    }
                }
                Some(Event::Finished(finished)) => {
                    return Ok((self.reason(&finished), Some(finished)));
                }
                Some(Event::Progress { .. }) => {}
                Some(Event::Mask { token, .. }) => self.answer_mask(token)?,
                Some(Event::Error { kind, message, needed, .. }) => {
                    return Err(error_of(kind, message, needed, "generate"));
                }
                Some(event) => {
                    self.client.report_violation(format!("it answered a generation with {event:?}"));
                    let reason = "the Python process answered a generation with something else".to_owned();
                    return Err(Error::stopped(ID, reason));
                }
            }
        }
    }

    /// Tells the child which tokens may come next.
    ///
    /// # Errors
    /// The constraint has failed: the answer ends, and the child is told.
    fn answer_mask(&mut self, token: Option<u32>) -> Result<()> {
        let id = self.answers.id;
        let words = self.shape.as_mut().map_or(Ok(None), |shape| shape.after(token));
        let words = words.inspect_err(|_| self.client.cancel(id, CANCEL_GRACE))?;
        self.client.send(&Request::Mask { id, words });
        Ok(())
    }

    /// Takes a token of the child; why the answer is complete, if it is.
    fn take(&mut self, token: Token) -> Option<FinishReason> {
        self.credit = self.credit.saturating_sub(1);
        if self.credit == 0 {
            self.client.set_awaiting_reply(self.answers.id, false);
        }
        self.writer.push(token)
    }

    /// Lets the child go on when the reader keeps up.
    fn give_credit(&mut self) {
        if self.credit > CREDIT / 2 {
            return;
        }
        let tokens = CREDIT - self.credit;
        if self.credit == 0 {
            self.client.set_awaiting_reply(self.answers.id, true);
        }
        self.credit = CREDIT;
        self.client.send(&Request::Credit { id: self.answers.id, tokens });
    }

    fn reason(&self, finished: &Finished) -> FinishReason {
        match (finished.reason, finished.token) {
            (Reason::Cancelled, _) => FinishReason::Cancelled,
            (Reason::Stop, Some(id)) => {
                FinishReason::Stop(self.writer.stop_cause(id).unwrap_or(StopCause::EndOfSequence(id)))
            }
            (Reason::Length, _) | (Reason::Stop, None) => FinishReason::Length,
        }
    }
}

/// The metrics with the child's account of what it did after the request was sent.
fn add_child_metrics(mut metrics: Metrics, finished: Option<&Finished>) -> Metrics {
    if let Some(finished) = finished {
        let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or_default();
        metrics.queued = metrics.queued.saturating_add(seconds(finished.queued));
        metrics.prefill = seconds(finished.prefill);
        metrics.peak_memory_bytes = finished.peak_memory;
        metrics.active_memory_bytes = finished.active_memory;
    }
    metrics
}
