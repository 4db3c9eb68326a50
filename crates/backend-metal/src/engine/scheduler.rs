//! One model's requests: rows that join and leave a batch.
//!
//! Each step makes a [`Plan`] and carries it out: a part of a prompt is submitted, then one decode step for all running rows
//! together, and only then the tokens of the step before are read. So the device works while they are detokenised and
//! delivered. A single request is a batch of one.

use std::{collections::VecDeque, rc::Rc};

use futures::{StreamExt as _, stream::FuturesUnordered};
use inference_core::{ContextOverflow, Error, FinishReason};
use mlx_rs::{Stream, with_stream};

use super::{
    budget::Budget,
    classify::ClassifyJob,
    cuda::CudaSteps,
    embed::EmbedJob,
    guard::guard,
    pace::Pace,
    plan::{ChunkedPrompt, Plan, RowId, View, WaitingPrompt},
    prefill::PrefillRun,
    prefix::PrefixCache,
    row::{Request, Row},
    session::{SessionCommand, Sessions},
};
use crate::{
    mlx::{self, QuantizationScheme, memory},
    nn::{Architecture, DenseLayer, ExecMode, KvCache, Rotation},
    train::TrainJob,
};

/// How a model is run.
#[derive(Debug, Clone)]
pub(super) struct EngineConfig {
    pub(super) backend: &'static str,
    pub(super) max_batch: usize,
    pub(super) prefill_chunk: usize,
    pub(super) context_length: usize,
    /// Bytes of keys and values that are kept of ended texts.
    pub(super) prefix_cache: u64,
    /// How keys and values are quantised.
    pub(super) kv_scheme: Option<QuantizationScheme>,
    /// Whether MLX's own operations compute everything.
    pub(super) disable_cpu_kernels: bool,
    /// Whether MLX computes decode steps on CUDA, too.
    pub(super) disable_cuda_graphs: bool,
}

/// A loaded model and its requests.
pub(super) struct Scheduler {
    pub(super) model: Rc<dyn Architecture>,
    pub(super) stream: Stream,
    pub(super) config: EngineConfig,
    pub(super) budget: Budget,
    pub(super) pace: Pace,
    pub(super) next_id: u64,
    /// Not begun, oldest first.
    pub(super) waiting: VecDeque<Row>,
    /// Between two chunks of their prompts: the first one's turn is next.
    pub(super) chunked: VecDeque<Row>,
    /// Prompts whose layers are computed a few at a time.
    pub(super) prefill: Option<PrefillRun>,
    /// Whether the last step put short prompts before it.
    pub(super) preempted: bool,
    pub(super) running: Vec<Row>,
    /// Rows whose readers are behind, oldest first. They hold no place in the batch.
    pub(super) paused: Vec<Row>,
    pub(super) jobs: VecDeque<ClassifyJob>,
    pub(super) embeddings: VecDeque<EmbedJob>,
    /// The layers behind the pooling of an embedding model.
    pub(super) dense: Vec<DenseLayer>,
    pub(super) trainings: VecDeque<TrainJob>,
    /// Whether a run of training closed the model for everything else.
    pub(super) is_closed: bool,
    pub(super) prefixes: PrefixCache,
    pub(super) sessions: Sessions,
    pub(super) cuda: CudaSteps,
    pub(super) steps: u64,
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// There is more to do.
    Worked,
    /// Every row waits for its reader.
    Blocked,
    /// There is nothing to do.
    Idle,
}

impl Scheduler {
    pub(super) fn new(
        model: Rc<dyn Architecture>,
        stream: Stream,
        config: EngineConfig,
        budget: Budget,
    ) -> Self {
        let (prefixes, pace) = (PrefixCache::new(config.prefix_cache), Pace::new(model.config().layers));
        Self {
            model,
            stream,
            config,
            budget,
            pace,
            next_id: 0,
            waiting: VecDeque::new(),
            chunked: VecDeque::new(),
            prefill: None,
            preempted: false,
            running: Vec::new(),
            paused: Vec::new(),
            jobs: VecDeque::new(),
            embeddings: VecDeque::new(),
            dense: Vec::new(),
            trainings: VecDeque::new(),
            is_closed: false,
            prefixes,
            sessions: Sessions::default(),
            cuda: CudaSteps::none("they were not asked for"),
            steps: 0,
        }
    }

    /// An empty cache as this model's requests have them.
    pub(super) fn new_cache(&self) -> KvCache {
        self.model.new_cache().quantized(self.config.kv_scheme)
    }

    /// Accepts a request.
    pub(super) fn push(&mut self, request: Request) {
        let cache = match request.options.context_overflow {
            Some(ContextOverflow::Rotate { keep }) => {
                self.new_cache().rotating(Rotation { keep, size: self.config.context_length })
            }
            _ => self.new_cache(),
        };
        let id = RowId(self.next_id);
        self.next_id += 1;
        let row = Row::new(id, request, cache, self.model.config().vocab_size);
        if let Some(session) = row.session() {
            self.sessions.open(session);
        }
        self.waiting.push_back(row);
    }

