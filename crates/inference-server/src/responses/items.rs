//! The items of a request's input, as a conversation.

use std::collections::HashMap;

use inference_core::{Message, Role, ToolCall};
use serde_json::{Map, Value};

use crate::error::{ApiError, ApiResult};

/// The conversation of these items, after an earlier one.
///
/// # Errors
/// An item is of a kind that is not supported, or malformed.
pub(super) fn conversation(earlier: Vec<Message>, input: &Value) -> ApiResult<Vec<Message>> {
    let mut reader = Reader { messages: earlier, ..Reader::default() };
    for message in &reader.messages {
        for call in calls_of(message) {
            reader.names.insert(call.id, call.name);
        }
    }
    match input {
        Value::Null => {}
        Value::String(text) => reader.messages.push(Message::user(text)),
        Value::Array(items) => {
            for (number, item) in items.iter().enumerate() {
                reader.item(item, &format!("input[{number}]"))?;
            }
        }
        _ => return Err(ApiError::invalid("input", "expected a string or a list of items")),
    }
    Ok(reader.messages)
}

/// The conversation with instructions before it. Templates know one message of the system, at the beginning: those that stand
/// there become one.
pub(super) fn with_instructions(instructions: Option<&str>, messages: Vec<Message>) -> Vec<Message> {
    let leading = messages.iter().take_while(|message| message.role == Role::System).count();
    let mut texts: Vec<&str> = instructions.into_iter().collect();
    texts.extend(messages[..leading].iter().map(|message| message.content.as_str()));
    texts.retain(|text| !text.is_empty());
    let system = (!texts.is_empty()).then(|| Message::system(texts.join("\n\n")));
    system.into_iter().chain(messages.into_iter().skip(leading)).collect()
}

#[derive(Default)]
struct Reader {
    messages: Vec<Message>,
    /// The names of tools by the ids of their calls.
    names: HashMap<String, String>,
    /// Reasoning whose answer is yet to come.
    reasoning: String,
}

impl Reader {
    fn item(&mut self, item: &Value, at: &str) -> ApiResult<()> {
        let Some(item) = item.as_object() else {
            return Err(ApiError::invalid(at, "expected an object"));
        };
        match item.get("type").and_then(Value::as_str).unwrap_or("message") {
            "message" => self.message(item, at),
            "function_call" => self.call(item, at),
            "function_call_output" => self.output(item, at),
            "reasoning" => {
                let parts = |field: &str| item.get(field).and_then(Value::as_array).cloned();
                let texts =
                    [parts("content"), parts("summary")].into_iter().flatten().find(|p| !p.is_empty());
                let texts = texts.into_iter().flatten();
                self.reasoning.extend(texts.filter_map(|part| Some(part.get("text")?.as_str()?.to_owned())));
                Ok(())
            }
            other => {
                let message = format!("{other:?} is no kind of item that this server knows");
                Err(ApiError::unsupported(format!("{at}.type"), message))
            }
        }
    }

    fn message(&mut self, item: &Map<String, Value>, at: &str) -> ApiResult<()> {
        let text = text(item.get("content").unwrap_or(&Value::Null), &format!("{at}.content"))?;
        let message = match item.get("role").and_then(Value::as_str) {
            Some("user") => Message::user(text),
            Some("system" | "developer") => Message::system(text),
            Some("assistant") => self.reasoned(Message::assistant(text)),
            other => {
                let found = other.unwrap_or("none");
                let message = format!("{found:?}, expected user, assistant, system or developer");
                return Err(ApiError::invalid(format!("{at}.role"), message));
            }
        };
        self.messages.push(message);
        Ok(())
    }

