//! Reads an answer's tokens, and makes parts of them.

use inference_core::{ChatEvent, Token, ToolCall};
use serde_json::Value;

use super::{
    Generation,
    parts::{Decided, Part, Shape, Step},
};

impl Generation {
    /// Reads a token, and counts it as reasoning if what it decides is: the parser holds text back until it knows.
    pub(super) fn read(&mut self, token: &Token, decided: &mut Vec<Decided>) {
        self.undecided += 1;
        if token.log_probability.is_some() {
            self.held.push(token.clone());
        }
        let mut events = Vec::new();
        match &mut self.parser {
            Some(parser) => parser.push(token, &mut events),
            None if token.text.is_empty() => {}
            None => events.push(ChatEvent::Text(token.text.clone())),
        }
        self.decide(events, decided);
    }

    pub(super) fn read_end(&mut self, decided: &mut Vec<Decided>) {
        let mut events = Vec::new();
        if let Some(parser) = &mut self.parser {
            parser.finish(&mut events);
        }
        self.decide(events, decided);
    }

    /// Tells which tokens made these events: the newest one the last of them, those before it the first.
    fn decide(&mut self, events: Vec<ChatEvent>, decided: &mut Vec<Decided>) {
        let last = events.len().saturating_sub(1);
        for (number, event) in events.into_iter().enumerate() {
            let tokens = std::mem::take(&mut self.undecided);
            if matches!(event, ChatEvent::Thinking(_)) {
                self.reasoning += tokens;
            }
            let kept = usize::from(number < last).min(self.held.len());
            let newest = self.held.split_off(self.held.len() - kept);
            decided.push(Decided { event, tokens: std::mem::replace(&mut self.held, newest) });
        }
    }

    /// Makes parts of the parser's events, adjacent pieces in one.
    pub(super) fn sort(&mut self, decided: Vec<Decided>, step: &mut Step) {
        for Decided { event, tokens } in decided {
            if self.cancel.is_cancelled() && self.called {
                return;
            }
            let parts = &mut step.parts;
            match (event, self.shape) {
                (ChatEvent::ToolCallBegun { id, name }, Shape::Tools { .. }) => {
                    self.calling = true;
                    parts.push(Part::CallBegun { id, name });
                }
                (ChatEvent::ToolCallArguments(piece), Shape::Tools { .. }) if self.calling => {
                    match parts.last_mut() {
                        Some(Part::CallArguments(last)) => last.push_str(&piece),
                        _ => parts.push(Part::CallArguments(piece)),
                    }
                }
                (ChatEvent::ToolCall { call, .. }, Shape::Tools { single }) => {
                    self.call(call, parts);
                    if single {
                        // A model that may call one tool at a time has had its turn.
                        self.cancel.cancel();
                    }
                }
                (ChatEvent::UnparsedToolCall { raw, .. }, _) if self.calling => {
                    self.calling = false;
                    parts.push(Part::BrokenCall(raw));
                }
                (ChatEvent::Thinking(text), _) => match parts.last_mut() {
                    Some(Part::Reasoning(last)) => last.push_str(&text),
                    _ => parts.push(Part::Reasoning(text)),
                },
                (ChatEvent::Mark(_), _) => {}
                (event, _) if event.raw().is_empty() => {}
                (event, _) => {
                    match parts.last_mut() {
                        Some(Part::Text(last)) => last.push_str(event.raw()),
                        _ => parts.push(Part::Text(event.raw().to_owned())),
                    }
                    let part = parts.len() - 1;
                    step.text_tokens.extend(tokens.into_iter().map(|token| (part, token)));
                }
            }
        }
    }

    /// A whole call, which was told before if it has begun.
    fn call(&mut self, call: ToolCall, parts: &mut Vec<Part>) {
        if !std::mem::take(&mut self.calling) {
            parts.push(Part::CallBegun { id: call.id.clone(), name: call.name.clone() });
            parts.push(Part::CallArguments(Value::Object(call.arguments.clone()).to_string()));
        }
        self.called = true;
        parts.push(Part::Call(call));
    }
}
