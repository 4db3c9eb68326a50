//! The scheduler on a real model: rows that join, leave, wait and are cancelled give what each would give alone.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{path::PathBuf, sync::Arc};

use backend_metal::DisableCpuKernels;
use futures::{StreamExt as _, future::join_all};
use inference_core::{
    CancellationToken, ClassifyOptions, ContextOverflow, Error, FinishReason, GenerateOptions, KvBits,
    LoadOptions, Message, Prompt, TextModel, TextModelExt as _, load_model,
};
use serde_json::json;

fn demo() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo"))
}

async fn model(options: LoadOptions) -> Arc<dyn TextModel> {
    load_model(demo()).backend("cpu").options(options).await.unwrap()
}

/// The demo model in a folder of its own, with a longer context than it was trained for.
fn long_demo() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(demo()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let config = folder.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.contains("\"max_position_embeddings\": 1024"));
    std::fs::write(
        &config,
        text.replace("\"max_position_embeddings\": 1024", "\"max_position_embeddings\": 8192"),
    )
    .unwrap();
    folder
}

fn question(n: usize) -> Prompt {
    Prompt::Chat(vec![Message::user(format!("What is {n}+{}?", n + 1))])
}

#[tokio::test]
async fn ten_at_once_give_what_ten_alone_give() {
    let options = LoadOptions::new().max_batch(4);
    ten_give_what_ten_alone_give(&*model(options.clone()).await, SUMS).await;
    // As on a GPU, where rows lie together.
    ten_give_what_ten_alone_give(&*model(options.extension(DisableCpuKernels)).await, SUMS).await;
}

#[tokio::test]
async fn ten_at_once_with_quantised_caches_give_what_ten_alone_give() {
    for bits in [KvBits::Eight, KvBits::Four] {
        let options = LoadOptions::new().max_batch(4).kv_bits(bits);
        ten_give_what_ten_alone_give(&*model(options.clone()).await, STEPS).await;
        ten_give_what_ten_alone_give(&*model(options.extension(DisableCpuKernels)).await, STEPS).await;
    }
}

/// Log-probabilities of a text under caches as they are computed and quantised ones.
#[tokio::test]
async fn quantised_caches_differ_by_their_bits() {
    let text: Vec<u32> = (0..120).map(|n| 100 + n * 37 % 1900).collect();
    let mut found = Vec::new();
    for options in [
        LoadOptions::new(),
        LoadOptions::new().kv_bits(KvBits::Eight),
        LoadOptions::new().kv_bits(KvBits::Four),
        LoadOptions::new().kv_bits(KvBits::Eight).extension(DisableCpuKernels),
    ] {
        let model = model(options).await;
        let options = GenerateOptions::new().max_tokens(1).ignore_eos(true).log_probabilities(50);
        let answer = model.complete(text.clone(), options).await.unwrap();
        let top = answer.tokens[0].top.iter().map(|top| (top.id, top.log_probability));
        found.push(top.collect::<std::collections::BTreeMap<_, _>>());
    }
    let distance = |a: usize, b: usize| {
        let common = found[a].iter().filter_map(|(id, a)| Some((a - found[b].get(id)?).abs()));
        let (sum, count) = common.fold((0.0, 0), |(sum, count), next| (sum + next, count + 1));
        assert!(count >= 25, "{count} of 50 likeliest tokens agree");
        sum / count as f32
    };
    let (eight, four, other) = (distance(0, 1), distance(0, 2), distance(1, 3));
    // Steps of a group are 1/255 and 1/15 of its range.
    let steps = |count: f32, bits: i32| count / (2_f32.powi(bits) - 1.0);
    assert!(eight > 0.0 && eight < steps(16.0, 8), "8 bits: {eight}");
    assert!(four > 2.0 * eight && four < steps(16.0, 4), "4 bits: {four}, 8 bits: {eight}");
    // Sums in another order round a few elements to the next step.
    assert!(other < eight / 4.0, "by MLX: {other}");
}

/// How far log-probabilities of one text may be apart that was computed beside others: sums come in another order.
const SUMS: f32 = 1e-4;
/// The same where keys and values are quantised: what lies between two steps is rounded to the one or the other.
const STEPS: f32 = 2e-3;

