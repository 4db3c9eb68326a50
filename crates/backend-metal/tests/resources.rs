//! What loads and requests take of the process, and give back. Alone in its process: threads and memory are the process's.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]
#![cfg(target_os = "linux")]

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use backend_metal as _;
use futures::{
    StreamExt as _,
    future::{Either, select},
};
use inference_core::{
    ClassifyOptions, Error, GenerateOptions, LoadOptions, Message, Prompt, Registry, TextModel,
    TextModelExt as _, backend::MemoryLimits, load_model,
};
use tokio::sync::{Mutex, MutexGuard};

/// Tests of one process share its threads and its memory: one at a time.
async fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::const_new(());
    LOCK.lock().await
}

fn demo() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo"))
}

async fn model(options: LoadOptions) -> Arc<dyn TextModel> {
    load_model(demo()).backend("cpu").options(options).await.unwrap()
}

fn question() -> Prompt {
    Prompt::Chat(vec![Message::user("What is 2+3?")])
}

/// A number of `/proc/self/status`.
fn status(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
}

/// Waits until something holds.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn loads_leave_no_thread_and_no_memory_behind() {
    let _alone = alone().await;
    let round = async |closes: bool| {
        let model = model(LoadOptions::new()).await;
        model.complete(question(), GenerateOptions::new().max_tokens(2)).await.unwrap();
        if closes {
            model.close().await.unwrap();
        }
    };
    for n in 0..4 {
        round(n % 2 == 0).await;
    }
    let (threads, resident) = (status("Threads"), status("VmRSS"));
    for n in 0..40 {
        round(n % 2 == 0).await;
    }
    until("threads are left", || status("Threads") <= threads).await;
    let grown = status("VmRSS").saturating_sub(resident);
    assert!(grown < 16 << 10, "{grown} kB more after 40 loads, {resident} kB before");
}

#[tokio::test]
async fn a_load_whose_future_is_dropped_leaves_nothing() {
    let _alone = alone().await;
    let memory = Registry::linked().open("cpu").unwrap();
    let active = || memory.memory().unwrap().usage().unwrap().active_bytes;
    // What a first load leaves in any case is there.
    model(LoadOptions::new()).await.close().await.unwrap();
    let before = active();
    for _ in 0..5 {
        let (begun, began) = tokio::sync::mpsc::unbounded_channel();
        let mut began = began;
        let options = LoadOptions::new().on_progress(move |_| {
            // Nobody listens once the load is dropped.
            let _ = begun.send(());
        });
        let load = Box::pin(load_model(demo()).backend("cpu").options(options).into_future());
        match select(load, Box::pin(began.recv())).await {
            Either::Left((model, _)) => drop(model.unwrap()),
            Either::Right((_, load)) => drop(load),
        }
    }
    until("weights are left", || active() <= before).await;
    model(LoadOptions::new()).await.complete(question(), GenerateOptions::new()).await.unwrap();
}

#[tokio::test]
async fn a_memory_limit_refuses_what_it_cannot_hold() {
    let _alone = alone().await;
    let backend = Registry::linked().open("cpu").unwrap();
    let memory = backend.memory().unwrap();
    let loaded = model(LoadOptions::new()).await;
    let weights = loaded.info().weight_bytes;
    let active = memory.usage().unwrap().active_bytes;
    loaded.close().await.unwrap();
    let others = memory.usage().unwrap().active_bytes;
    let too_little = LoadOptions::new().memory_limit(others + weights / 2);
    let error = load_model(demo()).backend("cpu").options(too_little).await.unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { needed, available, .. } if needed > available), "{error}");

    let options = LoadOptions::new().memory_limit(active + (6 << 20)).prefix_cache(0);
    let model = model(options).await;
    memory.reset_peak().unwrap();
    let short = model.complete(question(), GenerateOptions::new().max_tokens(4)).await.unwrap();
    let long = Prompt::Tokens((0..1000).map(|n| 5 + n % 1000).collect());
    let error = model.complete(long, GenerateOptions::new().max_tokens(4)).await.unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { needed, available, .. } if needed > available), "{error}");
    // What fits is answered as before.
    let again = model.complete(question(), GenerateOptions::new().max_tokens(4)).await.unwrap();
    assert_eq!(again.text, short.text);
    let peak = memory.usage().unwrap().peak_bytes;
    assert!(peak <= active + (6 << 20), "{peak} bytes at the most, {active} are the model's");
    assert_eq!(model.stats().active, 0);
    model.close().await.unwrap();
    memory.set_limits(MemoryLimits::new().memory(u64::MAX)).unwrap();
}

/// The demo model with one element of a tensor set to this float.
fn demo_with(tensor: &str, value: f32) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(demo()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    set(&folder.path().join("model.safetensors"), tensor, value);
    folder
}

