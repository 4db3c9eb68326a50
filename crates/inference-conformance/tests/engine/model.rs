//! The model: one thread a request.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::{executor::block_on, lock::OwnedMutexGuard};
use inference_conformance::sampler;
use inference_core::{
    CancellationToken, ChatEvent, Classification, ClassifyOptions, ContextOverflow, EmbedOptions, Embedding,
    Error, FinishReason, GenerateOptions, LabelScore, LoadOptions, ModelInfo, ModelManifest, ModelStats,
    Prompt, Relevance, RerankOptions, Result, Session, StopCause, TemplateOptions, TextModel, Token,
    TokenStream,
    backend::{ConstraintRun, OutputParser, ResponseWriter, SharedStats, Verbatim},
    train::Trainable,
};

use super::{
    ACTIVE_BYTES, Fault, embedding, faults,
    language::{EOS, VOCAB, logits, render, syllable, tokenise},
    session::Kept,
    shape, shared_shutdown,
};

#[derive(Debug)]
pub(crate) struct Model(Arc<Core>);

/// What a model shares with its sessions.
#[derive(Debug)]
pub(crate) struct Core {
    info: ModelInfo,
    pub(crate) manifest: ModelManifest,
    pub(crate) fault: Fault,
    shared: Arc<Shared>,
    closed: AtomicBool,
    /// Changes every logit, for engines whose answers depend on what they must not.
    salt: u64,
    /// Whether they depend on how many requests there were, too.
    restless: bool,
}

impl std::ops::Deref for Model {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.0
    }
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) stats: SharedStats,
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
        info.eos_token_ids = vec![EOS];
        let changed = fault.is("a_cap_on_the_batch_changes_no_answer") && options.max_batch.is_some()
            || fault.is("a_prefill_chunk_changes_no_answer") && options.prefill_chunk.is_some()
            || fault.is("a_cache_limit_changes_no_answer") && options.cache_limit.is_some()
            || fault.is("a_memory_limit_changes_no_answer") && options.memory_limit.is_some();
        let restless = fault.is("quantised_caches_answer_together_as_alone") && options.kv_bits.is_some()
            || fault.is("greedy_repeats_itself");
        let shutdown =
            if fault.is("models_live_side_by_side") { shared_shutdown() } else { CancellationToken::new() };
        let shared = Shared {
            stats: SharedStats::default(),
            shutdown,
            gate: Mutex::default(),
            leaked: Mutex::default(),
            last: Mutex::default(),
            requests: AtomicU64::new(0),
            all: CancellationToken::new(),
        };
        Self(Arc::new(Core {
            info,
            manifest: manifest.clone(),
            fault,
            shared: Arc::new(shared),
            closed: AtomicBool::new(false),
            salt: u64::from(changed),
            restless,
        }))
    }
}

impl Core {
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    pub(crate) fn context_length(&self) -> usize {
        self.info.context_length
    }

    pub(crate) fn ids(&self, prompt: Prompt, lenient: bool, rotates: bool) -> Result<Vec<u32>> {
        let mut ids = match prompt {
            Prompt::Text(text) => tokenise(&text),
            Prompt::Chat(messages) if self.fault.is("a_chat_reads_every_message") => {
                render(&messages[messages.len() - 1..])
            }
            Prompt::Chat(messages) => render(&messages),
            Prompt::Tokens(ids) => ids,
            _ => return Err(Error::invalid_prompt("is of a new kind")),
        };
        if ids.is_empty() && !self.fault.is("an_empty_prompt_is_refused") {
            return Err(Error::invalid_prompt("it is empty"));
        }
        if let Some(id) = ids.iter().copied().find(|id| *id >= VOCAB) {
            if !lenient {
                return Err(Error::invalid_prompt(format!("token {id} is outside the vocabulary")));
            }
            ids.iter_mut().for_each(|id| *id %= VOCAB);
        }
        let limit = self.info.context_length;
        if ids.len() > limit && !rotates {
            if self.fault.is("a_prompt_past_the_context_is_refused") {
                ids.truncate(limit);
            } else {
                return Err(Error::context_exceeded(ids.len(), limit));
            }
        }
        Ok(ids)
    }

