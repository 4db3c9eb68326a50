//! What the next scheduler step does, decided before any of it is done.
//!
//! A plan is data: it is made of what is known about the requests, and needs no device. [`Scheduler`] carries it out.
//!
//! [`Scheduler`]: super::scheduler::Scheduler

/// A request of one scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RowId(pub(super) u64);

/// What planning has to know of the requests.
#[derive(Debug, Default)]
pub(super) struct View {
    /// Requests that hold keys and values at once, those that wait for their readers aside.
    pub(super) max_batch: usize,
    /// Tokens of one prefill.
    pub(super) prefill_chunk: usize,
    /// Tokens that are computed so quickly that a long prompt can wait for them.
    pub(super) short_prompt: usize,
    /// Whether the step before put short prompts before the prefill that is under way.
    pub(super) preempted: bool,
    /// Requests whose callers want no more.
    pub(super) cancelled: Vec<RowId>,
    /// Prompts that were not begun, oldest first.
    pub(super) waiting: Vec<WaitingPrompt>,
    /// The prompts of the prefill that is under way.
    pub(super) prefill: Option<Vec<RowId>>,
    /// Prompts between two chunks: the first one's turn is next.
    pub(super) chunked: Vec<ChunkedPrompt>,
    /// Requests that decode.
    pub(super) decoding: Vec<DecodingRow>,
    /// Requests whose readers were behind, oldest first.
    pub(super) paused: Vec<DecodingRow>,
    /// Bytes that keys, values and activations may still take, where there is a limit.
    pub(super) free_bytes: Option<u64>,
    /// Bytes that the prefix cache could give back.
    pub(super) evictable_bytes: u64,
}

/// A prompt that was not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WaitingPrompt {
    pub(super) id: RowId,
    pub(super) tokens: usize,
    /// How many of them have keys and values already, in a session or the prefix cache.
    pub(super) cached: usize,
    /// Whether it is computed by itself, because a step that it was part of failed.
    pub(super) solo: bool,
    /// Bytes that its prefill takes.
    pub(super) bytes: u64,
    /// Bytes that it takes besides where it is computed beside others.
    pub(super) bytes_beside_others: u64,
}

/// A prompt of which some chunks are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChunkedPrompt {
    pub(super) id: RowId,
    pub(super) tokens: usize,
    pub(super) prefilled: usize,
    /// See [`WaitingPrompt::solo`].
    pub(super) solo: bool,
}

/// A request that decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DecodingRow {
    pub(super) id: RowId,
    /// Whether another token may be chosen.
    pub(super) wants_more: bool,
    /// Whether its reader is too far behind for another token.
    pub(super) reader_is_behind: bool,
    /// Whether it is computed by itself, because a step that it was part of failed.
    pub(super) solo: bool,
    /// Bytes of its keys and values.
    pub(super) bytes: u64,
    /// Bytes that the next token's keys and values need: none while its buffers have room.
    pub(super) growth: u64,
}

/// What one step does, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Requests that end as cancelled.
    pub(super) cancel: Vec<RowId>,
    /// Requests whose readers are behind: they leave the batch and give up their place.
    pub(super) pause: Vec<RowId>,
    /// Requests whose readers have caught up: they join the batch again.
    pub(super) resume: Vec<RowId>,
    /// Bytes that the prefix cache gives back.
    pub(super) evict: u64,
    /// Requests that release their keys and values and are computed again later: memory cannot hold all.
    pub(super) preempt: Vec<RowId>,
    /// A request that memory cannot hold, even alone.
    pub(super) refuse: Option<Refusal>,
    pub(super) prefill: Option<Prefill>,
    /// Batches of one token for each request. A request whose prompt ends in this step joins the first.
    pub(super) decode: Vec<Vec<RowId>>,
}

/// Prompt tokens that a step computes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Prefill {
    /// Goes on with the prefill that is under way.
    Continue,
    /// Begins parts of prompts, side by side.
    Begin(Vec<Part>),
}

/// The next tokens of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) row: RowId,
    /// How many.
    pub(super) tokens: usize,
}

/// A request that needs more memory than there is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) row: RowId,
    pub(super) needed: u64,
    pub(super) available: u64,
}

