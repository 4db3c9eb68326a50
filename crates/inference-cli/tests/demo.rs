//! The program end to end, on the model that ships with it and the engine of this machine.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use serde_json::{Value, json};

use support::*;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo");

#[test]
fn chat_knows_a_sum_wherever_it_is_run() {
    let folder = tempfile::tempdir().unwrap();
    let output = inference(&["chat", "What is 2+2?"]).current_dir(folder.path()).output().unwrap();
    succeeded(&output);
    assert!(text(&output).contains('4'), "{}", text(&output));
    assert!(errors(&output).contains("tokens/s"), "{}", errors(&output));
}

#[test]
fn a_conversation_has_many_turns() {
    let mut child = spawn(inference(&["chat", "--json"]).stdin(Stdio::piped()));
    child.stdin.take().unwrap().write_all(b"Hello!\nWhat is 3+4?\n").unwrap();
    let output = child.wait_with_output().unwrap();
    succeeded(&output);
    let lines = json_lines(&output);
    let finishes: Vec<usize> = (0..lines.len()).filter(|i| !lines[*i]["finish"].is_null()).collect();
    assert_eq!(finishes.len(), 2);
    let (first, second) = (&lines[finishes[0]]["finish"], &lines[finishes[1]]["finish"]);
    assert!(first["reason"]["stop"]["end_of_sequence"].is_u64(), "{first}");
    let prompt = |finish: &Value| finish["metrics"]["prompt_tokens"].as_u64().unwrap();
    assert!(prompt(second) > 2 * prompt(first), "the second prompt holds the first turn");
    let answer: String =
        lines[finishes[0]..finishes[1]].iter().filter_map(|line| line["token"]["text"].as_str()).collect();
    assert!(answer.contains('7'), "{answer}");
}

#[test]
fn answers_have_the_shape_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let schema = file(
        "sum.json",
        r#"{"type":"object","properties":{"sum":{"type":"integer","minimum":0,"maximum":99}},"required":["sum"],"additionalProperties":false}"#,
    );
    let said = |arguments: &[&str]| text(&run(arguments));
    let answers = [
        said(&["generate", "--model", DEMO, "--quiet", "--json-schema", &schema, "2+2 as JSON: "]),
        said(&["chat", "--quiet", "--json-schema", &schema, "What is 2+2?"]),
    ];
    for answer in answers {
        assert!(serde_json::from_str::<Value>(&answer).unwrap()["sum"].is_u64(), "{answer}");
    }
    assert_eq!(said(&["chat", "--quiet", "--regex", "four[!?]", "What is 2+2?"]).trim().len(), 5);
    let letters = file("letters.jsonl", "\"I love it.\"\n\"I hate it.\"\n");
    run(&["batch", "--quiet", "--chat", "--choice", "good", "--choice", "bad", &letters]);
    let answers = std::fs::read_to_string(folder.path().join("letters.answers.jsonl")).unwrap();
    let answers: Vec<Value> = answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 2);
    assert!(answers.iter().all(|answer| answer["text"] == "good" || answer["text"] == "bad"), "{answers:?}");
    let two = inference(&["chat", "--regex", "a", "--choice", "b", "hi"]).output().unwrap();
    assert!(errors(&two).contains("cannot be used with"), "{}", errors(&two));
}

#[test]
fn a_seed_reproduces_and_greedy_needs_none() {
    let generate = |arguments: &[&str]| {
        let output =
            inference(&["generate", "--model", DEMO, "--quiet", "--max-tokens=12", "The capital of"])
                .args(arguments)
                .output()
                .unwrap();
        succeeded(&output);
        text(&output)
    };
    assert_eq!(generate(&[]), generate(&[]));
    let drawn = ["--temperature=1.5", "--seed=5", "--ignore-eos"];
    assert_eq!(generate(&drawn), generate(&drawn));
    assert_ne!(generate(&drawn), generate(&["--temperature=1.5", "--seed=6", "--ignore-eos"]));
}

