//! The model: one thread a request.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::{StreamExt as _, executor::block_on, stream::BoxStream};
use inference_conformance::sampler;
use inference_core::{
    CancellationToken, Classification, ClassifyOptions, Error, Finish, FinishReason, GenerateOptions,
    LabelScore, LoadOptions, Metrics, ModelInfo, ModelManifest, ModelStats, Prompt, Result, StopCause,
    TextModel, TokenSink, TokenStream, TrainEvent, TrainOptions, Trainable, TrainingData,
};

use super::{
    ACTIVE_BYTES, Fault,
    language::{EOS, VOCAB, logits, render, syllable, tokenise},
    shared_shutdown,
    text::Text,
};

#[derive(Debug)]
pub(crate) struct Model {
    info: ModelInfo,
    fault: Fault,
    shared: Arc<Shared>,
    closed: AtomicBool,
    /// Changes every logit, for engines whose answers depend on what they must not.
    salt: u64,
}

#[derive(Debug)]
struct Shared {
    stats: Mutex<ModelStats>,
    shutdown: CancellationToken,
    /// Held while a request runs, by the engine that runs one at a time.
    gate: Mutex<()>,
    /// The error of an earlier request, for the engine that keeps it on the model.
    leaked: Mutex<Option<Error>>,
    /// The last prompt, for the engine that reuses too much of it.
    last: Mutex<Vec<u32>>,
    requests: AtomicU64,
    /// Cancels everything, for the engine that cancels more than it was asked to.
    all: CancellationToken,
}

impl Model {
    pub(crate) fn new(manifest: &ModelManifest, options: &LoadOptions, fault: Fault) -> Self {
        let mut info = ModelInfo::default();
        info.path = manifest.path().to_owned();
        info.backend = "syllables".into();
        info.architecture = manifest.model_type().to_owned();
        info.vocab_size = VOCAB as usize;
        info.layers = usize::from(!fault.is("the_model_describes_itself"));
        info.hidden_size = 1;
        info.context_length = options.context_length.unwrap_or(4096);
        info.parameters = 4;
        info.weight_bytes = manifest.weight_bytes();
        info.dtype = "u8".into();
        info.eos_token_ids = vec![EOS];
        let changed = fault.is("a_cap_on_the_batch_changes_no_answer") && options.max_batch.is_some()
            || fault.is("a_prefill_chunk_changes_no_answer") && options.prefill_chunk.is_some()
            || fault.is("a_cache_limit_changes_no_answer") && options.cache_limit.is_some()
            || fault.is("a_memory_limit_changes_no_answer") && options.memory_limit.is_some();
        let shutdown =
            if fault.is("models_live_side_by_side") { shared_shutdown() } else { CancellationToken::new() };
        let shared = Shared {
            stats: Mutex::default(),
            shutdown,
            gate: Mutex::default(),
            leaked: Mutex::default(),
            last: Mutex::default(),
            requests: AtomicU64::new(0),
            all: CancellationToken::new(),
        };
        Self {
            info,
            fault,
            shared: Arc::new(shared),
            closed: AtomicBool::new(false),
            salt: u64::from(changed),
        }
    }

    fn ids(&self, prompt: Prompt, lenient: bool) -> Result<Vec<u32>> {
        let mut ids = match prompt {
            Prompt::Text(text) => tokenise(&text),
            Prompt::Chat(messages) if self.fault.is("a_chat_reads_every_message") => {
                render(&messages[messages.len() - 1..])
            }
            Prompt::Chat(messages) => render(&messages),
            Prompt::Tokens(ids) => ids,
            _ => return Err(Error::InvalidPrompt { reason: "is of a new kind".into() }),
        };
        if ids.is_empty() && !self.fault.is("an_empty_prompt_is_refused") {
            return Err(Error::InvalidPrompt { reason: "it is empty".into() });
        }
        if let Some(id) = ids.iter().copied().find(|id| *id >= VOCAB) {
            if !lenient {
                return Err(Error::InvalidPrompt { reason: format!("token {id} is outside the vocabulary") });
            }
            ids.iter_mut().for_each(|id| *id %= VOCAB);
        }
        let limit = self.info.context_length;
        if ids.len() > limit {
            if self.fault.is("a_prompt_past_the_context_is_refused") {
                ids.truncate(limit);
            } else {
                return Err(Error::ContextExceeded { tokens: ids.len(), limit });
            }
        }
        Ok(ids)
    }
}

