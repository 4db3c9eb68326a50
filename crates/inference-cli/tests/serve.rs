//! `inference serve` with the demo model, over real HTTP, and `inference list` of an empty cache.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use serde_json::{Value, json};
use support::*;

#[test]
fn the_demo_model_answers() {
    let mut server = Serving::start(&[]);
    let question = json!({"messages": [{"role": "user", "content": "What is 2+2?"}], "logprobs": true, "top_logprobs": 3});
    let (status, body) = server.post("/v1/chat/completions", &question);
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &answer["choices"][0]["message"]["content"]), (200, &json!("2 + 2 = 4.")));
    let logprobs = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let text: String = logprobs.iter().filter_map(|token| token["token"].as_str()).collect();
    assert_eq!(text, "2 + 2 = 4.");
    assert!(logprobs.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 3));
    let question = json!({"model": "demo", "max_tokens": 50, "stream": true,
        "messages": [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "2 + 2 ="}]});
    let (status, body) = server.post("/v1/messages", &question);
    let texts = body.split("\"text\":\"").skip(1).filter_map(|rest| rest.split('"').next());
    assert_eq!((status, texts.collect::<String>().as_str()), (200, " 4."), "{body}");
    assert!(body.contains("message_stop"), "{body}");
    let (status, body) = server.post("/v1/chat/completions", &json!({"messages": [], "tools": []}));
    assert!(status == 400 && body.contains("messages"), "{body}");
    interrupt(&server.child);
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn what_cannot_be_served_is_said() {
    let output = run(&["serve", "--model", "/nowhere/model", "--port", "0"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("/nowhere/model"), "{}", errors(&output));
    let output = run(&["serve", "--alias", "x=y"]);
    assert_eq!(output.status.code(), Some(2), "{}", errors(&output));
}

#[test]
fn shells_and_their_readers_know_the_program() {
    let script = run(&["completions", "bash"]);
    assert!(text(&script).contains("--memory-budget"), "{}", errors(&script));
    let folder = tempfile::tempdir().unwrap();
    succeeded(&run(&["man", folder.path().to_str().unwrap()]));
    let page = std::fs::read_to_string(folder.path().join("inference-serve.1")).unwrap();
    assert!(page.contains("memory\\-budget"), "{page}");
}

#[test]
fn a_name_that_is_not_in_the_cache_is_said_to_be_so() {
    let cache = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = inference(arguments);
        command.env("HF_HUB_CACHE", cache.path()).env("HF_HUB_OFFLINE", "1").output().unwrap()
    };
    let output = run(&["list", "--json"]);
    assert_eq!(text(&output).trim(), "[]");
    let output = run(&["chat", "--model", "org/name", "Hi"]);
    assert!(errors(&output).contains("no model in the cache"), "{}", errors(&output));
    let output = run(&["pull", "org/name"]);
    assert!(errors(&output).contains("HF_HUB_OFFLINE"), "{}", errors(&output));
    assert_eq!(run(&["rm", "org/name"]).status.code(), Some(2));
    assert_eq!(run(&["pull", "name"]).status.code(), Some(2));
}
