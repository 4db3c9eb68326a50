//! One request in the scheduler: its tokens, its cache, its sampler and the stream that it fills.

use std::collections::VecDeque;

use inference_core::{
    FinishReason, GenerateOptions, StopCause, TokenMask,
    backend::{ConstraintRun, ResponseWriter},
};
use inference_text::ThinkingBudget;
use mlx_rs::{Array, error::Result as MlxResult, ops};

use super::{
    budget::{Budget, Reservation},
    constraints::Constraints,
    in_flight::{ChosenToken, InFlight},
    plan::{DecodingRow, RowId},
    sampler::{NOT_FINITE, Sampler},
    session::{SessionId, SessionTurn},
};
use crate::{
    mlx::memory,
    nn::{KvCache, Sampling},
};

/// What a caller hands over to the engine. Plain data and ends of channels: no array crosses the thread.
#[derive(Debug)]
pub(crate) struct Request {
    /// The prompt, not empty, every id within the vocabulary, short enough for the context.
    pub(crate) prompt: Vec<u32>,
    pub(crate) options: GenerateOptions,
    /// The model's end-of-sequence ids.
    pub(crate) eos: Vec<u32>,
    pub(crate) budget: Option<ThinkingBudget>,
    /// What holds the answer to a shape.
    pub(crate) shape: Option<ConstraintRun>,
    /// The session that it is a turn of.
    pub(crate) turn: Option<SessionTurn>,
    /// The answer's way to the caller.
    pub(crate) writer: ResponseWriter,
}

impl Request {
    /// Ends the stream before anything was done.
    pub(super) fn refuse(self, error: inference_core::Error) {
        self.writer.end(Err(error));
    }
}

/// A request that the scheduler holds.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: RowId,
    pub(super) cache: KvCache,
    /// Memory that it takes now and then.
    pub(super) reservation: Reservation,
    sampler: Sampler,
    pub(super) constraints: Constraints,
    /// The prompt and every token that was read.
    pub(super) tokens: Vec<u32>,
    /// How many of them are in the cache before the row decodes.
    pub(super) prefilled: usize,
    /// Whether it is computed by itself, because something that it was part of failed.
    pub(super) solo: bool,
    /// Chosen and not yet read, oldest first: at most two.
    pub(super) in_flight: VecDeque<InFlight>,
    prompt_len: usize,
    /// The id that ended the text, which is not among `tokens`.
    end: Option<u32>,
    turn: Option<SessionTurn>,
    writer: ResponseWriter,
    pub(super) peak_bytes: u64,
}

impl Row {
    /// Accepts a request.
    pub(super) fn new(id: RowId, request: Request, cache: KvCache, vocab_size: usize) -> Self {
        let Request { prompt, options, eos, budget, shape, turn, writer } = request;
        Self {
            id,
            cache,
            reservation: Reservation::default(),
            solo: false,
            sampler: Sampler::new(&options, &eos, vocab_size),
            constraints: Constraints::new(&options, budget, shape, &eos),
            prefilled: 0,
            in_flight: VecDeque::with_capacity(2),
            prompt_len: prompt.len(),
            end: None,
            tokens: prompt,
            turn,
            writer,
            peak_bytes: 0,
        }
    }

    /// The engine begins with it, perhaps with the keys and values of the text's first tokens.
    pub(super) fn begin(&mut self, cached: Option<KvCache>) {
        let cached_len = cached.as_ref().map_or(0, KvCache::len);
        if let Some(cached) = cached {
            self.cache = cached;
        }
        self.prefilled = cached_len;
        self.writer.begin(cached_len);
        self.cache.set_expected_len(self.tokens.len());
    }

    /// Releases keys and values.
    pub(super) fn forget_cache(&mut self) {
        self.cache = self.cache.empty_like();
        self.reservation.set(0);
        self.prefilled = 0;
    }

    /// Goes back to waiting: the text so far is computed again, and what was chosen and not read is chosen again.
    pub(super) fn restart(&mut self) {
        self.forget_cache();
        for unread in self.in_flight.drain(..).rev() {
            if let Some(id) = unread.forced() {
                self.constraints.unforce(id);
            }
        }
        let ahead = self.constraints.taken().unwrap_or(0).saturating_sub(self.generated());
        self.constraints.take_back(ahead);
        self.constraints.forget_mask();
    }

