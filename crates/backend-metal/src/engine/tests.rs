//! The scheduler with a model whose next token is known, and which fails on demand.

use std::{
    cell::{Cell, RefCell},
    path::Path,
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use futures::{FutureExt as _, StreamExt as _};
use inference_core::{
    CancellationToken, Error, Finish, FinishReason, GenerateOptions, ModelInfo, TokenStream,
    backend::{ResponseWriter, SharedStats},
};
use inference_text::TextPipeline;
use mlx_rs::{
    Array, Dtype, Stream,
    error::{Exception, Result},
    ops,
};

use super::{
    budget::Budget,
    load::decode_steps,
    row::Request,
    scheduler::{EngineConfig, Progress, Scheduler},
    session::{SessionId, SessionTurn},
};
use crate::mlx::{Device, QuantizationMode, QuantizationScheme};
use crate::nn::{Architecture, KvCache, LayerState, ModelConfig, Rows, TrainMode, registry::ParamRegistry};

const VOCAB: u32 = 2048;

/// The token that follows `id` in every text of the fake model.
pub(super) fn next(id: u32) -> u32 {
    (7 * id + 3) % 1000 + 100
}

/// The tokens that follow a prompt which ends with `id`.
fn answer(id: u32, tokens: usize) -> Vec<u32> {
    std::iter::successors(Some(next(id)), |id| Some(next(*id))).take(tokens).collect()
}

type Fault = Box<dyn Fn(&[u32], usize) -> bool>;

/// A model of one layer whose hidden states are its tokens.
pub(super) struct Fake {
    config: ModelConfig,
    registry: ParamRegistry,
    /// Rows and tokens of each forward pass.
    pub(super) passes: RefCell<Vec<(usize, usize)>>,
    /// Whether a pass of these tokens in so many rows fails.
    fault: RefCell<Fault>,
    /// A fault is a panic.
    panics: Cell<bool>,
    /// Every logit is NaN after this token.
    poison: Cell<Option<u32>>,
}

impl Fake {
    pub(super) fn new() -> Rc<Self> {
        let config = ModelConfig {
            vocab_size: VOCAB as usize,
            layers: 1,
            hidden_size: 1,
            context_length: 1 << 20,
            kv_heads: 1,
            head_dim: 1,
            states: vec![LayerState::attention(None, 2)],
            dtype: "f32".to_owned(),
            ..ModelConfig::default()
        };
        Rc::new(Self {
            config,
            registry: ParamRegistry::default(),
            passes: RefCell::default(),
            fault: RefCell::new(Box::new(|_, _| false)),
            panics: Cell::new(false),
            poison: Cell::new(None),
        })
    }

    fn fails_where(&self, fault: impl Fn(&[u32], usize) -> bool + 'static) {
        *self.fault.borrow_mut() = Box::new(fault);
    }
}

impl Architecture for Fake {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn new_cache(&self) -> KvCache {
        KvCache::new([None])
    }

    fn hidden(&self, tokens: &Array, rows: Rows<'_>) -> Result<Array> {
        let (batch, count) = (tokens.dim(0), tokens.dim(1));
        let ids = tokens.to_vec_exact::<u32>().map_err(|error| Exception::custom(error.to_string()))?;
        self.passes.borrow_mut().push((batch as usize, count as usize));
        if (self.fault.borrow())(&ids, batch as usize) {
            assert!(!self.panics.get(), "the fake panics");
            return Err(Exception::custom("the fake fails"));
        }
        let states = tokens.as_dtype(Dtype::Float32)?;
        match rows {
            Rows::Cached { caches, lengths } => {
                for (row, (cache, ids)) in caches.iter_mut().zip(ids.chunks(count as usize)).enumerate() {
                    let own = lengths.map_or(count as usize, |lengths| lengths[row]);
                    let ids: Vec<f32> = ids.iter().map(|id| *id as f32).collect();
                    let new = Array::from_slice(&ids, &[1, 1, count, 1]);
                    cache.update(0, [&new, &new], own)?;
                    cache.advance(own);
                }
            }
            Rows::Prefixed { .. } | Rows::Uncached | Rows::Packed(_) => {}
        }
        states.expand_dims(2)
    }

    fn hidden_for_training(&self, _: &Array, _: &TrainMode<'_>) -> Result<Array> {
        Err(Exception::custom("the fake does not learn"))
    }

    fn registry(&self) -> &ParamRegistry {
        &self.registry
    }

    fn logits(&self, hidden: &Array) -> Result<Array> {
        let ids =
            hidden.reshape(&[-1])?.to_vec_exact::<f32>().map_err(|e| Exception::custom(e.to_string()))?;
        let following: Vec<f32> = ids.iter().map(|id| next(*id as u32) as f32).collect();
        let columns = ops::arange::<_, f32>(0, VOCAB as i32, None)?;
        let following = Array::from_slice(&following, &[following.len() as i32, 1]);
        let mut logits = columns.subtract(following)?.abs()?.negative()?;
        if ids.iter().any(|id| self.poison.get() == Some(*id as u32)) {
            logits = logits.multiply(Array::from_f32(f32::NAN))?;
        }
        let shape = [&hidden.shape()[..hidden.ndim() - 1], &[VOCAB as i32]].concat();
        logits.reshape(&shape)
    }
}

/// A scheduler of the fake model.
struct Bench {
    model: Rc<Fake>,
    scheduler: Scheduler,
    text: TextPipeline,
    info: ModelInfo,
    stats: SharedStats,
    free: Rc<Cell<Option<u64>>>,
}

impl Bench {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut EngineConfig)) -> Self {
        let model = Fake::new();
        let mut config = EngineConfig {
            backend: "cpu",
            max_batch: 8,
            prefill_chunk: 64,
            context_length: 1 << 20,
            prefix_cache: 0,
            kv_scheme: None,
            disable_cpu_kernels: false,
            disable_cuda_graphs: false,
        };
        change(&mut config);
        let free = Rc::new(Cell::new(None));
        let left = free.clone();
        let budget = Budget::new(&model.config, None, move || left.get());
        let scheduler = Scheduler::new(model.clone(), Stream::cpu(), config, budget);
        let demo = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo"));
        let text = TextPipeline::load(demo).unwrap();
        let mut info = ModelInfo::default();
        (info.backend, info.context_length) = ("cpu".to_owned(), 1 << 20);
        Self { model, scheduler, text, info, stats: SharedStats::default(), free }
    }

    /// Hands over a request of `len` prompt tokens that end with `last`, for `tokens` more.
    fn request(&mut self, len: usize, last: u32, tokens: usize) -> TokenStream {
        self.request_with(len, last, GenerateOptions::new().max_tokens(tokens).ignore_eos(true))
    }

    fn request_with(&mut self, len: usize, last: u32, options: GenerateOptions) -> TokenStream {
        self.request_of(None, len, last, options)
    }

    /// The same as a turn of a session.
    fn turn(&mut self, id: SessionId, len: usize, last: u32) -> TokenStream {
        let text = Arc::new(tokio::sync::Mutex::new(Vec::new())).try_lock_owned().unwrap();
        let options = GenerateOptions::new().max_tokens(4).ignore_eos(true);
        self.request_of(Some(SessionTurn { id, text }), len, last, options)
    }

    fn request_of(
        &mut self,
        turn: Option<SessionTurn>,
        len: usize,
        last: u32,
        options: GenerateOptions,
    ) -> TokenStream {
        let prompt: Vec<u32> = (0..len as u32 - 1).map(|n| 5 + n % 50).chain([last]).collect();
        let detokenizer = self.text.tokenizer().detokenizer(true);
        let (writer, stream) =
            ResponseWriter::channel(&self.info, &self.stats, detokenizer, &options, len, Instant::now())
                .unwrap();
        self.scheduler.push(Request {
            prompt,
            options,
            budget: None,
            shape: None,
            eos: Vec::new(),
            turn,
            writer,
        });
        stream
    }

    fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.scheduler.step();
        }
    }

    /// Runs while all these streams are read, until all have ended.
    fn run<const N: usize>(&mut self, mut streams: [TokenStream; N]) -> [Outcome; N] {
        let mut read = [const { Vec::new() }; N];
        let mut ended = [const { None }; N];
        for _ in 0..10_000 {
            self.scheduler.step();
            for ((stream, read), ended) in streams.iter_mut().zip(&mut read).zip(&mut ended) {
                while ended.is_none()
                    && let Some(item) = stream.next().now_or_never()
                {
                    match item {
                        Some(Ok(token)) => read.push(token.id),
                        Some(Err(error)) => *ended = Some(Err(error)),
                        None => *ended = stream.finish().now_or_never(),
                    }
                }
            }
            if ended.iter().all(Option::is_some) {
                let mut read = read.into_iter();
                return ended.map(|end| {
                    let ids = read.next().unwrap();
                    end.unwrap().map(|finish| (ids, finish))
                });
            }
        }
        panic!("a request hangs: {read:?}, {ended:?}");
    }

    fn passes(&self) -> Vec<(usize, usize)> {
        self.model.passes.take()
    }
}

