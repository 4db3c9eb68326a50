//! What a chat's answer is made of: text, reasoning, and calls of tools.

use std::{
    collections::VecDeque,
    fmt::Debug,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::Stream;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::{Map, Value, json};

use crate::{Error, Finish, Message, Result, Token, TokenStream};

/// A part of an answer, as it streams in. The [`raw`](Self::raw) texts of all parts in one are the whole answer, to the last
/// mark: nothing that a model says is lost.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ChatEvent {
    /// A piece of text for the reader.
    Text(String),
    /// A piece of the model's reasoning.
    Thinking(String),
    /// A call of a tool.
    ToolCall {
        /// The call.
        call: ToolCall,
        /// Its text, marks included; of several calls within one pair of marks the first has all of it.
        raw: String,
    },
    /// What is marked as a call and cannot be read as one.
    UnparsedToolCall {
        /// The text, marks included.
        raw: String,
        /// Why it is no call.
        reason: String,
    },
    /// What the model's family writes around the other parts, such as `<think>`, with the line breaks beside it.
    Mark(String),
}

impl ChatEvent {
    /// The part as the model wrote it.
    #[must_use]
    pub fn raw(&self) -> &str {
        match self {
            Self::Text(raw) | Self::Thinking(raw) | Self::Mark(raw) => raw,
            Self::ToolCall { raw, .. } | Self::UnparsedToolCall { raw, .. } => raw,
        }
    }
}

/// A call of a tool that the model makes. As JSON it has OpenAI's form, which chat templates read too:
/// `{"id", "type": "function", "function": {"name", "arguments"}}`. Arguments are written as an object, and read as an object
/// or as an object in a string.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct ToolCall {
    /// What its result refers to; made up of nine letters and digits where the model gives none.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// Its arguments by name.
    pub arguments: Map<String, Value>,
}

impl ToolCall {
    /// A call.
    pub fn new(id: impl Into<String>, name: impl Into<String>, arguments: Map<String, Value>) -> Self {
        Self { id: id.into(), name: name.into(), arguments }
    }
}

impl Serialize for ToolCall {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let function = json!({ "name": self.name, "arguments": self.arguments });
        json!({ "id": self.id, "type": "function", "function": function }).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ToolCall {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Call {
            #[serde(default)]
            id: String,
            #[serde(default, rename = "type")]
            kind: Option<String>,
            function: Function,
        }
        #[derive(Deserialize)]
        struct Function {
            name: String,
            #[serde(default)]
            arguments: Value,
        }
        let Call { id, kind, function: Function { name, arguments } } = Call::deserialize(deserializer)?;
        if let Some(kind) = kind.filter(|kind| kind != "function") {
            return Err(D::Error::custom(format_args!("type: {kind:?}, expected \"function\"")));
        }
        let parsed = match arguments {
            Value::String(text) if text.trim().is_empty() => Ok(Value::Null),
            Value::String(text) => serde_json::from_str(&text),
            other => Ok(other),
        };
        match parsed {
            Ok(Value::Object(arguments)) => Ok(Self { id, name, arguments }),
            Ok(Value::Null) => Ok(Self { id, name, arguments: Map::new() }),
            Ok(other) => Err(D::Error::custom(format_args!(
                "function.arguments: {other}, expected an object of arguments"
            ))),
            Err(error) => Err(D::Error::custom(format_args!("function.arguments: not JSON: {error}"))),
        }
    }
}

/// A whole answer, taken apart.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AssistantMessage {
    /// The text for the reader.
    pub text: String,
    /// The model's reasoning; empty where there was none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub thinking: String,
    /// The calls of tools, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// What was marked as a call and could not be read as one, as it was written.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unparsed_tool_calls: Vec<String>,
}