async fn ten_give_what_ten_alone_give(model: &dyn TextModel, bound: f32) {
    let requests: Vec<_> = (0..10)
        .map(|n| {
            let options = GenerateOptions::new().max_tokens(8 + n).log_probabilities(2);
            let options = match n % 3 {
                0 => options,
                1 => options.temperature(0.9).seed(n as u64).top_p(0.9),
                _ => options.temperature(1.3).seed(n as u64).repetition_penalty(1.2).ignore_eos(true),
            };
            (question(n), options)
        })
        .collect();
    let mut alone = Vec::new();
    for (prompt, options) in requests.clone() {
        alone.push(model.complete(prompt, options).await.unwrap());
    }
    let together =
        join_all(requests.into_iter().map(|(prompt, options)| model.complete(prompt, options))).await;
    for (n, (together, alone)) in together.into_iter().zip(alone).enumerate() {
        let together = together.unwrap();
        let ids = |completion: &inference_core::Completion| {
            completion.tokens.iter().map(|t| t.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(&together), ids(&alone), "request {n}");
        assert_eq!((together.text, together.finish.reason), (alone.text, alone.finish.reason), "request {n}");
        for (a, b) in together.tokens.iter().zip(&alone.tokens) {
            let apart = (a.log_probability.unwrap() - b.log_probability.unwrap()).abs();
            assert!(apart < bound, "request {n}: {apart}");
        }
    }
    assert_eq!(model.stats().active, 0);
}

/// Prompts of several lengths that wait together, of which a chunk takes a few at a time.
#[tokio::test]
async fn short_prompts_together_give_what_each_gives_alone() {
    let model = model(LoadOptions::new().prefix_cache(0).prefill_chunk(64)).await;
    let prompt =
        |n: u32| Prompt::Tokens((0..5 + n * 7 % 23).map(|i| 5 + (i * 37 + n * 101) % 1500).collect());
    let options = |n: u32| match n % 3 {
        0 => GenerateOptions::new().max_tokens(1 + n as usize % 4),
        1 => GenerateOptions::new().max_tokens(3).temperature(0.9).seed(u64::from(n)),
        _ => GenerateOptions::new().max_tokens(2).log_probabilities(1).ignore_eos(true),
    };
    let together = join_all((0..24).map(|n| model.complete(prompt(n), options(n)))).await;
    for (n, together) in (0..).zip(together) {
        let (together, alone) = (together.unwrap(), model.complete(prompt(n), options(n)).await.unwrap());
        assert_eq!(together.text, alone.text, "request {n}");
        assert_eq!(together.tokens.len(), alone.tokens.len(), "request {n}");
        for (a, b) in together.tokens.iter().zip(&alone.tokens) {
            let apart = a.log_probability.zip(b.log_probability).map_or(0.0, |(a, b)| (a - b).abs());
            assert!(a.id == b.id && apart < 1e-4, "request {n}: {a:?} and {b:?}");
        }
    }
}

#[tokio::test]
async fn what_prompts_begin_with_changes_nothing_about_their_classes() {
    let model = model(LoadOptions::new()).await;
    let prompt = |n: u32| -> Prompt {
        Prompt::Tokens((0..40).map(|i| 5 + i * 37 % 1500).chain((0..1 + n).map(|i| 9 + i * n)).collect())
    };
    let options = ClassifyOptions::new().labels(["yes", "no, never", "a sport"]).logits(true);
    let together = model.classify((0..9).map(prompt).collect(), options.clone()).await.unwrap();
    for (n, together) in (0..).zip(together) {
        let alone = model.classify(vec![prompt(n)], options.clone()).await.unwrap().remove(0);
        assert_eq!(together.token, alone.token, "prompt {n}");
        for (a, b) in together.labels.iter().zip(&alone.labels) {
            assert!((a.log_probability - b.log_probability).abs() < 5e-4, "prompt {n}: {a:?} and {b:?}");
        }
        for (a, b) in together.logits.unwrap().into_iter().zip(alone.logits.unwrap()) {
            assert!((a - b).abs() < 2e-4, "prompt {n}: {a} and {b}");
        }
    }
}

#[tokio::test]
async fn a_prompt_in_chunks_is_the_prompt_as_a_whole() {
    let prompt = Prompt::Chat(vec![
        Message::user("What is the capital of France?"),
        Message::assistant("The capital of France is Paris."),
        Message::user("What is 17+25?"),
    ]);
    let options = GenerateOptions::new().max_tokens(12).log_probabilities(4);
    let whole = model(LoadOptions::new()).await.complete(prompt.clone(), options.clone()).await.unwrap();
    for chunk in [1, 3, 16] {
        let chunked = model(LoadOptions::new().prefill_chunk(chunk)).await;
        let chunked = chunked.complete(prompt.clone(), options.clone()).await.unwrap();
        assert_eq!(chunked.text, whole.text, "chunks of {chunk}");
        for (a, b) in chunked.tokens.iter().zip(&whole.tokens) {
            assert!(
                (a.log_probability.unwrap() - b.log_probability.unwrap()).abs() < 1e-4,
                "chunks of {chunk}"
            );
        }
    }
}

/// Three turns of a chat: each computes only what is new, and says what it would say without the cache.
#[tokio::test]
async fn a_second_turn_computes_only_what_is_new() {
    let cached = model(LoadOptions::new()).await;
    let plain = model(LoadOptions::new().prefix_cache(0)).await;
    let mut chat = vec![Message::user("What is the capital of France?")];
    let (mut known, mut reused) = (0, 0);
    for next in ["What is 17+25?", "Who are you?", "Classify: I have a sore throat."] {
        let options = GenerateOptions::new().log_probabilities(0);
        let answer = cached.complete(Prompt::Chat(chat.clone()), options.clone()).await.unwrap();
        let expected = plain.complete(Prompt::Chat(chat.clone()), options).await.unwrap();
        assert_eq!((&answer.text, &answer.finish.reason), (&expected.text, &expected.finish.reason));
        for (a, b) in answer.tokens.iter().zip(&expected.tokens) {
            assert!((a.log_probability.unwrap() - b.log_probability.unwrap()).abs() < 1e-4, "{answer:?}");
        }
        assert_eq!(expected.finish.metrics.cached_tokens, 0);
        // All that the model has seen, its answer and the token that ended it included.
        let metrics = answer.finish.metrics;
        assert!(metrics.cached_tokens >= known, "{metrics:?}, {known} were known");
        reused += metrics.cached_tokens;
        known = metrics.prompt_tokens + metrics.generated_tokens;
        chat.extend([Message::assistant(answer.text), Message::user(next)]);
    }
    assert!(reused > 0, "nothing was reused");
    assert_eq!(cached.stats().cached_tokens, reused as u64);
}

/// Against mlx_lm 0.32.2 on the same model and prompt: `RotatingKVCache(max_size=32, keep=4)`, token by token, greedy, with the
/// ids 2 and 16 banned. Chunks of a prompt see what its tokens see one by one.
#[tokio::test]
async fn a_context_that_rotates_is_mlx_lms() {
    let prompt: Vec<u32> = (0..70).map(|i| 5 + i * 37 % 1500).collect();
    let expected = [
        (271, -1.98363),
        (1179, -1.89528),
        (1181, -0.00157),
        (74, -0.19013),
        (349, -0.13042),
        (33, -0.02188),
        (37, -2.65542),
        (24, -2.63339),
        (433, -1.24504),
        (43, -2.49388),
        (321, -0.00001),
        (322, -0.00002),
        (306, -0.0186),
    ];
    let options = GenerateOptions::new()
        .max_tokens(expected.len())
        .context_overflow(ContextOverflow::Rotate { keep: 4 })
        .logit_bias([(2, f32::NEG_INFINITY), (16, f32::NEG_INFINITY)])
        .log_probabilities(0);
    for chunk in [1, 7, 1024] {
        let model = model(LoadOptions::new().context_length(32).prefill_chunk(chunk)).await;
        let refused = model.generate(prompt.clone().into(), GenerateOptions::new()).await;
        assert!(matches!(refused, Err(Error::ContextExceeded { tokens: 70, limit: 32, .. })));
        // Twice, side by side: the second one's keys and values are its own.
        let answers = [
            model.complete(prompt.clone(), options.clone()),
            model.complete(prompt.clone(), options.clone()),
        ];
        for answer in join_all(answers).await {
            let answer = answer.unwrap();
            for (token, (id, log_probability)) in answer.tokens.iter().zip(expected) {
                assert_eq!(token.id, id, "chunks of {chunk}");
                assert!(
                    (token.log_probability.unwrap() - log_probability).abs() < 2e-3,
                    "{token:?}, {chunk}"
                );
            }
            assert_eq!(answer.tokens.len(), expected.len());
        }
        // The rotated text is no beginning of one that does not rotate.
        let again =
            model.complete(prompt[..20].to_vec(), GenerateOptions::new().max_tokens(4)).await.unwrap();
        assert_eq!(again.finish.metrics.cached_tokens, 0);
    }
}

#[tokio::test]
async fn cancelling_a_long_prompt_frees_the_engine() {
    let folder = long_demo();
    let model =
        load_model(folder.path()).backend("cpu").options(LoadOptions::new().prefill_chunk(32)).await.unwrap();
    let expected = model.complete(question(3), GenerateOptions::new()).await.unwrap();

    let cancel = CancellationToken::new();
    let long = Prompt::Tokens((0..4000).map(|i| 5 + i % 1000).collect());
    let mut cancelled = model.generate(long, GenerateOptions::new().cancel(cancel.clone())).await.unwrap();
    // The neighbour's token says that the engine is at work on both.
    let mut neighbour = model.generate(question(3), GenerateOptions::new()).await.unwrap();
    neighbour.next().await.unwrap().unwrap();
    cancel.cancel();

    let finish = cancelled.finish().await.unwrap();
    assert_eq!(finish.reason, FinishReason::Cancelled);
    assert_eq!(
        (finish.metrics.generated_tokens, finish.metrics.time_to_first_token),
        (0, None),
        "the prompt was done"
    );
    neighbour.finish().await.unwrap();
    assert_eq!(model.complete(question(3), GenerateOptions::new()).await.unwrap().text, expected.text);
    assert_eq!(model.stats().cancelled, 1);
}

/// What was computed of a prompt before it was cancelled serves the next one that begins alike, of a session too.
#[tokio::test]
async fn a_cancelled_prompt_leaves_the_chunks_that_were_computed() {
    let folder = long_demo();
    let load = async |options: LoadOptions| {
        load_model(folder.path()).backend("cpu").options(options.prefill_chunk(64)).await.unwrap()
    };
    let (model, plain) = (load(LoadOptions::new()).await, load(LoadOptions::new().prefix_cache(0)).await);
    let long: Vec<u32> = (0..4000).map(|i| 5 + i * 37 % 1500).collect();
    let known = 200;
    let options = GenerateOptions::new().max_tokens(4).ignore_eos(true).log_probabilities(0);
    let mut session = model.session().await.unwrap();
    session.append(long[..known].to_vec()).await.unwrap();
    for in_session in [false, true] {
        let cancel = CancellationToken::new();
        let cancelling = options.clone().cancel(cancel.clone());
        let mut cancelled = if in_session {
            session.generate(long[known..].to_vec(), cancelling).await.unwrap()
        } else {
            model.generate(long.clone().into(), cancelling).await.unwrap()
        };
        // The neighbour's token says that the engine is at work on both.
        let mut neighbour = model.generate(question(3), GenerateOptions::new()).await.unwrap();
        neighbour.next().await.unwrap().unwrap();
        cancel.cancel();
        assert_eq!(cancelled.finish().await.unwrap().reason, FinishReason::Cancelled);
        neighbour.finish().await.unwrap();

        let end = if in_session { 4000 } else { 600 };
        let prompt = [&long[..end], &[7, 8, 9]].concat();
        let again = if in_session {
            session.complete(vec![7, 8, 9], options.clone()).await.unwrap()
        } else {
            model.complete(prompt.clone(), options.clone()).await.unwrap()
        };
        let cached = again.finish.metrics.cached_tokens;
        assert!(cached >= if in_session { known } else { 64 }, "{cached} tokens were cached");
        let expected = plain.complete(prompt, options.clone()).await.unwrap();
        for (a, b) in again.tokens.iter().zip(&expected.tokens) {
            let apart = (a.log_probability.unwrap() - b.log_probability.unwrap()).abs();
            assert!(a.id == b.id && apart < 1e-4, "{a:?} and {b:?}");
        }
    }
}

#[tokio::test]
async fn what_was_produced_before_a_cancellation_is_delivered() {
    let model = model(LoadOptions::new()).await;
    let options = GenerateOptions::new().max_tokens(400).ignore_eos(true);
    let whole = model.complete(question(5), options.clone().max_tokens(120)).await.unwrap();

    let cancel = CancellationToken::new();
    let mut stream = model.generate(question(5), options.cancel(cancel.clone())).await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(stream.next().await.unwrap().unwrap().id);
    }
    cancel.cancel();
    while let Some(token) = stream.next().await {
        ids.push(token.unwrap().id);
    }
    let finish = stream.finish().await.unwrap();
    assert_eq!(finish.reason, FinishReason::Cancelled);
    assert_eq!(finish.metrics.generated_tokens, ids.len());
    assert!(ids.len() < 400);
    let expected: Vec<_> = whole.tokens.iter().map(|token| token.id).collect();
    let common = ids.len().min(expected.len());
    assert_eq!(ids[..common], expected[..common]);
}

