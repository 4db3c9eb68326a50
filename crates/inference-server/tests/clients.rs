//! The clients that programs use: Python's `openai` and `anthropic`, Rust's `async-openai`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{path::Path, process::Command};

use async_openai::{
    Client,
    config::OpenAIConfig,
    types::{
        chat::{
            ChatCompletionMessageToolCalls, ChatCompletionRequestAssistantMessageArgs,
            ChatCompletionRequestMessage, ChatCompletionRequestToolMessageArgs,
            ChatCompletionRequestUserMessageArgs, ChatCompletionTool, ChatCompletionTools,
            CreateChatCompletionRequestArgs, FunctionObjectArgs,
        },
        responses::CreateResponseArgs,
    },
};
use futures::StreamExt as _;
use support::*;

/// Runs a script with the packages that `cargo xtask test` installs.
async fn python(script: &'static str) {
    let server = scripted_server();
    let url = server.url.clone();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let made = root.join("../../target/clients-venv/bin/python");
    let program = std::env::var_os("INFERENCE_CLIENTS_PYTHON").map_or(made, Into::into);
    let script = root.join("tests/python").join(script);
    let run = move || Command::new(&program).arg(script).arg(url).output();
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let output = output.expect("an environment with openai and anthropic: `cargo xtask test` makes it");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[tokio::test]
async fn pythons_openai() {
    python("openai_client.py").await;
}

#[tokio::test]
async fn pythons_anthropic() {
    python("anthropic_client.py").await;
}

fn client(server: &Running) -> Client<OpenAIConfig> {
    Client::with_config(
        OpenAIConfig::new().with_api_base(format!("{}/v1", server.url)).with_api_key("unused"),
    )
}

fn user(text: &str) -> ChatCompletionRequestMessage {
    ChatCompletionRequestUserMessageArgs::default().content(text).build().unwrap().into()
}

#[tokio::test]
async fn rusts_async_openai() {
    let server = scripted_server();
    let client = client(&server);
    let request =
        CreateChatCompletionRequestArgs::default().model("scripted").messages([user("Hi")]).build().unwrap();
    let answer = client.chat().create(request.clone()).await.unwrap();
    assert_eq!(answer.choices[0].message.content.as_deref(), Some("Hello from the script!"));
    let mut stream = client.chat().create_stream(request).await.unwrap();
    let mut text = String::new();
    while let Some(chunk) = stream.next().await {
        text.extend(chunk.unwrap().choices.into_iter().filter_map(|choice| choice.delta.content));
    }
    assert_eq!(text, "Hello from the script!");
    let request = CreateResponseArgs::default().model("scripted").input("Hi").build().unwrap();
    let response = client.responses().create(request).await.unwrap();
    assert_eq!(response.output_text().as_deref(), Some("Hello from the script!"));
}

#[tokio::test]
async fn rusts_async_openai_in_a_loop_with_tools() {
    let server = scripted_server();
    let client = client(&server);
    let tool = |name: &str| {
        let function = FunctionObjectArgs::default().name(name).build().unwrap();
        ChatCompletionTools::Function(ChatCompletionTool { function })
    };
    let mut messages = vec![user("How warm is it in Zürich, in °F?")];
    let mut called = Vec::new();
    let text = loop {
        let request = CreateChatCompletionRequestArgs::default()
            .model("scripted")
            .messages(messages.clone())
            .tools([tool("weather"), tool("convert")])
            .build()
            .unwrap();
        let message = client.chat().create(request).await.unwrap().choices.remove(0).message;
        let Some(calls) = message.tool_calls else { break message.content.unwrap() };
        let said = ChatCompletionRequestAssistantMessageArgs::default().tool_calls(calls.clone()).build();
        messages.push(said.unwrap().into());
        for call in calls {
            let ChatCompletionMessageToolCalls::Function(call) = call else { panic!("a function") };
            let result = if call.function.name == "weather" { "20" } else { "68" };
            called.push(call.function.name);
            let mut message = ChatCompletionRequestToolMessageArgs::default();
            messages.push(message.tool_call_id(call.id).content(result).build().unwrap().into());
        }
    };
    assert_eq!(called, ["weather", "convert"]);
    assert_eq!(text, "It is 68 °F in Zürich.");
}
