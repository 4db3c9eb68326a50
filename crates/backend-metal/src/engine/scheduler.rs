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
    decode::decode_batch,
    guard::guard,
    pace::Pace,
    plan::{ChunkedPrompt, Plan, Prefill, Refusal, RowId, View, WaitingPrompt},
    prefill::{PrefillProgress, PrefillRun},
    prefix::PrefixCache,
    row::{Request, Row},
    session::{SessionCommand, Sessions},
};
use crate::{
    mlx::{self, Scheme, memory},
    nn::{self, Architecture, KvCache, Rotation},
    train::TrainJob,
};

/// Decode steps between two clearings of the allocator's cache, which otherwise keeps a buffer of every size it met.
const CLEAR_EVERY: u64 = 256;

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
    pub(super) kv_scheme: Option<Scheme>,
    /// Whether MLX's own operations compute everything.
    pub(super) disable_cpu_kernels: bool,
}

/// A loaded model and its requests.
pub(super) struct Scheduler {
    model: Rc<dyn Architecture>,
    stream: Stream,
    config: EngineConfig,
    budget: Budget,
    pace: Pace,
    next_id: u64,
    /// Not begun, oldest first.
    waiting: VecDeque<Row>,
    /// Between two chunks of their prompts: the first one's turn is next.
    chunked: VecDeque<Row>,
    /// Prompts whose layers are computed a few at a time.
    prefill: Option<PrefillRun>,
    /// Whether the last step put short prompts before it.
    preempted: bool,
    running: Vec<Row>,
    /// Rows whose readers are behind, oldest first. They hold no place in the batch.
    paused: Vec<Row>,
    jobs: VecDeque<ClassifyJob>,
    trainings: VecDeque<TrainJob>,
    prefixes: PrefixCache,
    sessions: Sessions,
    steps: u64,
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
            trainings: VecDeque::new(),
            prefixes,
            sessions: Sessions::default(),
            steps: 0,
        }
    }

    /// An empty cache as this model's requests have them.
    pub(super) fn new_cache(&self) -> KvCache {
        self.model.new_cache().quantized(self.config.kv_scheme)
    }

    /// Accepts a request.
    pub(super) fn push(&mut self, request: Request) {
        let size = self.config.context_length;
        let (cache, room) = match request.options.context_overflow {
            Some(ContextOverflow::Rotate { keep }) => {
                (self.new_cache().rotating(Rotation { keep, size }), usize::MAX)
            }
            _ => (self.new_cache(), size.saturating_sub(request.prompt.len())),
        };
        let id = RowId(self.next_id);
        self.next_id += 1;
        let row = Row::new(id, request, cache, self.model.config().vocab_size, room);
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
                let empty = self.new_cache();
                let _ = reply.send(self.sessions.import(id, tensors, self.model.as_ref(), empty));
            }
        });
    }

    pub(super) fn push_job(&mut self, job: ClassifyJob) {
        self.jobs.push_back(job);
    }

    pub(super) fn push_training(&mut self, job: TrainJob) {
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
        for job in self.trainings.drain(..) {
            job.end(Err(Error::Closed));
        }
        // What was submitted still runs, on memory that is about to be freed.
        let _ = mlx::synchronize(&self.stream);
        drop((self.model, self.prefixes, self.sessions));
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
        with_stream(&stream, || match self.config.disable_cpu_kernels {
            true => nn::tracing(|| self.step_on_stream()),
            false => self.step_on_stream(),
        })
    }

    fn step_on_stream(&mut self) -> Progress {
        let waited = self.wait_for_prefill();
        let classified = self.classify_some();
        let plan = Plan::new(&self.view());
        let executed = self.execute(plan);
        if !(waited || classified || executed) {
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
        let free_bytes = if grows || !waiting.is_empty() { self.budget.free() } else { None };
        let budget = &self.budget;
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
                .map(|row| ChunkedPrompt { id: row.id, tokens: row.tokens.len(), prefilled: row.prefilled })
                .collect(),
            decoding: decoding(&mut self.running),
            paused: decoding(&mut self.paused),
            free_bytes,
            evictable_bytes: if free_bytes.is_some() { self.prefixes.bytes() } else { 0 },
        }
    }

    /// The prompts that may begin, as many as a batch has places.
    fn waiting_prompts(&mut self, prefill_chunk: usize) -> Vec<WaitingPrompt> {
        let Self { waiting, sessions, prefixes, budget, model, config, .. } = self;
        let any_length = !model.config().length_dependent;
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
                batchable: any_length && row.is_batchable(),
                bytes: budget.prefill(&row.cache, tokens.len(), prefill_chunk.min(tokens.len() - cached)),
            }
        });
        prompts.collect()
    }

    /// Does what the plan says; whether that was anything.
    fn execute(&mut self, plan: Plan) -> bool {
        let Plan { cancel, pause, resume, evict, preempt, refuse, prefill, decode } = plan;
        let mut worked = !(cancel.is_empty() && pause.is_empty() && resume.is_empty() && preempt.is_empty());
        for id in cancel {
            if let Some(row) = self.take(id) {
                self.end(row, FinishReason::Cancelled);
            }
        }
        self.pause(pause);
        for id in resume {
            self.running.extend(take(&mut self.paused, id));
        }
        self.release(evict, preempt);
        if let Some(Refusal { row, needed, available }) = refuse
            && let Some(row) = self.take(row)
        {
            worked = true;
            let what = "the request (keys, values and activations)".to_owned();
            row.finish(Err(Error::OutOfMemory { what, needed, available }));
        }
        let (prefilled, joined) = self.start_prefill(prefill);
        let settled = self.read_those_that_wait();
        let trained = self.train_some();
        let stepped = self.decode(decode, joined);
        let read = self.read_previous(&stepped);
        worked || prefilled || settled || trained || !stepped.is_empty() || read
    }

    /// Moves rows whose readers are behind out of the batch.
    fn pause(&mut self, ids: Vec<RowId>) {
        for id in ids {
            let Some(mut row) = take(&mut self.running, id) else { continue };
            // It would keep the memory of rows that go on.
            match guard(self.config.backend, "pause a request", || row.cache.detach()) {
                Ok(()) => self.paused.push(row),
                Err(error) => self.isolate(vec![row], error),
            }
        }
        self.paused.sort_by_key(|row| row.id);
    }

    /// Gives memory back: of ended texts, and of rows that are computed again later.
    fn release(&mut self, evict: u64, preempt: Vec<RowId>) {
        if evict == 0 && preempt.is_empty() {
            return;
        }
        self.prefixes.evict(evict);
        for id in preempt {
            if let Some(mut row) = self.take(id) {
                row.restart();
                self.wait_first(row);
            }
        }
        // The cache only saves time: a failure to clear it changes nothing.
        let _ = memory::clear_cache();
    }

    /// Puts a row that was begun before those that were not.
    fn wait_first(&mut self, row: Row) {
        let place = self.waiting.iter().take_while(|other| other.id < row.id).count();
        self.waiting.insert(place, row);
    }

    /// Ends a row whose work went well, and keeps its keys and values for a prompt that goes on from it.
    fn end(&mut self, mut row: Row, reason: FinishReason) {
        let (tokens, cache) = row.take_cache();
        match row.session() {
            Some(session) => self.sessions.keep(session, tokens, cache),
            None => self.prefixes.keep(tokens, cache),
        }
        row.finish(Ok(reason));
    }

    /// Something that these rows were part of failed. Each is computed again by itself, and ends if that fails, too.
    fn isolate(&mut self, rows: Vec<Row>, error: Error) {
        // What is kept of other texts may be part of the failure.
        self.prefixes.clear();
        let mut error = Some(error);
        for mut row in rows {
            if row.solo {
                let again = || Error::backend(self.config.backend, "compute", "the request failed twice");
                row.finish(Err(error.take().unwrap_or_else(again)));
            } else {
                row.solo = true;
                row.restart();
                self.wait_first(row);
            }
        }
    }

    /// Takes a row out of wherever it is.
    fn take(&mut self, id: RowId) -> Option<Row> {
        let mut found = take(&mut self.running, id).or_else(|| take(&mut self.paused, id));
        for queue in [&mut self.waiting, &mut self.chunked] {
            found = found.or_else(|| {
                let place = queue.iter().position(|row| row.id == id)?;
                queue.remove(place)
            });
        }
        found.or_else(|| self.prefill.as_mut()?.take(id))
    }

    fn classify_some(&mut self) -> bool {
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

    /// Computes one batch of the oldest training run.
    fn train_some(&mut self) -> bool {
        let Some(job) = self.trainings.front_mut() else { return false };
        let (model, backend) = (&self.model, self.config.backend);
        let done = guard(backend, "train", || Ok(job.advance(model, backend))).and_then(|done| done);
        if let Some(result) = done.map(|done| done.then_some(())).transpose()
            && let Some(job) = self.trainings.pop_front()
        {
            job.end(result);
        }
        true
    }
}

