//! A loaded table: one thread for each request.

use std::{
    hash::{BuildHasher as _, Hasher as _},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use async_trait::async_trait;
use futures::{executor::block_on, future::select};
use inference_core::{CancellationToken, Classification, ClassifyOptions, Error, Finish, FinishReason, GenerateOptions, LabelScore, LoadOptions, Metrics, ModelInfo, ModelManifest, ModelStats, Prompt, Result, StopCause, TextModel, Token, TokenStream, backend::TokenSink};

use crate::{
    ID, sampling,
    table::{END, Table},
    text::Text,
};

/// Tokens that wait for a slow reader before the request does.
const CHANNEL: usize = 64;
const CONTEXT: usize = 1 << 15;

#[derive(Debug)]
pub(crate) struct Model {
    info: ModelInfo,
    table: Arc<Table>,
    stats: Arc<Mutex<ModelStats>>,
    closed: AtomicBool,
    /// Ends every running request.
    shutdown: CancellationToken,
}

impl Model {
    pub(crate) fn new(manifest: &ModelManifest, table: Table, options: &LoadOptions) -> Result<Self> {
        let mut info = ModelInfo::from_manifest(ID, manifest)?;
        info.vocab_size = table.len();
        info.layers = 1;
        info.hidden_size = table.len();
        info.context_length = options.context_length.unwrap_or(CONTEXT);
        info.eos_token_ids = vec![END];
        Ok(Self {
            info,
            table: Arc::new(table),
            stats: Arc::default(),
            closed: AtomicBool::new(false),
            shutdown: CancellationToken::new(),
        })
    }

    // ANCHOR: prompt
    /// The prompt's ids, or why it cannot be run.
    fn ids(&self, prompt: Prompt) -> Result<Vec<u32>> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        let (ids, limit) = match prompt {
            Prompt::Text(text) => (self.table.ids(&text), self.info.context_length),
            Prompt::Tokens(ids) => (ids, self.info.context_length),
            // No capability, so the core has refused it; and prompts of kinds to come.
            _ => return Err(Error::InvalidPrompt { reason: "expected text or token ids".to_owned() }),
        };
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.table.len()) {
            let reason = format!("token {id} is outside the vocabulary of {}", self.table.len());
            return Err(Error::InvalidPrompt { reason });
        }
        if ids.is_empty() {
            return Err(Error::InvalidPrompt { reason: "it is empty".to_owned() });
        }
        if ids.len() > limit {
            return Err(Error::ContextExceeded { tokens: ids.len(), limit });
        }
        Ok(ids)
    }
    // ANCHOR_END: prompt

    fn classify_one(&self, ids: &[u32], options: &ClassifyOptions) -> Classification {
        let row = self.table.row(ids[ids.len() - 1]);
        let mut answer = Classification::default();
        answer.token = sampling::likeliest(row);
        answer.text = self.table.text(answer.token);
        answer.prompt_tokens = ids.len();
        answer.logits = options.logits.then(|| row.to_vec());
        if let Some(labels) = &options.labels {
            let scores: Vec<f32> = labels.iter().map(|label| self.score(ids, label)).collect();
            answer.labels = LabelScore::normalize(labels, &scores);
        }
        answer
    }

    /// The log-probability that the prompt goes on with the label.
    fn score(&self, prompt: &[u32], label: &str) -> f32 {
        let mut before = prompt[prompt.len() - 1];
        let mut total = 0.0;
        for id in self.table.ids(label) {
            let mut row = self.table.row(before).to_vec();
            sampling::log_softmax(&mut row);
            total += row[id as usize];
            before = id;
        }
        total
    }
}

// ANCHOR: generate
#[async_trait]
impl TextModel for Model {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    async fn generate(&self, prompt: Prompt, options: GenerateOptions) -> Result<TokenStream> {
        let started = Instant::now();
        let ids = self.ids(prompt)?;
        let (sink, stream) = TokenStream::channel(ID, CHANNEL, options.cancel.clone());
        let run = Run {
            room: self.info.context_length - ids.len(),
            ids,
            options,
            started,
            table: self.table.clone(),
            stats: self.stats.clone(),
            shutdown: self.shutdown.clone(),
        };
        let mut stats = lock(&self.stats);
        thread::Builder::new()
            .name(ID.to_owned())
            .spawn(move || run.finish(sink))
            .map_err(|error| Error::backend(ID, "start a thread", error))?;
        stats.requests += 1;
        stats.active += 1;
        Ok(stream)
    }
    // ANCHOR_END: generate