type Outcome = std::result::Result<(Vec<u32>, Finish), Error>;

/// That the text is as long and as right as it should be.
fn is_answer(outcome: &Outcome, last: u32, tokens: usize) {
    let (ids, finish) = outcome.as_ref().unwrap();
    assert_eq!((ids, &finish.reason), (&answer(last, tokens), &FinishReason::Length));
}

#[test]
fn requests_of_all_lengths_are_answered() {
    let mut bench = Bench::new();
    let streams = [(3, 5), (4, 6), (150, 7), (64, 8), (9, 9)].map(|(len, last)| bench.request(len, last, 12));
    let outcomes = bench.run(streams);
    for (outcome, last) in outcomes.iter().zip(5..) {
        is_answer(outcome, last, 12);
    }
    let passes = bench.passes();
    assert!(passes.contains(&(2, 4)), "the first two are one prefill: {passes:?}");
    assert!(passes.contains(&(5, 1)), "all decode together: {passes:?}");
    assert_eq!(bench.stats.snapshot().active, 0);
    assert_eq!(bench.scheduler.step(), Progress::Idle);
}

/// In each round, two texts are computed in these passes, the tokens that follow aside, and so many of their tokens were cached.
#[test]
fn texts_that_go_on_are_computed_together() {
    let sessions = [SessionId::new(), SessionId::new()];
    let rounds = [
        ([20, 30], [0, 0], vec![(2, 30)]),
        ([40, 33], [19, 29], vec![(2, 21)]),
        // More than a chunk: the ends of both are one pass.
        ([39 + 64 + 6, 32 + 64 + 4], [39, 32], vec![(1, 64), (1, 64), (2, 6)]),
    ];
    let mut bench = Bench::new();
    for (lengths, cached, expected) in &rounds {
        let streams = [0, 1].map(|row| bench.turn(sessions[row], lengths[row], 5 + row as u32));
        for ((outcome, last), cached) in bench.run(streams).iter().zip(5..).zip(cached) {
            is_answer(outcome, last, 4);
            assert_eq!(outcome.as_ref().unwrap().1.metrics.cached_tokens, *cached);
        }
        let passes: Vec<_> = bench.passes().into_iter().filter(|pass| pass.1 > 1).collect();
        assert_eq!(passes, *expected);
    }
    // Prompts that begin as one did that has ended.
    let mut bench = Bench::with(|config| config.prefix_cache = 1 << 20);
    let first = bench.request(60, 5, 4);
    is_answer(&bench.run([first])[0], 5, 4);
    bench.passes();
    let streams = [(70, 6), (75, 7), (65, 8)].map(|(len, last)| bench.request(len, last, 4));
    for (outcome, last) in bench.run(streams).iter().zip(6..) {
        is_answer(outcome, last, 4);
        assert_eq!(outcome.as_ref().unwrap().1.metrics.cached_tokens, 59);
    }
    assert_eq!(bench.passes()[0], (3, 16));
}

