//! An agent, its tools, and a model that says what a script tells it.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use futures::{StreamExt as _, executor::block_on};
use inference::{
    ChatEvent, Classification, ClassifyOptions, Error, Feature, FinishReason, GenerateOptions, Message,
    ModelInfo, ModelStats, Prompt, Result, TextModel, Token, TokenStream, ToolCall,
    agent::{Agent, AgentEvent, Tool},
};
use inference_core::backend::{OutputParser, ResponseWriter, SharedStats, Verbatim, async_trait};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Says one text after another; a word that begins with `!` is a call of a tool, `!name{…}`.
#[derive(Debug)]
struct Script {
    info: ModelInfo,
    stats: SharedStats,
    answers: Mutex<Vec<&'static str>>,
    heard: Mutex<Vec<(Vec<Message>, GenerateOptions)>>,
}

#[derive(Debug)]
struct Calls;

impl OutputParser for Calls {
    fn push(&mut self, token: &Token, events: &mut Vec<ChatEvent>) {
        let Some(call) = token.text.strip_prefix('!') else {
            return events.push(ChatEvent::Text(token.text.clone()));
        };
        let (name, arguments) = call.split_at(call.find('{').unwrap());
        let raw = token.text.clone();
        events.push(match serde_json::from_str(arguments) {
            Ok(arguments) => {
                ChatEvent::ToolCall { call: ToolCall::new(arguments_id(name), name, arguments), raw }
            }
            Err(error) => ChatEvent::UnparsedToolCall { raw, reason: error.to_string() },
        });
    }

    fn finish(&mut self, _: &mut Vec<ChatEvent>) {}
}

fn arguments_id(name: &str) -> String {
    format!("id-{name}")
}

#[async_trait]
impl TextModel for Script {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    async fn generate(&self, prompt: Prompt, options: GenerateOptions) -> Result<TokenStream> {
        let Prompt::Chat(messages) = prompt else { panic!("{prompt:?}") };
        self.heard.lock().unwrap().push((messages, options.clone()));
        let said = self.answers.lock().unwrap().remove(0);
        let (mut writer, stream) = ResponseWriter::channel(
            &self.info,
            &self.stats,
            Verbatim::default(),
            &options,
            1,
            Instant::now(),
        )?;
        writer.begin(0);
        for (id, word) in (1..).zip(said.split(' ')) {
            writer.push(Token::new(id, word));
        }
        writer.end(Ok(FinishReason::Length));
        Ok(stream.with_parser(Calls))
    }

    async fn classify(&self, _: Vec<Prompt>, _: ClassifyOptions) -> Result<Vec<Classification>> {
        Err(Error::unsupported("script", Feature::Classify))
    }

