//! OpenAI's API over real HTTP.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use inference_server::Settings;
use serde_json::{Value, json};
use support::*;

fn ask(text: &str) -> Value {
    json!({"messages": [{"role": "user", "content": text}], "max_tokens": 4})
}

fn with(mut body: Value, fields: &Value) -> Value {
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn tools() -> Value {
    let function = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}});
    json!([function("weather"), function("convert")])
}

#[tokio::test]
async fn a_chat_is_answered_whole() {
    let server = mock_server(Settings::new()).await;
    let answer = server.ok("/v1/chat/completions", ask("a b c")).await;
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "mock");
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["content"], " b c a b");
    assert_eq!(
        (choice["finish_reason"].as_str(), answer["choices"].as_array().unwrap().len()),
        (Some("length"), 1)
    );
    let usage = &answer["usage"];
    assert_eq!(
        (&usage["prompt_tokens"], &usage["completion_tokens"], &usage["total_tokens"]),
        (&json!(3), &json!(4), &json!(7))
    );
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
    let stopped = server.ok("/v1/chat/completions", with(ask("a b c d"), &json!({"stop": "c d"}))).await;
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn a_chat_streams() {
    let server = mock_server(Settings::new()).await;
    let body =
        with(ask("a b c"), &json!({"stream": true, "n": 2, "stream_options": {"include_usage": true}}));
    let events = server.stream("/v1/chat/completions", body).await;
    assert_eq!(events.last().unwrap().1, "[DONE]");
    let chunks = chunks(&events);
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    for index in 0..2 {
        let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
        let own: Vec<&Value> = choices.filter(|choice| choice["index"] == index).collect();
        let text: String = own.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        assert_eq!(text, " b c a b");
        assert_eq!(own.last().unwrap()["finish_reason"], "length");
    }
    let last = chunks.last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(8)));
    assert!(chunks[0]["usage"].is_null());
}

#[tokio::test]
async fn reasoning_calls_and_results_make_a_loop() {
    let server = scripted_server();
    let mut messages = vec![json!({"role": "user", "content": "How warm is it in Zürich, in °F?"})];
    let results = ["20", "68"];
    for (turn, result) in results.iter().enumerate() {
        let body = json!({"messages": messages, "tools": tools(), "tool_choice": "auto"});
        let answer = server.ok("/v1/chat/completions", body).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
        let message = &choice["message"];
        let call = &message["tool_calls"][0];
        assert_eq!(call["function"]["name"], ["weather", "convert"][turn]);
        let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        assert_eq!(arguments, [json!({"city": "Zürich"}), json!({"celsius": 20})][turn]);
        if turn == 0 {
            assert_eq!(message["reasoning_content"], "I need the weather.");
            assert!(message["content"].is_null());
            assert!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 0);
        }
        messages.push(message.clone());
        messages.push(json!({"role": "tool", "tool_call_id": call["id"], "content": result}));
    }
    let answer = server.ok("/v1/chat/completions", json!({"messages": messages, "tools": tools()})).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "It is 68 °F in Zürich.");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn calls_stream_and_one_at_a_time_where_that_is_asked_for() {
    let server = scripted_server();
    let body = |parallel: bool| {
        json!({"messages": [{"role": "user", "content": "both"}], "tools": tools(), "stream": true,
               "parallel_tool_calls": parallel})
    };
    let calls = |chunks: &[Value]| -> Vec<Value> {
        let deltas = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].as_array());
        deltas.flatten().cloned().collect()
    };
    let both = chunks(&server.stream("/v1/chat/completions", body(true)).await);
    let parts = calls(&both);
    assert_eq!(parts.iter().map(|part| part["index"].as_u64().unwrap()).max(), Some(1));
    assert!(parts.iter().all(|part| part["function"]["arguments"].is_string()));
    assert_eq!(both.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    let one = chunks(&server.stream("/v1/chat/completions", body(false)).await);
    assert!(calls(&one).iter().all(|part| part["index"] == 0));
    assert_eq!(one.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn arguments_stream_while_they_are_written() {
    let server = scripted_server_with(Settings::new().stream_interval(Duration::ZERO));
    let body = json!({"messages": [{"role": "user", "content": "both"}], "tools": tools(), "stream": true});
    let chunks = chunks(&server.stream("/v1/chat/completions", body).await);
    let deltas = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].as_array());
    let parts: Vec<&Value> = deltas.flatten().collect();
    for (index, (name, arguments)) in
        [("weather", json!({"city": "Zürich"})), ("convert", json!({"celsius": 20}))].into_iter().enumerate()
    {
        let own: Vec<&&Value> = parts.iter().filter(|part| part["index"] == index).collect();
        assert_eq!(
            (&own[0]["function"]["name"], &own[0]["function"]["arguments"]),
            (&json!(name), &json!(""))
        );
        assert!(own[0]["id"].is_string() && own[1..].iter().all(|part| part["id"].is_null()));
        assert!(own.len() > 2, "the arguments came in one piece: {own:?}");
        let text: String = own.iter().filter_map(|part| part["function"]["arguments"].as_str()).collect();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), arguments);
    }
    let body = json!({"input": "How warm is it?", "stream": true, "tools": [{"type": "function", "name": "weather"}]});
    let events = server.stream("/v1/responses", body).await;
    let contents = self::chunks(&events);
    let of = |name: &str| contents.iter().filter(|event| event["type"] == name).cloned().collect::<Vec<_>>();
    let pieces = of("response.function_call_arguments.delta");
    let text: String = pieces.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert!(pieces.len() > 1);
    assert_eq!(of("response.function_call_arguments.done")[0]["arguments"], text);
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), json!({"city": "Zürich"}));
}

