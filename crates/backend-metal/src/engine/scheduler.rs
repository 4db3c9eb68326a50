//! One model's work: rows join and leave a batch.
//!
//! Each turn computes one chunk of one waiting prompt, or several short ones whole, then one decode step for all running rows together, and only then
//! reads the tokens of the step before: the device works while they are detokenised and delivered. A single request is a
//! batch of one.

use std::{
    any::Any,
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::Arc,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use inference_core::{ContextOverflow, Error, FinishReason};
use mlx_rs::{Array, Stream, error::Result, ops, transforms, with_stream};

use super::{
    classify::ClassifyJob,
    prefix::PrefixCache,
    row::{InFlight, Request, Row},
    sampler::{draw, log_softmax},
    session::{SessionCommand, Sessions},
    stats::Stats,
};
use crate::{
    mlx::{Scheme, memory, slice, synchronize},
    nn::{Architecture, KvCache, Rotation, Rows, SharedPrefix, argmax, tracing},
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
    /// Bytes kept of ended texts.
    pub(super) prefix_cache: u64,
    /// How keys and values are quantised.
    pub(super) kv_scheme: Option<Scheme>,
    pub(super) eos: Vec<u32>,
    /// Whether MLX's own operations compute everything.
    pub(super) disable_cpu_kernels: bool,
}

/// A loaded model and its requests.
pub(super) struct Scheduler {
    model: Rc<dyn Architecture>,
    stream: Stream,
    config: EngineConfig,
    stats: Arc<Stats>,
    /// Not begun, oldest first.
    waiting: VecDeque<Row>,
    /// Prompts under way: the first one's turn is next.
    prefilling: VecDeque<Row>,
    running: Vec<Row>,
    jobs: VecDeque<ClassifyJob>,
    trainings: VecDeque<TrainJob>,
    prefixes: PrefixCache,
    sessions: Sessions,
    steps: u64,
}

/// What a turn came to.
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
        stats: Arc<Stats>,
    ) -> Self {
        let (waiting, prefilling, running, jobs, trainings, sessions) = Default::default();
        let prefixes = PrefixCache::new(config.prefix_cache);
        Self {
            model,
            stream,
            config,
            stats,
            waiting,
            prefilling,
            running,
            jobs,
            trainings,
            prefixes,
            sessions,
            steps: 0,
        }
    }

    /// An empty cache as this model's requests have them.
    pub(super) fn new_cache(&self) -> KvCache {
        self.model.new_cache().quantized(self.config.kv_scheme)
    }

    pub(super) fn push(&mut self, request: Request) {
        let size = self.config.context_length;
        let (cache, room) = match request.options.context_overflow {
            Some(ContextOverflow::Rotate { keep }) => {
                (self.new_cache().rotating(Rotation { keep, size }), usize::MAX)
            }
            _ => (self.new_cache(), size.saturating_sub(request.prompt.len())),
        };
        let vocab_size = self.model.config().vocab_size;
        let row = Row::new(request, cache, &self.config.eos, vocab_size, room);
        if let Some(session) = row.session() {
            self.sessions.open(session);
        }
        self.waiting.push_back(row);
    }

    /// Does what it says to a session between its turns.
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

    /// Ends everything as cancelled and lets go of the model.
    pub(super) fn close(mut self) {
        let waiting = self.waiting.drain(..).chain(self.prefilling.drain(..));
        for row in waiting.chain(self.running.drain(..)) {
            row.finish(Ok(FinishReason::Cancelled), &self.stats);
        }
        for job in self.jobs.drain(..) {
            job.end(Err(Error::Closed));
        }
        for job in self.trainings.drain(..) {
            job.end(Err(Error::Closed));
        }
        // What was submitted still runs, on memory that is about to go.
        let _ = synchronize(&self.stream);
        drop((self.model, self.prefixes, self.sessions));
        // Without it the weights' memory stays with the allocator; a failure leaves it there.
        let _ = memory::clear_cache();
    }

    /// Whether there are rows, all of which wait for their readers after a turn that was [`Progress::Blocked`].
    pub(super) fn is_blocked(&self) -> bool {
        !self.running.is_empty()
    }

    /// Waits until a reader of a blocked row has made room.
    pub(super) async fn unblocked(&self) {
        let mut rows: FuturesUnordered<_> = self.running.iter().map(Row::unblocked).collect();
        rows.next().await;
    }

    /// Does one round of work.
    pub(super) fn step(&mut self) -> Progress {
        let stream = self.stream.clone();
        with_stream(&stream, || match self.config.disable_cpu_kernels {
            true => tracing(|| self.step_on_stream()),
            false => self.step_on_stream(),
        })
    }

    fn step_on_stream(&mut self) -> Progress {
        self.retire_cancelled();
        let classified = self.classify_some();
        let prefilled = self.prefill_some();
        let settled = self.read_those_that_wait();
        let held = self.running.len();
        let trained = self.train_some();
        let stepped = self.decode_step();
        // A row that failed has made room.
        let failed = self.running.len() < held;
        let read = self.read_previous(stepped);
        if !(classified || prefilled || settled || trained || stepped > 0 || failed || read) {
            return if self.running.is_empty() { Progress::Idle } else { Progress::Blocked };
        }
        let peak = memory::take_peak();
        self.running
            .iter_mut()
            .chain(self.waiting.front_mut())
            .for_each(|row| row.peak_bytes = row.peak_bytes.max(peak));
        if let Some(job) = self.trainings.front_mut() {
            job.peaked(peak);
        }
        Progress::Worked
    }

    fn retire_cancelled(&mut self) {
        let mut cancelled: Vec<Row> = self.running.extract_if(.., |row| row.is_cancelled()).collect();
        for queue in [&mut self.waiting, &mut self.prefilling] {
            for _ in 0..queue.len() {
                match queue.pop_front() {
                    Some(row) if row.is_cancelled() => cancelled.push(row),
                    row => queue.extend(row),
                }
            }
        }
        cancelled.into_iter().for_each(|row| self.end(row, FinishReason::Cancelled));
    }

    /// Ends a row whose work went well, and keeps its keys and values for a prompt that goes on from it.
    fn end(&mut self, mut row: Row, reason: FinishReason) {
        let (tokens, cache) = row.take_cache();
        match row.session() {
            Some(session) => self.sessions.keep(session, tokens, cache),
            None => self.prefixes.keep(tokens, cache),
        }
        row.finish(Ok(reason), &self.stats);
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

    /// Computes one batch of the run of training that came first.
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

    /// Computes one chunk of one prompt, or several short prompts; with its last chunk a row joins the batch. Prompts take turns,
    /// and a new one is first: a short prompt does not wait for the end of a long one.
    fn prefill_some(&mut self) -> bool {
        let mut group = self.begin_some();
        let (model, backend) = (self.model.as_ref(), self.config.backend);
        let done = if group.is_empty() {
            group.extend(self.prefilling.pop_front());
            let Some(row) = group.first_mut() else { return false };
            let chunk = self.config.prefill_chunk;
            guard(backend, "compute the prompt", || prefill_chunk(model, row, chunk))
        } else {
            guard(backend, "compute the prompts", || prefill_together(model, &mut group))
        };
        if let Err(error) = done {
            self.fail(group, error);
            return true;
        }
        for mut row in group {
            match row.constraints.failure() {
                Some(error) => row.finish(Err(error), &self.stats),
                None if row.prefilled < row.prompt().len() => self.prefilling.push_back(row),
                None if row.in_flight.is_empty() => self.end(row, FinishReason::Length),
                None => self.running.push(row),
            }
        }
        true
    }

    /// Begins with the prompts that have waited longest: several where they fit one chunk together, which are returned, or else
    /// the first, which then is the first of those under way.
    fn begin_some(&mut self) -> Vec<Row> {
        let room = self.config.max_batch.saturating_sub(self.running.len() + self.prefilling.len());
        let mut begun: Vec<(Row, Option<KvCache>)> = Vec::new();
        let (mut longest, mut total) = (0, 0);
        while begun.len() < room
            && let Some(row) = self.waiting.front()
        {
            let (prompt, rotation) = (row.prompt(), row.cache.rotation());
            let alone = self.model.config().length_dependent
                || rotation.is_some()
                || row.cache.is_quantized()
                || row.session().is_some()
                || !row.wants_more();
            let len = prompt.len();
            let padded = len.max(longest) * (begun.len() + 1);
            let fits = !alone && padded <= self.config.prefill_chunk && padded <= 2 * (total + len);
            if !begun.is_empty() && !fits {
                break;
            }
            let own = row.session().and_then(|session| self.sessions.take(session, prompt, rotation));
            let known = own.or_else(|| self.prefixes.find(prompt, rotation));
            // What is known of a prompt is computed once more beside others, unless it is most of it.
            let fits = fits && known.as_ref().is_none_or(|known| 2 * known.len() <= len);
            if !begun.is_empty() && !fits {
                break;
            }
            begun.extend(self.waiting.pop_front().map(|row| (row, known)));
            if !fits {
                break;
            }
            (longest, total) = (longest.max(len), total + len);
        }
        if begun.len() > 1 {
            let begin = |(mut row, _): (Row, _)| {
                row.begin(None);
                row
            };
            return begun.into_iter().map(begin).collect();
        }
        for (mut row, known) in begun {
            row.begin(known);
            self.prefilling.push_front(row);
        }
        Vec::new()
    }

    /// Ends rows whose work was lost together.
    fn fail(&self, rows: Vec<Row>, error: Error) {
        let reason = chain(&error);
        let mut error = Some(error);
        for row in rows {
            let error = error
                .take()
                .unwrap_or_else(|| Error::backend(self.config.backend, "compute for all", reason.clone()));
            row.finish(Err(error), &self.stats);
        }
    }

    /// Submits one token for every running row that wants one and has a reader for it; how many there were. They are moved
    /// to the front of `running`.
    fn decode_step(&mut self) -> usize {
        let (mut ready, mut blocked) = (Vec::new(), Vec::new());
        for mut row in self.running.drain(..) {
            let list = if row.wants_more() && !row.is_blocked() { &mut ready } else { &mut blocked };
            list.push(row);
        }
        // Those whose keys and values can lie together are computed together.
        ready.sort_by_key(|row: &Row| (row.cache.capacity_bucket(), row.cache.rotation()));
        if ready.is_empty() {
            self.running = blocked;
            return 0;
        }
        let model = self.model.as_ref();
        let decoded = guard(self.config.backend, "decode", || {
            // A row that waits would hold on to the memory of rows that go on.
            blocked.iter_mut().try_for_each(|row| row.cache.detach())?;
            decode_batch(model, &mut ready)
        });
        if let Err(error) = decoded {
            // What the device was to do is lost for every row of the step; the others go on.
            self.fail(std::mem::take(&mut ready), error);
        }
        for mut row in ready {
            match row.constraints.failure() {
                Some(error) => row.finish(Err(error), &self.stats),
                None => self.running.push(row),
            }
        }
        let count = self.running.len();
        self.running.extend(blocked);
        self.steps += 1;
        if self.steps.is_multiple_of(CLEAR_EVERY) {
            // The cache only saves time: a failure to clear it changes nothing.
            let _ = mlx_rs::memory::clear_cache();
        }
        count
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
        match guard(self.config.backend, "read a token", || row.deliver()) {
            Ok(None) => return Some(row),
            Ok(Some(reason)) => self.end(row, reason),
            Err(error) => row.finish(Err(error), &self.stats),
        }
        None
    }

    /// Reads and delivers the tokens that were chosen before the step of the first `stepped` rows; whether there were any.
    fn read_previous(&mut self, stepped: usize) -> bool {
        let mut read = false;
        let mut kept = Vec::with_capacity(self.running.len());
        for (index, row) in std::mem::take(&mut self.running).into_iter().enumerate() {
            let unread = row.in_flight.len() - usize::from(index < stepped);
            if unread == 0 {
                kept.push(row);
                continue;
            }
            read = true;
            kept.extend(self.read(row));
        }
        self.running = kept;
        read
    }
}