    async fn classify(&self, prompts: Vec<Prompt>, options: ClassifyOptions) -> Result<Vec<Classification>> {
        let mut answers = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            if options.cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            answers.push(self.classify_one(&self.ids(prompt)?, &options));
        }
        Ok(answers)
    }

    fn stats(&self) -> ModelStats {
        lock(&self.stats).clone()
    }

    // ANCHOR: close
    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        self.shutdown.cancel();
        Ok(())
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}
// ANCHOR_END: close

/// One request on its thread.
struct Run {
    ids: Vec<u32>,
    options: GenerateOptions,
    /// Tokens that still fit the context.
    room: usize,
    started: Instant,
    table: Arc<Table>,
    stats: Arc<Mutex<ModelStats>>,
    shutdown: CancellationToken,
}

impl Run {
    // ANCHOR: run
    fn finish(mut self, mut sink: TokenSink) {
        let began = Instant::now();
        let prompt_tokens = self.ids.len();
        let mut text = Text::new(self.options.stop.clone().unwrap_or_default());
        let reason = self.decode(&mut sink, &mut text);
        text.end(&mut sink);

        let mut metrics = Metrics::default();
        metrics.prompt_tokens = prompt_tokens;
        metrics.generated_tokens = self.ids.len() - prompt_tokens;
        metrics.queued = began - self.started;
        metrics.decode = began.elapsed();
        // Nothing is computed for a prompt, so the first token was there as soon as the request ran.
        metrics.time_to_first_token = (metrics.generated_tokens > 0).then_some(metrics.queued);
        {
            let mut stats = lock(&self.stats);
            stats.active -= 1;
            stats.prompt_tokens += prompt_tokens as u64;
            stats.generated_tokens += metrics.generated_tokens as u64;
            stats.cancelled += u64::from(reason == FinishReason::Cancelled);
        }
        sink.end(Ok(Finish::new(reason, metrics)));
    }

    fn decode(&mut self, sink: &mut TokenSink, text: &mut Text) -> FinishReason {
        let limit = self.options.max_tokens_or_default().min(self.room);
        // Without a seed, another draw each time.
        let random = || std::hash::RandomState::new().build_hasher().finish();
        let seed = self.options.sampling.seed.unwrap_or_else(random);
        for step in 0.. {
            if sink.is_cancelled() || self.shutdown.is_cancelled() {
                return FinishReason::Cancelled;
            }
            if step == limit {
                break;
            }
            let token = self.next(seed, step);
            if let Some(cause) = self.stop_cause(token.id) {
                return FinishReason::Stop(cause);
            }
            self.ids.push(token.id);
            if let Some(stop) = text.push(token, sink) {
                return FinishReason::Stop(StopCause::StopString(stop));
            }
            if sink.is_full() {
                // The reader is behind: wait for it, or for whoever ends the request.
                block_on(select(Box::pin(sink.ready()), Box::pin(self.shutdown.cancelled())));
            }
        }
        FinishReason::Length
    }
    // ANCHOR_END: run

    fn next(&self, seed: u64, step: usize) -> Token {
        let sampling = &self.options.sampling;
        let before = self.ids[self.ids.len() - 1];
        let log_probabilities = sampling::log_probabilities(self.table.row(before), sampling);
        let uniform = sampling::uniform(seed, step);
        let id = sampling::choose(&log_probabilities, sampling.temperature_or_greedy(), uniform);
        let mut token = Token::new(id, self.table.text(id));
        if let Some(top) = self.options.log_probabilities {
            sampling::report(&mut token, &log_probabilities, top);
        }
        token
    }

    fn stop_cause(&self, id: u32) -> Option<StopCause> {
        if self.options.stop_tokens.as_ref().is_some_and(|ids| ids.contains(&id)) {
            return Some(StopCause::StopToken(id));
        }
        (id == END && !self.options.ignore_eos).then_some(StopCause::EndOfSequence(id))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