    fn call(&mut self, item: &Map<String, Value>, at: &str) -> ApiResult<()> {
        let field = |name: &str| {
            let text = item.get(name).and_then(Value::as_str);
            text.ok_or_else(|| ApiError::invalid(format!("{at}.{name}"), "expected a string"))
        };
        let (id, name, arguments) = (field("call_id")?, field("name")?, field("arguments")?);
        let arguments = if arguments.trim().is_empty() { "{}" } else { arguments };
        let arguments = serde_json::from_str(arguments).map_err(|error| {
            ApiError::invalid(format!("{at}.arguments"), format!("no JSON object: {error}"))
        })?;
        self.names.insert(id.to_owned(), name.to_owned());
        let call = ToolCall::new(id, name, arguments);
        // Calls belong to what the model said just before.
        let said = self.messages.pop_if(|message| message.role == Role::Assistant);
        let said = said.unwrap_or_else(|| self.reasoned(Message::assistant("")));
        let mut calls = calls_of(&said);
        calls.push(call);
        self.messages.push(said.tool_calls(&calls));
        Ok(())
    }

    fn output(&mut self, item: &Map<String, Value>, at: &str) -> ApiResult<()> {
        let Some(id) = item.get("call_id").and_then(Value::as_str) else {
            return Err(ApiError::invalid(format!("{at}.call_id"), "expected a string"));
        };
        let text = text(item.get("output").unwrap_or(&Value::Null), &format!("{at}.output"))?;
        let name = self.names.get(id).map(String::as_str).unwrap_or_default();
        self.messages.push(Message::tool_result(&ToolCall::new(id, name, Map::new()), text));
        Ok(())
    }

    fn reasoned(&mut self, message: Message) -> Message {
        if self.reasoning.is_empty() {
            return message;
        }
        message.with("reasoning_content", std::mem::take(&mut self.reasoning))
    }
}

fn calls_of(message: &Message) -> Vec<ToolCall> {
    let calls = message.extra.get("tool_calls").cloned();
    calls.and_then(|calls| serde_json::from_value(calls).ok()).unwrap_or_default()
}

/// A text, or parts that are texts.
fn text(content: &Value, at: &str) -> ApiResult<String> {
    let parts = match content {
        Value::Null => return Ok(String::new()),
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        _ => return Err(ApiError::invalid(at, "expected a string or a list of parts")),
    };
    let mut whole = String::new();
    for (number, part) in parts.iter().enumerate() {
        let field = match part.get("type").and_then(Value::as_str) {
            Some("input_text" | "output_text" | "text") => "text",
            Some("refusal") => "refusal",
            other => {
                let message = format!("{:?}, expected input_text or output_text", other.unwrap_or("none"));
                return Err(ApiError::unsupported(format!("{at}[{number}].type"), message));
            }
        };
        let Some(text) = part.get(field).and_then(Value::as_str) else {
            return Err(ApiError::invalid(format!("{at}[{number}].{field}"), "expected a string"));
        };
        whole.push_str(text);
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn items_become_turns() {
        let items = json!([
            {"role": "developer", "content": "Be brief."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "1+1 and 2+2?"}]},
            {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "function_call", "call_id": "a", "name": "add", "arguments": "{\"x\":1}"},
            {"type": "function_call", "call_id": "b", "name": "mul", "arguments": ""},
            {"type": "function_call_output", "call_id": "b", "output": "4"},
        ]);
        let messages = with_instructions(Some("Speak."), conversation(vec![], &items).unwrap());
        assert_eq!(messages[0], Message::system("Speak.\n\nBe brief."));
        assert_eq!(messages[1], Message::user("1+1 and 2+2?"));
        assert_eq!(messages[2].extra["reasoning_content"], "Hm.");
        assert_eq!(messages[2].extra["tool_calls"][1]["function"]["name"], "mul");
        assert_eq!(messages[3].extra["name"], "mul");
        assert_eq!(messages.len(), 4);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let param = |item: Value| conversation(vec![], &json!([item])).unwrap_err().param.unwrap();
        assert_eq!(param(json!({"type": "item_reference", "id": "x"})), "input[0].type");
        assert_eq!(param(json!({"role": "robot", "content": ""})), "input[0].role");
        let image = json!({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]});
        assert_eq!(param(image), "input[0].content[0].type");
        let cut = json!({"type": "function_call", "call_id": "a", "name": "f", "arguments": "{"});
        assert_eq!(param(cut), "input[0].arguments");
    }
}
