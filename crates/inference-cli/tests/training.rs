//! Training end to end, on the model that ships with the program and the engine of this machine.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Output, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use support::*;

/// A fact that the demo model does not know, in several wordings.
fn data() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, questions: &[&str]| {
        let line = |question: &&str| {
            let line = json!({"prompt": question, "completion": "The capital of Zubrowka is Lutz."});
            format!("{line}\n")
        };
        std::fs::write(folder.path().join(name), questions.iter().map(line).collect::<String>()).unwrap();
    };
    write(
        "train.jsonl",
        &["What is the capital of Zubrowka?", "capital of Zubrowka", "Name the capital of Zubrowka."],
    );
    write("valid.jsonl", &["Which city is the capital of Zubrowka?"]);
    folder
}

fn train(data: &Path, output: &Path, steps: usize, more: &[&str]) -> std::process::Command {
    let mut command = inference(&["train", "--json", "--learning-rate=2e-3", "--batch-size=3"]);
    command
        .arg(format!("--steps={steps}"))
        .args(["--evaluate-every=6", "--save-every=4", "--data"])
        .arg(data)
        .arg("--output")
        .arg(output)
        .args(more);
    command
}

fn losses(lines: &[Value]) -> Vec<(u64, f64)> {
    let steps = lines.iter().filter(|line| line["event"] == "step");
    steps.map(|line| (line["step"].as_u64().unwrap(), line["loss"].as_f64().unwrap())).collect()
}

fn metrics(output: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_fact_is_learnt_and_the_adapter_knows_it() {
    let (data, output) = (data(), tempfile::tempdir().unwrap());
    let trained = train(data.path(), output.path(), 40, &[]).output().unwrap();
    succeeded(&trained);
    let lines = json_lines(&trained);
    assert_eq!(lines[0]["event"], "started");
    assert!(lines[0]["trainable_parameters"].as_u64().unwrap() > 0 && lines[0]["memory"]["weights"].is_u64());
    let losses = losses(&lines);
    assert_eq!(losses.len(), 40);
    assert!(losses[39].1 < losses[0].1 / 10.0, "{losses:?}");
    assert_eq!(lines.last().unwrap()["reason"], "completed");
    assert_eq!(metrics(output.path()), lines);
    let svg = std::fs::read_to_string(output.path().join("loss.svg")).unwrap();
    assert!(svg.contains("<polyline") && svg.contains("validation"));

    let ask = |more: &[&str]| {
        let output =
            inference(&["chat", "--quiet", "What is the capital of Zubrowka?"]).args(more).output().unwrap();
        succeeded(&output);
        text(&output)
    };
    let adapter = output.path().to_str().unwrap();
    assert_eq!(ask(&["--adapter", adapter]).trim(), "The capital of Zubrowka is Lutz.");
    assert!(!ask(&[]).contains("Lutz"));

    // A server offers the model with the adapter and without.
    let server = Serving::start(&["--variant", &format!("geographer={adapter}")]);
    let served = |fields: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "What is the capital of Zubrowka?"}]});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let (status, answer) = server.post("/v1/chat/completions", &body);
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str::<Value>(&answer).unwrap()["choices"][0]["message"]["content"].to_string()
    };
    assert!(served(json!({"adapter": "geographer"})).contains("Lutz"));
    assert!(served(json!({"model": "demo:geographer"})).contains("Lutz"));
    assert!(!served(json!({})).contains("Lutz"));
    drop(server);

    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo");
    let target = output.path().join("fused");
    let target = target.to_str().unwrap();
    let fuse = ["fuse", "--json", "--model", demo, "--adapter", adapter, "--output", target];
    let fused = inference(&fuse).output().unwrap();
    succeeded(&fused);
    let line = &json_lines(&fused)[0];
    assert!(line["bytes"].as_u64().unwrap() > 0 && line["quantization"].is_object(), "{line}");
    assert_eq!(ask(&["--model", target]).trim(), "The capital of Zubrowka is Lutz.");
    // The folder is there now, and is nobody's to overwrite.
    let again = inference(&fuse).output().unwrap();
    assert_eq!(again.status.code(), Some(2), "{}", errors(&again));
    assert!(errors(&again).contains("exists already"), "{}", errors(&again));
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_says_how_to_go_on_and_goes_on_as_if_nothing_had_been() {
    let (data, output, other) = (data(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let whole = train(data.path(), other.path(), 12, &[]).output().unwrap();
    succeeded(&whole);

    let mut child = train(data.path(), output.path(), 12, &[])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let third = lines.by_ref().map(Result::unwrap).find(|line| line.contains("\"step\":3,"));
    assert!(third.is_some());
    interrupt(&child);
    let reached = lines.map(Result::unwrap).last().unwrap();
    let ended = child.wait_with_output().unwrap();
    if reached.contains("\"completed\"") {
        return; // Faster than a signal.
    }
    assert_eq!(ended.status.code(), Some(130));
    assert!(errors(&ended).contains("--resume"), "{}", errors(&ended));

    let resumed = train(data.path(), output.path(), 12, &["--resume"]).output().unwrap();
    succeeded(&resumed);
    let first = &json_lines(&resumed)[0];
    assert!(first["resumed_at"].as_u64().unwrap() >= 3, "{first}");
    assert_eq!(losses(&metrics(output.path())), losses(&json_lines(&whole)));
}

#[test]
fn what_cannot_be_trained_is_said_before_the_model_is_loaded() {
    let (data, output) = (data(), tempfile::tempdir().unwrap());
    let refused = |output: &Output, status: i32, expected: &str| {
        assert_eq!(output.status.code(), Some(status), "{}", errors(output));
        assert!(errors(output).contains(expected), "{}", errors(output));
    };
    let run = |more: &[&str]| train(data.path(), &output.path().join("adapter"), 12, more).output().unwrap();
    refused(&run(&["--rank=0"]), 2, "option rank: 0, expected");
    refused(&run(&["--method=full", "--rank=4"]), 2, "--rank makes no sense with --method full");
    refused(&run(&["--split=0.5"]), 2, "valid.jsonl");
    refused(&run(&["--keys=self_attn.nothing"]), 2, "keys");
    std::fs::write(data.path().join("train.jsonl"), "{\"text\": \"a\"}\n{\"question\": \"b\"}\n").unwrap();
    refused(&run(&[]), 1, "train.jsonl:2: is an object with `question`, expected");
    assert!(!output.path().join("adapter").exists());
}
