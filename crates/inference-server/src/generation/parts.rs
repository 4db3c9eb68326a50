//! An answer's tokens as parts: text, reasoning and calls.

use inference_core::{CancellationToken, ChatEvent, Token, ToolCall, backend::OutputParser};
use serde_json::Value;

/// What becomes of the marks in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The text as it is, marks included.
    Raw,
    /// Text and reasoning; what looks like a call is text.
    NoTools,
    /// Text, reasoning and calls of tools.
    Tools {
        /// Whether the answer ends after its first call.
        single: bool,
    },
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Part {
    Text(String),
    Reasoning(String),
    /// A call has begun; the next parts are its arguments and its end.
    CallBegun {
        id: String,
        name: String,
    },
    /// A piece of the arguments, as JSON text.
    CallArguments(String),
    /// The whole call, at its end.
    Call(ToolCall),
    /// What began as a call and is none.
    BrokenCall(String),
}

/// What came next.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) parts: Vec<Part>,
    pub(crate) tokens: Vec<Token>,
    /// The tokens of the parts that are text, each with the number of its part; only where log-probabilities are asked for.
    pub(crate) text_tokens: Vec<(usize, Token)>,
}

/// What the parser made of tokens, and the tokens, where log-probabilities are asked for.
#[derive(Debug)]
pub(super) struct Decided {
    event: ChatEvent,
    tokens: Vec<Token>,
}

/// Makes parts of an answer's tokens.
#[derive(Debug)]
pub(super) struct Reader {
    parser: Option<Box<dyn OutputParser>>,
    shape: Shape,
    /// Ends the answer after its first call, where it may have but one.
    cancel: CancellationToken,
    /// Tokens that no part was made of yet.
    undecided: usize,
    /// These tokens, where log-probabilities are asked for.
    held: Vec<Token>,
    /// Tokens of reasoning so far.
    pub(super) reasoning: usize,
    /// Whether a call has begun and not ended.
    calling: bool,
    /// Whether there was a call.
    pub(super) called: bool,
}

impl Reader {
    /// Of an answer whose marks this parser reads; without one the text is taken as it is.
    pub(super) fn new(
        parser: Option<Box<dyn OutputParser>>,
        shape: Shape,
        cancel: CancellationToken,
    ) -> Self {
        let (undecided, held, reasoning, calling, called) = (0, Vec::new(), 0, false, false);
        Self { parser, shape, cancel, undecided, held, reasoning, calling, called }
    }

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

    /// Reads what the parser held back to the end.
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
