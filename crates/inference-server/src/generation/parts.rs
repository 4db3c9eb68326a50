//! An answer's tokens as parts: text, reasoning and calls.

use inference_core::{ChatEvent, Token, ToolCall};
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
    pub(super) event: ChatEvent,
    pub(super) tokens: Vec<Token>,
}
