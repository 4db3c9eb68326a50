//! Carries out a plan: ends, pauses and resumes rows, submits prompt tokens and decode steps, and reads tokens.

use std::ops::Range;

use inference_core::{Error, FinishReason};

use super::{
    cuda::CudaSteps,
    decode::decode_batch,
    guard::guard,
    plan::{Plan, Prefill, Refusal, RowId},
    prefill::{PrefillProgress, PrefillRun, padded_width},
    row::Row,
    scheduler::Scheduler,
};
use crate::mlx::memory;

/// Decode steps between two clearings of the allocator's cache, which otherwise keeps a buffer of every size it met.
const CLEAR_EVERY: u64 = 256;

impl Scheduler {
    /// Does what the plan says; whether that was anything.
    pub(super) fn execute(&mut self, plan: Plan) -> bool {
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
            row.finish(Err(Error::out_of_memory(what, needed, available)));
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
}

/// Prefill.
impl Scheduler {
    /// Waits for the layers that the step before submitted; whether there were any.
    pub(super) fn wait_for_prefill(&mut self) -> bool {
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
            Some(Prefill::Chunk { row, tokens }) if self.wants_padding(row, &tokens) => {
                self.begin_batch(&[row])
            }
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
                None if row.prefilled < row.tokens.len() => {
                    let needed = self.budget.prefill(&row.cache, row.tokens.len(), self.config.prefill_chunk);
                    row.reservation.set(needed.saturating_sub(row.cache.bytes()));
                    self.chunked.push_back(row);
                }
                None if row.in_flight.is_empty() => self.end(row, FinishReason::Length),
                None => {
                    joined.push(row.id);
                    row.reservation.set(self.budget.step());
                    self.running.push(row);
                }
            }
        }
        joined
    }

    /// Whether these are all tokens of a prompt that is padded.
    fn wants_padding(&self, id: RowId, tokens: &Range<usize>) -> bool {
        let row = self.waiting.iter().find(|row| row.id == id);
        tokens.start == 0
            && padded_width(tokens.end) > tokens.end
            && !self.model.config().length_dependent
            && row.is_some_and(|row| row.is_batchable() && row.tokens.len() == tokens.end)
    }

    fn begin_chunk(&mut self, id: RowId, end: usize) -> Option<Result<PrefillRun, (Vec<Row>, Error)>> {
        let is_new = self.waiting.iter().any(|row| row.id == id);
        let mut row = self.take(id)?;
        let mut end = end;
        if is_new {
            let (tokens, rotation) = (&row.tokens[..], row.cache.rotation());
            let own = row.session().and_then(|session| self.sessions.take(session, tokens, rotation));
            let cached = own.or_else(|| if row.solo { None } else { self.prefixes.find(tokens, rotation) });
            row.begin(cached);
            // More may be cached than when the plan was made: a row that has ended since then began alike.
            end = end.max(row.prefilled + 1).min(row.tokens.len());
            let chunk = end.saturating_sub(row.prefilled);
            row.reservation.set(self.budget.prefill(&row.cache, row.tokens.len(), chunk));
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
        for row in &mut rows {
            row.begin(None);
            row.reservation.set(self.budget.prefill(&row.cache, row.tokens.len(), row.tokens.len()));
        }
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
            let cuda = &mut self.cuda;
            let decoded = guard(backend, "decode", || match cuda.decode(&mut rows)? {
                true => Ok(()),
                false => decode_batch(model, &mut rows),
            });
            match decoded {
                Ok(()) => {
                    for mut row in rows {
                        match row.constraints.failure() {
                            Some(error) => self.fail(row, error),
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
        // Steps that nobody waits for any more have to be done before their memory is used again.
        if let Err(error) = guard(self.config.backend, "wait for a step", || self.cuda.retain(&self.running))
        {
            tracing::warn!("decode steps on CUDA graphs end: {error}");
            self.cuda = CudaSteps::none(error.to_string());
        }
        self.steps += u64::from(!stepped.is_empty());
        if !stepped.is_empty() && self.steps.is_multiple_of(CLEAR_EVERY) {
            // The cache only saves time: a failure to clear it changes nothing.
            let _ = mlx_rs::memory::clear_cache();
        }
        stepped
    }

    /// Ends a row whose next token cannot be chosen, once the tokens before it are delivered.
    fn fail(&mut self, mut row: Row, error: Error) {
        row.in_flight.pop_back();
        while !row.in_flight.is_empty() {
            match self.read(row) {
                Some(rest) => row = rest,
                None => return,
            }
        }
        row.finish(Err(error));
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
