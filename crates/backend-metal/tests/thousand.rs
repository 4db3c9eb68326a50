//! A thousand requests, ten at a time: whatever runs beside one, and whatever becomes of the others, it gives what it gives
//! alone, ends, and leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::time::{Duration, Instant};

use backend_metal::DisableCpuKernels;
use futures::{StreamExt as _, future::join_all};
use inference_core::{
    CancellationToken, Finish, FinishReason, GenerateOptions, LoadOptions, Prompt, TextModel,
    TextModelExt as _, Token, TokenStream, load_model,
};
use proptest::{
    prelude::*,
    sample::select,
    strategy::ValueTree as _,
    test_runner::{RngAlgorithm, TestRng, TestRunner},
};

/// Requests that differ, and how often each is sent.
const DIFFERENT: usize = 125;
const TIMES: usize = 8;
const AT_ONCE: usize = 10;

/// A stream that is silent for so long hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of keys and values that the model may keep of ended texts.
const PREFIX_CACHE: u64 = 1 << 20;

/// What memory may differ by otherwise: a few buffers of the last requests.
const SLACK: u64 = 1 << 20;

#[derive(Debug, Clone)]
struct Request {
    prompt: Vec<u32>,
    options: GenerateOptions,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Read,
    CancelAfter(usize),
    DropAfter(usize),
    LeaveUnread,
}

/// Prompts begin alike now and then, as those of a conversation do.
fn requests() -> impl Strategy<Value = Request> {
    let shared = select(vec![0usize, 0, 20, 40]);
    let own = proptest::collection::vec(3u32..2048, 1..40);
    let prompt = (shared, own).prop_map(|(shared, own)| (100..100 + shared as u32).chain(own).collect());
    let lengths = (1usize..16, proptest::option::weighted(0.2, 1usize..6), any::<bool>());
    let drawn = proptest::option::weighted(0.6, (0.2..1.5f32, any::<u64>()));
    let filters = (
        proptest::option::weighted(0.3, 0.3..1.0f32),
        proptest::option::weighted(0.3, 1usize..50),
        proptest::option::weighted(0.2, 0.0..0.2f32),
    );
    let penalty = proptest::option::weighted(0.3, 1.0..1.5f32);
    let extras = (proptest::option::weighted(0.3, select(vec!["the", "e", ". ", "\n"])), 0u8..10);
    (prompt, lengths, drawn, filters, penalty, extras).prop_map(
        |(prompt, (max, min, past_the_end), drawn, (top_p, top_k, min_p), penalty, (stop, extra))| {
            let mut options = GenerateOptions::new().max_tokens(max).ignore_eos(past_the_end);
            options.min_tokens = min.filter(|min| *min <= max);
            if let Some((temperature, seed)) = drawn {
                options = options.temperature(temperature).seed(seed);
            }
            options.sampling.top_p = top_p;
            options.sampling.top_k = top_k;
            options.sampling.min_p = min_p;
            options.sampling.repetition_penalty = penalty;
            if let Some(stop) = stop {
                options = options.stop([stop]);
            }
            let options = match extra {
                0 => options.log_probabilities(2),
                1 => options.logits_processor(|_: &[u32], _: &[u32], logits: &mut [f32]| logits[300] += 2.0),
                2 => options.logit_bias([(301, 3.0), (5, f32::NEG_INFINITY)]),
                _ => options,
            };
            Request { prompt, options }
        },
    )
}

fn fates() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => Just(Fate::Read),
        1 => (0usize..8).prop_map(Fate::CancelAfter),
        1 => (0usize..8).prop_map(Fate::DropAfter),
        1 => Just(Fate::LeaveUnread),
    ]
}