impl Plan {
    /// Decides what the next step does.
    pub(super) fn new(view: &View) -> Self {
        let is_live = |id: RowId| !view.cancelled.contains(&id);
        let decoding = view.decoding.iter().filter(|row| is_live(row.id));
        let (behind, going): (Vec<_>, Vec<_>) =
            decoding.partition(|row| row.wants_more && row.reader_is_behind);
        let chunked: Vec<_> = view.chunked.iter().filter(|prompt| is_live(prompt.id)).copied().collect();
        let prefill = view.prefill.iter().flatten().filter(|id| is_live(**id)).count();
        let mut free_places = view.max_batch.saturating_sub(going.len() + chunked.len() + prefill);
        let paused = view.paused.iter().filter(|row| is_live(row.id));
        let (resumed, idle): (Vec<_>, Vec<_>) = paused.partition(|row| {
            let resumes = free_places > 0 && !row.reader_is_behind;
            free_places -= usize::from(resumes);
            resumes
        });
        let memory = Memory {
            free: view.free_bytes,
            evictable: view.evictable_bytes,
            paused: idle.into_iter().chain(behind.iter().copied()).copied().collect(),
        };
        let is_alone = going.is_empty() && chunked.is_empty() && prefill == 0 && resumed.is_empty();
        let (cancel, pause) = (view.cancelled.clone(), behind.iter().map(|row| row.id).collect());
        let resume = resumed.iter().map(|row| row.id).collect();
        let plan = Self { cancel, pause, resume, ..Self::default() };
        let stepping = going.into_iter().chain(resumed).filter(|row| row.wants_more).copied().collect();
        let mut planner = Planner { view, plan, memory, stepping, chunked, free_places };
        planner.fit_growth(prefill > 0);
        planner.plan.prefill = planner.next_prefill(prefill > 0, is_alone);
        planner.plan.decode = planner.batches();
        planner.plan
    }
}

/// A plan in the making.
struct Planner<'a> {
    view: &'a View,
    plan: Plan,
    memory: Memory,
    /// Rows that decode in this step.
    stepping: Vec<DecodingRow>,
    chunked: Vec<ChunkedPrompt>,
    free_places: usize,
}

impl Planner<'_> {
    /// Has the youngest rows release their keys and values where memory does not hold the next tokens of all.
    fn fit_growth(&mut self, prefill: bool) {
        while !self.memory.take(self.stepping.iter().map(|row| row.growth).sum(), &mut self.plan) {
            let youngest = self.stepping.iter().enumerate().max_by_key(|(_, row)| row.id);
            let Some((index, row)) = youngest.map(|(index, row)| (index, *row)) else { return };
            if self.stepping.len() == 1 && self.chunked.is_empty() && !prefill {
                self.plan.refuse = Some(self.memory.refusal(row.id, row.growth));
                self.stepping.clear();
                return;
            }
            self.stepping.remove(index);
            self.plan.preempt.push(row.id);
            self.memory.give(row.bytes);
        }
    }

    /// The prompt tokens of this step. New prompts come first, so that a short one does not wait for the end of a long one. A
    /// prefill that is under way lets only short prompts pass, and only every other step.
    fn next_prefill(&mut self, under_way: bool, is_alone: bool) -> Option<Prefill> {
        let chunk = self.view.prefill_chunk;
        let most = if under_way { self.view.short_prompt.min(chunk) } else { chunk };
        let begun = self.chunked.iter().map(|prompt| Candidate {
            part: Part { row: prompt.id, tokens: chunk.min(prompt.tokens - prompt.prefilled) },
            solo: prompt.solo,
            bytes: 0,
            bytes_beside_others: 0,
        });
        let begun: Vec<_> = begun.filter(|_| !under_way).collect();
        let mut fresh = if under_way && self.view.preempted { Vec::new() } else { self.fresh(chunk) };
        if under_way && fresh.first().is_some_and(|first| first.part.tokens > most) {
            fresh.clear();
        }
        let first = fresh.first().map(|first| (first.part.row, first.bytes));
        let group = together(fresh.into_iter().chain(begun.iter().copied()), most);
        let mut parts = self.that_fit(&group);
        if parts.is_empty() {
            // Others give memory back when they end. Where there are none, waiting is of no use.
            if let (Some((row, bytes)), true, None) = (first, is_alone, &self.plan.refuse) {
                self.plan.refuse = Some(self.memory.refusal(row, bytes));
            }
            parts = together(begun.into_iter(), most).iter().map(|one| one.part).collect();
        }
        match parts.is_empty() {
            true => under_way.then_some(Prefill::Continue),
            false => Some(Prefill::Begin(parts)),
        }
    }

    /// The first parts of the prompts that wait and find a place.
    fn fresh(&self, chunk: usize) -> Vec<Candidate> {
        let live = self.view.waiting.iter().filter(|prompt| !self.view.cancelled.contains(&prompt.id));
        let candidate = |prompt: &WaitingPrompt| Candidate {
            part: Part { row: prompt.id, tokens: chunk.min(prompt.tokens - prompt.cached) },
            solo: prompt.solo,
            bytes: prompt.bytes,
            bytes_beside_others: prompt.bytes_beside_others,
        };
        live.take(self.free_places).map(candidate).collect()
    }

    /// The parts, first to last, that memory holds side by side; or else the first, if it holds that alone.
    fn that_fit(&mut self, group: &[Candidate]) -> Vec<Part> {
        let mut fit = |group: &[Candidate], is_alone: bool| -> Vec<Part> {
            let beside = |one: &Candidate| if is_alone { 0 } else { one.bytes_beside_others };
            let parts = group.iter().map_while(|one| {
                self.memory.take(one.bytes.saturating_add(beside(one)), &mut self.plan).then_some(one.part)
            });
            parts.collect()
        };
        let parts = fit(group, group.len() == 1);
        if parts.is_empty() { fit(&group[..group.len().min(1)], true) } else { parts }
    }

    /// The rows that decode: one batch, and each row by itself that cannot be part of it.
    fn batches(&self) -> Vec<Vec<RowId>> {
        let (solo, together): (Vec<&DecodingRow>, Vec<_>) = self.stepping.iter().partition(|row| row.solo);
        let together: Vec<_> = together.iter().map(|row| row.id).collect();
        let solo = solo.iter().map(|row| vec![row.id]);
        std::iter::once(together).filter(|batch| !batch.is_empty()).chain(solo).collect()
    }
}