    /// Its keys and values, and the tokens that they are of. After this only [`finish`](Self::finish) may be called.
    pub(super) fn take_cache(&mut self) -> (Vec<u32>, KvCache) {
        if let Some(last) = self.in_flight.back()
            && last.wait().is_err()
        {
            // What a step wrote is not known.
            self.forget_cache();
        }
        let mut tokens = self.tokens.clone();
        tokens.extend(self.end);
        tokens.truncate(self.cache.len());
        // Of a row that was cancelled, tokens may be unread.
        let reach = self.cache.reach(tokens.len());
        if reach > 0 {
            self.cache.rewind(reach);
            tokens.truncate(reach);
        }
        let mut cache = std::mem::replace(&mut self.cache, KvCache::new([]));
        // A session's is kept for as long as it likes. What cannot be copied is not kept: an empty cache holds none of the tokens.
        if self.session().is_some() && cache.detach().is_err() {
            cache = KvCache::new([]);
        }
        (tokens, cache)
    }

    /// The session that it is a turn of.
    pub(super) fn session(&self) -> Option<SessionId> {
        self.turn.as_ref().map(|turn| turn.id)
    }

    /// Tokens read so far.
    fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Tokens chosen so far, read or not: the step of the next choice.
    pub(super) fn chosen(&self) -> usize {
        self.generated() + self.in_flight.len()
    }

    /// Whether another token may be chosen.
    pub(super) fn wants_more(&self) -> bool {
        self.chosen() < self.writer.max_tokens()
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.writer.is_cancelled()
    }

    /// Whether the reader is too far behind for another token.
    pub(super) fn reader_is_behind(&mut self) -> bool {
        self.writer.is_full()
    }

    /// Waits until the reader has made room, or wants no more.
    pub(super) async fn reader_caught_up(&self) {
        self.writer.ready().await;
    }

    /// The last token, which is the input of the next step: [1], u32.
    pub(super) fn last_token(&self) -> MlxResult<Array> {
        match self.in_flight.back() {
            Some(in_flight) => in_flight.id(),
            None => Ok(Array::from_slice(&self.tokens[self.tokens.len() - 1..], &[1])),
        }
    }

    /// The last token, read if it is still on the device.
    pub(super) fn last_id(&self) -> MlxResult<u32> {
        match self.in_flight.back() {
            Some(in_flight) => Ok(in_flight.read()?.token.id),
            None => Ok(self.tokens[self.tokens.len() - 1]),
        }
    }

    /// What planning has to know of a row that decodes; of its memory only where there is a budget.
    pub(super) fn plan_view(&mut self, budget: Option<&Budget>) -> DecodingRow {
        DecodingRow {
            id: self.id,
            wants_more: self.wants_more(),
            reader_is_behind: self.reader_is_behind(),
            solo: self.solo,
            bytes: budget.map_or(0, |_| self.cache.bytes()),
            growth: budget.map_or(0, |budget| budget.growth(&self.cache)),
        }
    }

    /// Works out which tokens may come next, where that is limited. It reads the last choice, which the device has made by the time
    /// that it computes the logits for the next.
    ///
    /// # Errors
    /// MLX's own.
    pub(super) fn compute_mask(&mut self) -> MlxResult<()> {
        while let Some(taken) = self.constraints.taken() {
            let id = match taken.checked_sub(self.generated()) {
                None => self.tokens[self.prompt_len + taken],
                Some(ahead) => match self.in_flight.get(ahead) {
                    None => break,
                    Some(unread) => {
                        let chosen = unread.read()?;
                        if !chosen.is_finite {
                            // The row ends when it is delivered.
                            return Ok(());
                        }
                        chosen.token.id
                    }
                },
            };
            self.constraints.take(id);
        }
        self.constraints.compute_mask();
        Ok(())
    }

    /// Whether the next token may be limited to some.
    pub(super) fn is_shaped(&self) -> bool {
        self.constraints.taken().is_some()
    }