    /// Carries out a session's command between its turns.
    pub(super) fn command(&mut self, command: SessionCommand) {
        let stream = self.stream.clone();
        with_stream(&stream, || match command {
            SessionCommand::Fork { from, to } => self.sessions.fork(from, to),
            SessionCommand::Drop(id) => self.sessions.remove(id),
            SessionCommand::Export { id, reply } => {
                let tensors = guard(self.config.backend, "copy a session", || self.sessions.export(id));
                // The caller may have gone; so below.
                let _ = reply.send(tensors);
            }
            SessionCommand::Import { id, tensors, reply } => {
                let (empty, limit) = (self.new_cache(), self.config.context_length);
                let _ = reply.send(self.sessions.import(id, tensors, self.model.as_ref(), empty, limit));
            }
        });
    }

    pub(super) fn push_job(&mut self, job: ClassifyJob) {
        self.jobs.push_back(job);
    }

    pub(super) fn push_embedding(&mut self, job: EmbedJob) {
        self.embeddings.push_back(job);
    }

    /// Computes decode steps as CUDA graphs where that can be done. They use the weights as they are now.
    pub(super) fn use_cuda_graphs(&mut self) {
        let (stream, disabled) = (self.stream.clone(), self.config.disable_cuda_graphs);
        self.cuda = match disabled {
            true => CudaSteps::none("the option DisableCudaGraphs is set"),
            false => with_stream(&stream, || CudaSteps::new(&*self.model, &stream)),
        };
    }

    pub(super) fn push_training(&mut self, job: TrainJob) {
        // Training changes the weights.
        self.cuda = CudaSteps::none("the weights are being trained");
        self.trainings.push_back(job);
    }

    /// Ends everything as cancelled and releases the model.
    pub(super) fn close(mut self) {
        let prefill = self.prefill.take().map(PrefillRun::into_rows).unwrap_or_default();
        let begun = prefill.into_iter().chain(self.running.drain(..)).chain(self.paused.drain(..));
        for row in self.waiting.drain(..).chain(self.chunked.drain(..)).chain(begun) {
            row.finish(Ok(FinishReason::Cancelled));
        }
        for job in self.jobs.drain(..) {
            job.end(Err(Error::Closed));
        }
        for job in self.embeddings.drain(..) {
            job.end(Err(Error::Closed));
        }
        for job in self.trainings.drain(..) {
            job.end(Err(Error::Closed));
        }
        // What was submitted still runs, on memory that is about to be freed.
        let _ = mlx::synchronize(&self.stream);
        drop((self.cuda, self.model, self.dense, self.prefixes, self.sessions));
        // Without it the weights' memory stays with the allocator; a failure leaves it there.
        let _ = memory::clear_cache();
    }

    /// Whether rows wait for their readers.
    pub(super) fn is_blocked(&self) -> bool {
        !self.paused.is_empty() || !self.waiting.is_empty()
    }

    /// Waits until a reader that was behind has made room.
    pub(super) async fn unblocked(&self) {
        let rows = self.paused.iter().chain(&self.waiting);
        let mut rows: FuturesUnordered<_> = rows.map(Row::reader_caught_up).collect();
        rows.next().await;
    }

    /// Does one round of work.
    pub(super) fn step(&mut self) -> Progress {
        let stream = self.stream.clone();
        let disabled = self.config.disable_cpu_kernels;
        with_stream(&stream, || ExecMode::select(disabled).scope(|| self.step_on_stream()))
    }

    fn step_on_stream(&mut self) -> Progress {
        let waited = self.wait_for_prefill();
        let classified = self.classify_some();
        let embedded = self.embed_some();
        let plan = Plan::new(&self.view());
        let executed = self.execute(plan);
        if !(waited || classified || embedded || executed) {
            return if self.is_blocked() { Progress::Blocked } else { Progress::Idle };
        }
        let peak = memory::take_peak();
        let prefill = self.prefill.iter_mut().flat_map(PrefillRun::rows_mut);
        for row in self.running.iter_mut().chain(&mut self.chunked).chain(prefill) {
            row.peak_bytes = row.peak_bytes.max(peak);
        }
        if let Some(job) = self.trainings.front_mut() {
            job.peaked(peak);
        }
        Progress::Worked
    }