/// A part of a prompt that may be computed next.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    part: Part,
    solo: bool,
    bytes: u64,
    bytes_beside_others: u64,
}

/// The first of these, and others where they fit one prefill of `most` tokens together, with padding to one length.
fn together(candidates: impl Iterator<Item = Candidate>, most: usize) -> Vec<Candidate> {
    let mut group: Vec<Candidate> = Vec::new();
    let (mut longest, mut total) = (0, 0);
    for one in candidates {
        let tokens = one.part.tokens;
        let padded = tokens.max(longest) * (group.len() + 1);
        let fits = !one.solo && padded <= most && padded <= 2 * (total + tokens);
        if group.is_empty() || fits {
            group.push(one);
        }
        if !fits {
            break;
        }
        (longest, total) = (longest.max(tokens), total + tokens);
    }
    group
}

/// The memory that a plan can give out.
struct Memory {
    /// `None` where nothing limits it.
    free: Option<u64>,
    evictable: u64,
    /// Rows that can release their keys and values, oldest first.
    paused: Vec<DecodingRow>,
}

impl Memory {
    /// Takes so many bytes, if need be from the prefix cache and then from paused rows; whether there were as many.
    fn take(&mut self, bytes: u64, plan: &mut Plan) -> bool {
        let Some(free) = &mut self.free else { return true };
        let held: u64 = self.paused.iter().map(|row| row.bytes).sum();
        if bytes > *free + self.evictable + held {
            return false;
        }
        let evict = bytes.saturating_sub(*free).min(self.evictable);
        plan.evict += evict;
        self.evictable -= evict;
        *free += evict;
        while bytes > *free
            && let Some(row) = self.paused.pop()
        {
            plan.preempt.push(row.id);
            *free += row.bytes;
        }
        *free -= bytes;
        true
    }

    fn give(&mut self, bytes: u64) {
        self.free = self.free.map(|free| free + bytes);
    }

