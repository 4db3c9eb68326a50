//! The contract, clause by clause, kept by the real mlx_lm.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{path::Path, time::Duration};

use backend_mlxlm::{DESCRIPTOR, use_python};
use common::{EOS, python, tiny_model};
use inference_conformance::{Subject, run};
use inference_core::Message;

#[test]
fn a_random_llama_keeps_the_contract() {
    use_python(python());
    let folder = tiny_model();
    let rendered = [EOS + 1, u32::from(b'h'), u32::from(b'i'), EOS, EOS + 2];
    let subject = Subject::new(DESCRIPTOR, folder.path())
        .rendering(vec![Message::user("hi")], rendered.to_vec())
        .deadline(Duration::from_secs(120));
    let report = run(&subject);
    println!("{report}");
    report.assert_passed();
}

#[test]
fn the_demo_model_keeps_the_contract() {
    use_python(python());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    let subject = Subject::new(DESCRIPTOR, folder).deadline(Duration::from_secs(120));
    let report = run(&subject);
    println!("{report}");
    report.assert_passed();
}
