//! The parts of a stream's answer, and the limit on its reasoning.

use std::sync::Arc;

use inference_core::{ChatEvent, Token, backend::OutputParser};

use crate::{AnswerParser, Detokenizer, Tokenizer};

/// Parses an answer from its tokens. Special tokens have no text in a token stream; here they count as delimiters.
#[derive(Debug)]
pub struct ChatOutputParser {
    parser: AnswerParser,
    tokenizer: Tokenizer,
}

impl ChatOutputParser {
    pub(crate) fn new(parser: AnswerParser, tokenizer: Tokenizer) -> Self {
        Self { parser: parser.following_calls(), tokenizer }
    }
}

impl OutputParser for ChatOutputParser {
    fn push(&mut self, token: &Token, events: &mut Vec<ChatEvent>) {
        if let Some(mark) = self.tokenizer.special(token.id) {
            self.parser.push_special(mark, events);
        }
        self.parser.push(&token.text, events);
    }

    fn finish(&mut self, events: &mut Vec<ChatEvent>) {
        self.parser.finish(events);
    }
}

/// Counts the tokens of an answer's reasoning, for an engine that ends it: once they are spent, the next tokens have to be
/// [`closing`](Self::closing).
#[derive(Debug)]
pub struct ThinkingBudget {
    parser: AnswerParser,
    detokenizer: Detokenizer,
    events: Vec<ChatEvent>,
    left: usize,
    closing: Arc<[u32]>,
    /// Whether reasoning has ended once.
    ended: bool,
}

impl ThinkingBudget {
    pub(crate) fn new(
        parser: AnswerParser,
        detokenizer: Detokenizer,
        tokens: usize,
        closing: Arc<[u32]>,
    ) -> Self {
        Self { parser, detokenizer, events: Vec::new(), left: tokens, closing, ended: false }
    }

    /// Takes the answer's next token.
    pub fn push(&mut self, id: u32) {
        let before = self.parser.is_thinking();
        self.parser.push(self.detokenizer.push(id), &mut self.events);
        self.events.clear();
        let after = self.parser.is_thinking();
        self.left -= usize::from(before && after && self.left > 0);
        self.ended |= before && !after;
    }

    /// Whether reasoning has to end here.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.parser.is_thinking() && self.left == 0
    }

    /// Whether it may be spent after this many more tokens: an engine reads them before it chooses another.
    #[must_use]
    pub fn may_be_spent_after(&self, tokens: usize) -> bool {
        self.left <= tokens && (self.parser.is_thinking() || !self.ended)
    }

    /// The tokens that end reasoning.
    #[must_use]
    pub fn closing(&self) -> &[u32] {
        &self.closing
    }
}