    /// What the next plan is made of.
    fn view(&mut self) -> View {
        let under_way = self.prefill.iter().flat_map(PrefillRun::rows);
        let begun = self.running.iter().chain(&self.paused).chain(&self.chunked).chain(under_way);
        let cancelled =
            begun.chain(&self.waiting).filter(|row| row.is_cancelled()).map(|row| row.id).collect();
        let prefill: Option<Vec<_>> = self.prefill.as_ref().map(PrefillRun::ids);
        let places = self.running.len() + self.chunked.len() + prefill.as_ref().map_or(0, Vec::len);
        let prefill_chunk = self.pace.chunk(self.config.prefill_chunk);
        let waiting =
            if places < self.config.max_batch { self.waiting_prompts(prefill_chunk) } else { Vec::new() };
        let grows = self.running.iter().chain(&self.paused).any(|row| self.budget.growth(&row.cache) > 0);
        let budget = &self.budget;
        let free_bytes = if grows || !waiting.is_empty() { budget.free() } else { None };
        let decoding = |rows: &mut Vec<Row>| -> Vec<_> {
            rows.iter_mut().map(|row| row.plan_view(free_bytes.and(Some(budget)))).collect()
        };
        View {
            max_batch: self.config.max_batch,
            prefill_chunk,
            short_prompt: self.pace.short_prompt(),
            preempted: self.preempted,
            cancelled,
            waiting,
            prefill,
            chunked: (self.chunked.iter())
                .map(|row| ChunkedPrompt {
                    id: row.id,
                    tokens: row.tokens.len(),
                    prefilled: row.prefilled,
                    solo: row.solo,
                })
                .collect(),
            decoding: decoding(&mut self.running),
            paused: decoding(&mut self.paused),
            free_bytes,
            evictable_bytes: if free_bytes.is_some() { self.prefixes.bytes() } else { 0 },
        }
    }

    /// The prompts that may begin, as many as a batch has places.
    fn waiting_prompts(&mut self, prefill_chunk: usize) -> Vec<WaitingPrompt> {
        let Self { waiting, sessions, prefixes, budget, config, .. } = self;
        let begins = waiting.iter_mut().filter_map(|row| (!row.reader_is_behind()).then_some(&*row));
        let prompts = begins.take(config.max_batch).map(|row| {
            let (tokens, rotation) = (&row.tokens[..], row.cache.rotation());
            let own = row.session().map_or(0, |session| sessions.cached_len(session, tokens, rotation));
            let cached = match own {
                0 if !row.solo => prefixes.cached_len(tokens, rotation),
                own => own,
            };
            WaitingPrompt {
                id: row.id,
                tokens: tokens.len(),
                cached,
                solo: row.solo,
                bytes: budget.prefill(&row.cache, tokens.len(), prefill_chunk.min(tokens.len() - cached)),
                bytes_beside_others: budget.beside_others(tokens.len()),
            }
        });
        prompts.collect()
    }

    pub(super) fn classify_some(&mut self) -> bool {
        let Some(job) = self.jobs.front_mut() else { return false };
        let model = self.model.as_ref();
        let done = guard(self.config.backend, "classify", || job.advance(model));
        match done {
            Ok(false) => {}
            Ok(true) => {
                if let Some(job) = self.jobs.pop_front() {
                    job.finish();
                }
            }
            Err(error) => {
                if let Some(job) = self.jobs.pop_front() {
                    job.end(Err(error));
                }
            }
        }
        true
    }

    /// Computes one batch of a call for embeddings or relevance; several calls take turns.
    fn embed_some(&mut self) -> bool {
        let Some(mut job) = self.embeddings.pop_front() else { return false };
        let (model, dense) = (self.model.as_ref(), &self.dense);
        match guard(self.config.backend, "embed", || job.advance(model, dense)) {
            Ok(false) => self.embeddings.push_back(job),
            Ok(true) => job.finish(),
            Err(error) => job.end(Err(error)),
        }
        true
    }

    /// Whether no request is under way.
    fn is_idle(&self) -> bool {
        let rows = self.running.len() + self.paused.len() + self.chunked.len() + self.waiting.len();
        rows + self.jobs.len() + self.embeddings.len() == 0 && self.prefill.is_none()
    }

    /// Computes one batch of the oldest training run.
    pub(super) fn train_some(&mut self) -> bool {
        let idle = self.is_idle();
        let Some(job) = self.trainings.front_mut() else { return false };
        if job.closes_model() && !job.is_prepared() && !idle {
            return false;
        }
        let (model, backend) = (&self.model, self.config.backend);
        let done = guard(backend, "train", || Ok(job.advance(model, backend))).and_then(|done| done);
        self.is_closed |= job.closes_model() && job.is_prepared();
        if let Some(result) = done.map(|done| done.then_some(())).transpose()
            && let Some(job) = self.trainings.pop_front()
        {
            job.end(result);
            if self.is_closed {
                self.trainings.drain(..).for_each(|job| job.end(Err(Error::Closed)));
            } else if self.trainings.is_empty() {
                self.use_cuda_graphs();
            }
        }
        true
    }
}