/// Prefill.
impl Scheduler {
    /// Waits for the layers that the step before submitted; whether there were any.
    fn wait_for_prefill(&mut self) -> bool {
        let Some(run) = &mut self.prefill else { return false };
        let pace = &mut self.pace;
        if let Err(error) = guard(self.config.backend, "compute the prompt", || run.wait(pace)) {
            let rows = self.prefill.take().map(PrefillRun::into_rows).unwrap_or_default();
            self.isolate(rows, error);
        }
        true
    }

    /// Submits the planned part of a prefill; whether there was one, and the rows that decode from now on.
    fn start_prefill(&mut self, planned: Option<Prefill>) -> (bool, Vec<RowId>) {
        self.preempted = false;
        let built = match planned {
            None => {
                // Every row of it may have been cancelled.
                self.prefill = self.prefill.take().filter(|run| run.rows().next().is_some());
                return (false, Vec::new());
            }
            Some(Prefill::Continue) => self.prefill.take().map(Ok),
            Some(Prefill::Chunk { row, tokens }) => self.begin_chunk(row, tokens.end),
            Some(Prefill::Batch(ids)) => self.begin_batch(&ids),
        };
        let mut run = match built {
            None => return (true, Vec::new()),
            Some(Ok(run)) => run,
            Some(Err((rows, error))) => {
                self.isolate(rows, error);
                return (true, Vec::new());
            }
        };
        let (model, pace, backend) = (self.model.clone(), &self.pace, self.config.backend);
        // A short prompt that passes a prefill under way is computed whole.
        let passes = self.prefill.is_some();
        let advanced = guard(backend, "compute the prompt", || {
            if passes { run.complete(model.as_ref()) } else { run.advance(model.as_ref(), pace) }
        });
        self.preempted = passes;
        match advanced {
            Ok(PrefillProgress::UnderWay) => {
                self.prefill = Some(run);
                (true, Vec::new())
            }
            Ok(PrefillProgress::Complete) => (true, self.prefilled(run.into_rows())),
            Err(error) => {
                self.isolate(run.into_rows(), error);
                (true, Vec::new())
            }
        }
    }