fn prefill_chunk(model: &dyn Architecture, row: &mut Row, chunk: usize) -> Result<()> {
    let prompt = row.prompt();
    let end = prompt.len().min(row.prefilled + chunk);
    let tokens = Array::from_slice(&prompt[row.prefilled..end], &[1, (end - row.prefilled) as i32]);
    let last = end == prompt.len();
    let hidden = model.hidden(&tokens, Rows::Cached(&mut [&mut row.cache]))?;
    row.prefilled = end;
    if !last || !row.wants_more() {
        row.cache.evaluate()?;
        return mlx_rs::memory::clear_cache();
    }
    let hidden = slice(&hidden, 1, hidden.dim(1) - 1, hidden.dim(1))?;
    let logits = model.logits(&hidden)?.reshape(&[1, -1])?;
    let choice = row.choose(&logits)?;
    submit([&choice.id], choice.report.iter())?;
    row.in_flight.push_back(InFlight::alone(choice));
    Ok(())
}

/// Computes whole prompts side by side, and submits the first token of each.
fn prefill_together(model: &dyn Architecture, rows: &mut [Row]) -> Result<()> {
    let width = rows.iter().map(|row| row.prompt().len()).max().unwrap_or(0);
    let mut tokens = vec![0; rows.len() * width];
    for (row, tokens) in rows.iter().zip(tokens.chunks_exact_mut(width)) {
        tokens[..row.prompt().len()].copy_from_slice(row.prompt());
    }
    let tokens = Array::from_slice(&tokens, &[rows.len() as i32, width as i32]);
    let mut kept = SharedPrefix::default();
    let fresh = Rows::Prefixed { prefix: &SharedPrefix::default(), store: Some(&mut kept) };
    let hidden = model.hidden(&tokens, fresh)?;
    let ends = rows.iter().enumerate().map(|(index, row)| (index * width + row.prompt().len() - 1) as u32);
    let ends = Array::from_slice(&ends.collect::<Vec<_>>(), &[rows.len() as i32]);
    let hidden = hidden.reshape(&[-1, hidden.dim(-1)])?.take_axis(&ends, 0)?;
    for (index, row) in rows.iter_mut().enumerate() {
        let len = row.prompt().len();
        kept.copy_row(index, len, &mut row.cache)?;
        row.prefilled = len;
    }
    choose(rows, &model.logits(&hidden.expand_dims(1)?)?.reshape(&[rows.len() as i32, -1])?)?;
    // Rows would hold on to what is of others until their own keys and values are copied.
    transforms::async_eval(&rows.iter().flat_map(|row| row.cache.arrays()).collect::<Vec<_>>())
}

