//! What a token costs on its way from an engine's thread to a caller, both at full speed: sink, channel, wake-ups, stream.
//!
//! `cargo bench -p inferlm-core --features mock`

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{Criterion, criterion_group, criterion_main};
use futures::{StreamExt as _, executor::block_on};
use inference_core::{
    CancellationToken, Finish, FinishReason, GenerateOptions, Metrics, Prompt, Registry, TextModel, Token,
    TokenStream, mock,
};

/// From a thread that only sends to one that only reads.
fn channel(tokens: u64) -> Duration {
    let (mut sink, mut stream) = TokenStream::channel("bench", 64, CancellationToken::new());
    let producer = std::thread::spawn(move || {
        for id in 0..tokens {
            while sink.is_full() {
                block_on(sink.ready());
            }
            sink.send(Token::new(id as u32, " word"));
        }
        sink.end(Ok(Finish::new(FinishReason::Length, Metrics::default())));
    });
    let began = Instant::now();
    block_on(async {
        while let Some(token) = stream.next().await {
            black_box(token.is_ok());
        }
    });
    let took = began.elapsed();
    assert!(producer.join().is_ok(), "the producer panicked");
    took
}

/// A whole generation of the mock, checks and options included.
fn generate(model: &Arc<dyn TextModel>, tokens: u64) -> Duration {
    let began = Instant::now();
    block_on(async {
        let options = GenerateOptions::new().max_tokens(tokens as usize);
        if let Ok(mut stream) = model.generate(Prompt::from("one two three"), options).await {
            while let Some(token) = stream.next().await {
                black_box(token.is_ok());
            }
        }
    });
    began.elapsed()
}

fn benches(criterion: &mut Criterion) {
    criterion.bench_function("token through the channel", |bencher| bencher.iter_custom(channel));
    let folder = mock::folder();
    let model = Registry::empty().with(mock::DESCRIPTOR).load_model(folder.path()).backend("mock");
    let model = block_on(model.into_future()).expect("the mock loads its own folder");
    criterion.bench_function("token of the mock", |bencher| {
        bencher.iter_custom(|tokens| generate(&model, tokens));
    });
}

criterion_group!(stream, benches);
criterion_main!(stream);