    /// Where rows go whose part of a prompt is computed; those that decode from now on.
    fn prefilled(&mut self, rows: Vec<Row>) -> Vec<RowId> {
        let mut joined = Vec::new();
        for mut row in rows {
            match row.constraints.failure() {
                Some(error) => row.finish(Err(error)),
                None if row.prefilled < row.tokens.len() => self.chunked.push_back(row),
                None if row.in_flight.is_empty() => self.end(row, FinishReason::Length),
                None => {
                    joined.push(row.id);
                    self.running.push(row);
                }
            }
        }
        joined
    }

    fn begin_chunk(&mut self, id: RowId, end: usize) -> Option<Result<PrefillRun, (Vec<Row>, Error)>> {
        let is_new = self.waiting.iter().any(|row| row.id == id);
        let mut row = self.take(id)?;
        if is_new {
            let (tokens, rotation) = (&row.tokens[..], row.cache.rotation());
            let own = row.session().and_then(|session| self.sessions.take(session, tokens, rotation));
            let cached = own.or_else(|| if row.solo { None } else { self.prefixes.find(tokens, rotation) });
            row.begin(cached);
        }
        let (model, backend) = (self.model.as_ref(), self.config.backend);
        let work = guard(backend, "compute the prompt", || PrefillRun::build_chunk(model, &mut row, end));
        Some(match work {
            Ok(work) => Ok(PrefillRun::new(model, vec![row], work)),
            Err(error) => Err((vec![row], error)),
        })
    }

