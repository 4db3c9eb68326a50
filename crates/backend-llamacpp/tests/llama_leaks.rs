//! What is left of loads and requests: nothing. It has a process of its own, whose files and threads it counts.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{
    fs,
    time::{Duration, Instant},
};

use backend_llamacpp::LlamaCppBackend;
use common::{fake, smollm2};
use inference_core::{GenerateOptions, LoadOptions, ModelManifest, TextModelExt as _, backend::Backend as _};

#[tokio::test]
async fn two_hundred_cycles_leave_nothing() {
    let (_folder, server) = fake("");
    let backend = LlamaCppBackend::with_server(server).unwrap();
    let manifest = ModelManifest::read(smollm2()).unwrap();
    let cycles = async |cycles: usize| {
        let options = LoadOptions::new().context_length(256);
        let model = backend.load(manifest.clone(), options).await.unwrap();
        for _ in 0..cycles {
            let options = GenerateOptions::new().max_tokens(2);
            model.complete(vec![1_u32, 2], options).await.unwrap();
            drop(model.generate(vec![1_u32].into(), GenerateOptions::new()).await.unwrap());
        }
        model.close().await.unwrap();
    };
    cycles(1).await;
    let before = open();
    for _ in 0..8 {
        cycles(25).await;
    }
    // Threads end a moment after what they served.
    let until = Instant::now() + Duration::from_secs(20);
    while open().iter().zip(before).any(|(now, before)| *now > before) && Instant::now() < until {
        tokio::task::yield_now().await;
    }
    let after = open();
    assert!(after.iter().zip(before).all(|(after, before)| *after <= before), "{before:?} became {after:?}");
}

/// Open files, threads and children of this process.
fn open() -> [usize; 3] {
    let entries = |folder: &str| fs::read_dir(folder).map_or(0, Iterator::count);
    let children = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    [entries("/proc/self/fd"), entries("/proc/self/task"), children.split_whitespace().count()]
}