#[async_trait]
impl TextModel for Model {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    async fn generate(&self, prompt: Prompt, options: GenerateOptions) -> Result<TokenStream> {
        let started = Instant::now();
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        if let Some(error) = lock(&self.shared.leaked).take() {
            return Err(error);
        }
        if options.cancel.is_cancelled() && self.fault.is("before_the_start") {
            return Err(Error::Cancelled);
        }
        let chat = matches!(prompt, Prompt::Chat(_));
        let mut ids = match self.ids(prompt, self.fault.is("ids_outside_the_vocabulary_are_refused")) {
            Err(error) if self.fault.is("errors_stay_with_their_request") => {
                *lock(&self.shared.leaked) = Some(error);
                return Err(Error::InvalidPrompt { reason: "it is not good".into() });
            }
            ids => ids?,
        };
        if chat && self.fault.is("a_chat_is_its_rendering") {
            ids.push(1);
        }
        let mut salt = self.salt;
        if self.fault.is("template_options_are_taken") && options.template.variables.is_some() {
            salt = 1;
        }
        if self.fault.is("greedy_repeats_itself") {
            salt = self.shared.requests.fetch_add(1, Ordering::Relaxed);
        }
        {
            let mut stats = lock(&self.shared.stats);
            stats.requests += 1 + u64::from(self.fault.is("stats_count_every_request"));
            stats.active += 1;
        }
        let (sink, stream) = TokenStream::channel("syllables", 64, options.cancel.clone());
        let room = if self.fault.is("the_context_length_holds") { 4096 } else { self.info.context_length };
        let run = Run {
            room: room - ids.len(),
            prompt: ids.len(),
            history: ids,
            options,
            started,
            salt,
            fault: self.fault.clone(),
            shared: self.shared.clone(),
            unseeded: started.elapsed().subsec_nanos().into(),
        };
        std::thread::spawn(move || run.finish(sink));
        Ok(stream)
    }

    async fn classify(&self, prompts: Vec<Prompt>, options: ClassifyOptions) -> Result<Vec<Classification>> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        if options.cancel.is_cancelled() && !self.fault.is("a_cancelled_call_is_an_error") {
            return Err(Error::Cancelled);
        }
        let mut answers = Vec::new();
        for prompt in prompts {
            let ids = self.ids(prompt, self.fault.is("prompts_are_checked"))?;
            answers.push(self.classify_one(&ids, &options));
        }
        if self.fault.is("a_batch_gives_what_its_prompts_give_alone") {
            answers.reverse();
        }
        Ok(answers)
    }

    fn trainable(&self) -> Option<&dyn Trainable> {
        (!self.fault.is("a_trainer_is_there_where_claimed")).then_some(self as _)
    }

    fn stats(&self) -> ModelStats {
        lock(&self.shared.stats).clone()
    }

    async fn close(&self) -> Result<()> {
        let again = self.closed.swap(true, Ordering::AcqRel);
        if again && self.fault.is("closing_twice_is_closing_once") {
            return Err(Error::Closed);
        }
        if self.fault.is("a_closed_model_refuses") {
            lock(&self.shared.stats).active += 1;
        }
        if !self.fault.is("closing_ends_running_streams_as_cancelled") {
            self.shared.shutdown.cancel();
        }
        if !again && !self.fault.is("closing_gives_the_memory_back") {
            ACTIVE_BYTES.fetch_sub(64 << 20, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        if !self.fault.is("dropping_the_last_handle_ends_running_streams") {
            self.shared.shutdown.cancel();
        }
        if !self.closed.swap(true, Ordering::AcqRel) {
            ACTIVE_BYTES.fetch_sub(64 << 20, Ordering::Relaxed);
        }
    }
}

#[async_trait]
impl Trainable for Model {
    async fn train(
        &self,
        _: TrainingData,
        _: TrainOptions,
    ) -> Result<BoxStream<'static, Result<TrainEvent>>> {
        Ok(futures::stream::empty().boxed())
    }
}

