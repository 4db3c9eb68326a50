//! A model that calls functions of the program until it has its answer.
//!
//! ```
//! use futures::StreamExt as _;
//! use inference::{Message, agent::{Agent, AgentEvent, Tool}};
//! use schemars::JsonSchema;
//! use serde::Deserialize;
//!
//! #[derive(Deserialize, JsonSchema)]
//! struct Sum {
//!     a: i64,
//!     b: i64,
//! }
//!
//! # let folder = inference_core::mock::folder();
//! # futures::executor::block_on(async {
//! # let model = inference::load_model(folder.path()).backend("mock").await?;
//! let add = Tool::new("add", "Adds two whole numbers.", |sum: Sum| async move { Ok::<_, String>(sum.a + sum.b) });
//! let agent = Agent::new(model).tool(add).max_rounds(4);
//! # let agent = agent.without_tools(); // The mock reads no definitions.
//! let mut events = agent.run(vec![Message::user("What is 2+2?")]);
//! while let Some(event) = events.next().await {
//!     match event? {
//!         AgentEvent::Text(text) => print!("{text}"),
//!         AgentEvent::ToolResult { call, result } => println!("{}: {result:?}", call.name),
//!         AgentEvent::Finished(end) => println!("after {} rounds", end.rounds),
//!         _ => {}
//!     }
//! }
//! # Ok::<(), inference::Error>(())
//! # }).unwrap();
//! ```

use std::{
    collections::VecDeque,
    fmt,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{
    FutureExt as _, Stream, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream, FuturesUnordered},
};
use inference_core::{
    AssistantMessage, ChatEvent, ChatStream, Error, FinishReason, GenerateOptions, Message, Result,
    TextModel, TextModelExt as _, ToolCall,
};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

/// Rounds where [`Agent::max_rounds`] sets no limit.
const DEFAULT_MAX_ROUNDS: usize = 8;

type Function =
    dyn Fn(Map<String, Value>) -> BoxFuture<'static, std::result::Result<String, String>> + Send + Sync;

/// A function of the program that a model may call. Cheap to clone.
#[derive(Clone)]
pub struct Tool {
    name: String,
    description: String,
    parameters: Value,
    strict: bool,
    function: Arc<Function>,
}

impl Tool {
    /// A tool whose arguments are a type of the program's: the model is told its schema, and a call is read into it. What the
    /// function returns is told to the model as JSON, a text as it is; an error as well, so that the model can try again.
    pub fn new<A, R, E, F, Fut>(name: impl Into<String>, description: impl Into<String>, function: F) -> Self
    where
        A: JsonSchema + DeserializeOwned,
        R: Serialize,
        E: fmt::Display,
        F: Fn(A) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = std::result::Result<R, E>> + Send + 'static,
    {
        let read = move |arguments: Map<String, Value>| {
            let called = serde_json::from_value(Value::Object(arguments)).map(&function);
            async move {
                let value = called.map_err(|error| format!("the arguments: {error}"))?.await;
                serde_json::to_value(value.map_err(|error| error.to_string())?)
                    .map_err(|error| error.to_string())
            }
        };
        Self::with_schema(name, description, inference_core::schema_of::<A>(), read)
    }

    /// A tool whose arguments have this JSON schema.
    pub fn with_schema<F, Fut>(
        name: impl Into<String>,
        description: impl Into<String>,
        parameters: Value,
        function: F,
    ) -> Self
    where
        F: Fn(Map<String, Value>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = std::result::Result<Value, String>> + Send + 'static,
    {
        let function = move |arguments| {
            let told = function(arguments).map(|result| {
                result.map(|value| match value {
                    Value::String(text) => text,
                    other => other.to_string(),
                })
            });
            told.boxed()
        };
        let (name, description) = (name.into(), description.into());
        Self { name, description, parameters, strict: false, function: Arc::new(function) }
    }

    /// Holds the arguments of its calls to the schema while the model writes them. It needs a backend and a model whose calls can be
    /// held to a shape.
    #[must_use]
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    fn definition(&self) -> Value {
        let mut function =
            json!({"name": self.name, "description": self.description, "parameters": self.parameters});
        if self.strict {
            function["strict"] = Value::Bool(true);
        }
        json!({"type": "function", "function": function})
    }
}

impl fmt::Debug for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tool").field("name", &self.name).field("strict", &self.strict).finish_non_exhaustive()
    }
}