    /// Goes on with the prompt; with the text of a session, from there.
    pub(crate) fn start(
        &self,
        prompt: Prompt,
        options: GenerateOptions,
        text: Option<OwnedMutexGuard<Vec<u32>>>,
    ) -> Result<TokenStream> {
        let started = Instant::now();
        self.check_open()?;
        if let Some(error) = lock(&self.shared.leaked).take() {
            return Err(error);
        }
        if options.cancel.is_cancelled() && self.fault.is("before_the_start") {
            return Err(Error::backend("syllables", "begin", "the request is cancelled"));
        }
        let chat = matches!(prompt, Prompt::Chat(_));
        let held = match &text {
            Some(text) if !chat || self.fault.is("a_conversation_is_the_whole_text") => text.to_vec(),
            _ => Vec::new(),
        };
        let rotates = matches!(options.context_overflow, Some(ContextOverflow::Rotate { .. }));
        let lenient = self.fault.is("ids_outside_the_vocabulary_are_refused");
        let mut ids = match self.ids(prompt, lenient, rotates) {
            Err(error) if self.fault.is("errors_stay_with_their_request") => {
                *lock(&self.shared.leaked) = Some(error);
                return Err(Error::invalid_prompt("it is not good"));
            }
            ids => ids?,
        };
        ids.splice(..0, held);
        let limit = self.info.context_length;
        let tokens = ids.len() + options.max_tokens_or_default();
        if options.context_overflow == Some(ContextOverflow::Refuse)
            && tokens > limit
            && !self.fault.is("a_request_that_would_overflow_can_be_refused")
        {
            return Err(Error::context_exceeded(tokens, limit));
        }
        if chat && self.fault.is("a_chat_is_its_rendering") {
            ids.push(1);
        }
        let mut salt = self.salt;
        if self.fault.is("template_options_are_taken") && options.template.variables.is_some() {
            salt = 1;
        }
        if self.restless {
            salt = self.shared.requests.fetch_add(1, Ordering::Relaxed);
        }
        let shape = shape::start(&self.fault, &options)?;
        let told = faults::options_for_writer(&self.fault, &options);
        let (info, stats) = (&self.info, &self.shared.stats);
        let (writer, stream) =
            ResponseWriter::channel(info, stats, Verbatim::default(), &told, ids.len(), started)?;
        let mut stream = faults::spoil(&self.fault, stream, &options);
        if self.fault.is("the_parts_of_an_answer_are_all_of_it") {
            stream = stream.with_parser(Forgetful::default());
        }
        let run = Run {
            writer: writer.with_shutdown(self.shared.shutdown.clone()),
            text,
            prompt: ids.len(),
            history: ids,
            options,
            started,
            salt,
            fault: self.fault.clone(),
            shared: self.shared.clone(),
            unseeded: started.elapsed().subsec_nanos().into(),
            shape,
        };
        std::thread::spawn(move || run.finish());
        Ok(stream)
    }
}