impl Model {
    fn classify_one(&self, ids: &[u32], options: &ClassifyOptions) -> Classification {
        let logits = logits(ids, self.salt);
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        let mut answer = Classification::default();
        answer.token = order[usize::from(self.fault.is("the_token_is_the_greedy_one"))] as u32;
        answer.text = syllable(answer.token);
        answer.prompt_tokens = ids.len();
        if let Some(labels) = &options.labels {
            let boost = if self.fault.is("labels_are_no_likelier_than_their_beginning") { 99.0 } else { 0.0 };
            let scores: Vec<f32> = labels.iter().map(|label| score(ids, label, self.salt) + boost).collect();
            answer.labels = LabelScore::normalise(labels, &scores);
            if self.fault.is("labels_add_up_to_one") {
                answer.labels.iter_mut().for_each(|label| label.probability = label.log_probability.exp());
            }
        }
        if options.logits || self.fault.is("logits_are_given_where_asked_for") {
            let mut given: Vec<f32> = logits.iter().map(|x| *x as f32).collect();
            if self.fault.is("logits_peak_at_the_token") {
                given.rotate_left(1);
            }
            answer.logits = Some(given);
        }
        answer
    }
}

fn score(prompt: &[u32], label: &str, salt: u64) -> f32 {
    let mut ids = prompt.to_vec();
    let mut total = 0.0;
    for id in tokenise(label) {
        total += sampler::log_softmax(&logits(&ids, salt))[id as usize];
        ids.push(id);
    }
    total as f32
}

pub(crate) struct Run {
    pub(crate) history: Vec<u32>,
    prompt: usize,
    room: usize,
    pub(crate) options: GenerateOptions,
    pub(crate) started: Instant,
    pub(crate) salt: u64,
    pub(crate) fault: Fault,
    shared: Arc<Shared>,
    pub(crate) unseeded: u64,
}

impl Run {
    fn finish(mut self, mut sink: TokenSink) {
        let shared = self.shared.clone();
        let alone = self.fault.is("an_unread_stream_blocks_nobody");
        let held = alone.then(|| lock(&shared.gate));
        let began = Instant::now();
        let mut text = Text::new(&self);
        let reason = self.decode(&mut sink, &mut text);
        drop(held);
        let done = Instant::now();
        let generated = text.generated + usize::from(self.fault.is("tokens_are_counted"));
        let mut metrics = Metrics::default();
        metrics.prompt_tokens = self.prompt;
        metrics.generated_tokens = generated;
        metrics.queued = began - self.started;
        metrics.decode = done - began;
        if self.fault.is("times_fit_the_clock") {
            metrics.decode += Duration::from_secs(1);
        }
        metrics.time_to_first_token = text.first.map(|first| first - self.started);
        {
            let mut stats = lock(&shared.stats);
            stats.active -= 1;
            stats.prompt_tokens += self.prompt as u64;
            stats.generated_tokens += generated as u64;
            let counted = !self.fault.is("stats_count_cancellations");
            stats.cancelled += u64::from(reason == FinishReason::Cancelled && counted);
        }
        text.end(&mut sink, &reason);
        if self.fault.is("a_stream_ends_once_with_a_finish") {
            return;
        }
        if self.fault.is("during_decode") && reason == FinishReason::Cancelled {
            return sink.end(Err(Error::Cancelled));
        }
        sink.end(Ok(Finish { reason, metrics }));
    }

