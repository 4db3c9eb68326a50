//! What a model is asked to continue.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::ToolCall;

/// The input of one request.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Prompt {
    /// Plain text, tokenised with the special tokens that the tokenizer adds (a BOS, say).
    Text(String),
    /// Token ids, used as they are.
    Tokens(Vec<u32>),
    /// A conversation, rendered with the model's chat template and a generation prompt.
    Chat(Vec<Message>),
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Vec<u32>> for Prompt {
    fn from(tokens: Vec<u32>) -> Self {
        Self::Tokens(tokens)
    }
}

impl From<Vec<Message>> for Prompt {
    fn from(messages: Vec<Message>) -> Self {
        Self::Chat(messages)
    }
}

/// One turn of a conversation, as chat templates see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    #[serde(default)]
    pub content: String,
    /// Further fields that templates read: `name`, `tool_calls`, `tool_call_id`, `reasoning_content`, ….
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// A message of any role.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), extra: Map::new() }
    }

    /// Instructions for the whole conversation.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }

    /// What the person says.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// What the model said.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }

    /// What a tool returned.
    pub fn tool(content: impl Into<String>) -> Self {
        Self::new(Role::Tool, content)
    }

    /// What a tool returned to this call.
    pub fn tool_result(call: &ToolCall, content: impl Into<String>) -> Self {
        Self::tool(content).with("tool_call_id", call.id.as_str()).with("name", call.name.as_str())
    }

    /// The calls of tools that the model made with what it said.
    #[must_use]
    pub fn tool_calls(self, calls: &[ToolCall]) -> Self {
        self.with("tool_calls", json!(calls))
    }

    /// Sets a further field that the model's template reads.
    #[must_use]
    pub fn with(mut self, field: impl Into<String>, value: impl Into<Value>) -> Self {
        self.extra.insert(field.into(), value.into());
        self
    }
}

/// Who speaks in a [`Message`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Role {
    /// Instructions for the conversation.
    System,
    /// Instructions of the application, which some families tell from the system's.
    Developer,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// A tool's result.
    Tool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_the_json_object_that_templates_expect() {
        let message = Message::tool("4").with("tool_call_id", "call_1");
        let json = serde_json::to_value(&message).unwrap();
        assert_eq!(json, serde_json::json!({"role": "tool", "content": "4", "tool_call_id": "call_1"}));
        assert_eq!(serde_json::from_value::<Message>(json).unwrap(), message);
    }
}
