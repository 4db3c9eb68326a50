//! The program end to end, on the mock: what is printed where, and with which exit status.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::Path,
    process::{Child, Output, Stdio},
};

use serde_json::{Value, json};

use support::*;

#[test]
fn generate_streams_the_text_and_tells_the_figures_apart() {
    let folder = model();
    let output = generate(folder.path(), &["a b c", "--max-tokens=4"]);
    assert_eq!(text(&output), " b c a b\n");
    for figure in ["prompt 3 tokens", " · answer 4 tokens", "cut at the limit"] {
        assert!(errors(&output).contains(figure), "{}", errors(&output));
    }
    assert_eq!(output.status.code(), Some(0));
    let quiet = generate(folder.path(), &["a b c", "--quiet"]);
    assert_eq!(errors(&quiet), "");
}

#[test]
fn generate_prints_json_lines() {
    let folder = model();
    let output = generate(folder.path(), &["a b <eos>", "--json"]);
    let lines = json_lines(&output);
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["token"]["text"], " b");
    assert!(lines[0]["token"]["id"].is_u64());
    assert_eq!(lines[1]["finish"]["reason"], json!({"stop": {"end_of_sequence": 0}}));
    assert_eq!(lines[1]["finish"]["metrics"]["generated_tokens"], 1);
    assert_eq!(errors(&output), "");
}

#[test]
fn generate_takes_token_ids_and_a_prompt_from_stdin() {
    let folder = model();
    let output = generate(folder.path(), &["--prompt-tokens", "[5, 6]", "--max-tokens=2"]);
    assert_eq!(text(&output), " #6 #5\n");

    let mut command = inference(&["generate", "--backend=mock", "-", "--max-tokens=1", "--model"]);
    let mut child = spawn(command.arg(folder.path()).stdin(Stdio::piped()));
    child.stdin.take().unwrap().write_all(b"x y\n").unwrap();
    assert_eq!(text(&child.wait_with_output().unwrap()), " y\n");
}

