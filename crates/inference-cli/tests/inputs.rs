//! What a person gives the program: texts as other systems write them, numbers that make no sense, and what is advised then.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};

use support::*;

/// The same lines as another system's editor saves them.
fn as_windows(lines: &str) -> String {
    format!("\u{feff}{}", lines.replace('\n', "\r\n"))
}

fn mock(command: &str, model: &Path) -> Command {
    let mut line = inference(&[command, "--backend=mock", "--model"]);
    line.arg(model);
    line
}

/// The answers of a batch, without what differs from run to run.
fn answers(model: &Path, prompts: &str) -> Vec<(Value, Value, Value, Value)> {
    let folder = tempfile::tempdir().unwrap();
    let (file, output) = (folder.path().join("p.jsonl"), folder.path().join("a.jsonl"));
    std::fs::write(&file, prompts).unwrap();
    succeeded(&mock("batch", model).arg(&file).arg("--output").arg(&output).arg("--quiet").output().unwrap());
    let text = std::fs::read_to_string(&output).unwrap();
    let mut answers: Vec<_> = text
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            (line["line"].clone(), line["id"].clone(), line["digest"].clone(), line["text"].clone())
        })
        .collect();
    answers.sort_by_key(|answer| answer.0.as_u64());
    answers
}

#[test]
fn byte_order_marks_and_line_ends_of_windows_change_nothing() {
    let folder = inference::mock::folder();
    let model = folder.path();
    let lines = "{\"id\": \"q1\", \"prompt\": \"a b\", \"max_tokens\": 3}\n\nc d e <eos>\n";
    let plain = answers(model, lines);
    assert_eq!((&plain[0].1, &plain[0].3, &plain[1].3), (&json!("q1"), &json!(" b a b"), &json!(" d e")));
    assert_eq!(answers(model, &as_windows(lines)), plain);
    let joined = "c d e <eos>\r\n\u{feff}{\"id\": \"q1\", \"prompt\": \"a b\", \"max_tokens\": 3}\r\n";
    assert_eq!(answers(model, joined)[1].1, "q1", "two files joined");

    let parity = |text: &str| {
        let file = model.join("parity.jsonl");
        std::fs::write(&file, text).unwrap();
        let mut command =
            inference(&["parity", "--a=mock", "--b=mock", "--json", "--max-tokens=4", "--prompts"]);
        text_of(&command.arg(&file).arg("--model").arg(model).output().unwrap())
    };
    assert_eq!(parity(&as_windows(lines)), parity(lines));

    let classify = |input: &str| with_input(mock("classify", model).args(["--json", "-"]), input);
    assert_eq!(text_of(&classify(&as_windows("a b\nc d\n"))), text_of(&classify("a b\nc d\n")));

    let arguments = ["--quiet", "--max-tokens=4", "-"];
    let generate = |input: &str| text_of(&with_input(mock("generate", model).args(arguments), input));
    assert_eq!(generate(&as_windows("a b\nc d\n")), generate("a b\nc d\n"));
    let chat =
        |input: &str| text_of(&with_input(mock("chat", model).args(["--quiet", "--max-tokens=4"]), input));
    assert_eq!(chat(&as_windows("a b\n/clear\nc d\n")), chat("a b\n/clear\nc d\n"));
}

fn text_of(output: &Output) -> String {
    succeeded(output);
    text(output)
}

#[test]
fn other_encodings_are_refused_by_name() {
    let folder = inference::mock::folder();
    let file = folder.path().join("p.jsonl");
    for (content, expected) in
        [(&b"\xff\xfea\0"[..], "is UTF-16: save it as UTF-8"), (b"ab\xff", "not UTF-8 at byte 2")]
    {
        std::fs::write(&file, content).unwrap();
        for command in [
            mock("batch", folder.path()).arg(&file),
            inference(&["parity", "--a=mock", "--b=mock", "--prompts"]).arg(&file),
        ] {
            let output = command.output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{}", errors(&output));
            assert!(
                errors(&output).contains("p.jsonl") && errors(&output).contains(expected),
                "{}",
                errors(&output)
            );
        }
    }
    std::fs::File::create(&file).unwrap().set_len(1 << 40).unwrap();
    let output = mock("batch", folder.path()).arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(errors(&output).contains("1099511627776 bytes, expected at most"), "{}", errors(&output));
}

