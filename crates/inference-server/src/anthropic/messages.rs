//! Conversations as Anthropic's API writes them: content in blocks, results of tools in the user's turns.

use std::collections::HashMap;

use inference_core::{Message, ToolCall};
use serde_json::{Map, Value};

use crate::error::{ApiError, ApiResult};

/// The conversation as chat templates know it.
///
/// # Errors
/// It is empty, or a block is malformed or of a kind that is not supported.
pub(super) fn conversation(system: Option<&Value>, messages: &[Value]) -> ApiResult<Vec<Message>> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "there are no messages, expected at least one"));
    }
    let mut reader = Reader::default();
    if let Some(system) = system.filter(|system| !system.is_null()) {
        let text = joined(system, "system")?;
        if !text.is_empty() {
            reader.messages.push(Message::system(text));
        }
    }
    for (number, message) in messages.iter().enumerate() {
        reader.message(message, &format!("messages[{number}]"))?;
    }
    Ok(reader.messages)
}

#[derive(Default)]
struct Reader {
    messages: Vec<Message>,
    /// The names of tools by the ids of their calls.
    names: HashMap<String, String>,
}

impl Reader {
    fn message(&mut self, message: &Value, at: &str) -> ApiResult<()> {
        let content = message.get("content").unwrap_or(&Value::Null);
        let at_content = format!("{at}.content");
        if let Some(other) = message
            .as_object()
            .and_then(|fields| fields.keys().find(|field| !["role", "content"].contains(&field.as_str())))
        {
            let message = format!("`{other}` is no field of a message that this server knows");
            return Err(ApiError::unsupported(format!("{at}.{other}"), message));
        }
        match message.get("role").and_then(Value::as_str) {
            Some("user") => self.user(content, &at_content),
            Some("assistant") => self.assistant(content, &at_content),
            Some("system") => {
                let text = joined(content, &at_content)?;
                self.messages.push(Message::system(text));
                Ok(())
            }
            other => {
                let found = other.unwrap_or("none");
                let message = format!("{found:?}, expected \"user\" or \"assistant\"");
                Err(ApiError::invalid(format!("{at}.role"), message))
            }
        }
    }

    fn user(&mut self, content: &Value, at: &str) -> ApiResult<()> {
        let mut said = String::new();
        let mut results = Vec::new();
        for (block, at) in blocks(content, at)? {
            match kind(&block) {
                "text" => said.push_str(string(&block, "text", &at)?),
                "tool_result" => results.push(self.result(&block, &at)?),
                other => return Err(unsupported(other, &at)),
            }
        }
        let only_results = said.is_empty() && !results.is_empty();
        self.messages.append(&mut results);
        if !only_results {
            self.messages.push(Message::user(said));
        }
        Ok(())
    }

    fn result(&self, block: &Map<String, Value>, at: &str) -> ApiResult<Message> {
        let id = string(block, "tool_use_id", at)?;
        let name = self.names.get(id).map(String::as_str).unwrap_or_default();
        let mut text = joined(block.get("content").unwrap_or(&Value::Null), &format!("{at}.content"))?;
        if block.get("is_error").is_some_and(|error| error == true) {
            // Templates have no place for it but the text.
            text.insert_str(0, "Error: ");
        }
        Ok(Message::tool_result(&ToolCall::new(id, name, Map::new()), text))
    }