impl AssistantMessage {
    /// The answer as the next message of the conversation.
    #[must_use]
    pub fn message(&self) -> Message {
        let mut message = Message::assistant(self.text.clone() + &self.unparsed_tool_calls.concat());
        if !self.thinking.is_empty() {
            message = message.with("reasoning_content", self.thinking.as_str());
        }
        if self.tool_calls.is_empty() { message } else { message.tool_calls(&self.tool_calls) }
    }
}

impl Extend<ChatEvent> for AssistantMessage {
    fn extend<I: IntoIterator<Item = ChatEvent>>(&mut self, events: I) {
        for event in events {
            match event {
                ChatEvent::Text(text) => self.text.push_str(&text),
                ChatEvent::Thinking(text) => self.thinking.push_str(&text),
                ChatEvent::ToolCall { call, .. } => self.tool_calls.push(call),
                ChatEvent::UnparsedToolCall { raw, .. } => self.unparsed_tool_calls.push(raw),
                ChatEvent::Mark(_) => {}
            }
        }
    }
}

/// Tells the parts of one answer apart, token by token. A backend that knows how its model marks them gives one to each of
/// its streams: [`TokenStream::with_parser`].
pub trait OutputParser: Debug + Send {
    /// Takes the next token and appends the parts that are certain by it.
    fn push(&mut self, token: &Token, events: &mut Vec<ChatEvent>);

    /// Appends what is still held: the answer has ended.
    fn finish(&mut self, events: &mut Vec<ChatEvent>);
}

/// The reader of a backend that brings none: all is text.
#[derive(Debug)]
pub(crate) struct PlainTextParser;

impl OutputParser for PlainTextParser {
    fn push(&mut self, token: &Token, events: &mut Vec<ChatEvent>) {
        if !token.text.is_empty() {
            events.push(ChatEvent::Text(token.text.clone()));
        }
    }

    fn finish(&mut self, _events: &mut Vec<ChatEvent>) {}
}

/// The parts of one answer, in order: [`TokenStream::events`].
///
/// It ends as the stream of tokens does: with `None`, after which [`finish`](Self::finish) says how, or with one `Err`, before
/// which all that was said is given out.
#[derive(Debug)]
#[must_use = "a stream that is dropped cancels its generation"]
pub struct ChatStream {
    tokens: TokenStream,
    parser: Box<dyn OutputParser>,
    events: VecDeque<ChatEvent>,
    /// What comes after the events: the end, perhaps with an error.
    end: Option<Option<Error>>,
}

impl ChatStream {
    pub(crate) fn new(mut tokens: TokenStream) -> Self {
        let parser = tokens.take_parser();
        Self { tokens, parser, events: VecDeque::new(), end: None }
    }

    /// The request's number in this process, as spans and logs have it.
    #[must_use]
    pub fn request(&self) -> u64 {
        self.tokens.request()
    }

    /// How the generation ended. Reads and drops the parts that are left; call it after the last one to lose none.
    ///
    /// # Errors
    /// As [`TokenStream::finish`].
    pub async fn finish(&mut self) -> Result<Finish> {
        match self.end.as_mut().and_then(Option::take) {
            Some(error) => Err(error),
            None => self.tokens.finish().await,
        }
    }
}