/// Submits the next token of every row, without waiting for it.
fn decode_batch(model: &dyn Architecture, rows: &mut [Row]) -> Result<()> {
    let count = rows.len() as i32;
    let tokens = inputs(rows)?.reshape(&[count, 1])?;
    let mut caches: Vec<&mut KvCache> = rows.iter_mut().map(|row| &mut row.cache).collect();
    let hidden = model.hidden(&tokens, Rows::Cached(&mut caches))?;
    choose(rows, &model.logits(&hidden)?.reshape(&[count, -1])?)
}

/// Submits a token for every row, chosen from its logits `[rows, V]`.
fn choose(rows: &mut [Row], logits: &Array) -> Result<()> {
    if rows.iter().all(Row::is_greedy) {
        let ids = Rc::new(argmax(logits)?);
        submit([&*ids], [].iter())?;
        for (index, row) in rows.iter_mut().enumerate() {
            row.in_flight.push_back(InFlight { ids: ids.clone(), index: index as i32, report: None });
        }
        return Ok(());
    }
    let drawn: Vec<_> =
        (0..).zip(rows.iter()).filter_map(|(index, row)| Some((index, row.drawn()?))).collect();
    let mut chosen = BTreeMap::new();
    if drawn.len() > 1 {
        let (indices, samplers): (Vec<u32>, Vec<_>) = drawn.into_iter().unzip();
        let own = if indices.len() == rows.len() {
            logits.clone()
        } else {
            logits.take_axis(Array::from_slice(&indices, &[indices.len() as i32]), 0)?
        };
        let ids = Rc::new(draw(&samplers, log_softmax(&own.as_type::<f32>()?)?)?);
        for (place, index) in indices.into_iter().enumerate() {
            chosen.insert(index as usize, InFlight { ids: ids.clone(), index: place as i32, report: None });
        }
    }
    for (index, row) in rows.iter_mut().enumerate() {
        if let Entry::Vacant(unchosen) = chosen.entry(index) {
            let own = match logits.dim(0) {
                1 => logits.clone(),
                _ => slice(logits, 0, index as i32, index as i32 + 1)?,
            };
            unchosen.insert(InFlight::alone(row.choose(&own)?));
        }
    }
    submit(
        chosen.values().map(|choice| &*choice.ids),
        chosen.values().filter_map(|choice| choice.report.as_ref()),
    )?;
    for (row, choice) in rows.iter_mut().zip(chosen.into_values()) {
        row.in_flight.push_back(choice);
    }
    Ok(())
}