#[tokio::test]
async fn without_tools_the_marks_are_text_and_an_assistants_turn_goes_on() {
    let server = scripted_server();
    let messages =
        json!([{"role": "user", "content": "How is it?"}, {"role": "assistant", "content": "It is"}]);
    let answer = server.ok("/v1/chat/completions", json!({ "messages": messages })).await;
    assert_eq!(answer["choices"][0]["message"]["content"], " warm today.");
    let body =
        json!({"messages": [{"role": "user", "content": "x"}], "tools": tools(), "tool_choice": "none"});
    let answer = server.ok("/v1/chat/completions", body).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "Hello from the script!");
}

#[tokio::test]
async fn log_probabilities_come_with_each_token() {
    let server = scripted_server();
    let body = json!({"messages": [{"role": "user", "content": "x"}], "logprobs": true, "top_logprobs": 2});
    let whole = server.ok("/v1/chat/completions", body.clone()).await;
    let content = whole["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(content.len() as u64, whole["usage"]["completion_tokens"].as_u64().unwrap());
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(
        content.last().unwrap()["bytes"],
        json!(content.last().unwrap()["token"].as_str().unwrap().as_bytes())
    );
    let streamed = chunks(&server.stream("/v1/chat/completions", with(body, &json!({"stream": true}))).await);
    let parts = streamed.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(parts.flatten().count(), content.len());
}

#[tokio::test]
async fn responses_have_log_probabilities_of_their_text() {
    let server = scripted_server();
    let body = json!({"input": "Hi", "include": ["message.output_text.logprobs"], "top_logprobs": 2});
    let whole = server.ok("/v1/responses", body.clone()).await;
    let kinds: Vec<_> = whole["output"].as_array().unwrap().iter().map(|item| item["type"].clone()).collect();
    assert_eq!(kinds, ["reasoning", "message"]);
    let part = &whole["output"][1]["content"][0];
    let logprobs = part["logprobs"].as_array().unwrap();
    // Those of the text and of nothing else: reasoning and marks have none.
    let text: String = logprobs.iter().filter_map(|token| token["token"].as_str()).collect();
    assert_eq!(
        (text.trim_start(), &part["text"]),
        ("Hello from the script!", &json!("Hello from the script!"))
    );
    for token in logprobs {
        assert!(token["logprob"].as_f64().unwrap() < 0.0 && token["bytes"].is_array());
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 2);
    }
    let streamed = chunks(&server.stream("/v1/responses", with(body, &json!({"stream": true}))).await);
    let of = |name: &str| -> Vec<Value> {
        let named = streamed.iter().filter(|event| event["type"] == name);
        named.flat_map(|event| event["logprobs"].as_array().unwrap().clone()).collect()
    };
    assert_eq!(&of("response.output_text.delta"), logprobs);
    assert_eq!(&of("response.output_text.done"), logprobs);
    let without = server.ok("/v1/responses", json!({"input": "Hi"})).await;
    assert_eq!(without["output"][1]["content"][0]["logprobs"], json!([]));
    let (_, error) = server.refused("/v1/responses", json!({"input": "Hi", "top_logprobs": 21})).await;
    assert_eq!(error["error"]["param"], "top_logprobs");
}