#[test]
fn wrong_usage_is_told_apart_from_failure() {
    let folder = model();
    let status = |arguments: &[&str]| generate(folder.path(), arguments).status.code();
    assert_eq!(status(&[]), Some(2), "no prompt");
    assert_eq!(status(&["a", "--prompt-tokens=[1]"]), Some(2), "two prompts");
    assert_eq!(status(&["--prompt-tokens=1,2"]), Some(2), "no JSON");
    assert_eq!(status(&["a", "--nonsense"]), Some(2));
    assert_eq!(status(&["a", "--log-probs=1"]), Some(2), "without --json");
    assert_eq!(status(&["a", "--backend=nonsense"]), Some(2));
    assert_eq!(status(&["a", "--top-k=1"]), Some(1), "the mock has no top-k");
    assert_eq!(status(&["  "]), Some(1), "an empty prompt");
    let output = generate(folder.path(), &["a", "--temperature=-1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(errors(&output).starts_with("error: option temperature: -1"), "{}", errors(&output));
    assert!(errors(&output).contains("help: see --temperature"), "{}", errors(&output));
}

#[test]
fn a_failure_names_the_folder_and_what_to_do() {
    let folder = model();
    let missing = folder.path().join("missing");
    let output = run(&["generate", "a", "--model", missing.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("missing: does not exist: give the folder"), "{}", errors(&output));

    let output = run(&["generate", "a", "--json", "--model", missing.to_str().unwrap()]);
    let lines = json_lines(&output);
    assert_eq!(lines[0]["error"]["kind"], "invalid_model");
    assert!(lines[0]["error"]["message"].as_str().unwrap().contains("does not exist"));
    assert_eq!(output.status.code(), Some(1));

    std::fs::write(folder.path().join("config.json"), "{").unwrap();
    let output = run(&["info", folder.path().to_str().unwrap()]);
    assert!(errors(&output).contains("config.json"), "{}", errors(&output));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn chat_answers_once() {
    let folder = model();
    let output = chat(folder.path(), &["what now <eos>", "--system", "be brief"], "");
    assert_eq!(text(&output), " brief what now\n");
}

#[test]
fn a_conversation_remembers_clears_and_is_written_out() {
    let folder = model();
    let saved = folder.path().join("talk.json");
    let lines =
        format!("a b\n/nonsense\n/clear\n/system s\nc d\n/export {}\n/exit\nnever\n", saved.display());
    let output = chat(folder.path(), &["--max-tokens=3"], &lines);
    // The second prompt is the instructions and the question alone.
    assert_eq!(text(&output), " b a b\n c d s\n");
    assert!(errors(&output).contains("there is no /nonsense"), "{}", errors(&output));
    let talk: Value = serde_json::from_slice(&std::fs::read(saved).unwrap()).unwrap();
    let expected = json!([
        {"role": "system", "content": "s"},
        {"role": "user", "content": "c d"},
        {"role": "assistant", "content": " c d s"},
    ]);
    assert_eq!(talk, expected);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_conversation_is_saved_loaded_and_forked() {
    let folder = model();
    let saved = folder.path().join("talk.session");
    let lines = format!("a b\n/save {0}\n/fork\nc\n/back\n/back\nd\n", saved.display());
    let output = chat(folder.path(), &["--max-tokens=2"], &lines);
    assert_eq!(text(&output), " b a\n b b\n b b\n");
    assert!(errors(&output).contains("there was no /fork"), "{}", errors(&output));
    // The answer to "d" after "a b", as it was above.
    let output = chat(folder.path(), &["--max-tokens=2"], &format!("/load {}\nd\n", saved.display()));
    assert_eq!(text(&output), " b b\n");
    let output =
        chat(folder.path(), &[], &format!("/load {}\n", folder.path().join("config.json").display()));
    assert!(errors(&output).contains("config.json"), "{}", errors(&output));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_conversation_sends_what_was_said_before() {
    let folder = model();
    let output = chat(folder.path(), &["--max-tokens=4", "--quiet"], "a b\nc\n");
    assert_eq!(text(&output), " b a b a\n b b a b\n");
}

#[test]
fn a_failed_question_does_not_end_the_conversation() {
    let folder = model();
    let output = chat(folder.path(), &["--context-length=3", "--max-tokens=1", "--quiet"], "a b c d\nx y\n");
    assert_eq!(text(&output), " y\n");
    assert!(errors(&output).contains("the context holds 3"), "{}", errors(&output));
}

#[test]
fn without_a_demo_model_chat_says_where_it_looked() {
    let folder = tempfile::tempdir().unwrap();
    let output = inference(&["chat", "hello"])
        .env("INFERENCE_DEMO_MODEL", folder.path().join("none"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(errors(&output).contains("--model") && errors(&output).contains("none"), "{}", errors(&output));
}

#[test]
fn a_reader_that_goes_is_no_failure() {
    let folder = model();
    let mut child = endless(folder.path(), &[]);
    let mut first = [0; 16];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap(); // and closes
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), errors(&output).as_str()), (Some(0), ""));
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_the_answer_in_good_order() {
    let folder = model();
    let mut child = endless(folder.path(), &["--json"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with(r#"{"token":"#));
    interrupt(&child);
    let last: Value = serde_json::from_str(&lines.last().unwrap().unwrap()).unwrap();
    assert_eq!(last["finish"]["reason"], "cancelled");
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[cfg(unix)]
#[test]
fn a_second_ctrl_c_ends_the_program_at_once() {
    let folder = model();
    let mut child = endless(folder.path(), &[]);
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 16]).unwrap();
    // Unread output blocks the program, so that it cannot end in good order.
    interrupt(&child);
    while child.try_wait().unwrap().is_none() {
        interrupt(&child);
        std::thread::yield_now();
    }
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn backends_are_listed_with_a_reason() {
    let output = run(&["backends"]);
    assert!(text(&output).contains("mock") && text(&output).contains("only when named"), "{}", text(&output));
    let rows = json_lines(&run(&["backends", "--json"]));
    let mock = rows[0].as_array().unwrap().iter().find(|row| row["id"] == "mock").unwrap();
    assert_eq!((&mock["usable"], &mock["device"]), (&json!(true), &json!("imagination")));
    for row in rows[0].as_array().unwrap() {
        assert_eq!(row["usable"] == json!(false), row["reason"].is_string(), "{row}");
    }
}

#[test]
fn explain_gives_every_verdict() {
    let folder = model();
    let path = folder.path().to_str().unwrap();
    let output = run(&["explain", path]);
    assert!(text(&output).contains("usable, only when it is named"), "{}", text(&output));
    let verdicts = json_lines(&run(&["explain", path, "--json"]));
    let mock = verdicts[0].as_array().unwrap().iter().find(|row| row["backend"] == "mock").unwrap();
    assert_eq!(mock["outcome"], "only_when_named");
}

#[test]
fn info_reads_headers_alone() {
    let folder = model();
    let path = folder.path().to_str().unwrap();
    let output = run(&["info", path]);
    assert!(text(&output).contains("architecture   mock"), "{}", text(&output));
    let facts = &json_lines(&run(&["info", path, "--json"]))[0];
    assert_eq!(facts["parameters"], 1);
    assert_eq!(facts["dtypes"], json!({"F32": 4}));
    assert_eq!(facts["quantization"], Value::Null);
    let output = run(&["info", path, "--backend=mock"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(errors(&output).contains("--load"), "{}", errors(&output));
}

#[test]
fn info_shows_the_engine_of_a_loaded_model() {
    let folder = model();
    let arguments = ["info", folder.path().to_str().unwrap(), "--load", "--backend=mock"];
    let shown = text(&run(&arguments));
    assert!(shown.contains("backend        mock, ") && !shown.contains("decode steps"), "{shown}");
    let facts = &json_lines(&run(&[&arguments[..], &["--json"]].concat()))[0];
    assert_eq!((&facts["architecture"], &facts["loaded"]["backend"]["id"]), (&json!("mock"), &json!("mock")));
}

#[test]
fn bench_reports_every_figure_with_its_spread() {
    let folder = model();
    let bench = |arguments: &[&str]| {
        let mut command =
            inference(&["bench", "--backend=mock", "--prompt-tokens=8", "--generate-tokens=20"]);
        command.arg("--model").arg(folder.path()).args(arguments).output().unwrap()
    };
    let report = &json_lines(&bench(&["--trials=3", "--batch=2", "--json"]))[0];
    for figure in ["prefill_tokens_per_second", "decode_tokens_per_second", "time_to_first_token_ms"] {
        let [min, median, max] = ["min", "median", "max"].map(|name| report[figure][name].as_f64().unwrap());
        assert!(0.0 < min && min <= median && median <= max, "{figure}: {report}");
    }
    assert_eq!(report["peak_memory_bytes"]["max"], 0.0);
    assert_eq!((&report["batch"], &report["trials"]), (&json!(2), &json!(3)));
    assert_eq!(report["backend"]["id"], "mock");
    assert_eq!(report["model"]["architecture"], "mock");
    let output = bench(&["--trials=1"]);
    assert!(text(&output).contains("decode, tokens/s"), "{}", text(&output));
    let sentences =
        inference(&["bench", "--backend=mock", "--classify=9", "--trials=2", "--json", "--model"])
            .arg(folder.path())
            .output()
            .unwrap();
    let report = &json_lines(&sentences)[0];
    for figure in ["prompt_tokens", "classify_ms", "generate_ms", "generate_over_classify"] {
        assert!(report[figure]["min"].as_f64().unwrap() > 0.0, "{figure}: {report}");
    }
    assert_eq!((&report["sentences"], &report["trials"]), (&json!(9), &json!(2)));
    let texts =
        ["bench", "--backend=mock", "--embed=9", "--prompt-tokens=5", "--trials=2", "--json", "--model"];
    let report = &json_lines(&inference(&texts).arg(folder.path()).output().unwrap())[0];
    assert_eq!((&report["texts"], &report["tokens"]["max"]), (&json!(9), &json!(45.0)));
    assert_eq!(report["mixed_tokens"]["max"], json!(25.0), "1, 1, 2, 2, 3, 3, 4, 4 and 5: {report}");
    for figure in ["texts_per_second", "tokens_per_second", "mixed_tokens_per_second"] {
        assert!(report[figure]["min"].as_f64().unwrap() > 0.0, "{figure}: {report}");
    }
    let output = bench(&["--context-length=10"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("may not fit the context"), "{}", errors(&output));
}

#[test]
fn discover_lists_models_and_passes_over_broken_ones() {
    let (root, one, broken) = (tempfile::tempdir().unwrap(), model(), model());
    std::fs::rename(one.path(), root.path().join("one")).unwrap();
    std::fs::write(broken.path().join("config.json"), "{").unwrap();
    std::fs::rename(broken.path(), root.path().join("broken")).unwrap();
    let output = run(&["discover", root.path().to_str().unwrap()]);
    assert!(text(&output).contains("one") && text(&output).contains("mock"), "{}", text(&output));
    assert!(
        errors(&output).contains("passed over") && errors(&output).contains("broken"),
        "{}",
        errors(&output)
    );
    assert_eq!(output.status.code(), Some(0));
    let lines = json_lines(&run(&["discover", "--json", root.path().to_str().unwrap()]));
    assert_eq!((&lines[0]["error"]["kind"], &lines[1]["name"]), (&json!("invalid_model"), &json!("one")));
}

#[test]
fn estimate_refuses_with_both_numbers() {
    let folder = model();
    let config = json!({"model_type": "mock", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2,
        "max_position_embeddings": 100});
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let path = folder.path().to_str().unwrap();
    let report = &json_lines(&run(&["estimate", path, "--json", "--batch=3"]))[0];
    // 2 (keys, values) × 1 layer × 8 wide × 4 bytes × 100 tokens × 3 requests
    assert_eq!(report["kv_bytes"], 2 * 8 * 4 * 100 * 3);
    assert_eq!((&report["weight_bytes"], &report["fits"]), (&json!(4), &json!(true)));
    let output = run(&["estimate", path, "--memory=1KB"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("6404 bytes, 1000 are available"), "{}", errors(&output));
}

#[test]
fn classify_scores_labels_and_prints_logits() {
    let folder = model();
    let classify = |arguments: &[&str]| {
        inference(&["classify", "--backend=mock", "--model"])
            .arg(folder.path())
            .args(arguments)
            .output()
            .unwrap()
    };
    let output = classify(&["--labels=xyz,abc", "a b c", "x y z"]);
    let table = text(&output);
    let rows: Vec<&str> = table.lines().collect();
    assert!(rows[1].starts_with("a b c   abc") && rows[2].starts_with("x y z   xyz"), "{table}");
    assert!(errors(&output).contains("2 prompts in"), "{}", errors(&output));
    let lines = json_lines(&classify(&["--prompt-tokens=[[3,4],[5,6]]", "--logits", "--json"]));
    assert_eq!((&lines[0]["token"], &lines[1]["token"]), (&json!(4), &json!(6)));
    assert_eq!((&lines[0]["logits"][4], &lines[0]["logits"][5]), (&json!(1.0), &json!(0.0)));
    assert_eq!(classify(&["a", "--logits"]).status.code(), Some(2), "without --json");
    assert_eq!(classify(&["a", "--labels=x,x"]).status.code(), Some(2));
}

#[test]
fn embed_writes_lines_and_arrays() {
    let folder = model();
    let embed = |arguments: &[&str], input: &str| {
        let mut command = inference(&["embed", "--backend=mock", "--model"]);
        with_input(command.arg(folder.path()).args(arguments), input)
    };
    let output = embed(&["a b", "-", "--dimensions=8"], "c\n{\"id\": \"x\", \"text\": \"a b\"}\n\n");
    let lines = json_lines(&output);
    assert_eq!(lines.len(), 3);
    assert_eq!(
        (&lines[0]["index"], &lines[0]["tokens"], &lines[2]["id"]),
        (&json!(0), &json!(2), &json!("x"))
    );
    assert_eq!(lines[0]["embedding"], lines[2]["embedding"]);
    assert_eq!(lines[0]["embedding"].as_array().unwrap().len(), 8);
    assert!(errors(&output).contains("3 vectors of 8 dimensions"), "{}", errors(&output));
    let bits = json_lines(&embed(&["a", "--format=binary", "--quiet"], ""));
    assert_eq!(bits[0]["embedding"].as_array().unwrap().len(), 8);
    let file = folder.path().join("vectors.npy");
    assert!(embed(&["a", "b c", "--output", file.to_str().unwrap()], "").status.success());
    let bytes = std::fs::read(&file).unwrap();
    assert_eq!((&bytes[..8], bytes.len()), (&b"\x93NUMPY\x01\x00"[..], 128 + 2 * 64 * 4));
    let header = String::from_utf8_lossy(&bytes[10..128]);
    assert!(header.contains("'descr': '<f4'") && header.contains("'shape': (2, 64)"), "{header}");
    assert_eq!(embed(&["a", "--dimensions=100"], "").status.code(), Some(2));
    assert_eq!(embed(&["a", "--prefix=x", "--prefix-name=y"], "").status.code(), Some(2));
    assert_eq!(embed(&["-"], "").status.code(), Some(2));
}

#[test]
fn rerank_orders_documents() {
    let folder = model();
    let rerank = |arguments: &[&str]| {
        inference(&["rerank", "--backend=mock", "--model"])
            .arg(folder.path())
            .args(["where cats sleep", "tin", "cats sleep here", "cats"])
            .args(arguments)
            .output()
            .unwrap()
    };
    let table = text(&rerank(&[]));
    let rows: Vec<&str> = table.lines().collect();
    assert!(rows[1].contains("cats sleep here") && rows[3].contains("tin"), "{table}");
    let lines = json_lines(&rerank(&["--json", "--raw", "--top-n=1"]));
    assert_eq!(lines, [json!({"index": 1, "score": 1.0, "tokens": 6, "document": "cats sleep here"})]);
}

#[test]
fn batch_answers_each_prompt_once() {
    let folder = model();
    let file = folder.path().join("prompts.jsonl");
    std::fs::write(
        &file,
        "a b\n{\"id\": \"q\", \"prompt\": \"c d\", \"max_tokens\": 1}\n{\"tokens\": [99999]}\n",
    )
    .unwrap();
    let batch = |arguments: &[&str]| {
        let mut command = inference(&["batch", "--backend=mock", "--max-tokens=2", "--model"]);
        command.arg(folder.path()).arg(&file).args(arguments).output().unwrap()
    };
    let output = batch(&[]);
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    assert!(
        errors(&output).contains("3 new answers") && errors(&output).contains("1 failed"),
        "{}",
        errors(&output)
    );
    let answers = folder.path().join("prompts.answers.jsonl");
    let mut lines: Vec<Value> = std::fs::read_to_string(&answers)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    lines.sort_by_key(|line| line["line"].as_u64());
    assert_eq!((&lines[0]["text"], &lines[1]["text"]), (&json!(" b a"), &json!(" d")));
    assert_eq!((&lines[1]["id"], &lines[2]["error"]["kind"]), (&json!("q"), &json!("invalid_prompt")));

    let totals = &json_lines(&batch(&["--json"]))[0];
    assert_eq!((&totals["answered"], &totals["answered_before"]), (&json!(0), &json!(3)));
    let totals = &json_lines(&batch(&["--json", "--retry"]))[0];
    assert_eq!((&totals["answered"], &totals["failed"]), (&json!(1), &json!(1)));
}

#[cfg(unix)]
#[test]
fn an_interrupted_batch_goes_on_where_it_stopped() {
    let folder = model();
    let file = folder.path().join("prompts.txt");
    std::fs::write(&file, "a b c d\n".repeat(100)).unwrap();
    let answers = folder.path().join("prompts.answers.jsonl");
    let batch = || {
        let mut command = inference(&[
            "batch",
            "--backend=mock",
            "--concurrency=1",
            "--max-tokens=8000",
            "--quiet",
            "--model",
        ]);
        command.arg(folder.path()).arg(&file);
        command
    };
    let child = spawn(&mut batch());
    while !std::fs::read(&answers).is_ok_and(|text| text.contains(&b'\n')) {
        std::thread::yield_now();
    }
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", errors(&output));
    let before = std::fs::read_to_string(&answers).unwrap();
    assert!((1..100).contains(&before.lines().count()), "{}", before.lines().count());

    assert_eq!(batch().output().unwrap().status.code(), Some(0));
    let after = std::fs::read_to_string(&answers).unwrap();
    assert!(after.starts_with(&before));
    let mut lines: Vec<u64> = after
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["line"].as_u64().unwrap())
        .collect();
    lines.sort_unstable();
    assert_eq!(lines, (1..=100).collect::<Vec<_>>());
}

#[test]
fn parity_compares_line_by_line() {
    let folder = model();
    let file = folder.path().join("prompts.txt");
    std::fs::write(&file, "a b\n\nc d e\n").unwrap();
    let mut command = inference(&["parity", "--a=mock", "--b=mock", "--max-tokens=5", "--json", "--model"]);
    let output = command.arg(folder.path()).arg("--prompts").arg(&file).output().unwrap();
    let lines = json_lines(&output);
    assert_eq!((&lines[0]["line"], &lines[0]["verdict"]), (&json!(1), &json!("equal")), "{lines:?}");
    assert_eq!((&lines[1]["line"], &lines[1]["tokens"]), (&json!(3), &json!(5)));
    assert_eq!(lines[2]["parity"], json!({"equal": 2, "ties": 0, "differ": 0}));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn soak_finds_nothing_wrong_with_the_mock() {
    let folder = model();
    let mut command = inference(&["soak", "--backend=mock", "--minutes=0.02", "--json", "--model"]);
    let output = command.arg(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output), errors(&output));
    let lines = json_lines(&output);
    assert!(lines[0]["sample"]["memory"]["active_bytes"].is_u64());
    let totals = &lines.last().unwrap()["soak"]["totals"];
    assert!(totals["requests"].as_u64().unwrap() > 10 && totals["failures"] == 0, "{totals}");
}

/// Clients that leave, read slowly, send too much, half or none of a request; short enough for every run of the tests.
#[test]
fn soak_finds_nothing_wrong_with_the_server() {
    let folder = model();
    let arguments =
        ["soak", "--backend=mock", "--minutes=0.05", "--http", "--concurrency=64", "--json", "--model"];
    let output = inference(&arguments).arg(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output), errors(&output));
    let lines = json_lines(&output);
    let soak = &lines.last().unwrap()["soak"];
    let totals = &soak["totals"];
    assert!(totals["requests"].as_u64().unwrap() > 64 && totals["failures"] == 0, "{totals}");
    assert!(totals["dropped"].as_u64().unwrap() > 0);
    assert!(soak["first_token_ms"]["p99"].as_f64().unwrap() > 0.0);
}

#[test]
fn bench_measures_over_http() {
    let folder = model();
    let arguments =
        ["bench", "--backend=mock", "--http", "--batch=3", "--trials=1", "--prompt-tokens=4", "--json"];
    let output =
        inference(&arguments).args(["--generate-tokens=9", "--quiet", "--model"]).arg(folder.path()).output();
    let output = output.unwrap();
    succeeded(&output);
    let report = &json_lines(&output)[0];
    assert!(
        report["http"] == true && report["prefill_tokens_per_second"]["min"].as_f64().unwrap() > 0.0,
        "{report}"
    );
}

#[test]
fn help_is_given_where_nothing_is_asked() {
    let output = run(&[]);
    assert_eq!(output.status.code(), Some(2));
    let help = run(&["--help"]);
    assert!(text(&help).contains("Exit status: 0 success"), "{}", text(&help));
}

/// A folder with a model for the mock.
fn model() -> tempfile::TempDir {
    inference::mock::folder()
}

fn generate(model: &Path, arguments: &[&str]) -> Output {
    inference(&["generate", "--backend=mock", "--model"]).arg(model).args(arguments).output().unwrap()
}

fn chat(model: &Path, arguments: &[&str], lines: &str) -> Output {
    let mut command = inference(&["chat", "--backend=mock", "--model"]);
    let mut child = spawn(command.arg(model).args(arguments).stdin(Stdio::piped()));
    // A program that asks nothing may end before it has read.
    let _ = child.stdin.take().unwrap().write_all(lines.as_bytes());
    child.wait_with_output().unwrap()
}

/// A program that generates for ever.
fn endless(model: &Path, arguments: &[&str]) -> Child {
    let mut command =
        inference(&["generate", "a b c", "--backend=mock", "--max-tokens=1000000000", "--model"]);
    spawn(command.arg(model).args(arguments))
}
