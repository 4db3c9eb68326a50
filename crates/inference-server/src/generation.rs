//! One answer in the making, whichever API asked for it.

mod parts;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt as _, Stream, StreamExt as _, stream};
use inference_core::{
    CancellationToken, Error, FinishReason, GenerateOptions, Metrics, Prompt, StopCause, TextModel, Token,
    TokenStream, ToolCall,
};

use self::parts::Reader;
pub(crate) use self::parts::{Part, Shape, Step};
use crate::{
    error::{ApiError, ApiResult},
    metrics::TokenTimes,
    models::{Entry, Lease},
    queue::Slot,
    server::Server,
};

/// Tokens that one step takes at most, of those that are ready.
const STEP: usize = 64;

/// A request that was let in: it has a loaded model and a place among the running until it is dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    server: Server,
    lease: Lease,
    model: String,
    _slot: Slot,
    received: Instant,
    deadline: Option<Instant>,
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// The model ended it.
    Stop,
    /// One of the request's stop strings ended it.
    StopString(String),
    /// The limit on tokens, or the context.
    Length,
    /// The model waits for the results of its calls.
    Calls,
}

/// How an answer ended.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) end: End,
    pub(crate) metrics: Metrics,
    pub(crate) reasoning_tokens: usize,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) reasoning: String,
    pub(crate) calls: Vec<ToolCall>,
    pub(crate) tokens: Vec<Token>,
    pub(crate) ended: Ended,
}

impl Ticket {
    /// Waits for a place, and for the model to be loaded.
    ///
    /// # Errors
    /// The server is ending, the line is full, the model cannot be loaded, or the deadline has passed.
    pub(crate) async fn take(server: &Server, entry: &Arc<Entry>, answers: usize) -> ApiResult<Arc<Self>> {
        if server.is_draining() {
            return Err(ApiError::shutting_down());
        }
        let received = Instant::now();
        let deadline = server.settings().request_timeout.and_then(|timeout| received.checked_add(timeout));
        let admitted = async {
            let slot = entry.queue.enter(answers).await?;
            Ok((slot, server.models().lease(entry).await?))
        };
        let cancel = server.cancellation();
        let (slot, lease) = tokio::select! {
            admitted = within(deadline, admitted) => admitted?,
            () = cancel.cancelled() => return Err(ApiError::shutting_down()),
        };
        server.metrics().waited(entry.name(), received.elapsed());
        let (server, model) = (server.clone(), entry.name().to_owned());
        Ok(Arc::new(Self { server, lease, model, _slot: slot, received, deadline }))
    }

    pub(crate) fn model(&self) -> &dyn TextModel {
        &*self.lease.model
    }

    /// The name of the model, not an alias.
    pub(crate) fn model_name(&self) -> &str {
        &self.model
    }

    /// Begins to answer. `field` is what the API calls the prompt.
    ///
    /// # Errors
    /// The prompt or the options are wrong, or the engine is gone.
    pub(crate) async fn start(
        self: &Arc<Self>,
        prompt: Prompt,
        mut options: GenerateOptions,
        shape: Shape,
        field: &str,
    ) -> ApiResult<Generation> {
        let cancel = self.server.cancellation().child_token();
        options = options.cancel(cancel.clone());
        if options.max_tokens.is_none() {
            let context = self.model().info().context_length;
            options.max_tokens = Some(self.server.settings().default_max_tokens.unwrap_or(context));
        }
        let call = async {
            self.model().generate(prompt, options).await.map_err(|error| self.failure(&error, field))
        };
        let mut tokens = within(self.deadline, call).await?;
        let parser = (shape != Shape::Raw).then(|| tokens.take_parser());
        Ok(Generation {
            ticket: self.clone(),
            tokens,
            reader: Reader::new(parser, shape, cancel.clone()),
            cancel,
            interval: self.server.settings().stream_interval,
            times: self.server.metrics().times(&self.model),
            last: None,
            count: 0,
            ended: false,
            finished: false,
        })
    }

    /// An error of the engine. One that is gone is forgotten, so that the next request loads the model again.
    fn failure(&self, error: &Error, field: &str) -> ApiError {
        if matches!(error, Error::Closed | Error::Stopped { .. }) {
            self.lease.discard();
        }
        ApiError::of_request(error, field)
    }
}

/// An answer that streams in. Dropping it cancels the work.
#[derive(Debug)]
pub(crate) struct Generation {
    ticket: Arc<Ticket>,
    tokens: TokenStream,
    reader: Reader,
    cancel: CancellationToken,
    /// Tokens that come within this time are taken together.
    interval: Duration,
    times: TokenTimes,
    /// When the last token came.
    last: Option<Instant>,
    count: usize,
    ended: bool,
    finished: bool,
}

impl Generation {
    /// The same, where nobody reads before the end: no token is waited for to be sent with another.
    pub(crate) fn whole(mut self) -> Self {
        self.interval = Duration::ZERO;
        self
    }

    /// What comes next; `None` at the end. Tokens that are ready already come together.
    ///
    /// # Errors
    /// The engine failed, or the deadline has passed.
    pub(crate) async fn next(&mut self) -> ApiResult<Option<Step>> {
        while !self.ended {
            let step = self.step().await?;
            if !step.parts.is_empty() || !step.tokens.is_empty() {
                return Ok(Some(step));
            }
        }
        Ok(None)
    }