    fn refusal(&self, row: RowId, needed: u64) -> Refusal {
        Refusal { row, needed, available: self.free.unwrap_or(u64::MAX) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: usize = 64;

    fn view(waiting: &[usize]) -> View {
        let waiting = waiting.iter().zip(0..).map(|(tokens, id)| prompt(id, *tokens)).collect();
        View { max_batch: 8, prefill_chunk: CHUNK, short_prompt: 16, waiting, ..View::default() }
    }

    fn prompt(id: u64, tokens: usize) -> WaitingPrompt {
        let bytes = tokens as u64;
        WaitingPrompt { id: RowId(id), tokens, cached: 0, solo: false, bytes, bytes_beside_others: 0 }
    }

    fn row(id: u64) -> DecodingRow {
        DecodingRow {
            id: RowId(id),
            wants_more: true,
            reader_is_behind: false,
            solo: false,
            bytes: 50,
            growth: 0,
        }
    }

    fn rows(ids: impl IntoIterator<Item = u64>) -> Vec<DecodingRow> {
        ids.into_iter().map(row).collect()
    }

    fn ids(ids: impl IntoIterator<Item = u64>) -> Vec<RowId> {
        ids.into_iter().map(RowId).collect()
    }

    fn prefill(view: &View) -> Option<Prefill> {
        Plan::new(view).prefill
    }

    /// So many tokens of each of these.
    fn begin<const N: usize>(parts: [(u64, usize); N]) -> Option<Prefill> {
        Some(Prefill::Begin(parts.map(|(row, tokens)| Part { row: RowId(row), tokens }).into()))
    }

    #[test]
    fn short_prompts_are_grouped_while_they_fit_a_chunk_without_much_padding() {
        assert_eq!(prefill(&view(&[])), None);
        assert_eq!(prefill(&view(&[10, 12, 9])), begin([(0, 10), (1, 12), (2, 9)]));
        // Four rows of 20 are more than a chunk.
        assert_eq!(prefill(&view(&[10, 12, 9, 20])), begin([(0, 10), (1, 12), (2, 9)]));
        // More than half of what 3, 3 and 20 would compute together is padding.
        assert_eq!(prefill(&view(&[3, 3, 20])), begin([(0, 3), (1, 3)]));
        assert_eq!(prefill(&view(&[100, 3])), begin([(0, CHUNK)]));
        // The places in the batch bound a group.
        let full = View { decoding: rows(10..15), ..view(&[5; 8]) };
        assert_eq!(prefill(&full), begin([(0, 5), (1, 5), (2, 5)]));
        let full = View { decoding: rows(10..18), ..view(&[5; 8]) };
        assert_eq!(prefill(&full), None);
    }

    #[test]
    fn prompts_whose_beginnings_are_cached_compute_the_rest_together() {
        let mut view = view(&[200, 20, 150]);
        for (prompt, cached) in view.waiting.iter_mut().zip([190, 8, 133]) {
            prompt.cached = cached;
        }
        assert_eq!(prefill(&view), begin([(0, 10), (1, 12), (2, 17)]));
        view.waiting[1].solo = true;
        assert_eq!(prefill(&view), begin([(0, 10)]));
        view.waiting.swap(0, 1);
        assert_eq!(prefill(&view), begin([(1, 12)]));
    }

    #[test]
    fn the_ends_of_long_prompts_are_computed_beside_others() {
        let chunked = |id, left: usize| ChunkedPrompt {
            id: RowId(id),
            tokens: 200,
            prefilled: 200 - left,
            solo: false,
        };
        let mut view = View { chunked: vec![chunked(7, 12), chunked(8, 9), chunked(9, 100)], ..view(&[10]) };
        assert_eq!(prefill(&view), begin([(0, 10), (7, 12), (8, 9)]));
        view.chunked.rotate_left(2);
        assert_eq!(prefill(&view), begin([(0, 10)]));
        view.waiting.clear();
        assert_eq!(prefill(&view), begin([(9, CHUNK)]));
        view.chunked.rotate_left(1);
        assert_eq!(prefill(&view), begin([(7, 12), (8, 9)]));
    }

    #[test]
    fn short_prompts_pass_a_long_one_every_other_step() {
        let mut view = View { prefill: Some(ids([90])), ..view(&[10, 5]) };
        assert_eq!(prefill(&view), begin([(0, 10)]), "both are 20 tokens with padding, and 16 may pass");
        view.preempted = true;
        assert_eq!(prefill(&view), Some(Prefill::Continue));
        view.preempted = false;
        view.waiting = vec![prompt(0, 17)];
        assert_eq!(prefill(&view), Some(Prefill::Continue));
        // Between two chunks a new prompt is first, whatever its length, and then prompts take turns.
        view.prefill = None;
        view.chunked = vec![ChunkedPrompt { id: RowId(7), tokens: 200, prefilled: 128, solo: false }];
        view.waiting = vec![prompt(0, 100)];
        assert_eq!(prefill(&view), begin([(0, CHUNK)]));
        view.waiting.clear();
        assert_eq!(prefill(&view), begin([(7, CHUNK)]));
    }

    #[test]
    fn paused_rows_give_up_their_place_and_come_back_before_new_prompts() {
        let behind = |id| DecodingRow { reader_is_behind: true, ..row(id) };
        let mut view = View { max_batch: 2, ..view(&[5, 5]) };
        view.decoding = vec![behind(10), behind(11)];
        let plan = Plan::new(&view);
        assert_eq!((plan.pause, plan.decode), (ids([10, 11]), vec![]));
        assert_eq!(plan.prefill, begin([(0, 5), (1, 5)]));
        view.decoding = vec![row(12)];
        view.paused = vec![behind(10), row(11)];
        let plan = Plan::new(&view);
        assert_eq!((plan.resume, plan.decode, plan.prefill), (ids([11]), vec![ids([12, 11])], None));
    }

    #[test]
    fn rows_of_a_step_that_failed_decode_by_themselves() {
        let solo = |id| DecodingRow { solo: true, ..row(id) };
        let done = DecodingRow { wants_more: false, ..row(5) };
        let view = View { decoding: vec![row(1), solo(2), row(3), solo(4), done], ..view(&[]) };
        assert_eq!(Plan::new(&view).decode, [ids([1, 3]), ids([2]), ids([4])]);
    }

    #[test]
    fn cancelled_rows_do_nothing_more_and_hold_no_place() {
        let mut view = View { max_batch: 1, prefill: Some(ids([90])), ..view(&[5, 5]) };
        view.cancelled = ids([0, 10, 90]);
        view.decoding = rows([10]);
        let plan = Plan::new(&view);
        assert_eq!((plan.cancel, plan.decode, plan.prefill), (ids([0, 10, 90]), vec![], begin([(1, 5)])));
    }

    #[test]
    fn memory_comes_from_the_prefix_cache_then_from_paused_rows_then_from_the_youngest() {
        let behind = |id| DecodingRow { reader_is_behind: true, ..row(id) };
        let grows = |id| DecodingRow { growth: 60, ..row(id) };
        let mut view = View { free_bytes: Some(100), evictable_bytes: 30, ..view(&[]) };
        let planned = |view: &View| {
            let plan = Plan::new(view);
            (plan.evict, plan.preempt, plan.decode.concat())
        };
        view.decoding = vec![grows(1), grows(2)];
        assert_eq!(planned(&view), (20, vec![], ids([1, 2])));
        view.paused = vec![behind(3), behind(4)];
        view.free_bytes = Some(70);
        assert_eq!(planned(&view), (30, ids([4]), ids([1, 2])));
        view.paused.clear();
        assert_eq!(planned(&view), (0, ids([2]), ids([1])), "one of 60 fits into 70");
    }

    #[test]
    fn a_prompt_waits_for_memory_that_others_hold_and_is_refused_where_nobody_does() {
        let mut view = View { free_bytes: Some(30), decoding: rows([10]), ..view(&[40]) };
        let plan = Plan::new(&view);
        assert_eq!((plan.prefill, plan.refuse), (None, None));
        view.decoding.clear();
        let plan = Plan::new(&view);
        let refusal = Refusal { row: RowId(0), needed: 40, available: 30 };
        assert_eq!((plan.prefill, plan.refuse), (None, Some(refusal)));
        // Of a group those begin that fit.
        view.waiting = vec![prompt(0, 10), prompt(1, 10), prompt(2, 11)];
        assert_eq!(prefill(&view), begin([(0, 10), (1, 10)]));
        // Beside others the first would not fit, alone it does.
        view.waiting = vec![prompt(0, 25), prompt(1, 20)];
        view.waiting.iter_mut().for_each(|prompt| prompt.bytes_beside_others = 10);
        assert_eq!(prefill(&view), begin([(0, 25)]));
        // A row that cannot grow, even alone.
        view.waiting.clear();
        view.decoding = vec![DecodingRow { growth: 31, ..row(10) }];
        let plan = Plan::new(&view);
        assert_eq!(plan.refuse, Some(Refusal { row: RowId(10), needed: 31, available: 30 }));
        assert!(plan.decode.is_empty() && plan.preempt.is_empty());
    }
}
