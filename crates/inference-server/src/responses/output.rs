//! The items of an answer, and the events that tell of them as they grow.

use inference_core::{Message, ToolCall};
use serde_json::{Value, json};

use crate::generation::{Part, new_id};

/// An event's name and content, which lacks its number yet.
pub(super) type Event = (&'static str, Value);

/// The items of an answer so far.
#[derive(Debug, Default)]
pub(super) struct Output {
    items: Vec<Value>,
    open: Option<Open>,
    /// The same as a turn of the conversation.
    text: String,
    reasoning: String,
    calls: Vec<ToolCall>,
}

/// An item that grows.
#[derive(Debug)]
struct Open {
    id: String,
    is_text: bool,
    text: String,
}

impl Open {
    fn part(&self) -> Value {
        if self.is_text {
            json!({"type": "output_text", "text": self.text, "annotations": [], "logprobs": []})
        } else {
            json!({"type": "reasoning_text", "text": self.text})
        }
    }

    fn item(&self, status: &str, content: &[Value]) -> Value {
        let Self { id, is_text, .. } = self;
        if *is_text {
            json!({"id": id, "type": "message", "status": status, "role": "assistant", "content": content})
        } else {
            json!({"id": id, "type": "reasoning", "status": status, "summary": [], "content": content})
        }
    }
}

impl Output {
    /// Takes the next part in.
    pub(super) fn push(&mut self, part: Part, events: &mut Vec<Event>) {
        match part {
            Part::Text(text) => {
                self.text.push_str(&text);
                self.grow(true, &text, events);
            }
            Part::Reasoning(text) => {
                self.reasoning.push_str(&text);
                self.grow(false, &text, events);
            }
            Part::Call(call) => {
                self.close("completed", events);
                self.call(&call, events);
                self.calls.push(call);
            }
        }
    }

    /// Ends the item that still grows.
    pub(super) fn close(&mut self, status: &str, events: &mut Vec<Event>) {
        let Some(open) = self.open.take() else { return };
        let place = json!({"item_id": open.id, "output_index": self.items.len(), "content_index": 0});
        let name = if open.is_text { "response.output_text.done" } else { "response.reasoning_text.done" };
        let mut done = place.clone();
        done["text"] = json!(open.text);
        if open.is_text {
            done["logprobs"] = json!([]);
        }
        events.push((name, done));
        let mut part = place;
        part["part"] = open.part();
        events.push(("response.content_part.done", part));
        let item = open.item(status, &[open.part()]);
        events.push(("response.output_item.done", json!({"output_index": self.items.len(), "item": item})));
        self.items.push(item);
    }

    /// The items that are complete.
    pub(super) fn items(&self) -> &[Value] {
        &self.items
    }

    /// The answer as the next turn of the conversation.
    pub(super) fn message(&self) -> Message {
        let message = Message::assistant(&self.text);
        let message = match self.reasoning.as_str() {
            "" => message,
            reasoning => message.with("reasoning_content", reasoning),
        };
        if self.calls.is_empty() { message } else { message.tool_calls(&self.calls) }
    }

    fn grow(&mut self, is_text: bool, text: &str, events: &mut Vec<Event>) {
        if self.open.as_ref().is_some_and(|open| open.is_text != is_text) {
            self.close("completed", events);
        }
        let index = self.items.len();
        let open = self.open.get_or_insert_with(|| {
            let id = new_id(if is_text { "msg_" } else { "rs_" });
            let open = Open { id, is_text, text: String::new() };
            let item = open.item("in_progress", &[]);
            events.push(("response.output_item.added", json!({"output_index": index, "item": item})));
            let part = json!({
                "item_id": open.id, "output_index": index, "content_index": 0, "part": open.part(),
            });
            events.push(("response.content_part.added", part));
            open
        });
        open.text.push_str(text);
        let mut delta = json!({"item_id": open.id, "output_index": index, "content_index": 0, "delta": text});
        if is_text {
            delta["logprobs"] = json!([]);
        }
        let name = if is_text { "response.output_text.delta" } else { "response.reasoning_text.delta" };
        events.push((name, delta));
    }

    fn call(&mut self, call: &ToolCall, events: &mut Vec<Event>) {
        let (id, index) = (new_id("fc_"), self.items.len());
        let item = |status: &str, arguments: &str| {
            json!({
                "id": id, "type": "function_call", "status": status, "call_id": call.id, "name": call.name,
                "arguments": arguments,
            })
        };
        let arguments = Value::Object(call.arguments.clone()).to_string();
        let added = json!({"output_index": index, "item": item("in_progress", "")});
        events.push(("response.output_item.added", added));
        let delta = json!({"item_id": id, "output_index": index, "delta": arguments});
        events.push(("response.function_call_arguments.delta", delta));
        let done = json!({"item_id": id, "output_index": index, "name": call.name, "arguments": arguments});
        events.push(("response.function_call_arguments.done", done));
        let item = item("completed", &arguments);
        events.push(("response.output_item.done", json!({"output_index": index, "item": item})));
        self.items.push(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_become_items_and_each_is_opened_and_closed() {
        let (mut output, mut events) = (Output::default(), Vec::new());
        output.push(Part::Reasoning("Hm.".into()), &mut events);
        output.push(Part::Text("It ".into()), &mut events);
        output.push(Part::Text("is".into()), &mut events);
        output.push(Part::Call(ToolCall::new("c", "add", serde_json::Map::new())), &mut events);
        output.close("completed", &mut events);
        let kinds: Vec<_> = output.items().iter().map(|item| item["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["reasoning", "message", "function_call"]);
        assert_eq!(output.items()[1]["content"][0]["text"], "It is");
        let count = |name: &str| events.iter().filter(|(event, _)| *event == name).count();
        assert_eq!(count("response.output_item.added"), 3);
        assert_eq!(count("response.output_item.done"), 3);
        assert_eq!(count("response.output_text.delta"), 2);
        let message = output.message();
        assert_eq!((message.content.as_str(), &message.extra["reasoning_content"]), ("It is", &json!("Hm.")));
        assert_eq!(message.extra["tool_calls"][0]["id"], "c");
    }
}
