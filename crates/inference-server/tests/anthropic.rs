//! Anthropic's API over real HTTP.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use serde_json::{Value, json};
use support::*;

fn body(messages: &Value) -> Value {
    let tool = |name: &str| json!({"name": name, "input_schema": {"type": "object", "properties": {}}});
    json!({"model": "scripted", "max_tokens": 200, "messages": messages, "tools": [tool("weather"), tool("convert")]})
}

#[tokio::test]
async fn thinking_calls_and_results_make_a_loop() {
    let server = scripted_server();
    let mut messages = vec![json!({"role": "user", "content": "How warm is it in Zürich, in °F?"})];
    for (turn, result) in ["20", "68"].iter().enumerate() {
        let answer = server.ok("/v1/messages", body(&json!(messages))).await;
        assert_eq!(answer["stop_reason"], "tool_use");
        let blocks = answer["content"].as_array().unwrap();
        let call = blocks.last().unwrap();
        assert_eq!(
            (&call["type"], &call["name"]),
            (&json!("tool_use"), &json!(["weather", "convert"][turn]))
        );
        if turn == 0 {
            assert_eq!(blocks[0]["thinking"], "I need the weather.");
        }
        messages.push(json!({"role": "assistant", "content": blocks}));
        let result = json!({"type": "tool_result", "tool_use_id": call["id"], "content": result});
        messages.push(json!({"role": "user", "content": [result]}));
    }
    let answer = server.ok("/v1/messages", body(&json!(messages))).await;
    assert_eq!(answer["content"], json!([{"type": "text", "text": "It is 68 °F in Zürich."}]));
    assert_eq!((&answer["stop_reason"], &answer["stop_sequence"]), (&json!("end_turn"), &Value::Null));
    assert!(answer["usage"]["input_tokens"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn a_message_streams_in_blocks() {
    let server = scripted_server();
    let mut request = body(&json!([{"role": "user", "content": "both"}]));
    request["stream"] = json!(true);
    let events = server.stream("/v1/messages", request).await;
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[..3], ["message_start", "ping", "content_block_start"]);
    assert_eq!(names[names.len() - 2..], ["message_delta", "message_stop"]);
    let contents = chunks(&events);
    assert!(events.iter().zip(&contents).all(|((name, _), content)| content["type"] == **name));
    let json_of = |index: usize| -> Value {
        let deltas = contents.iter().filter(|content| content["index"] == index);
        let text: String = deltas.filter_map(|delta| delta["delta"]["partial_json"].as_str()).collect();
        serde_json::from_str(&text).unwrap()
    };
    assert_eq!((json_of(1), json_of(2)), (json!({"city": "Zürich"}), json!({"celsius": 20})));
    let delta = &contents[contents.len() - 2];
    assert_eq!(delta["delta"]["stop_reason"], "tool_use");
    assert_eq!(delta["usage"]["input_tokens"], contents[0]["message"]["usage"]["input_tokens"]);
}

#[tokio::test]
async fn tokens_are_counted_as_they_are_used() {
    let server = scripted_server();
    let mut request = body(&json!([{"role": "user", "content": "Hello"}]));
    let answer = server.ok("/v1/messages", request.clone()).await;
    request.as_object_mut().unwrap().remove("max_tokens");
    let count = server.ok("/v1/messages/count_tokens", request).await;
    assert_eq!(count["input_tokens"], answer["usage"]["input_tokens"]);
}

#[tokio::test]
async fn stop_sequences_and_beginnings_are_honoured() {
    let server = scripted_server();
    let ask = |messages: Value, stop: Value| json!({"model": "scripted", "max_tokens": 99, "messages": messages, "stop_sequences": stop});
    let answer =
        server.ok("/v1/messages", ask(json!([{"role": "user", "content": "x"}]), json!(["from"]))).await;
    assert_eq!((&answer["stop_reason"], &answer["stop_sequence"]), (&json!("stop_sequence"), &json!("from")));
    let begun = json!([{"role": "user", "content": "How?"}, {"role": "assistant", "content": "It is"}]);
    let answer = server.ok("/v1/messages", ask(begun, json!([]))).await;
    assert_eq!(answer["content"][0]["text"], " warm today.");
}

#[tokio::test]
async fn errors_have_the_apis_shape() {
    let server = scripted_server();
    let cases = [
        (json!({"model": "scripted", "messages": [], "max_tokens": 1}), 400, "invalid_request_error"),
        (json!({"model": "scripted", "messages": []}), 400, "invalid_request_error"),
        (json!({"model": "claude-9", "messages": [], "max_tokens": 1}), 404, "not_found_error"),
    ];
    for (request, status, kind) in cases {
        let (found, error) = server.refused("/v1/messages", request).await;
        assert_eq!((found, error["error"]["type"].as_str()), (status, Some(kind)), "{error}");
        assert_eq!(error["type"], "error");
    }
    let mut forced = body(&json!([{"role": "user", "content": "x"}]));
    forced["tool_choice"] = json!({"type": "any"});
    forced["tools"] = json!([]);
    let (_, error) = server.refused("/v1/messages", forced).await;
    assert!(error["error"]["message"].as_str().unwrap().starts_with("tool_choice:"), "{error}");
    let mut unknown = body(&json!([{"role": "user", "content": "x"}]));
    unknown["mcp_servers"] = json!([]);
    let (_, error) = server.refused("/v1/messages", unknown).await;
    assert!(error["error"]["message"].as_str().unwrap().starts_with("mcp_servers:"), "{error}");
}