#[async_trait]
impl TextModel for Model {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    async fn generate(&self, prompt: Prompt, options: GenerateOptions) -> Result<TokenStream> {
        self.start(prompt, options, None)
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
            let ids = self.ids(prompt, self.fault.is("prompts_are_checked"), false)?;
            answers.push(self.classify_one(&ids, &options));
        }
        if self.fault.is("a_batch_gives_what_its_prompts_give_alone") {
            answers.reverse();
        }
        Ok(answers)
    }

    async fn embed(&self, prompts: Vec<Prompt>, options: EmbedOptions) -> Result<Vec<Embedding>> {
        embedding::embed(self, prompts, &options)
    }

    async fn rerank(
        &self,
        query: String,
        documents: Vec<String>,
        options: RerankOptions,
    ) -> Result<Vec<Relevance>> {
        embedding::rerank(self, query, documents, &options)
    }

    async fn tokenize(&self, prompt: Prompt, _: TemplateOptions) -> Result<Vec<u32>> {
        self.check_open()?;
        let chat = matches!(prompt, Prompt::Chat(_));
        let mut ids = self.ids(prompt, false, true)?;
        if self.fault.is("a_prompts_tokens_are_what_is_computed")
            || chat && self.fault.is("a_conversations_tokens_are_what_is_computed")
        {
            ids.push(1);
        }
        Ok(ids)
    }

    async fn decode(&self, tokens: Vec<u32>) -> Result<String> {
        self.check_open()?;
        if self.fault.is("decoding_gives_the_text") {
            return Ok(String::new());
        }
        Ok(tokens.into_iter().map(syllable).collect())
    }

    async fn session(&self) -> Result<Session> {
        Ok(Session::new(Box::new(Kept::new(self.0.clone(), Vec::new())), ""))
    }

    async fn load_session(&self, path: &Path) -> Result<Session> {
        Kept::load(self.0.clone(), path)
    }

    fn trainable(&self) -> Option<&dyn Trainable> {
        (!self.fault.is("a_trainer_is_there_where_claimed")).then_some(self as _)
    }

    fn stats(&self) -> ModelStats {
        let mut stats = self.shared.stats.snapshot();
        if self.fault.is("stats_count_every_request") {
            stats.requests *= 2;
        }
        if self.fault.is("stats_count_cancellations") {
            stats.cancelled = 0;
        }
        if self.fault.is("a_closed_model_refuses") {
            stats.active += u64::from(self.closed.load(Ordering::Acquire));
        }
        stats
    }

    async fn close(&self) -> Result<()> {
        let again = self.closed.swap(true, Ordering::AcqRel);
        if again && self.fault.is("closing_twice_is_closing_once") {
            return Err(Error::Closed);
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
        self.shared.shutdown.cancel();
        let leaks = self.fault.is("dropping_the_last_handle_gives_the_memory_back");
        if !self.closed.swap(true, Ordering::AcqRel) && !leaks {
            ACTIVE_BYTES.fetch_sub(64 << 20, Ordering::Relaxed);
        }
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
            answer.labels = LabelScore::normalize(labels, &scores);
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

/// Reads parts one token late, and forgets the last.
#[derive(Debug, Default)]
struct Forgetful(Option<ChatEvent>);

impl OutputParser for Forgetful {
    fn push(&mut self, token: &Token, events: &mut Vec<ChatEvent>) {
        events.extend(self.0.replace(ChatEvent::Text(token.text.clone())));
    }

    fn finish(&mut self, _: &mut Vec<ChatEvent>) {}
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
    writer: ResponseWriter,
    text: Option<OwnedMutexGuard<Vec<u32>>>,
    pub(crate) history: Vec<u32>,
    pub(crate) prompt: usize,
    pub(crate) options: GenerateOptions,
    pub(crate) started: Instant,
    pub(crate) salt: u64,
    pub(crate) fault: Fault,
    pub(crate) shared: Arc<Shared>,
    pub(crate) unseeded: u64,
    pub(crate) shape: Option<ConstraintRun>,
}

impl Run {
    fn finish(mut self) {
        let shared = self.shared.clone();
        let alone = self.fault.is("an_unread_stream_blocks_nobody");
        let held = alone.then(|| lock(&shared.gate));
        self.writer.begin(self.cached());
        let outcome = self.decode();
        drop(held);
        self.keep(matches!(outcome, Ok(FinishReason::Cancelled)));
        let mut metrics = self.writer.metrics();
        metrics.generated_tokens += usize::from(self.fault.is("tokens_are_counted"));
        if self.fault.is("times_fit_the_clock") {
            metrics.decode += Duration::from_secs(1);
        }
        match outcome {
            Ok(_) if self.fault.is("a_stream_ends_once_with_a_finish") => {}
            Ok(FinishReason::Cancelled) if self.fault.is("during_decode") => {
                self.writer.end_with(Err(Error::Cancelled), metrics);
            }
            outcome => self.writer.end_with(outcome, metrics),
        }
    }

    /// Tokens that the session holds already.
    fn cached(&self) -> usize {
        let Some(held) = &self.text else { return 0 };
        if self.fault.is("a_turn_computes_only_what_is_new") {
            return 0;
        }
        held.iter().zip(&self.history).take_while(|(a, b)| a == b).count().min(self.prompt - 1)
    }

    /// Leaves the text to the session's next turn.
    fn keep(&mut self, cancelled: bool) {
        let Some(mut held) = self.text.take() else { return };
        let spoken = !self.fault.is("turns_go_on_from_the_text");
        let end = if spoken { self.prompt + self.writer.generated_tokens() } else { self.prompt };
        *held = self.history[..end.min(self.history.len())].to_vec();
        if cancelled && self.fault.is("a_cancelled_turn_leaves_a_session_that_goes_on") {
            held.clear();
        }
    }

    fn decode(&mut self) -> Result<FinishReason> {
        if self.fault.is("during_prefill") && self.prompt > 1000 {
            std::thread::park_timeout(Duration::from_millis(1100));
        }
        if self.fault.is("concurrent_requests_equal_lone_runs")
            || self.fault.is("a_seed_reproduces_beside_others")
        {
            // Time for the neighbours to come.
            std::thread::park_timeout(Duration::from_millis(100));
            let neighbours = self.shared.stats.snapshot().active - 1;
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
        loop {
            if self.stopped() {
                return Ok(FinishReason::Cancelled);
            }
            if self.writer.generated_tokens() >= self.writer.max_tokens() {
                return Ok(FinishReason::Length);
            }
            let last = self.writer.generated_tokens() + 1 == self.writer.max_tokens();
            if last && self.fault.is("a_text_that_is_cut_says_so") {
                return Ok(FinishReason::Stop(StopCause::EndOfSequence(EOS)));
            }
            if self.fault.is("each_request_has_its_own_constraint") {
                // Time for the neighbours to come.
                std::thread::park_timeout(Duration::from_millis(20));
            }
            if self.fault.is("one_of_many_leaves_the_others_alone") {
                std::thread::park_timeout(Duration::from_millis(5));
            }
            let token = self.choose(self.writer.generated_tokens())?;
            let id = token.id;
            let end = self.writer.push(token);
            let unspoken = matches!(
                end,
                Some(FinishReason::Stop(StopCause::EndOfSequence(_) | StopCause::StopToken(_)))
            );
            if !unspoken {
                self.history.push(id);
            }
            if let Some(end) = end.or_else(|| self.spoken_end(id)) {
                return Ok(end);
            }
            self.wait();
        }
    }

    /// Why the text ends, for engines that speak the token that ends it.
    fn spoken_end(&self, id: u32) -> Option<FinishReason> {
        let listed = self.options.stop_tokens.as_ref().is_some_and(|ids| ids.contains(&id));
        if listed && self.fault.is("stop_tokens_end_the_text") {
            return Some(FinishReason::Stop(StopCause::StopToken(id)));
        }
        let end = id == EOS && !self.options.ignore_eos;
        (end && self.fault.is("an_end_of_sequence_token_ends_the_text"))
            .then_some(FinishReason::Stop(StopCause::EndOfSequence(id)))
    }

    /// Waits for the reader.
    fn wait(&mut self) {
        let runs_on = self.fault.is("a_reader_holds_its_own_request_back")
            || self.fault.is("tokens_arrive_as_they_are_made")
            || self.fault.is("a_slow_reader_misses_nothing");
        if runs_on {
            return;
        }
        if self.fault.is("an_unread_stream_frees_the_engine") {
            while self.writer.is_full() {
                std::thread::park_timeout(Duration::from_millis(1));
            }
        } else {
            self.writer.wait();
        }
    }

    fn stopped(&self) -> bool {
        let asked = self.options.cancel.is_cancelled();
        let dropped = self.writer.is_cancelled() && !asked;
        if dropped && self.fault.is("dropping_the_stream_frees_the_engine") {
            block_on(self.shared.shutdown.cancelled());
        }
        if dropped && self.fault.is("dropping_leaves_the_callers_token_alone") {
            self.options.cancel.cancel();
        }
        if asked && self.fault.is("one_of_many_leaves_the_others_alone") {
            self.shared.all.cancel();
        }
        asked || dropped || self.shared.all.is_cancelled()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}