fn set(path: &Path, tensor: &str, value: f32) {
    let mut bytes = std::fs::read(path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let start = 8 + header + json[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    // The upper half of a float is its bf16; infinity and NaN of f16 have other bits.
    match json[tensor]["dtype"].as_str().unwrap() {
        "F32" => bytes[start..start + 4].copy_from_slice(&value.to_le_bytes()),
        "BF16" => bytes[start..start + 2].copy_from_slice(&value.to_le_bytes()[2..]),
        "F16" => {
            let bits: u16 = if value.is_nan() { 0x7e00 } else { 0x7c00 };
            bytes[start..start + 2].copy_from_slice(&bits.to_le_bytes());
        }
        other => panic!("{tensor} is {other}"),
    }
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn weights_that_are_no_numbers_are_an_error_that_says_so() {
    let _alone = alone().await;
    let chain = |error: &Error| {
        let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
        causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    };
    for value in [f32::NAN, f32::INFINITY] {
        let folder = demo_with("model.norm.weight", value);
        let model = load_model(folder.path()).backend("cpu").await.unwrap();
        for options in [
            GenerateOptions::new(),
            GenerateOptions::new().temperature(0.8).seed(1),
            GenerateOptions::new().log_probabilities(2),
            GenerateOptions::new()
                .logits_processor(|_: &[u32], _: &[u32], logits: &mut [f32]| logits[7] = 1.0),
        ] {
            let error = model.complete(question(), options.max_tokens(4)).await.unwrap_err();
            assert!(chain(&error).contains("not finite"), "{value}: {}", chain(&error));
        }
        let error = model.classify(vec![question()], ClassifyOptions::new()).await.unwrap_err();
        assert!(chain(&error).contains("not finite"), "{value}: {}", chain(&error));
        assert_eq!(model.stats().active, 0);
    }
}

#[tokio::test]
async fn as_many_unread_streams_as_a_batch_has_places_hold_up_nobody() {
    let _alone = alone().await;
    let model = model(LoadOptions::new().max_batch(3)).await;
    let options = GenerateOptions::new().max_tokens(150).ignore_eos(true);
    let mut unread = Vec::new();
    for _ in 0..4 {
        unread.push(model.generate(question(), options.clone()).await.unwrap());
    }
    let expected = model.complete(question(), GenerateOptions::new()).await.unwrap();
    assert!(!expected.text.is_empty());
    for stream in &mut unread {
        assert_eq!(stream.finish().await.unwrap().metrics.generated_tokens, 150);
    }
    assert_eq!(model.stats().active, 0);
}

/// Two models share one limit of memory: each request of theirs is answered or refused, and the limit holds.
#[tokio::test]
async fn two_models_compete_for_one_memory_limit() {
    let _alone = alone().await;
    let backend = Registry::linked().open("cpu").unwrap();
    let memory = backend.memory().unwrap();
    let options = || LoadOptions::new().prefix_cache(0);
    let first = model(options()).await;
    let second = model(options()).await;
    let room = first.info().weight_bytes - (1 << 18);
    let limit = memory.usage().unwrap().active_bytes + room;
    memory.set_limits(MemoryLimits::new().memory(limit)).unwrap();
    memory.reset_peak().unwrap();
    // One more does not fit.
    let error = load_model(demo()).backend("cpu").await.unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");

    let generate = GenerateOptions::new().max_tokens(60).ignore_eos(true);
    let expected = first.complete(question(), generate.clone()).await.unwrap().text;
    let long = |n: u32| Prompt::Tokens((0..700).map(|i| 5 + (i + n) % 1000).collect());
    let mut requests = Vec::new();
    for n in 0..6 {
        for model in [&first, &second] {
            requests.push(model.complete(long(n), generate.clone()));
            requests.push(model.complete(question(), generate.clone()));
        }
    }
    let mut answered = 0;
    for (n, answer) in futures::future::join_all(requests).await.into_iter().enumerate() {
        match answer {
            Ok(answer) if n % 2 == 1 => assert_eq!(answer.text, expected),
            Ok(answer) => assert_eq!(answer.tokens.len(), 60),
            Err(Error::OutOfMemory { needed, available, .. }) => assert!(needed > available),
            Err(error) => panic!("request {n}: {error}"),
        }
        answered += 1;
    }
    assert_eq!(answered, 24);
    let peak = memory.usage().unwrap().peak_bytes;
    assert!(peak <= limit, "{peak} bytes at the most, the limit is {limit}");
    for model in [first, second] {
        assert_eq!(model.complete(question(), generate.clone()).await.unwrap().text, expected);
        assert_eq!(model.stats().active, 0);
        model.close().await.unwrap();
    }
    memory.set_limits(MemoryLimits::new().memory(u64::MAX)).unwrap();
}

#[tokio::test]
async fn a_model_goes_on_while_another_is_loaded() {
    let _alone = alone().await;
    let busy = model(LoadOptions::new()).await;
    let options = GenerateOptions::new().max_tokens(100).ignore_eos(true);
    let expected = busy.complete(question(), options.clone()).await.unwrap().text;
    let mut load = Box::pin(model(LoadOptions::new()));
    let (mut loaded, mut between) = (None, 0);
    // One answer after the other, as long as the load takes; the last one goes on beyond it.
    while loaded.is_none() {
        let mut stream = busy.generate(question(), options.clone()).await.unwrap();
        let mut text = String::new();
        loop {
            let token = match &loaded {
                Some(_) => stream.next().await,
                None => match select(&mut load, stream.next()).await {
                    Either::Left((model, _)) => {
                        loaded = Some(model);
                        continue;
                    }
                    Either::Right((token, _)) => {
                        between += usize::from(token.is_some());
                        token
                    }
                },
            };
            let Some(token) = token else { break };
            text += &token.unwrap().text;
        }
        assert_eq!(text, expected);
    }
    assert!(between > 0, "no token came while the other model was loaded");
    assert_eq!(loaded.unwrap().complete(question(), options).await.unwrap().text, expected);
}
