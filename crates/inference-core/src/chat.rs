//! The parts of a chat answer: text, reasoning and tool calls.

use std::fmt::Debug;

use serde::Serialize;

use crate::{Message, Token, ToolCall};

/// A part of an answer, as it streams in. The [`raw`](Self::raw) texts of all parts together are the whole answer,
/// delimiters included: nothing that a model generates is lost.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ChatEvent {
    /// A piece of text for the reader.
    Text(String),
    /// A piece of the model's reasoning.
    Thinking(String),
    /// A call of a tool has begun, where the model's notation tells it before the end. Pieces of its arguments follow, then the
    /// whole [`ToolCall`](Self::ToolCall) with the same id, or an [`UnparsedToolCall`](Self::UnparsedToolCall). Programs that
    /// wait for whole calls need neither this nor the pieces: their raw texts are empty.
    ToolCallBegun {
        /// The call's id.
        id: String,
        /// The name of the tool.
        name: String,
    },
    /// A piece of the arguments of the call that has begun. The pieces together are the JSON object that the model wrote.
    ToolCallArguments(String),
    /// A call of a tool.
    ToolCall {
        /// The call.
        call: ToolCall,
        /// Its text with delimiters. Where one pair of delimiters holds several calls, the first has all of it.
        raw: String,
    },
    /// What is marked as a call and cannot be read as one.
    UnparsedToolCall {
        /// The text with delimiters.
        raw: String,
        /// Why it is no call.
        reason: String,
    },
    /// What the model's family writes around the other parts, such as `<think>`, with adjacent line breaks.
    Mark(String),
}

impl ChatEvent {
    /// The part as the model wrote it.
    #[must_use]
    pub fn raw(&self) -> &str {
        match self {
            Self::Text(raw) | Self::Thinking(raw) | Self::Mark(raw) => raw,
            Self::ToolCall { raw, .. } | Self::UnparsedToolCall { raw, .. } => raw,
            Self::ToolCallBegun { .. } | Self::ToolCallArguments(_) => "",
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
    /// The tool calls, in order.
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
                ChatEvent::Mark(_) | ChatEvent::ToolCallBegun { .. } | ChatEvent::ToolCallArguments(_) => {}
            }
        }
    }
}

/// Splits one answer into its parts, token by token. A backend that knows its model's delimiters gives one to each of its
/// streams: [`TokenStream::with_parser`](crate::TokenStream::with_parser).
pub trait OutputParser: Debug + Send {
    /// Takes the next token and appends the parts that are certain now.
    fn push(&mut self, token: &Token, events: &mut Vec<ChatEvent>);

    /// The answer has ended: appends what is still held.
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

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

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
}