/// One of two turns is given up in the midst of their prefill; the other goes on, and the next turns are right.
#[test]
fn a_turn_that_is_cancelled_beside_another_keeps_what_was_before_it() {
    let sessions = [SessionId::new(), SessionId::new()];
    let mut bench = Bench::new();
    let streams = [0, 1].map(|row| bench.turn(sessions[row], 20, 5 + row as u32));
    bench.run(streams).iter().zip(5..).for_each(|(outcome, last)| is_answer(outcome, last, 4));
    let streams = [0, 1].map(|row| bench.turn(sessions[row], 40, 5 + row as u32));
    bench.steps(1);
    let [dropped, kept] = streams;
    drop(dropped);
    is_answer(&bench.run([kept])[0], 6, 4);
    let streams = [0, 1].map(|row| bench.turn(sessions[row], 50, 5 + row as u32));
    for (outcome, last) in bench.run(streams).iter().zip(5..) {
        is_answer(outcome, last, 4);
    }
}

#[test]
fn a_short_prompt_does_not_wait_for_a_long_one_and_long_ones_take_turns() {
    let mut bench = Bench::new();
    let (long, other) = (bench.request(64 * 4, 5, 1), bench.request(64 * 3, 6, 1));
    bench.steps(3);
    let short = bench.request(3, 7, 1);
    let outcomes = bench.run([long, other, short]);
    for (outcome, last) in outcomes.iter().zip(5..) {
        is_answer(outcome, last, 1);
    }
    let passes = bench.passes();
    let place = passes.iter().position(|pass| *pass == (1, 3)).unwrap();
    assert!(place < passes.len() - 2, "the short one was last: {passes:?}");
    assert_eq!(passes.iter().filter(|pass| pass.1 == 64).count(), 7, "{passes:?}");
}

