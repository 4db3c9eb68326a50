//! Chat templates, rendered with a conversation that has all that templates look for. Time is measured here, memory by the fuzzer's
//! `-rss_limit_mb`.
#![no_main]

use std::time::Duration;

use chat_template::{Environment, ErrorKind, Limits, MAX_SOURCE_BYTES, Template, WorkClock};
use libfuzzer_sys::{Corpus, fuzz_target};
use serde_json::{Map, Value, json};

/// The limit of a rendering is one second; a fuzzer's build is slower.
const MAX_TIME: Duration = Duration::from_secs(4);

thread_local! {
    static VARIABLES: Map<String, Value> = variables();
}

fn variables() -> Map<String, Value> {
    let call = json!({"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": [2.5, null]}}});
    let tool = json!({"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {
        "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "array"}}, "required": ["a"]}}});
    let variables = json!({
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "2 + 2,\n <b>é你🙂</b>?"}]},
            {"role": "assistant", "content": "", "reasoning_content": "Add.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "4.5"},
            {"role": "assistant", "content": "<think>Done.</think>It is 4.5."},
            {"role": "user", "content": "Thanks."},
        ],
        "tools": [tool], "documents": null, "add_generation_prompt": true, "enable_thinking": false,
        "bos_token": "<s>", "eos_token": "</s>", "x": -3, "y": 2.5, "s": "a b  c", "l": [3, 1, 2], "d": {"k": "v", "n": {}},
    });
    variables.as_object().cloned().unwrap_or_default()
}

fuzz_target!(|source: &[u8]| -> Corpus {
    let Ok(source) = str::from_utf8(source) else { return Corpus::Reject };
    let clock = WorkClock::start();
    let rendered = Template::parse(source).and_then(|template| {
        let environment = Environment::new().at("2025-03-14T15:09:26")?;
        VARIABLES.with(|variables| template.render_in(&environment, variables))
    });
    match rendered {
        Ok(text) => assert!(text.len() <= Limits::default().text),
        Err(error) => {
            assert!(error.message().len() < 4_096);
            assert!(error.kind() != ErrorKind::Cancelled);
            assert!(error.kind() != ErrorKind::Syntax || source.len() <= MAX_SOURCE_BYTES);
        }
    }
    assert!(!clock.exceeds(MAX_TIME));
    Corpus::Keep
});