#[test]
fn token_ids_go_in_and_come_out() {
    let output = run(&[
        "generate",
        "--model",
        DEMO,
        "--prompt-tokens=[40,41,42]",
        "--max-tokens=3",
        "--ignore-eos",
        "--json",
    ]);
    succeeded(&output);
    let lines = json_lines(&output);
    assert_eq!(lines.len(), 4);
    assert!(lines[..3].iter().all(|line| line["token"]["id"].as_u64().is_some_and(|id| id < 2048)));
    assert_eq!(lines[3]["finish"]["reason"], "length");
    let output = run(&["generate", "--model", DEMO, "--prompt-tokens=[2048]", "--json"]);
    assert_eq!(json_lines(&output)[0]["error"]["kind"], "invalid_prompt");
    assert_eq!(output.status.code(), Some(1));
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_a_running_model() {
    let mut command =
        inference(&["generate", "--model", DEMO, "Hello", "--ignore-eos", "--max-tokens=900", "--json"]);
    let mut child = spawn(&mut command);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with(r#"{"token":"#));
    interrupt(&child);
    let last: Value = serde_json::from_str(&lines.last().unwrap().unwrap()).unwrap();
    assert_eq!(last["finish"]["reason"], "cancelled");
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_sentence_is_sorted_into_its_domain() {
    let labels = "--labels=weather,sport,food,travel,music,finance,health";
    let output = run(&["classify", "--chat", "--json", labels, "Classify: The goalkeeper saved a penalty."]);
    succeeded(&output);
    let labels = json_lines(&output)[0]["labels"].clone();
    let probability = |label: &Value| label["probability"].as_f64().unwrap();
    let best = labels.as_array().unwrap().iter().max_by(|a, b| probability(a).total_cmp(&probability(b)));
    assert_eq!(best.unwrap()["label"], "sport");
}

#[test]
fn bench_measures_the_engine() {
    let sizes = ["--prompt-tokens=16", "--generate-tokens=8", "--trials=2", "--batch=2"];
    let output = inference(&["bench", "--model", DEMO, "--json"]).args(sizes).output().unwrap();
    succeeded(&output);
    let report = &json_lines(&output)[0];
    assert!(report["peak_memory_bytes"]["min"].as_f64().unwrap() > 1e6, "{report}");
    assert!(report["decode_tokens_per_second"]["min"].as_f64().unwrap() > 0.0, "{report}");
    assert!(report["backend"]["version"].as_str().unwrap().starts_with("MLX"), "{report}");
    assert_eq!(report["model"]["architecture"], "qwen3");
}

#[test]
fn the_demo_is_described_and_explained() {
    let facts = &json_lines(&run(&["info", DEMO, "--json"]))[0];
    assert_eq!((&facts["tokenizer"], &facts["chat_template"]), (&json!(true), &json!(true)));
    assert_eq!(facts["loaded"], Value::Null);
    let loaded = &json_lines(&run(&["info", DEMO, "--load", "--backend=cpu", "--json"]))[0]["loaded"];
    assert_eq!(loaded["backend"]["id"], "cpu");
    assert_eq!(loaded["decode_steps"], "one operation of the CPU's kernels");
    assert!(loaded["memory"]["active_bytes"].as_u64().unwrap() > 1_000_000, "{loaded}");
    let shown = text(&run(&["info", DEMO, "--load", "--backend=cpu", "--kv-bits=8"]));
    let why = "the CPU's kernels, operation by operation: keys and values are quantised";
    assert!(shown.contains(why) && shown.contains("memory in use"), "{shown}");
    let verdicts = &json_lines(&run(&["explain", DEMO, "--json"]))[0];
    let usable = verdicts.as_array().unwrap().iter().any(|verdict| verdict["outcome"] == "usable");
    assert!(usable, "{verdicts}");
}

#[test]
fn a_batch_answers_every_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sums.txt");
    std::fs::write(&file, "What is 1+1?\nWhat is 2+3?\nWhat is 4+4?\n").unwrap();
    let output = run(&["batch", "--chat", "--quiet", file.to_str().unwrap()]);
    succeeded(&output);
    let answers = std::fs::read_to_string(folder.path().join("sums.answers.jsonl")).unwrap();
    for line in answers.lines() {
        let answer: Value = serde_json::from_str(line).unwrap();
        let expected = ["2", "5", "8"][answer["line"].as_u64().unwrap() as usize - 1];
        assert!(answer["text"].as_str().unwrap().contains(expected), "{line}");
    }
    assert_eq!(answers.lines().count(), 3);
}

#[test]
fn a_converted_model_still_adds() {
    let folder = tempfile::tempdir().unwrap();
    let (dense, packed) = (folder.path().join("dense"), folder.path().join("packed"));
    let convert = |from: &str, to: &std::path::Path, arguments: &[&str]| {
        inference(&["convert", from]).arg(to).args(arguments).output().unwrap()
    };
    succeeded(&convert(DEMO, &dense, &["--dense", "--dtype=f32"]));
    let output = convert(dense.to_str().unwrap(), &packed, &["--bits=6", "--rule=*embed*=8/32", "--json"]);
    succeeded(&output);
    let report = &json_lines(&output)[0];
    assert!(report["bytes_after"].as_u64() < report["bytes_before"].as_u64(), "{report}");
    assert_eq!(report["quantization"], json!({"bits": 6, "group_size": 64, "mode": "affine"}));
    for model in [&dense, &packed] {
        let output = inference(&["chat", "What is 2+2?", "--model"]).arg(model).output().unwrap();
        succeeded(&output);
        assert!(text(&output).contains('4'), "{}", text(&output));
    }
    let output = convert(DEMO, &packed, &["--dense"]);
    assert_eq!(output.status.code(), Some(2), "the target exists: {}", errors(&output));
}

#[test]
fn a_number_of_threads_that_makes_no_sense_is_said_before_the_first_question() {
    let output =
        inference(&["chat", "--backend", "cpu"]).env("INFERENCE_NUM_THREADS", "two").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    assert!(errors(&output).contains("INFERENCE_NUM_THREADS is \"two\""), "{}", errors(&output));
}
