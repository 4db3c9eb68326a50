//! What a generated token costs on its way to text: it must be nothing next to a decode step.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "criterion's macros; a benchmark that cannot begin has failed"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use inference_core::{
    Token,
    backend::{StopStrings, StreamDecoder},
};
use support::*;

const TOKENS: u64 = 10_000;

fn stream_decoder(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stream decoder");
    group.throughput(Throughput::Elements(TOKENS));
    for (kind, json, first_byte) in
        [("byte level", byte_level(WORDS), 0), ("byte fallback", byte_fallback(true), 3)]
    {
        let tokenizer = load(&json);
        let text = "hello wörld 你好! ".repeat(TOKENS as usize);
        let ids: Vec<u32> = text.bytes().take(TOKENS as usize).map(|b| u32::from(b) + first_byte).collect();
        let stops = StopStrings::new(["\n\nUser:", "hello world", "</s>"]).unwrap();
        for (name, stops) in [("no stop strings", None), ("three stop strings", Some(stops))] {
            group.bench_function(format!("{kind}, {name}"), |bencher| {
                bencher.iter(|| {
                    let mut decoder = StreamDecoder::new(tokenizer.detokenizer(true), stops.clone());
                    let mut tokens = Vec::new();
                    for id in &ids {
                        decoder.push(Token::new(*id, ""), &mut tokens);
                        tokens.drain(..).for_each(|token| {
                            black_box(token);
                        });
                    }
                    decoder.finish(&mut tokens)
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, stream_decoder);
criterion_main!(benches);