#[tokio::test]
async fn texts_are_continued() {
    let server = mock_server(Settings::new()).await;
    let body = json!({"prompt": ["a b", "c d"], "n": 2, "max_tokens": 2, "echo": true});
    let answer = server.ok("/v1/completions", body).await;
    let texts: Vec<_> = answer["choices"].as_array().unwrap().iter().map(|c| c["text"].clone()).collect();
    assert_eq!(texts, ["a b b a", "a b b a", "c d d c", "c d d c"]);
    assert_eq!(
        (&answer["usage"]["prompt_tokens"], &answer["usage"]["completion_tokens"]),
        (&json!(4), &json!(8))
    );
    let body = json!({"prompt": [5, 6], "max_tokens": 1, "stream": true, "return_token_ids": true});
    let events = server.stream("/v1/completions", body).await;
    assert_eq!(chunks(&events)[0]["choices"][0]["token_ids"], json!([6]));
    let text: String =
        chunks(&events).iter().filter_map(|c| c["choices"][0]["text"].as_str().map(str::to_owned)).collect();
    assert_eq!(text, " #6");
    let scripted = scripted_server();
    let answer = scripted.ok("/v1/completions", json!({"prompt": "x", "logprobs": 1, "max_tokens": 3})).await;
    assert_eq!(answer["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn responses_go_on_from_one_another() {
    let server = scripted_server();
    let flat = json!([{"type": "function", "name": "weather", "parameters": {"type": "object"}},
                      {"type": "function", "name": "convert"}, {"type": "web_search"}]);
    let first = server.ok("/v1/responses", json!({"input": "How warm is it?", "tools": flat})).await;
    assert_eq!((first["status"].as_str(), first["tools"].as_array().unwrap().len()), (Some("completed"), 2));
    let kinds: Vec<_> = first["output"].as_array().unwrap().iter().map(|item| item["type"].clone()).collect();
    assert_eq!(kinds, ["reasoning", "function_call"]);
    let output = |call: &Value, text: &str| json!([{"type": "function_call_output", "call_id": call["call_id"], "output": text}]);
    let second = server
        .ok("/v1/responses", json!({"previous_response_id": first["id"], "input": output(&first["output"][1], "20"), "tools": flat}))
        .await;
    assert_eq!(second["output"][0]["name"], "convert");
    let arguments = second["output"][0]["arguments"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(arguments).unwrap(), json!({"celsius": 20}));
    let third = server
        .ok("/v1/responses", json!({"previous_response_id": second["id"], "input": output(&second["output"][0], "68"), "tools": flat}))
        .await;
    assert_eq!(third["output"][0]["content"][0]["text"], "It is 68 °F in Zürich.");
    let id = third["id"].as_str().unwrap();
    assert_eq!(server.get(&format!("/v1/responses/{id}")).await.json::<Value>().await.unwrap(), third);
    let deleted = server.client.delete(format!("{}/v1/responses/{id}", server.url)).send().await.unwrap();
    assert_eq!(deleted.status(), 200);
    let (status, error) =
        server.refused("/v1/responses", json!({"previous_response_id": id, "input": "x"})).await;
    assert_eq!((status, &error["error"]["param"]), (404, &json!("previous_response_id")));
}

#[tokio::test]
async fn a_responses_stream_numbers_its_events() {
    let server = scripted_server();
    let events = server
        .stream("/v1/responses", json!({"input": "Hi", "stream": true, "max_output_tokens": 200}))
        .await;
    let contents = chunks(&events);
    for (number, ((name, _), content)) in events.iter().zip(&contents).enumerate() {
        assert_eq!(
            (content["sequence_number"].as_u64(), content["type"].as_str()),
            (Some(number as u64), Some(name.as_str()))
        );
    }
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[..3], ["response.created", "response.in_progress", "response.output_item.added"]);
    assert_eq!(names.last(), Some(&"response.completed"));
    let text: String = contents
        .iter()
        .filter(|content| content["type"] == "response.output_text.delta")
        .filter_map(|content| content["delta"].as_str())
        .collect();
    assert_eq!(text, "Hello from the script!");
    let probe = server.ok("/v1/responses", json!({"input": [], "max_output_tokens": 1})).await;
    assert_eq!((probe["status"].as_str(), &probe["output"]), (Some("completed"), &json!([])));
}

#[tokio::test]
async fn a_shape_that_the_engine_cannot_hold_to_is_refused_by_its_field() {
    let server = mock_server(Settings::new()).await;
    let chat = "/v1/chat/completions";
    let cases = [
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"structured_outputs": {"regex": "a+"}}), "structured_outputs"),
        (json!({"tools": tools(), "tool_choice": "required"}), "tool_choice"),
    ];
    for (fields, param) in cases {
        let (status, error) = server.refused(chat, with(ask("a"), &fields)).await;
        assert_eq!((status, error["error"]["param"].as_str()), (400, Some(param)), "{error}");
        assert!(
            error["error"]["message"].as_str().unwrap().contains("does not support constraint"),
            "{error}"
        );
    }
    let format = json!({"input": "a", "text": {"format": {"type": "json_object"}}});
    let (_, error) = server.refused("/v1/responses", format).await;
    assert_eq!(error["error"]["param"], "text.format", "{error}");
}

