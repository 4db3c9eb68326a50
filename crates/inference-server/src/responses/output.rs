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
    kind: Kind,
    /// The text, the reasoning or the arguments so far.
    text: String,
    /// The log-probabilities of the text's tokens, where they are asked for.
    logprobs: Vec<Value>,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Text,
    Reasoning,
    Call { id: String, name: String },
}

impl Open {
    fn new(kind: Kind) -> Self {
        let id = new_id(match kind {
            Kind::Text => "msg_",
            Kind::Reasoning => "rs_",
            Kind::Call { .. } => "fc_",
        });
        Self { id, kind, text: String::new(), logprobs: Vec::new() }
    }

    fn part(&self) -> Value {
        match self.kind {
            Kind::Text => {
                json!({"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs})
            }
            _ => json!({"type": "reasoning_text", "text": self.text}),
        }
    }

    /// The item; `content` is what it holds if it has parts.
    fn item(&self, status: &str, content: &[Value]) -> Value {
        let Self { id, text, .. } = self;
        match &self.kind {
            Kind::Text => {
                json!({"id": id, "type": "message", "status": status, "role": "assistant", "content": content})
            }
            Kind::Reasoning => {
                json!({"id": id, "type": "reasoning", "status": status, "summary": [], "content": content})
            }
            Kind::Call { id: call, name } => json!({
                "id": id, "type": "function_call", "status": status, "call_id": call, "name": name,
                "arguments": text,
            }),
        }
    }
}

impl Output {
    /// Takes the next part in; `logprobs` are those of its tokens, if it is text and they are asked for.
    pub(super) fn push(&mut self, part: Part, logprobs: Vec<Value>, events: &mut Vec<Event>) {
        match part {
            Part::Text(text) => {
                self.text.push_str(&text);
                self.begin(Kind::Text, events);
                self.grow("response.output_text.delta", &text, Some(logprobs), events);
            }
            Part::Reasoning(text) => {
                self.reasoning.push_str(&text);
                self.begin(Kind::Reasoning, events);
                self.grow("response.reasoning_text.delta", &text, None, events);
            }
            Part::CallBegun { id, name } => self.begin(Kind::Call { id, name }, events),
            Part::CallArguments(piece) => {
                self.grow("response.function_call_arguments.delta", &piece, None, events);
            }
            Part::Call(call) => {
                self.close("completed", events);
                self.calls.push(call);
            }
            Part::BrokenCall(raw) => {
                self.close("incomplete", events);
                self.text.push_str(&raw);
            }
        }
    }

    /// Ends the item that still grows.
    pub(super) fn close(&mut self, status: &str, events: &mut Vec<Event>) {
        let Some(open) = self.open.take() else { return };
        let index = self.items.len();
        let place = json!({"item_id": open.id, "output_index": index, "content_index": 0});
        let with = |field: &str, value: Value| {
            let mut event = place.clone();
            event[field] = value;
            event
        };
        let item = match &open.kind {
            Kind::Call { name, .. } => {
                let done =
                    json!({"item_id": open.id, "output_index": index, "name": name, "arguments": open.text});
                events.push(("response.function_call_arguments.done", done));
                open.item(status, &[])
            }
            kind => {
                let mut done = with("text", json!(open.text));
                if *kind == Kind::Text {
                    done["logprobs"] = json!(open.logprobs);
                    events.push(("response.output_text.done", done));
                } else {
                    events.push(("response.reasoning_text.done", done));
                }
                events.push(("response.content_part.done", with("part", open.part())));
                open.item(status, &[open.part()])
            }
        };
        events.push(("response.output_item.done", json!({"output_index": index, "item": item})));
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

    /// Opens an item of this kind, unless it is the one that grows.
    fn begin(&mut self, kind: Kind, events: &mut Vec<Event>) {
        if self.open.as_ref().is_some_and(|open| open.kind == kind) {
            return;
        }
        self.close("completed", events);
        let index = self.items.len();
        let open = Open::new(kind);
        let item = open.item("in_progress", &[]);
        events.push(("response.output_item.added", json!({"output_index": index, "item": item})));
        if !matches!(open.kind, Kind::Call { .. }) {
            let part = json!({
                "item_id": open.id, "output_index": index, "content_index": 0, "part": open.part(),
            });
            events.push(("response.content_part.added", part));
        }
        self.open = Some(open);
    }

    /// Adds to the item that grows.
    fn grow(
        &mut self,
        name: &'static str,
        text: &str,
        logprobs: Option<Vec<Value>>,
        events: &mut Vec<Event>,
    ) {
        let Some(open) = &mut self.open else { return };
        open.text.push_str(text);
        let mut delta = json!({"item_id": open.id, "output_index": self.items.len(), "delta": text});
        if !matches!(open.kind, Kind::Call { .. }) {
            delta["content_index"] = json!(0);
        }
        if let Some(logprobs) = logprobs {
            delta["logprobs"] = json!(logprobs);
            open.logprobs.extend(logprobs);
        }
        events.push((name, delta));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_become_items_and_each_is_opened_and_closed() {
        let (mut output, mut events) = (Output::default(), Vec::new());
        let logprobs = |token: &str| vec![json!({"token": token})];
        output.push(Part::Reasoning("Hm.".into()), vec![], &mut events);
        output.push(Part::Text("It ".into()), logprobs("It "), &mut events);
        output.push(Part::Text("is".into()), logprobs("is"), &mut events);
        let call = ToolCall::new("c", "add", serde_json::Map::new());
        let begun = Part::CallBegun { id: call.id.clone(), name: call.name.clone() };
        for part in
            [begun, Part::CallArguments("{".into()), Part::CallArguments("}".into()), Part::Call(call)]
        {
            output.push(part, vec![], &mut events);
        }
        output.close("completed", &mut events);
        let kinds: Vec<_> = output.items().iter().map(|item| item["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["reasoning", "message", "function_call"]);
        assert_eq!(output.items()[1]["content"][0]["text"], "It is");
        assert_eq!(output.items()[1]["content"][0]["logprobs"], json!([{"token": "It "}, {"token": "is"}]));
        assert_eq!(output.items()[2]["arguments"], "{}");
        let count = |name: &str| events.iter().filter(|(event, _)| *event == name).count();
        assert_eq!(count("response.output_item.added"), 3);
        assert_eq!(count("response.output_item.done"), 3);
        assert_eq!(count("response.output_text.delta"), 2);
        assert_eq!(count("response.function_call_arguments.delta"), 2);
        let message = output.message();
        assert_eq!((message.content.as_str(), &message.extra["reasoning_content"]), ("It is", &json!("Hm.")));
        assert_eq!(message.extra["tool_calls"][0]["id"], "c");
    }
}