#[tokio::test]
async fn a_stream_that_is_not_read_holds_up_nobody() {
    let model = model(LoadOptions::new()).await;
    let options = GenerateOptions::new().max_tokens(150).ignore_eos(true);
    let mut unread = model.generate(question(1), options.clone()).await.unwrap();
    let dropped = model.generate(question(2), options.clone()).await.unwrap();
    let alone = model.complete(question(7), GenerateOptions::new()).await.unwrap();
    drop(dropped);
    assert_eq!(model.complete(question(7), GenerateOptions::new()).await.unwrap().text, alone.text);
    // Only now is it read, and it is whole.
    let mut count = 0;
    while let Some(token) = unread.next().await {
        token.unwrap();
        count += 1;
    }
    assert_eq!((count, unread.finish().await.unwrap().reason), (150, FinishReason::Length));
    // A held stream ends when the model closes, too.
    let mut held = model.generate(question(1), options).await.unwrap();
    model.close().await.unwrap();
    assert_eq!(held.finish().await.unwrap().reason, FinishReason::Cancelled);
}

#[tokio::test]
async fn prompts_that_cannot_run_are_refused() {
    let model = model(LoadOptions::new().context_length(16)).await;
    let generate = |prompt: Prompt| model.generate(prompt, GenerateOptions::new());
    let error = generate(Prompt::Tokens(vec![1, 99_999])).await.unwrap_err();
    assert!(error.to_string().contains("token 99999 is outside the vocabulary of 2048"), "{error}");
    let error = generate(Prompt::Tokens(vec![5; 17])).await.unwrap_err();
    assert!(matches!(error, Error::ContextExceeded { tokens: 17, limit: 16, .. }), "{error}");
    let full = model.complete(Prompt::Tokens(vec![5; 16]), GenerateOptions::new()).await.unwrap();
    assert_eq!((full.tokens.len(), full.finish.reason), (0, FinishReason::Length));
    let limited =
        model.complete(Prompt::Tokens(vec![5; 14]), GenerateOptions::new().ignore_eos(true)).await.unwrap();
    assert_eq!((limited.tokens.len(), limited.finish.reason), (2, FinishReason::Length));
}