/// The last token of every row: [n], u32. Where the rows are those of the step before, its choices serve as they are.
fn inputs(rows: &[Row]) -> Result<Array> {
    if let Some(previous) = rows[0].in_flight.back()
        && previous.ids.dim(0) as usize == rows.len()
        && rows.iter().enumerate().all(|(index, row)| {
            let own = row.in_flight.back();
            own.is_some_and(|own| own.index == index as i32 && Rc::ptr_eq(&own.ids, &previous.ids))
        })
    {
        return Ok((*previous.ids).clone());
    }
    let tokens = rows.iter().map(Row::last_token).collect::<Result<Vec<_>>>()?;
    ops::concatenate(&tokens, 0)
}

fn submit<'a>(
    ids: impl IntoIterator<Item = &'a Array>,
    reports: impl Iterator<Item = &'a super::sampler::LogprobArrays>,
) -> Result<()> {
    let reports = reports.flat_map(|report| {
        let top = report.top.iter().flat_map(|(ids, values)| [ids, values]);
        std::iter::once(&report.chosen).chain(top)
    });
    transforms::async_eval(ids.into_iter().chain(reports))
}

/// Runs work that may panic or fail in MLX: either fails the request at hand and nothing else.
fn guard<T>(
    backend: &'static str,
    action: &'static str,
    work: impl FnOnce() -> Result<T>,
) -> inference_core::Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(exception)) => Err(Error::backend(backend, action, exception)),
        Err(panic) => {
            Err(Error::backend(backend, action, format!("panicked: {}", panic_text(panic.as_ref()))))
        }
    }
}

pub(super) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}

fn chain(error: &Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}
