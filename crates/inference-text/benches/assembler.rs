//! What a generated token costs on its way to text: it must be nothing next to a decode step.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "criterion's macros; a benchmark that cannot begin has failed"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{hint::black_box, sync::Arc};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use inference_text::{StopStrings, TextAssembler};
use support::*;

const TOKENS: u64 = 10_000;

fn assembler(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("assembler");
    group.throughput(Throughput::Elements(TOKENS));
    for (kind, json, first_byte) in
        [("byte level", byte_level(WORDS), 0), ("byte fallback", byte_fallback(true), 3)]
    {
        let tokenizer = load(&json);
        let text = "hello wörld 你好! ".repeat(TOKENS as usize);
        let ids: Vec<u32> = text.bytes().take(TOKENS as usize).map(|b| u32::from(b) + first_byte).collect();
        let stops = Arc::new(StopStrings::new(["\n\nUser:", "hello world", "</s>"]).unwrap());
        for (name, stops) in [("no stop strings", None), ("three stop strings", Some(stops))] {
            group.bench_function(format!("{kind}, {name}"), |bencher| {
                bencher.iter(|| {
                    let mut assembler = TextAssembler::new(tokenizer.detokenizer(true), stops.clone());
                    let mut events = Vec::new();
                    for id in &ids {
                        assembler.push(*id, (), &mut events);
                        events.drain(..).for_each(|event| {
                            black_box(event);
                        });
                    }
                    assembler.finish(&mut events)
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, assembler);
criterion_main!(benches);