/// A model and the tools that it may call. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Agent {
    model: Arc<dyn TextModel>,
    tools: Vec<Tool>,
    options: GenerateOptions,
    max_rounds: usize,
}

impl Agent {
    /// An agent without tools.
    #[must_use]
    pub fn new(model: Arc<dyn TextModel>) -> Self {
        Self { model, tools: Vec::new(), options: GenerateOptions::new(), max_rounds: DEFAULT_MAX_ROUNDS }
    }

    /// Lets the model call this tool.
    #[must_use]
    pub fn tool(mut self, tool: Tool) -> Self {
        self.tools.push(tool);
        self
    }

    /// The same agent without its tools.
    #[must_use]
    pub fn without_tools(mut self) -> Self {
        self.tools.clear();
        self
    }

    /// Generates each round with these options; the definitions of the tools are added to them.
    #[must_use]
    pub fn options(mut self, options: GenerateOptions) -> Self {
        self.options = options;
        self
    }

    /// Asks the model so many times at most; 8 where unset.
    #[must_use]
    pub fn max_rounds(mut self, rounds: usize) -> Self {
        self.max_rounds = rounds;
        self
    }

    /// Goes on with a conversation: asks the model, runs the tools that it calls, all calls of a round side by side, tells it the
    /// results, and asks again, until it calls none or the rounds are used up. Nothing runs while the stream is not read; dropping it
    /// cancels the generation and drops the tools' futures.
    pub fn run(&self, messages: Vec<Message>) -> AgentStream {
        let mut agent = self.clone();
        if !agent.tools.is_empty() {
            let own = agent.options.template.tools.iter().flat_map(|tools| tools.iter().cloned());
            let tools: Vec<Value> = own.chain(agent.tools.iter().map(Tool::definition)).collect();
            agent.options = agent.options.tools(tools);
        }
        let run = Run { agent, messages, rounds: 0, step: Step::Ask, ready: VecDeque::new() };
        AgentStream(stream::unfold(Some(run), next).fuse().boxed())
    }
}

/// A step of an agent, as it happens.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum AgentEvent {
    /// The model is asked; the number of the round, from 1.
    Round(usize),
    /// A piece of text for the reader.
    Text(String),
    /// A piece of the model's reasoning.
    Thinking(String),
    /// The model calls a tool, which begins once the answer has ended.
    ToolCall(ToolCall),
    /// The model wrote what is marked as a call and cannot be read as one. It is told so.
    UnparsedToolCall {
        /// The text with delimiters.
        raw: String,
        /// Why it is no call.
        reason: String,
    },
    /// A tool has returned.
    ToolResult {
        /// The call.
        call: ToolCall,
        /// What the model is told: what the tool returned, or what went wrong.
        result: std::result::Result<String, String>,
    },
    /// The last event: the agent has its answer, or the rounds are used up.
    Finished(AgentEnd),
}

/// How an agent's run ended.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AgentEnd {
    /// The text of the last round.
    pub text: String,
    /// Times that the model was asked.
    pub rounds: usize,
    /// Whether the model had more to call, and the rounds were used up.
    pub out_of_rounds: bool,
    /// How the last round ended.
    pub reason: FinishReason,
    /// The whole conversation, answers and results of tools included.
    pub messages: Vec<Message>,
}

/// The steps of one run of an [`Agent`], in order. It ends after [`AgentEvent::Finished`], or after one error.
#[must_use = "nothing runs before the stream is read"]
pub struct AgentStream(BoxStream<'static, Result<AgentEvent>>);

impl fmt::Debug for AgentStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AgentStream")
    }
}

