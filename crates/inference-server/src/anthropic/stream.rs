//! An answer as blocks of content, whole or as they grow.

use inference_core::Metrics;
use serde_json::{Value, json};

use crate::generation::{End, Ended, Part};

/// An event's name and content.
pub(super) type Event = (&'static str, Value);

/// The blocks of an answer so far.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    done: usize,
    open: Option<Open>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Text,
    Thinking,
    Call,
}

impl Blocks {
    /// The events of the next part.
    pub(super) fn push(&mut self, part: &Part, events: &mut Vec<Event>) {
        match part {
            Part::Text(text) => {
                self.open(Open::Text, &json!({"type": "text", "text": ""}), events);
                events.push(self.delta(json!({"type": "text_delta", "text": text})));
            }
            Part::Reasoning(text) => {
                let block = json!({"type": "thinking", "thinking": "", "signature": ""});
                self.open(Open::Thinking, &block, events);
                events.push(self.delta(json!({"type": "thinking_delta", "thinking": text})));
            }
            Part::CallBegun { id, name } => {
                let block = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                self.open(Open::Call, &block, events);
            }
            Part::CallArguments(piece) => {
                events.push(self.delta(json!({"type": "input_json_delta", "partial_json": piece})));
            }
            Part::Call(_) | Part::BrokenCall(_) => self.close(events),
        }
    }

    /// The events of the end.
    pub(super) fn close(&mut self, events: &mut Vec<Event>) {
        let Some(open) = self.open.take() else { return };
        if open == Open::Thinking {
            // There is nobody to sign; clients want the event all the same.
            events.push(self.delta(json!({"type": "signature_delta", "signature": ""})));
        }
        events.push(self.stop());
    }

    fn open(&mut self, kind: Open, block: &Value, events: &mut Vec<Event>) {
        if self.open != Some(kind) {
            self.close(events);
            events.push(self.start(block));
            self.open = Some(kind);
        }
    }

    fn start(&self, block: &Value) -> Event {
        let start = json!({"type": "content_block_start", "index": self.done, "content_block": block});
        ("content_block_start", start)
    }

    fn delta(&self, delta: Value) -> Event {
        let mut event = json!({"type": "content_block_delta", "index": self.done});
        event["delta"] = delta;
        ("content_block_delta", event)
    }

    fn stop(&mut self) -> Event {
        let stop = json!({"type": "content_block_stop", "index": self.done});
        self.done += 1;
        ("content_block_stop", stop)
    }
}

/// The blocks of a whole answer.
pub(super) fn blocks(parts: Vec<Part>) -> Vec<Value> {
    let mut blocks: Vec<Value> = Vec::new();
    let mut grow = |kind: &str, field: &str, text: String| match blocks.last_mut() {
        Some(Value::Object(last)) if last.get("type").is_some_and(|last| last == kind) => {
            if let Some(Value::String(whole)) = last.get_mut(field) {
                whole.push_str(&text);
            }
        }
        _ if kind == "thinking" => {
            blocks.push(json!({"type": "thinking", "thinking": text, "signature": ""}));
        }
        _ => blocks.push(json!({"type": "text", "text": text})),
    };
    let mut calls = Vec::new();
    for part in parts {
        match part {
            Part::Text(text) | Part::BrokenCall(text) => grow("text", "text", text),
            Part::Reasoning(text) => grow("thinking", "thinking", text),
            Part::CallBegun { .. } | Part::CallArguments(_) => {}
            Part::Call(call) => calls
                .push(json!({"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments})),
        }
    }
    blocks.extend(calls);
    blocks
}

/// `stop_reason` and `stop_sequence`.
pub(super) fn stop(ended: &Ended) -> (&'static str, Option<&str>) {
    match &ended.end {
        End::Stop => ("end_turn", None),
        End::StopString(text) => ("stop_sequence", Some(text)),
        End::Length => ("max_tokens", None),
        End::Calls => ("tool_use", None),
    }
}

/// What it cost. Tokens from a cache are counted apart from the others.
pub(super) fn usage(metrics: &Metrics) -> Value {
    json!({
        "input_tokens": metrics.prompt_tokens.saturating_sub(metrics.cached_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": metrics.cached_tokens,
        "output_tokens": metrics.generated_tokens,
    })
}

#[cfg(test)]
mod tests {
    use inference_core::ToolCall;

    use super::*;

    fn parts() -> Vec<Part> {
        vec![
            Part::Reasoning("Hm.".into()),
            Part::Text("It ".into()),
            Part::Text("is".into()),
            Part::CallBegun { id: "c".into(), name: "add".into() },
            Part::CallArguments("{".into()),
            Part::CallArguments("}".into()),
            Part::Call(ToolCall::new("c", "add", serde_json::Map::new())),
        ]
    }

    #[test]
    fn every_block_that_starts_stops_with_its_number() {
        let (mut open, mut events) = (Blocks::default(), Vec::new());
        parts().iter().for_each(|part| open.push(part, &mut events));
        open.close(&mut events);
        let of = |name: &str| -> Vec<u64> {
            let named = events.iter().filter(|(event, _)| *event == name);
            named.map(|(_, event)| event["index"].as_u64().unwrap()).collect()
        };
        assert_eq!((of("content_block_start"), of("content_block_stop")), (vec![0, 1, 2], vec![0, 1, 2]));
        assert_eq!(of("content_block_delta"), [0, 0, 1, 1, 2, 2]);
    }

    #[test]
    fn a_whole_answer_has_the_same_blocks() {
        let kinds: Vec<_> = blocks(parts()).iter().map(|block| block["type"].clone()).collect();
        assert_eq!(kinds, ["thinking", "text", "tool_use"]);
        assert_eq!(blocks(parts())[1]["text"], "It is");
    }
}
