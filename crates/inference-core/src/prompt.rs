//! What a model is asked to continue.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, SeqAccess, Visitor},
};
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

/// One turn of a conversation, as chat templates see it. As JSON it has the form that OpenAI's API gives it: `content` may be
/// `null` or a list of parts of type `text`, whose texts are joined; arguments of `tool_calls` may be an object, or an object
/// written as a string.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; empty where it was `null`.
    #[serde(default, deserialize_with = "content")]
    pub content: String,
    /// Further fields that templates read: `name`, `tool_calls`, `tool_call_id`, `reasoning_content`, ….
    #[serde(flatten, deserialize_with = "extra")]
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

    /// The tool calls that the model made in this message.
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

/// A text, no text, or a list of parts that are texts.
fn content<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    struct Content;

    impl<'de> Visitor<'de> for Content {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string, null, or a list of content parts")
        }

        fn visit_str<E>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }

        fn visit_string<E>(self, text: String) -> Result<String, E> {
            Ok(text)
        }

        fn visit_unit<E>(self) -> Result<String, E> {
            Ok(String::new())
        }

        fn visit_none<E>(self) -> Result<String, E> {
            Ok(String::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<String, A::Error> {
            let mut content = String::new();
            while let Some(part) = parts.next_element()? {
                content.push_str(&text_of(part).map_err(A::Error::custom)?);
            }
            Ok(content)
        }
    }

    deserializer.deserialize_any(Content)
}

/// The text of one content part.
fn text_of(part: Value) -> Result<String, String> {
    let Value::Object(mut part) = part else {
        return Err(format!("a content part is {part}, expected an object with \"type\": \"text\""));
    };
    match part.get("type").and_then(Value::as_str) {
        Some("text") => {}
        Some(other) => return Err(format!("a content part has type {other:?}, expected \"text\"")),
        None => return Err("a content part has no type, expected \"text\"".to_owned()),
    }
    match part.remove("text") {
        Some(Value::String(text)) => Ok(text),
        _ => Err("a content part of type \"text\" has no `text`".to_owned()),
    }
}

/// Further fields; arguments of tool calls that are an object in a string become that object, as templates expect.
fn extra<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Map<String, Value>, D::Error> {
    let mut extra = Map::deserialize(deserializer)?;
    let calls = extra.get_mut("tool_calls").and_then(Value::as_array_mut);
    for arguments in
        calls.into_iter().flatten().filter_map(|call| call.get_mut("function")?.get_mut("arguments"))
    {
        if let Some(Ok(object @ Value::Object(_))) = arguments.as_str().map(serde_json::from_str) {
            *arguments = object;
        }
    }
    Ok(extra)
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

    #[test]
    fn content_may_be_null_or_parts() {
        let read = |content: Value| {
            serde_json::from_value::<Message>(json!({"role": "user", "content": content}))
                .map(|message| message.content)
                .map_err(|error| error.to_string())
        };
        assert_eq!(read(json!(null)).unwrap(), "");
        assert_eq!(read(json!([])).unwrap(), "");
        let parts = json!([{"type": "text", "text": "a b"}, {"type": "text", "text": " c"}]);
        assert_eq!(read(parts).unwrap(), "a b c");
        assert_eq!(serde_json::from_str::<Message>(r#"{"role":"user"}"#).unwrap().content, "");
        let image = json!([{"type": "image_url", "image_url": {"url": "x"}}]);
        assert!(read(image).unwrap_err().contains("type \"image_url\", expected \"text\""));
        assert!(read(json!([{"type": "text"}])).unwrap_err().contains("no `text`"));
        assert!(read(json!(["a"])).unwrap_err().contains("expected an object"));
        assert!(read(json!(5)).unwrap_err().contains("list of content parts"));
    }

    #[test]
    fn tool_calls_may_have_arguments_in_a_string() {
        let call = |arguments: Value| {
            let function = json!({"name": "add", "arguments": arguments});
            let calls = json!([{"id": "1", "type": "function", "function": function}]);
            let message = json!({"role": "assistant", "content": null, "tool_calls": calls});
            let message: Message = serde_json::from_value(message).unwrap();
            message.extra["tool_calls"][0]["function"]["arguments"].clone()
        };
        assert_eq!(call(json!("{\"a\": 1}")), json!({"a": 1}));
        assert_eq!(call(json!({"a": 1})), json!({"a": 1}));
        assert_eq!(call(json!("not JSON")), json!("not JSON"));
    }
}
