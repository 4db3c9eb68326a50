//! Offers a tool, runs the model's calls and returns the results:
//! `cargo run --release -p inferlm --example tools MODEL`. The demo model knows no tools.

use inference::{GenerateOptions, Message, TextModelExt as _, ToolCall};
use serde_json::json;

/// More rounds than any question here needs.
const MAX_ROUNDS: usize = 5;

#[tokio::main(flavor = "current_thread")]
async fn main() -> inference::Result<()> {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("usage: tools MODEL (a folder with a model whose chat template takes tools)");
        std::process::exit(2);
    };
    let model = inference::load_model(path).await?;
    let weather = json!({"type": "function", "function": {
        "name": "weather", "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }});
    let options = GenerateOptions::new().max_tokens(512).tools([weather]);
    let mut messages = vec![Message::user("Is it warm in Zürich today?")];
    for _ in 0..MAX_ROUNDS {
        let answer = model.complete(messages.clone(), options.clone()).await?.answer;
        if answer.tool_calls.is_empty() {
            println!("{}", answer.text);
            break;
        }
        messages.push(answer.message());
        for call in &answer.tool_calls {
            messages.push(Message::tool_result(call, run(call)));
        }
    }
    model.close().await
}

/// The tool itself. The model chose the arguments: check them.
fn run(call: &ToolCall) -> String {
    match (call.name.as_str(), call.arguments.get("city").and_then(|city| city.as_str())) {
        ("weather", Some(city)) => format!("{city}: 21 °C, sunny"),
        ("weather", None) => "error: `city` is missing".to_owned(),
        (other, _) => format!("error: there is no tool {other:?}"),
    }
}