impl Stream for AgentStream {
    type Item = Result<AgentEvent>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

struct Run {
    agent: Agent,
    messages: Vec<Message>,
    rounds: usize,
    step: Step,
    ready: VecDeque<AgentEvent>,
}

enum Step {
    Ask,
    Read { events: Box<ChatStream>, answer: AssistantMessage, failed: Vec<String> },
    Call { running: Running, results: Vec<Option<Message>>, failed: Vec<String> },
    Done,
}

type Running = FuturesUnordered<BoxFuture<'static, (usize, ToolCall, std::result::Result<String, String>)>>;

async fn next(run: Option<Run>) -> Option<(Result<AgentEvent>, Option<Run>)> {
    let mut run = run?;
    loop {
        if let Some(event) = run.ready.pop_front() {
            return Some((Ok(event), Some(run)));
        }
        if matches!(run.step, Step::Done) {
            return None;
        }
        if let Err(error) = run.advance().await {
            return Some((Err(error), None));
        }
    }
}

impl Run {
    async fn advance(&mut self) -> Result<()> {
        match &mut self.step {
            Step::Done => {}
            Step::Ask => {
                self.rounds += 1;
                let Agent { model, options, .. } = &self.agent;
                let events = model.chat(self.messages.clone(), options.clone()).await?;
                self.ready.push_back(AgentEvent::Round(self.rounds));
                let answer = AssistantMessage::default();
                self.step = Step::Read { events: Box::new(events), answer, failed: Vec::new() };
            }
            Step::Read { events, answer, failed } => match events.next().await {
                Some(event) => {
                    let event = event?;
                    if let ChatEvent::UnparsedToolCall { reason, .. } = &event {
                        failed.push(reason.clone());
                    }
                    answer.extend([event.clone()]);
                    self.ready.extend(shown(event));
                }
                None => {
                    let reason = events.finish().await?.reason;
                    let (answer, failed) = (std::mem::take(answer), std::mem::take(failed));
                    self.answered(answer, failed, reason);
                }
            },
            Step::Call { running, results, failed } => match running.next().await {
                Some((place, call, result)) => {
                    let told = result.clone().unwrap_or_else(|error| format!("error: {error}"));
                    if let Some(slot) = results.get_mut(place) {
                        *slot = Some(Message::tool_result(&call, told));
                    }
                    self.ready.push_back(AgentEvent::ToolResult { call, result });
                }
                None => {
                    self.messages.extend(results.drain(..).flatten());
                    let told = |reason: String| {
                        Message::user(format!("A call of a tool could not be read: {reason}"))
                    };
                    self.messages.extend(failed.drain(..).map(told));
                    self.step = Step::Ask;
                }
            },
        }
        Ok(())
    }

    /// The model has answered: its calls are run, or the run ends.
    fn answered(&mut self, answer: AssistantMessage, failed: Vec<String>, reason: FinishReason) {
        self.messages.push(answer.message());
        let calls = answer.tool_calls;
        let goes_on = !(calls.is_empty() && failed.is_empty()) && reason != FinishReason::Cancelled;
        if !goes_on || self.rounds >= self.agent.max_rounds {
            let messages = std::mem::take(&mut self.messages);
            let (text, rounds) = (answer.text, self.rounds);
            let end = AgentEnd { text, rounds, out_of_rounds: goes_on, reason, messages };
            self.ready.push_back(AgentEvent::Finished(end));
            self.step = Step::Done;
            return;
        }
        let results = calls.iter().map(|_| None).collect();
        let running = calls.into_iter().enumerate().map(|(place, call)| self.call(place, call)).collect();
        self.step = Step::Call { running, results, failed };
    }

    fn call(
        &self,
        place: usize,
        call: ToolCall,
    ) -> BoxFuture<'static, (usize, ToolCall, std::result::Result<String, String>)> {
        let tool = self.agent.tools.iter().find(|tool| tool.name == call.name).cloned();
        async move {
            let Some(tool) = tool else {
                let reason = format!("there is no tool {:?}", call.name);
                return (place, call, Err(reason));
            };
            let arguments = call.arguments.clone();
            // A panic of the program's own function is the model's to hear of, and no other call's.
            let run = AssertUnwindSafe(async move { (tool.function)(arguments).await }).catch_unwind();
            let result = run.await.unwrap_or_else(|_| Err("the tool panicked".to_owned()));
            (place, call, result)
        }
        .boxed()
    }
}

fn shown(event: ChatEvent) -> Option<AgentEvent> {
    match event {
        ChatEvent::Text(text) => Some(AgentEvent::Text(text)),
        ChatEvent::Thinking(text) => Some(AgentEvent::Thinking(text)),
        ChatEvent::ToolCall { call, .. } => Some(AgentEvent::ToolCall(call)),
        ChatEvent::UnparsedToolCall { raw, reason } => Some(AgentEvent::UnparsedToolCall { raw, reason }),
        _ => None,
    }
}

impl AgentStream {
    /// Reads the run to its end, and drops the steps before.
    ///
    /// # Errors
    /// Whatever ended the run; [`Error::Cancelled`] where its end was read already.
    pub async fn finish(&mut self) -> Result<AgentEnd> {
        while let Some(event) = self.next().await {
            if let AgentEvent::Finished(end) = event? {
                return Ok(end);
            }
        }
        Err(Error::Cancelled)
    }
}
