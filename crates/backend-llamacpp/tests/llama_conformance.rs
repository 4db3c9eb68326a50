//! The contract, clause by clause, kept by a real llama-server.

// The wheel with the server is for that alone.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use backend_llamacpp::{DESCRIPTOR, use_server};
use common::{minilm, server, smollm2};
use inference_conformance::{Subject, run};
use inference_core::{LoadOptions, Message};

#[test]
fn smollm2_keeps_the_contract() {
    use_server(server());
    let options = LoadOptions::new().context_length(1280);
    let rendered = [
        1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712,
        8182, 2, 198, 1, 4093, 198, 26843, 2, 198, 1, 520, 9531, 198,
    ];
    let embedder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(minilm(), embedder.path().join("model.gguf")).unwrap();
    let subject = Subject::new(DESCRIPTOR, smollm2().parent().unwrap())
        .load_options(options)
        .embedder_folder(embedder.path())
        .rendering(vec![Message::user("Hi")], rendered.to_vec())
        .long_prompt(640)
        .prefill_chunk(512)
        .tolerance(0.02)
        .deadline(Duration::from_secs(120));
    let report = run(&subject);
    println!("{report}");
    report.assert_passed();
}
