//! Programs that are packed with MLX run where they are moved.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::{fs, process::Command};

use support::*;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo");

#[test]
fn a_packed_program_runs_where_it_is_moved() {
    let place = tempfile::tempdir().unwrap();
    let (packed, moved) = (place.path().join("packed"), place.path().join("moved"));
    let dist = |program: &str, folder: &std::path::Path| {
        inference(&["dist", "--json", program]).arg(folder).output().unwrap()
    };
    let output = dist(env!("CARGO_BIN_EXE_inference"), &packed);
    succeeded(&output);
    assert!(json_lines(&output)[0]["program"].as_str().unwrap().ends_with("bin/inference"));
    fs::rename(&packed, &moved).unwrap();
    let program = moved.join("bin/inference");
    let mut command = Command::new(&program);
    command.env_clear().args(["chat", "What is 2+2?", "--backend=cpu", "--model", DEMO]);
    let output = command.output().unwrap();
    succeeded(&output);
    assert!(text(&output).contains('4'), "{}", text(&output));

    let output = dist(env!("CARGO_BIN_EXE_inference"), &moved);
    assert_eq!(output.status.code(), Some(2));
    assert!(errors(&output).contains("is not empty"), "{}", errors(&output));
    let again = place.path().join("again");
    let output = dist(program.to_str().unwrap(), &again);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("was packed already") && !again.exists(), "{}", errors(&output));
}