#[tokio::test]
async fn what_would_be_ignored_is_refused_by_name() {
    let server = scripted_server();
    let chat = "/v1/chat/completions";
    let cases = [
        (json!({"temprature": 1}), "temprature"),
        (json!({"top_p": 2}), "top_p"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"n": 0}), "n"),
        (json!({"n": 100_000}), "n"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias"),
        (json!({"logit_bias": {"7": 1}, "functions": []}), "functions"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"structured_outputs": {}}), "structured_outputs"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"stream": true, "stream_options": {"usage": true}}), "stream_options.usage"),
        (json!({"modalities": ["text", "audio"]}), "modalities"),
    ];
    for (fields, param) in cases {
        let (status, error) = server.refused(chat, with(ask("a"), &fields)).await;
        assert_eq!((status, error["error"]["param"].as_str()), (400, Some(param)), "{error}");
        assert_eq!(error["error"]["type"], "invalid_request_error");
    }
    let image = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]});
    let (_, error) = server.refused(chat, image).await;
    assert!(error["error"]["message"].as_str().unwrap().contains("image_url"), "{error}");
    let (status, error) = server.refused(chat, with(ask("a"), &json!({"model": "gpt-9"}))).await;
    assert_eq!((status, error["error"]["code"].as_str()), (404, Some("model_not_found")));
    let long = "a ".repeat(3000);
    let (_, error) = server.refused(chat, ask(&long)).await;
    assert_eq!(error["error"]["code"], "context_length_exceeded");
}