    fn decode(&mut self, sink: &mut TokenSink, text: &mut Text) -> FinishReason {
        if self.fault.is("during_prefill") && self.prompt > 1000 {
            std::thread::park_timeout(Duration::from_millis(1100));
        }
        if self.fault.is("concurrent_requests_equal_lone_runs")
            || self.fault.is("a_seed_reproduces_beside_others")
        {
            // Time for the neighbours to come.
            std::thread::park_timeout(Duration::from_millis(100));
            let neighbours = lock(&self.shared.stats).active - 1;
            if self.fault.is("concurrent_requests_equal_lone_runs") {
                self.salt += neighbours;
            }
            self.unseeded = neighbours;
        }
        if self.fault.is("an_extended_prompt_answers_as_on_a_fresh_model") {
            let last = std::mem::replace(&mut *lock(&self.shared.last), self.history.clone());
            if last.len() >= 20 && self.history.len() > last.len() && self.history.starts_with(&last) {
                self.history = last;
            }
        }
        let mut limit = self.options.max_tokens_or_default();
        if self.fault.is("max_tokens_is_honoured") && limit > 1 {
            limit += 1;
        }
        loop {
            if self.stopped(sink) {
                return FinishReason::Cancelled;
            }
            if text.generated >= limit.min(self.room) {
                return FinishReason::Length;
            }
            if self.fault.is("one_of_many_leaves_the_others_alone") {
                std::thread::park_timeout(Duration::from_millis(5));
            }
            let token = self.choose(text.generated);
            let cause = self.stop_cause(token.id);
            let spoken = match &cause {
                Some(StopCause::StopToken(_)) => self.fault.is("stop_tokens_end_the_text"),
                Some(_) => self.fault.is("an_end_of_sequence_token_ends_the_text"),
                None => true,
            };
            if spoken {
                self.history.push(token.id);
                let lossy = self.fault.is("a_slow_reader_misses_nothing") && sink.is_full();
                if let Some(stop) = text.push(token, sink, lossy) {
                    return FinishReason::Stop(StopCause::StopString(stop));
                }
            }
            if let Some(cause) = cause {
                return FinishReason::Stop(cause);
            }
            self.wait(sink);
        }
    }

    /// Waits for the reader.
    fn wait(&self, sink: &mut TokenSink) {
        let runs_on = self.fault.is("a_reader_holds_its_own_request_back")
            || self.fault.is("tokens_arrive_as_they_are_made")
            || self.fault.is("a_slow_reader_misses_nothing");
        if runs_on {
            return;
        }
        if self.fault.is("an_unread_stream_frees_the_engine") {
            while sink.is_full() {
                std::thread::park_timeout(Duration::from_millis(1));
            }
        } else if sink.is_full() {
            let ready = std::pin::pin!(sink.ready());
            let shutdown = std::pin::pin!(self.shared.shutdown.cancelled());
            block_on(futures::future::select(ready, shutdown));
        }
    }

    fn stopped(&self, sink: &TokenSink) -> bool {
        let asked = self.options.cancel.is_cancelled();
        let dropped = sink.is_cancelled() && !asked;
        if dropped && self.fault.is("dropping_the_stream_frees_the_engine") {
            block_on(self.shared.shutdown.cancelled());
        }
        if dropped && self.fault.is("dropping_leaves_the_callers_token_alone") {
            self.options.cancel.cancel();
        }
        if asked && self.fault.is("one_of_many_leaves_the_others_alone") {
            self.shared.all.cancel();
        }
        asked || dropped || self.shared.shutdown.is_cancelled() || self.shared.all.is_cancelled()
    }

    fn stop_cause(&self, id: u32) -> Option<StopCause> {
        if self.options.stop_tokens.as_ref().is_some_and(|ids| ids.contains(&id)) {
            return Some(StopCause::StopToken(id));
        }
        let goes_on = self.options.ignore_eos && !self.fault.is("ignore_eos_goes_on");
        (id == EOS && !goes_on).then_some(StopCause::EndOfSequence(id))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}