/// So many values of the strategy, always the same ones.
fn drawn<T: std::fmt::Debug>(strategy: impl Strategy<Value = T>, count: usize) -> Vec<T> {
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), random);
    (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

async fn start(model: &dyn TextModel, request: &Request, cancel: CancellationToken) -> TokenStream {
    let options = request.options.clone().cancel(cancel);
    model.generate(Prompt::Tokens(request.prompt.clone()), options).await.unwrap()
}

/// Reads at most `limit` tokens; whether the stream ended before.
async fn read(stream: &mut TokenStream, limit: usize) -> Vec<Token> {
    let mut tokens = Vec::new();
    while tokens.len() < limit {
        let next = tokio::time::timeout(PATIENCE, stream.next()).await.expect("a stream hangs");
        let Some(token) = next else { break };
        tokens.push(token.unwrap());
    }
    tokens
}

async fn whole(model: &dyn TextModel, request: &Request) -> (Vec<Token>, Finish) {
    let mut stream = start(model, request, CancellationToken::new()).await;
    (read(&mut stream, usize::MAX).await, stream.finish().await.unwrap())
}

/// Sends a request to its fate and holds what comes against its lone run.
async fn live(model: &dyn TextModel, request: &Request, fate: Fate, alone: &(Vec<Token>, Finish)) {
    let (expected, finish) = alone;
    let ids = |tokens: &[Token]| tokens.iter().map(|token| token.id).collect::<Vec<_>>();
    let same_beginning = |tokens: &[Token]| {
        let beginning = &expected[..tokens.len().min(expected.len())];
        assert_eq!(ids(tokens), ids(beginning), "{request:?} {fate:?}");
    };
    let cancel = CancellationToken::new();
    let mut stream = start(model, request, cancel.clone()).await;
    match fate {
        Fate::DropAfter(count) => same_beginning(&read(&mut stream, count).await),
        Fate::CancelAfter(count) => {
            let mut tokens = read(&mut stream, count).await;
            cancel.cancel();
            tokens.extend(read(&mut stream, usize::MAX).await);
            same_beginning(&tokens);
            stream.finish().await.unwrap();
        }
        Fate::Read | Fate::LeaveUnread => {
            if matches!(fate, Fate::LeaveUnread) {
                // Others are served meanwhile.
                let short = GenerateOptions::new().max_tokens(2).ignore_eos(true);
                model.complete(Prompt::Tokens(vec![5, 6, 7]), short).await.unwrap();
            }
            let tokens = read(&mut stream, usize::MAX).await;
            let text = |tokens: &[Token]| tokens.iter().map(|token| token.text.as_str()).collect::<String>();
            assert_eq!(
                (ids(&tokens), text(&tokens)),
                (ids(expected), text(expected)),
                "{request:?} {fate:?}"
            );
            let reason = stream.finish().await.unwrap().reason;
            assert_eq!(reason, finish.reason, "{request:?}");
            assert_ne!(reason, FinishReason::Cancelled);
        }
    }
}

#[tokio::test]
async fn a_thousand_requests_are_each_as_if_alone() {
    requests_are_each_as_if_alone(LoadOptions::new(), DIFFERENT).await;
    // As on a GPU, where the keys and values of rows lie together: a tenth, for it takes longer.
    requests_are_each_as_if_alone(LoadOptions::new().extension(DisableCpuKernels), DIFFERENT / 10).await;
}

async fn requests_are_each_as_if_alone(options: LoadOptions, different: usize) {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo");
    let options = options.prefix_cache(PREFIX_CACHE).max_batch(6).prefill_chunk(16);
    let model = load_model(demo).backend("cpu").options(options).await.unwrap();
    let requests = drawn(requests(), different);
    let mut alone = Vec::new();
    for request in &requests {
        alone.push(whole(&*model, request).await);
    }
    let before = model.stats();

    let fates = drawn(fates(), different * TIMES);
    let unread = fates.iter().filter(|fate| matches!(fate, Fate::LeaveUnread)).count();
    let turns = fates.into_iter().enumerate().map(|(turn, fate)| {
        // The same request comes back beside others.
        let which = turn * 37 % different;
        live(&*model, &requests[which], fate, &alone[which])
    });
    futures::stream::iter(turns).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;

    // Dropped streams leave the engine by themselves, and so does the step that was under way for them.
    let level = before.memory.active_bytes + PREFIX_CACHE + SLACK;
    let until = Instant::now() + PATIENCE;
    let mut after = model.stats();
    while after.active > 0 || after.memory.active_bytes > level {
        assert!(Instant::now() < until, "at most {level} bytes ought to be in use: {after:?}");
        tokio::task::yield_now().await;
        after = model.stats();
    }
    let requests_made = (different * TIMES + unread) as u64;
    assert_eq!((after.requests - before.requests, after.failed), (requests_made, 0));

    // Those that are left when the model closes end.
    let mut held: Vec<_> =
        join_all(requests.iter().take(20).map(|request| start(&*model, request, CancellationToken::new())))
            .await;
    model.close().await.unwrap();
    for stream in &mut held {
        read(stream, usize::MAX).await;
        stream.finish().await.unwrap();
    }
}
