//! Conversations as OpenAI's chat API writes them, checked.

use std::collections::HashMap;

use inference_core::{Message, Role, ToolCall};
use serde::Deserialize as _;
use serde_json::Value;

use crate::error::{ApiError, ApiResult};

/// Fields of a message that chat templates read.
const READ: [&str; 6] = ["name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning", "thinking"];

/// Fields of answers that clients send back and that say nothing.
const WITHOUT_MEANING: [&str; 2] = ["annotations", "refusal"];

/// The conversation as chat templates know it.
///
/// # Errors
/// It is empty, or a message has a field that would be ignored.
pub(crate) fn conversation(messages: Vec<Message>, field: &str) -> ApiResult<Vec<Message>> {
    if messages.is_empty() {
        return Err(ApiError::invalid(field, "there are no messages, expected at least one"));
    }
    let mut names = HashMap::new();
    let mut checked = Vec::with_capacity(messages.len());
    for (number, mut message) in messages.into_iter().enumerate() {
        let at = format!("{field}[{number}]");
        if message.role == Role::Developer {
            // Few templates know the newer name of the system's role; those that do take both.
            message.role = Role::System;
        }
        check_fields(&mut message, &at)?;
        for call in tool_calls(&message, &at)? {
            names.insert(call.id, call.name);
        }
        if message.role == Role::Tool && !message.extra.contains_key("name") {
            let id = message.extra.get("tool_call_id").and_then(Value::as_str);
            if let Some(name) = id.and_then(|id| names.get(id)) {
                message = message.with("name", name.as_str());
            }
        }
        checked.push(message);
    }
    Ok(checked)
}

fn check_fields(message: &mut Message, at: &str) -> ApiResult<()> {
    let is_empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    message.extra.retain(|name, value| !is_empty(value) && !WITHOUT_MEANING.contains(&name.as_str()));
    match message.extra.keys().find(|name| !READ.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => {
            let reason = format!("`{name}` is no field of a message that this server knows");
            Err(ApiError::unsupported(format!("{at}.{name}"), reason))
        }
    }
}

fn tool_calls(message: &Message, at: &str) -> ApiResult<Vec<ToolCall>> {
    let Some(calls) = message.extra.get("tool_calls") else { return Ok(Vec::new()) };
    let calls = Vec::<ToolCall>::deserialize(calls);
    calls.map_err(|error| ApiError::invalid(format!("{at}.tool_calls"), error.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(messages: Value) -> ApiResult<Vec<Message>> {
        conversation(serde_json::from_value(messages).unwrap(), "messages")
    }

    #[test]
    fn an_answer_may_come_back_as_it_was_given() {
        let call =
            json!({"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{\"a\":1}"}});
        let messages = read(json!([
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "1+1?"}]},
            {"role": "assistant", "content": null, "refusal": null, "annotations": [], "audio": null,
             "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
        ]))
        .unwrap();
        assert_eq!(messages[0], Message::system("Be brief."));
        assert_eq!(messages[2].extra["tool_calls"][0]["function"]["arguments"], json!({"a": 1}));
        assert_eq!(messages[3].extra["name"], "add");
    }

    #[test]
    fn what_would_be_ignored_is_named() {
        let param = |messages| read(messages).unwrap_err().param.unwrap();
        assert_eq!(param(json!([])), "messages");
        assert_eq!(
            param(json!([{"role": "user", "content": "a", "audio": {"id": "x"}}])),
            "messages[0].audio"
        );
        let call = json!({"id": "c", "function": {"name": "f", "arguments": "{"}});
        assert_eq!(param(json!([{"role": "assistant", "tool_calls": [call]}])), "messages[0].tool_calls");
    }
}