#[test]
fn a_row_that_fails_in_a_decode_step_fails_alone() {
    for panics in [false, true] {
        let mut bench = Bench::new();
        bench.model.panics.set(panics);
        let culprit = answer(6, 5)[3];
        bench.model.fails_where(move |ids, _| ids.len() < 9 && ids.contains(&culprit));
        let streams = [5, 6, 7, 8].map(|last| bench.request(10, last, 20));
        let outcomes = bench.run(streams);
        for (outcome, last) in outcomes.iter().zip(5..) {
            if last == 6 {
                let error = outcome.as_ref().unwrap_err().to_string();
                assert!(error.contains("cpu"), "{error}");
            } else {
                is_answer(outcome, last, 20);
            }
        }
        let stats = bench.stats.snapshot();
        assert_eq!((stats.active, stats.failed), (0, 1));
    }
}

#[test]
fn rows_that_fail_only_together_are_all_answered() {
    // In the prefill of several prompts, in a decode step, and wherever rows are together.
    let faults: [fn(&[u32], usize) -> bool; 3] = [
        |ids, rows| rows > 1 && ids.len() > rows,
        |ids, rows| rows > 1 && ids.len() == rows,
        |_, rows| rows > 1,
    ];
    for fault in faults {
        let mut bench = Bench::new();
        bench.model.fails_where(fault);
        let streams = [5, 6, 7].map(|last| bench.request(10, last, 20));
        for (outcome, last) in bench.run(streams).iter().zip(5..) {
            is_answer(outcome, last, 20);
        }
    }
}

#[test]
fn a_fault_that_passes_costs_nobody_the_answer() {
    let mut bench = Bench::with(|config| config.prefix_cache = 1 << 20);
    let left = Cell::new(2);
    bench.model.fails_where(move |ids, _| {
        ids.len() == 1 && left.replace(left.get() - i32::from(left.get() > 0)) == 1
    });
    let stream = bench.request(30, 5, 20);
    is_answer(&bench.run([stream])[0], 5, 20);
}

#[test]
fn logits_that_are_no_numbers_end_their_request_alone() {
    let mut bench = Bench::new();
    bench.model.poison.set(Some(answer(5, 4)[2]));
    let alone = bench.request(10, 5, 20);
    let [outcome] = bench.run([alone]);
    let error = outcome.unwrap_err();
    assert!(matches!(&error, Error::Backend { .. }));
    let text = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    let text: String = text.map(ToString::to_string).collect();
    assert!(text.contains("not finite"), "{text}");
    // In the prefill.
    bench.model.poison.set(Some(5));
    let alone = bench.request(10, 5, 20);
    assert!(bench.run([alone])[0].is_err());
}

#[test]
fn paused_rows_give_up_their_place_and_lose_nothing() {
    let mut bench = Bench::with(|config| config.max_batch = 2);
    let unread = [bench.request(10, 5, 120), bench.request(10, 6, 120)];
    bench.steps(150);
    let third = bench.request(10, 7, 20);
    is_answer(&bench.run([third])[0], 7, 20);
    assert_eq!(bench.scheduler.step(), Progress::Blocked);
    for (outcome, last) in bench.run(unread).iter().zip(5..) {
        is_answer(outcome, last, 120);
    }
}