    fn stats(&self) -> ModelStats {
        ModelStats::default()
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

fn script(answers: &[&'static str]) -> Arc<Script> {
    let mut info = ModelInfo::default();
    (info.vocab_size, info.context_length) = (100, 1000);
    let (answers, heard) = (Mutex::new(answers.to_vec()), Mutex::default());
    Arc::new(Script { info, stats: SharedStats::default(), answers, heard })
}

#[derive(Deserialize, JsonSchema)]
struct Sum {
    a: i64,
    b: i64,
}

fn add() -> Tool {
    Tool::new("add", "Adds.", |sum: Sum| async move { sum.a.checked_add(sum.b).ok_or("too large") })
}

#[test]
fn it_calls_tools_until_it_has_its_answer() {
    let model = script(&["Let !add{\"a\":1,\"b\":2} !shout{\"x\":1}", "It is 3."]);
    let count = |arguments: Map<String, Value>| async move { Ok(json!(arguments.len())) };
    let shout = Tool::with_schema("shout", "Shouts.", json!({"type": "object"}), count);
    let agent = Agent::new(model.clone()).tool(add().strict(true)).tool(shout);
    let events: Vec<AgentEvent> =
        block_on(agent.run(vec![Message::user("1+2?")]).map(Result::unwrap).collect());
    let kinds: Vec<String> = events
        .iter()
        .map(|event| match event {
            AgentEvent::Round(round) => format!("round {round}"),
            AgentEvent::Text(text) => text.clone(),
            AgentEvent::ToolCall(call) => format!("call {}", call.name),
            AgentEvent::ToolResult { call, result } => format!("{} gave {result:?}", call.name),
            AgentEvent::Finished(end) => format!("{} after {}", end.text, end.rounds),
            other => format!("{other:?}"),
        })
        .collect();
    let expected = [
        "round 1",
        "Let",
        "call add",
        "call shout",
        "add gave Ok(\"3\")",
        "shout gave Ok(\"1\")",
        "round 2",
        "It",
        "is",
        "3.",
        "Itis3. after 2",
    ];
    assert_eq!(kinds, expected);
    let Some(AgentEvent::Finished(end)) = events.last() else { panic!("no end") };
    assert!(!end.out_of_rounds);
    let heard = model.heard.lock().unwrap();
    let said: Vec<&str> = heard[1].0.iter().map(|message| message.content.as_str()).collect();
    assert_eq!(said, ["1+2?", "Let", "3", "1"]);
    assert_eq!(heard[1].0[2].extra["tool_call_id"], "id-add");
    assert_eq!(end.messages[..4], heard[1].0[..]);
    let tools = heard[0].1.template.tools.as_deref().unwrap();
    assert_eq!(
        (&tools[0]["function"]["name"], &tools[0]["function"]["strict"]),
        (&json!("add"), &json!(true))
    );
    assert_eq!(tools[0]["function"]["parameters"]["required"], json!(["a", "b"]));
    assert!(tools[0]["function"]["parameters"]["properties"]["a"].get("format").is_none());
}

#[test]
fn what_goes_wrong_with_a_call_is_the_models_to_hear() {
    let model = script(&[
        "!add{\"a\":1} !none{} !add{\"a\":9223372036854775807,\"b\":1} !panics{} !broken{x",
        "Never mind.",
    ]);
    let fail = |arguments: Map<String, Value>| async move {
        assert!(!arguments.is_empty(), "on purpose");
        Ok(Value::Null)
    };
    let panics = Tool::with_schema("panics", "Panics.", json!({}), fail);
    let agent = Agent::new(model.clone()).tool(add()).tool(panics);
    let end = block_on(agent.run(vec![Message::user("x")]).finish()).unwrap();
    assert_eq!((end.text.as_str(), end.rounds), ("Nevermind.", 2));
    let heard = model.heard.lock().unwrap();
    let told: Vec<&str> = heard[1].0[2..].iter().map(|message| message.content.as_str()).collect();
    assert!(told[0].contains("missing field `b`"), "{told:?}");
    assert!(told[1].contains("no tool \"none\""), "{told:?}");
    assert_eq!(told[2], "error: too large");
    assert_eq!(told[3], "error: the tool panicked");
    assert!(told[4].contains("could not be read"), "{told:?}");
}

#[test]
fn the_rounds_have_a_limit_and_an_error_ends_the_run() {
    let again = "!add{\"a\":1,\"b\":2}";
    let agent = Agent::new(script(&[again, again, again])).tool(add()).max_rounds(2);
    let end = block_on(agent.run(vec![Message::user("x")]).finish()).unwrap();
    assert_eq!((end.rounds, end.out_of_rounds), (2, true));
    // The last answer's calls are not run.
    assert_eq!(end.messages.len(), 4);

    let missing = inference_core::mock::folder();
    let mock = block_on(async { inference::load_model(missing.path()).backend("mock").await }).unwrap();
    let agent = Agent::new(mock).tool(add());
    let mut events = agent.run(vec![Message::user("x")]);
    assert!(matches!(block_on(events.next()), Some(Err(Error::Unsupported { .. }))));
    assert!(block_on(events.next()).is_none());
    assert!(matches!(block_on(events.finish()), Err(Error::Cancelled)));
}