    async fn step(&mut self) -> ApiResult<Step> {
        let mut step = Step::default();
        let mut decided = Vec::new();
        if let Some(last) = self.last.filter(|_| !self.interval.is_zero()) {
            tokio::time::sleep_until((last + self.interval).into()).await;
        }
        // Where a token is always ready, waiting for one never takes so long that the deadline is noticed.
        let late = self.ticket.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let first = match late {
            true => Err(ApiError::timed_out()),
            false => within(self.ticket.deadline, async { Ok(self.tokens.next().await) }).await,
        };
        let mut next = first.inspect_err(|_| self.cancel.cancel())?;
        loop {
            match next {
                Some(Ok(token)) => {
                    self.reader.read(&token, &mut decided);
                    step.tokens.push(token);
                }
                Some(Err(error)) => return Err(self.ticket.failure(&error, "prompt")),
                None => {
                    self.ended = true;
                    self.reader.read_end(&mut decided);
                    break;
                }
            }
            if step.tokens.len() >= STEP {
                break;
            }
            match self.tokens.next().now_or_never() {
                Some(ready) => next = ready,
                None => break,
            }
        }
        self.measure(step.tokens.len());
        self.reader.sort(decided, &mut step);
        Ok(step)
    }

    fn measure(&mut self, tokens: usize) {
        if tokens == 0 {
            return;
        }
        let now = Instant::now();
        match self.last {
            Some(last) => self.times.tokens(tokens, now - last),
            None => self.times.first(now - self.ticket.received),
        }
        self.last = Some(now);
        self.count += tokens;
    }

    /// How it ended. What was not read is lost.
    ///
    /// # Errors
    /// The engine failed, or the answer was cut by the end of the server or of the model.
    pub(crate) async fn finish(&mut self) -> ApiResult<Ended> {
        let finish = within(self.ticket.deadline, async {
            self.tokens.finish().await.map_err(|error| self.ticket.failure(&error, "prompt"))
        });
        let finish = finish.await?;
        let end = match finish.reason {
            _ if self.reader.called => End::Calls,
            FinishReason::Stop(StopCause::StopString(text)) => End::StopString(text),
            FinishReason::Stop(_) => End::Stop,
            FinishReason::Length => End::Length,
            _ if self.ticket.server.is_draining() => return Err(ApiError::shutting_down()),
            _ => return Err(ApiError::from(&Error::Closed)),
        };
        self.finished = true;
        let ticket = &self.ticket;
        ticket.server.metrics().finished(&ticket.model, &finish.metrics, ticket.received.elapsed());
        Ok(Ended { end, metrics: finish.metrics, reasoning_tokens: self.reader.reasoning })
    }

    /// Reads it to its end.
    ///
    /// # Errors
    /// As [`next`](Self::next) and [`finish`](Self::finish).
    pub(crate) async fn collect(self) -> ApiResult<Answer> {
        let mut answer = self.whole();
        let (mut text, mut reasoning) = (String::new(), String::new());
        let (mut calls, mut tokens) = (Vec::new(), Vec::new());
        while let Some(step) = answer.next().await? {
            tokens.extend(step.tokens);
            for part in step.parts {
                match part {
                    Part::Text(piece) | Part::BrokenCall(piece) => text.push_str(&piece),
                    Part::Reasoning(piece) => reasoning.push_str(&piece),
                    Part::Call(call) => calls.push(call),
                    Part::CallBegun { .. } | Part::CallArguments(_) => {}
                }
            }
        }
        let ended = answer.finish().await?;
        Ok(Answer { text, reasoning, calls, tokens, ended })
    }
}

/// What one of several answers did.
#[derive(Debug)]
pub(crate) enum Progress {
    Went(Step),
    Ended(Ended),
}

/// Several answers as they come, each with its number. One that fails ends with its error.
pub(crate) fn interleave(generations: Vec<Generation>) -> impl Stream<Item = (usize, ApiResult<Progress>)> {
    let each = generations.into_iter().enumerate().map(|(number, generation)| {
        stream::unfold(Some(generation), move |generation| async move {
            let mut generation = generation?;
            let (progress, rest) = match generation.next().await {
                Ok(Some(step)) => (Ok(Progress::Went(step)), Some(generation)),
                Ok(None) => (generation.finish().await.map(Progress::Ended), None),
                Err(error) => (Err(error), None),
            };
            Some(((number, progress), rest))
        })
        .boxed()
    });
    stream::select_all(each)
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !self.finished {
            self.ticket.server.metrics().cancelled(&self.ticket.model, self.count);
        }
    }
}

/// Runs this until the deadline.
async fn within<T>(deadline: Option<Instant>, work: impl Future<Output = ApiResult<T>>) -> ApiResult<T> {
    match deadline {
        None => work.await,
        Some(deadline) => tokio::time::timeout_at(deadline.into(), work)
            .await
            .unwrap_or_else(|_| Err(ApiError::timed_out())),
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO).as_secs()
}

/// A new id with this prefix.
pub(crate) fn new_id(prefix: &str) -> String {
    format!("{prefix}{}", uuid::Uuid::new_v4().simple())
}
