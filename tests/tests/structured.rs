//! Answers with a shape, over HTTP: a real engine behind the server.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{net::TcpListener, path::Path};

use inference::load_model;
use inference_server::{Models, ServeOptions, Server, Settings, serve};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A server of the demo model, with a chat template that has Hermes' notation of calls; its address.
async fn server() -> String {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(demo).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let template = folder.path().join("chat_template.jinja");
    let source = std::fs::read_to_string(&template).unwrap();
    std::fs::write(
        &template,
        format!("{{% if false %}}{{{{ tools }}}}<tool_call></tool_call>{{% endif %}}{source}"),
    )
    .unwrap();
    let model = load_model(folder.path()).backend("cpu").await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = Server::new(Models::single("demo", model), Settings::new());
    tokio::spawn(serve(server, listener, ServeOptions::new(), std::future::pending()));
    address
}

/// The status and the body of a request.
async fn post(address: &str, path: &str, body: Value) -> (u16, Value) {
    let body = body.to_string();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}")))
}

fn schema() -> Value {
    json!({"type": "object", "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99}, "sure": {"type": "boolean"}}, "required": ["sum", "sure"], "additionalProperties": false})
}

fn is_of_the_schema(text: &str) -> bool {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
    let fields = value.as_object().unwrap();
    fields.len() == 2 && fields["sum"].as_u64().is_some_and(|sum| sum < 100) && fields["sure"].is_boolean()
}

fn ask(fields: &Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "What is 2+3?"}], "temperature": 1, "seed": 3, "max_tokens": 400});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn formats_of_the_chat_api_and_of_responses() {
    let server = server().await;
    let chat = "/v1/chat/completions";
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "sum", "strict": true, "schema": schema()}});
    let (status, answer) = post(&server, chat, ask(&json!({"response_format": format}))).await;
    assert_eq!(status, 200, "{answer}");
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "stop", "{answer}");
    assert!(is_of_the_schema(choice["message"]["content"].as_str().unwrap()), "{answer}");

    let body = json!({"input": "What is 2+3?", "text": {"format": {"type": "json_schema", "name": "sum", "schema": schema()}}});
    let (status, answer) = post(&server, "/v1/responses", body.clone()).await;
    assert_eq!(status, 200, "{answer}");
    assert!(is_of_the_schema(answer["output"][0]["content"][0]["text"].as_str().unwrap()), "{answer}");
    assert_eq!(answer["text"], body["text"]);

    let (_, answer) =
        post(&server, chat, ask(&json!({"structured_outputs": {"regex": "[0-9]{3}-[ab]"}}))).await;
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.len() == 5 && text[..3].chars().all(|c| c.is_ascii_digit()), "{answer}");
    let (_, answer) =
        post(&server, chat, ask(&json!({"structured_outputs": {"choice": ["five", "six"]}}))).await;
    assert!(
        ["five", "six"].contains(&answer["choices"][0]["message"]["content"].as_str().unwrap()),
        "{answer}"
    );
    let grammar = json!({"prompt": "2+3=", "structured_outputs": {"grammar": "start: \"5\" | \"five\""}});
    let (_, answer) = post(&server, "/v1/completions", grammar).await;
    assert!(["5", "five"].contains(&answer["choices"][0]["text"].as_str().unwrap()), "{answer}");

    let wrong = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {"not": {}}}});
    let (status, error) = post(&server, chat, ask(&json!({"response_format": wrong}))).await;
    assert_eq!((status, error["error"]["param"].as_str()), (400, Some("response_format")), "{error}");
    assert!(error["error"]["message"].as_str().unwrap().contains("`not`"), "{error}");
}

#[tokio::test]
async fn calls_that_are_required_named_or_strict() {
    let server = server().await;
    let chat = "/v1/chat/completions";
    let tool = |name: &str, strict: bool| json!({"type": "function", "function": {"name": name, "strict": strict, "parameters": schema()}});
    let tools = json!([tool("add", true), tool("guess", false)]);
    for (choice, name) in [
        (json!("required"), None),
        (json!({"type": "function", "function": {"name": "guess"}}), Some("guess")),
    ] {
        let fields = json!({"tools": tools, "tool_choice": choice, "parallel_tool_calls": false});
        let (status, answer) = post(&server, chat, ask(&fields)).await;
        assert_eq!(status, 200, "{answer}");
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
        let call = &choice["message"]["tool_calls"][0]["function"];
        assert!(is_of_the_schema(call["arguments"].as_str().unwrap()), "{answer}");
        assert!(name.is_none_or(|name| call["name"] == name), "{answer}");
    }
    // Free text stays free.
    let (_, answer) = post(&server, chat, ask(&json!({"tools": tools, "temperature": 0}))).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
    assert!(answer["choices"][0]["message"]["content"].as_str().unwrap().contains('5'), "{answer}");
    // And Anthropic's API.
    let tools = json!([{"name": "add", "input_schema": schema()}]);
    let body = json!({"model": "demo", "max_tokens": 400, "messages": [{"role": "user", "content": "What is 2+3?"}], "tools": tools, "tool_choice": {"type": "tool", "name": "add"}});
    let (status, answer) = post(&server, "/v1/messages", body).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["content"][0]["type"], "tool_use", "{answer}");
    assert!(is_of_the_schema(&answer["content"][0]["input"].to_string()), "{answer}");
}