    fn assistant(&mut self, content: &Value, at: &str) -> ApiResult<()> {
        let (mut said, mut reasoning, mut calls) = (String::new(), String::new(), Vec::new());
        for (block, at) in blocks(content, at)? {
            match kind(&block) {
                "text" => said.push_str(string(&block, "text", &at)?),
                "thinking" => reasoning.push_str(string(&block, "thinking", &at)?),
                // Nobody but who wrote it can read it.
                "redacted_thinking" => {}
                "tool_use" => {
                    let (id, name) = (string(&block, "id", &at)?, string(&block, "name", &at)?);
                    let input = block.get("input").and_then(Value::as_object).ok_or_else(|| {
                        ApiError::invalid(format!("{at}.input"), "expected an object of arguments")
                    })?;
                    self.names.insert(id.to_owned(), name.to_owned());
                    calls.push(ToolCall::new(id, name, input.clone()));
                }
                other => return Err(unsupported(other, &at)),
            }
        }
        let mut message = Message::assistant(said);
        if !reasoning.is_empty() {
            message = message.with("reasoning_content", reasoning);
        }
        if !calls.is_empty() {
            message = message.tool_calls(&calls);
        }
        self.messages.push(message);
        Ok(())
    }
}

/// The blocks of some content, each with its place; a text is one block.
fn blocks(content: &Value, at: &str) -> ApiResult<Vec<(Map<String, Value>, String)>> {
    match content {
        Value::String(text) => {
            let block = Map::from_iter([
                ("type".to_owned(), Value::from("text")),
                ("text".to_owned(), Value::from(text.as_str())),
            ]);
            Ok(vec![(block, at.to_owned())])
        }
        Value::Array(blocks) => {
            let place = |(number, block): (usize, &Value)| match block {
                Value::Object(block) => Ok((block.clone(), format!("{at}[{number}]"))),
                _ => Err(ApiError::invalid(format!("{at}[{number}]"), "expected an object")),
            };
            blocks.iter().enumerate().map(place).collect()
        }
        _ => Err(ApiError::invalid(at, "expected a string or a list of blocks")),
    }
}

/// The text of content that has nothing but texts.
fn joined(content: &Value, at: &str) -> ApiResult<String> {
    if content.is_null() {
        return Ok(String::new());
    }
    let mut texts = Vec::new();
    for (block, at) in blocks(content, at)? {
        match kind(&block) {
            "text" => texts.push(string(&block, "text", &at)?.to_owned()),
            other => return Err(unsupported(other, &at)),
        }
    }
    Ok(texts.join("\n"))
}

fn kind(block: &Map<String, Value>) -> &str {
    block.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn string<'a>(block: &'a Map<String, Value>, field: &str, at: &str) -> ApiResult<&'a str> {
    let text = block.get(field).and_then(Value::as_str);
    text.ok_or_else(|| ApiError::invalid(format!("{at}.{field}"), "expected a string"))
}

fn unsupported(kind: &str, at: &str) -> ApiError {
    let message = format!("{kind:?} is no kind of block that this model can read here");
    ApiError::unsupported(format!("{at}.type"), message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn blocks_become_turns() {
        let system = json!([{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]);
        let messages = [
            json!({"role": "user", "content": "18 °C in °F?"}),
            json!({"role": "assistant", "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""},
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "t1", "name": "convert", "input": {"c": 18}},
            ]}),
            json!({"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "64.4"}]},
            ]}),
        ];
        let read = conversation(Some(&system), &messages).unwrap();
        assert_eq!(read[0], Message::system("Be brief."));
        assert_eq!(read[2].content, "Let me see.");
        assert_eq!(read[2].extra["reasoning_content"], "Hm.");
        assert_eq!(read[2].extra["tool_calls"][0]["function"]["arguments"], json!({"c": 18}));
        assert_eq!((read[3].content.as_str(), &read[3].extra["name"]), ("64.4", &json!("convert")));
        assert_eq!(read.len(), 4);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let param = |message: Value| conversation(None, &[message]).unwrap_err().param.unwrap();
        let image = json!({"role": "user", "content": [{"type": "image", "source": {}}]});
        assert_eq!(param(image), "messages[0].content[0].type");
        assert_eq!(param(json!({"role": "tool", "content": "x"})), "messages[0].role");
        assert_eq!(param(json!({"role": "user", "content": 5})), "messages[0].content");
        assert_eq!(param(json!({"role": "user", "content": "x", "name": "n"})), "messages[0].name");
    }
}