    /// The tokens that may come next; `None` where all may.
    pub(super) fn mask(&self) -> Option<&TokenMask> {
        self.constraints.mask()
    }

    /// Whether the choice is the likeliest of the raw logits.
    pub(super) fn is_greedy(&self) -> bool {
        self.sampler.is_greedy() && self.constraints.is_idle()
    }

    /// Its sampler and the step of the next choice, where that is drawn from the raw logits.
    pub(super) fn pure_sampling(&self) -> Option<(&Sampler, usize)> {
        (self.sampler.is_pure_sampling() && self.constraints.is_idle())
            .then(|| (&self.sampler, self.chosen()))
    }

    /// How its next choice, and those after it, are drawn from the raw logits, where the CUDA kernels know how.
    pub(super) fn replayed_draws(&self) -> Option<Sampling> {
        self.pure_sampling().and_then(|(sampler, step)| sampler.replayed_draws(step))
    }

    /// Whether its last choice has to be read before the next is made.
    pub(super) fn waits_for_itself(&self) -> bool {
        self.constraints.waits_for(self.in_flight.len())
    }

    /// Chooses the next token from logits [1, V].
    pub(super) fn choose(&mut self, logits: &Array) -> MlxResult<InFlight> {
        let step = self.chosen();
        // Where an answer has its shape and can only end, it does.
        let counted = if self.constraints.has_to_end() { usize::MAX } else { step };
        let logits = self.sampler.adjust(logits, self.recent()?.as_ref(), counted)?;
        if let Some(id) = self.constraints.forced() {
            return Ok(InFlight::own(self.sampler.force(&logits, id)?, Some(id)));
        }
        let (prompt, answer) = self.tokens.split_at(self.prompt_len);
        let logits = self.constraints.process(logits, prompt, answer)?;
        Ok(InFlight::own(self.sampler.choose(&logits, step)?, None))
    }

    /// The last tokens that the sampler wants to see, the unread one included: [n], u32.
    fn recent(&self) -> MlxResult<Option<Array>> {
        let window = self.sampler.window();
        if window == 0 {
            return Ok(None);
        }
        let known = |count: usize| {
            let tail = &self.tokens[self.tokens.len().saturating_sub(count)..];
            Array::from_slice(tail, &[tail.len() as i32])
        };
        let Some(unread) = self.in_flight.back() else { return Ok(Some(known(window))) };
        if window == 1 {
            return Ok(Some(unread.id()?));
        }
        ops::concatenate(&[known(window - 1), unread.id()?], 0).map(Some)
    }

    /// Reads the oldest unread token, which waits for the device.
    pub(super) fn read(&self) -> MlxResult<Option<ChosenToken>> {
        self.in_flight.front().map(InFlight::read).transpose()
    }

    /// Delivers the token that was read. The reason if the text ends with it.
    ///
    /// # Errors
    /// The logits were not finite.
    pub(super) fn deliver(&mut self, chosen: ChosenToken) -> Result<Option<FinishReason>, String> {
        self.in_flight.pop_front();
        let ChosenToken { token, is_finite } = chosen;
        if !is_finite {
            return Err(NOT_FINITE.to_owned());
        }
        let id = token.id;
        let reason = self.writer.push(token);
        if let Some(FinishReason::Stop(StopCause::EndOfSequence(_) | StopCause::StopToken(_))) = reason {
            self.end = Some(id);
        } else {
            self.tokens.push(id);
            self.constraints.note(id);
        }
        Ok(reason)
    }

    /// Ends the stream with what is known of it.
    pub(super) fn finish(mut self, result: inference_core::Result<FinishReason>) {
        let mut metrics = self.writer.metrics();
        metrics.peak_memory_bytes = self.peak_bytes;
        metrics.active_memory_bytes = memory::usage().active_bytes;
        // Before the end is told: who has seen it can take the next turn at once.
        if let (Some(mut turn), Ok(_)) = (self.turn.take(), &result) {
            *turn.text = std::mem::take(&mut self.tokens);
        }
        self.writer.end_with(result, metrics);
    }
}