#[test]
fn a_request_can_be_cancelled_wherever_it_is() {
    let mut bench = Bench::with(|config| config.max_batch = 3);
    let cancel = CancellationToken::new();
    let options = || GenerateOptions::new().max_tokens(400).ignore_eos(true).cancel(cancel.clone());
    // One decodes, one pauses, one is in its prompt, one waits for a place; and one is not cancelled.
    let mut streams = vec![bench.request_with(10, 5, options()), bench.request_with(10, 6, options())];
    bench.steps(64);
    for _ in 0..10 {
        streams[0].next().now_or_never().unwrap().unwrap().unwrap();
    }
    bench.steps(8);
    streams.push(bench.request_with(64 * 50, 7, options()));
    streams.push(bench.request_with(64 * 50, 8, options()));
    bench.steps(3);
    let other = bench.request(10, 9, 5);
    cancel.cancel();
    bench.scheduler.step();
    for mut stream in streams {
        let finish = stream.finish().now_or_never().expect("one step ends it").unwrap();
        assert_eq!(finish.reason, FinishReason::Cancelled);
    }
    is_answer(&bench.run([other])[0], 9, 5);
    assert_eq!((bench.stats.snapshot().cancelled, bench.stats.snapshot().active), (4, 0));
    assert!(bench.passes().iter().filter(|pass| pass.1 == 64).count() < 8, "the prompts were computed");
}

#[test]
fn what_memory_cannot_hold_is_refused_and_the_rest_goes_on() {
    let mut bench = Bench::new();
    bench.free.set(Some(1 << 20));
    // Two floats for each position.
    let (large, small) = (bench.request(200_000, 5, 3), bench.request(10, 6, 3));
    let [large, small] = bench.run([large, small]);
    assert!(
        matches!(large, Err(Error::OutOfMemory { needed, available, .. }) if needed > available),
        "{large:?}"
    );
    is_answer(&small, 6, 3);
    assert_eq!(bench.stats.snapshot().active, 0);
}

#[test]
fn rows_that_outgrow_memory_are_computed_again_when_others_have_ended() {
    let mut bench = Bench::new();
    let streams = [bench.request(200, 5, 100), bench.request(200, 6, 100)];
    bench.steps(3);
    // One of them can grow, past 256 positions.
    bench.free.set(Some(2 * bench.scheduler.budget.step() + 10_000));
    for (outcome, last) in bench.run(streams).iter().zip(5..) {
        is_answer(outcome, last, 100);
    }
    // One that cannot grow although nobody else is there.
    bench.free.set(None);
    let stream = bench.request(200, 5, 100);
    bench.steps(3);
    bench.free.set(Some(100));
    let [outcome] = bench.run([stream]);
    assert!(matches!(outcome, Err(Error::OutOfMemory { .. })), "{outcome:?}");
}

#[test]
fn closing_ends_everything_as_cancelled() {
    let mut bench = Bench::with(|config| config.max_batch = 2);
    let streams = [(10, 5), (10, 6), (64 * 50, 7), (10, 8)].map(|(len, last)| bench.request(len, last, 400));
    bench.steps(30);
    bench.scheduler.close();
    for mut stream in streams {
        assert_eq!(stream.finish().now_or_never().unwrap().unwrap().reason, FinishReason::Cancelled);
    }
    assert_eq!(bench.stats.snapshot().active, 0);
}

#[test]
fn nothing_is_kept_of_a_dropped_stream() {
    let mut bench = Bench::new();
    drop(bench.request(10, 5, 400));
    bench.steps(2);
    assert_eq!(bench.scheduler.step(), Progress::Idle);
    assert_eq!((bench.stats.snapshot().cancelled, bench.stats.snapshot().active), (1, 0));
}

#[test]
fn decode_steps_say_what_computes_them() {
    let mut bench = Bench::new();
    bench.scheduler.use_cuda_graphs();
    assert_eq!(bench.scheduler.cuda.to_string(), "MLX's operations: no CUDA here");
    let one_by_one = "the CPU's kernels, operation by operation: ";
    let scheme = QuantizationScheme { mode: QuantizationMode::Affine, bits: 8, group_size: 64 };
    let says = |change: &dyn Fn(&mut EngineConfig)| decode_steps(Device::Cpu, &Bench::with(change).scheduler);
    assert_eq!(says(&|_| ()), format!("{one_by_one}models of this family"));
    let quantised = says(&|config| config.kv_scheme = Some(scheme));
    assert_eq!(quantised, format!("{one_by_one}keys and values are quantised"));
    assert_eq!(says(&|config| config.disable_cpu_kernels = true), "MLX's operations");
    let mut bench = Bench::with(|config| config.disable_cuda_graphs = true);
    bench.scheduler.use_cuda_graphs();
    assert_eq!(bench.scheduler.cuda.to_string(), "MLX's operations: the option DisableCudaGraphs is set");
    // The request is computed all the same.
    let stream = bench.request(4, 7, 3);
    let [outcome] = bench.run([stream]);
    is_answer(&outcome, 7, 3);
}