impl Stream for ChatStream {
    type Item = Result<ChatEvent>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(event) = this.events.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if let Some(end) = &mut this.end {
                return Poll::Ready(end.take().map(Err));
            }
            let mut events = Vec::new();
            match ready!(Pin::new(&mut this.tokens).poll_next(cx)) {
                Some(Ok(token)) => this.parser.push(&token, &mut events),
                end => {
                    this.parser.finish(&mut events);
                    this.end = Some(end.and_then(Result::err));
                }
            }
            this.events.extend(events);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt as _, executor::block_on};

    use super::*;
    use crate::{CancellationToken, FinishReason, Metrics};

    /// Takes every text for reasoning, and gives it out one token late.
    #[derive(Debug, Default)]
    struct Late(String);

    impl OutputParser for Late {
        fn push(&mut self, token: &Token, events: &mut Vec<ChatEvent>) {
            self.finish(events);
            self.0.clone_from(&token.text);
        }

        fn finish(&mut self, events: &mut Vec<ChatEvent>) {
            let held = std::mem::take(&mut self.0);
            events.extend((!held.is_empty()).then_some(ChatEvent::Thinking(held)));
        }
    }

    fn stream(end: Result<Finish>) -> TokenStream {
        let (mut sink, stream) = TokenStream::channel("test", 4, CancellationToken::new());
        sink.send(Token::new(1, "a"));
        sink.send(Token::new(2, "b"));
        sink.end(end);
        stream
    }

    fn finish() -> Finish {
        Finish::new(FinishReason::Length, Metrics::default())
    }

    #[test]
    fn without_a_reader_all_is_text() {
        let mut events = stream(Ok(finish())).events();
        let texts: Vec<_> = block_on(events.by_ref().map(Result::unwrap).collect());
        assert_eq!(texts, [ChatEvent::Text("a".into()), ChatEvent::Text("b".into())]);
        assert_eq!(block_on(events.finish()).unwrap().reason, FinishReason::Length);
    }

    #[test]
    fn what_is_held_comes_before_the_error() {
        let mut events = stream(Err(Error::Closed)).with_parser(Late::default()).events();
        let said: Vec<_> = block_on(events.by_ref().take(2).map(Result::unwrap).collect());
        assert_eq!(said, [ChatEvent::Thinking("a".into()), ChatEvent::Thinking("b".into())]);
        assert!(matches!(block_on(events.next()), Some(Err(Error::Closed))));
        assert!(block_on(events.next()).is_none());
    }

    #[test]
    fn an_answer_is_the_next_message() {
        let call = ToolCall::new("c1", "add", Map::from_iter([("a".to_owned(), json!(1))]));
        let mut answer = AssistantMessage::default();
        answer.extend([
            ChatEvent::Mark("<think>".into()),
            ChatEvent::Thinking("hm".into()),
            ChatEvent::Text("Let me see.".into()),
            ChatEvent::ToolCall { call: call.clone(), raw: "…".into() },
            ChatEvent::UnparsedToolCall { raw: "<call>?".into(), reason: "no".into() },
        ]);
        let message = serde_json::to_value(answer.message()).unwrap();
        let function = json!({"name": "add", "arguments": {"a": 1}});
        let expected = json!({
            "role": "assistant", "content": "Let me see.<call>?", "reasoning_content": "hm",
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        });
        assert_eq!(message, expected);
        let result = serde_json::to_value(Message::tool_result(&call, "2")).unwrap();
        let expected = json!({"role": "tool", "content": "2", "tool_call_id": "c1", "name": "add"});
        assert_eq!(result, expected);
    }

    #[test]
    fn a_tool_call_reads_what_it_writes_and_arguments_in_a_string() {
        let call = ToolCall::new("c1", "add", Map::from_iter([("a".to_owned(), json!(1))]));
        let read =
            |value: Value| serde_json::from_value::<ToolCall>(value).map_err(|error| error.to_string());
        assert_eq!(read(json!(call)).unwrap(), call);
        let text = json!({"id": "c1", "function": {"name": "add", "arguments": "{\"a\":1}"}});
        assert_eq!(read(text).unwrap(), call);
        let none = json!({"function": {"name": "now", "arguments": ""}});
        assert_eq!(read(none).unwrap(), ToolCall::new("", "now", Map::new()));
        let list = json!({"function": {"name": "add", "arguments": "[1]"}});
        assert!(read(list).unwrap_err().contains("function.arguments: [1], expected an object"));
        let cut = json!({"function": {"name": "add", "arguments": "{"}});
        assert!(read(cut).unwrap_err().contains("not JSON"));
        let other = json!({"type": "custom", "function": {"name": "add"}});
        assert!(read(other).unwrap_err().contains("expected \"function\""));
    }
}