#[tokio::test]
async fn a_load_can_be_cancelled_and_wants_a_context_that_exists() {
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let options = LoadOptions::new().cancel(cancel).on_progress(move |_| stop.cancel());
    let error = load_model(demo()).backend("cpu").options(options).await.unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    // A context longer than the model was made for is allowed; one beyond all positions is not.
    let options = LoadOptions::new().context_length(1 << 40);
    let error = load_model(demo()).backend("cpu").options(options).await.unwrap_err();
    assert!(matches!(error, Error::InvalidOption { option: "context_length", .. }), "{error}");
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn a_model_that_memory_cannot_hold_is_refused_before_it_is_read() {
    let folder = long_demo();
    let quarter = 1_u64 << 38;
    let tensor = |n: u64| {
        let offsets = [n * quarter, (n + 1) * quarter];
        (
            format!("model.layers.{n}.w"),
            json!({"dtype": "F32", "shape": [2048, 1 << 25], "data_offsets": offsets}),
        )
    };
    let header = json!(std::collections::BTreeMap::from_iter((0..4).map(tensor))).to_string();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
    // A file with a hole: a terabyte that takes no room.
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(8 + header.len() as u64 + (1 << 40)).unwrap();
    let error = load_model(folder.path()).backend("cpu").await.unwrap_err();
    assert!(
        matches!(error, Error::OutOfMemory { needed, available, .. } if needed > 1 << 40 && available < 1 << 40),
        "{error}"
    );
}