    fn begin_batch(&mut self, ids: &[RowId]) -> Option<Result<PrefillRun, (Vec<Row>, Error)>> {
        let mut rows: Vec<Row> = ids.iter().filter_map(|id| self.take(*id)).collect();
        rows.iter_mut().for_each(|row| row.begin(None));
        let (model, backend) = (self.model.as_ref(), self.config.backend);
        let work = guard(backend, "compute the prompts", || PrefillRun::build_batch(model, &rows));
        Some(match work {
            Ok(work) => Ok(PrefillRun::new(model, rows, work)),
            Err(error) => Err((rows, error)),
        })
    }
}

/// Decode.
impl Scheduler {
    /// Submits one token for every planned row and those that have just joined; the rows.
    fn decode(&mut self, planned: Vec<Vec<RowId>>, joined: Vec<RowId>) -> Vec<RowId> {
        let mut batches = planned;
        for id in joined {
            let solo = self.running.iter().any(|row| row.id == id && row.solo);
            match batches.first_mut() {
                Some(first) if !solo => first.push(id),
                _ => batches.push(vec![id]),
            }
        }
        let mut stepped = Vec::new();
        for batch in batches {
            // Rows may have ended since the plan was made.
            let goes_on =
                |row: &mut Row| batch.contains(&row.id) && row.wants_more() && !row.reader_is_behind();
            let mut rows: Vec<Row> = self.running.extract_if(.., goes_on).collect();
            if rows.is_empty() {
                continue;
            }
            let (model, backend) = (self.model.as_ref(), self.config.backend);
            match guard(backend, "decode", || decode_batch(model, &mut rows)) {
                Ok(()) => {
                    for mut row in rows {
                        match row.constraints.failure() {
                            Some(error) => row.finish(Err(error)),
                            None => {
                                stepped.push(row.id);
                                self.running.push(row);
                            }
                        }
                    }
                }
                Err(error) => self.isolate(rows, error),
            }
        }
        self.steps += u64::from(!stepped.is_empty());
        if !stepped.is_empty() && self.steps.is_multiple_of(CLEAR_EVERY) {
            // The cache only saves time: a failure to clear it changes nothing.
            let _ = mlx_rs::memory::clear_cache();
        }
        stepped
    }

    /// Reads the last choices of rows that need them for the next; whether there were any.
    fn read_those_that_wait(&mut self) -> bool {
        let waiting: Vec<Row> = self.running.extract_if(.., |row| row.waits_for_itself()).collect();
        let some = !waiting.is_empty();
        for row in waiting {
            let row = self.read(row);
            self.running.extend(row);
        }
        some
    }

    /// Reads and delivers a row's oldest unread token; the row, unless that ended it.
    fn read(&mut self, mut row: Row) -> Option<Row> {
        let backend = self.config.backend;
        let chosen = match guard(backend, "read a token", || row.read()) {
            Ok(None) => return Some(row),
            Ok(Some(chosen)) => chosen,
            Err(error) => {
                self.isolate(vec![row], error);
                return None;
            }
        };
        match guard(backend, "deliver a token", || Ok(row.deliver(chosen))) {
            Ok(Ok(None)) => return Some(row),
            Ok(Ok(Some(reason))) => self.end(row, reason),
            Ok(Err(reason)) => row.finish(Err(Error::backend(backend, "choose a token", reason))),
            Err(error) => row.finish(Err(error)),
        }
        None
    }

    /// Reads and delivers the tokens that were chosen before this step; whether there were any.
    fn read_previous(&mut self, stepped: &[RowId]) -> bool {
        let (running, paused) = (std::mem::take(&mut self.running), std::mem::take(&mut self.paused));
        let mut some = false;
        let mut read = |scheduler: &mut Self, row: Row| {
            let unread = row.in_flight.len() - usize::from(stepped.contains(&row.id));
            if unread == 0 {
                return Some(row);
            }
            some = true;
            scheduler.read(row)
        };
        for row in running {
            let row = read(self, row);
            self.running.extend(row);
        }
        for row in paused {
            let row = read(self, row);
            self.paused.extend(row);
        }
        some
    }
}

/// Takes a row out of a list.
fn take(rows: &mut Vec<Row>, id: RowId) -> Option<Row> {
    let place = rows.iter().position(|row| row.id == id)?;
    Some(rows.remove(place))
}