#[test]
fn tool_definitions_may_have_a_byte_order_mark() {
    let folder = inference::mock::folder();
    let file = folder.path().join("tools.json");
    let tools = |content: &str| {
        std::fs::write(&file, content).unwrap();
        mock("chat", folder.path()).args(["a b <eos>", "--tools"]).arg(&file).output().unwrap()
    };
    let plain = tools("[]");
    let marked = tools("\u{feff}[]\r\n");
    assert_eq!((marked.status.code(), errors(&marked).contains("tools.json")), (plain.status.code(), false));
    let broken = tools("{}");
    assert_eq!(broken.status.code(), Some(2));
    assert!(errors(&broken).contains("tools.json: expected a JSON list"), "{}", errors(&broken));
}

#[test]
fn numbers_that_make_no_sense_are_wrong_usage() {
    let folder = inference::mock::folder();
    let model = folder.path().to_str().unwrap();
    let huge = "18446744073709551615";
    for arguments in [
        &["soak", "--minutes=nan"][..],
        &["soak", "--minutes=inf"],
        &["soak", "--minutes=-1"],
        &["soak", "--concurrency", huge],
        &["soak", "--prompt-tokens", huge],
        &["bench", "--trials", huge],
        &["bench", "--classify", huge],
        &["bench", "--embed", huge],
        &["bench", "--batch=100000", "--prompt-tokens=100000"],
        &["parity", "--a=mock", "--b=mock", "--tolerance=nan"],
        &["parity", "--a=mock", "--b=mock", "--tolerance=-1"],
        &["generate", "a", "--memory-limit=nanGB"],
        &["generate", "a", "--temperature=nan"],
    ] {
        let mut command = inference(arguments);
        let backend: &[&str] = if arguments[0] == "parity" { &[] } else { &["--backend=mock"] };
        let output = command.args(backend).args(["--model", model]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}{}", text(&output), errors(&output));
    }
}

#[test]
fn the_demo_is_what_runs_without_a_model() {
    let folder = inference::mock::folder();
    for arguments in [
        &["generate", "a b <eos>"][..],
        &["bench", "--prompt-tokens=4", "--generate-tokens=2", "--trials=1"],
        &["chat", "a <eos>"],
        &["classify", "a"],
    ] {
        let mut command = inference(arguments);
        command.arg("--backend=mock").env("INFERENCE_DEMO_MODEL", folder.path());
        succeeded(&command.output().unwrap());
    }
}

#[test]
fn discover_prints_where_models_are() {
    let folder = inference::mock::folder();
    let output = run(&["discover", folder.path().to_str().unwrap()]);
    succeeded(&output);
    assert!(text(&output).contains(folder.path().to_str().unwrap()), "{}", text(&output));
}

#[cfg(feature = "mlxlm")]
#[test]
fn explain_breaks_lines_where_the_engine_does() {
    let folder = inference::mock::folder();
    let python = folder.path().join("no-python");
    let output = inference(&["--python"]).arg(&python).arg("explain").arg(folder.path()).output().unwrap();
    succeeded(&output);
    assert!(!text(&output).contains("\\n"), "{}", text(&output));
}

#[test]
fn a_conversation_is_not_advised_to_change_its_flags() {
    let folder = inference::mock::folder();
    let arguments = ["--context-length=3", "--max-tokens=1", "--quiet"];
    let output = with_input(mock("chat", folder.path()).args(arguments), "a b c d\n");
    assert!(errors(&output).contains("help: /clear"), "{}", errors(&output));
    assert!(!errors(&output).contains("--context-length"), "{}", errors(&output));
    let output = mock("chat", folder.path()).args(arguments).arg("a b c d").output().unwrap();
    assert!(errors(&output).contains("help: a larger --context-length"), "{}", errors(&output));
}
