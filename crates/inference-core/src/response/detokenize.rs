//! What a [`StreamDecoder`](super::StreamDecoder) asks of a tokenizer.

use std::fmt;

use crate::Token;

/// Turns tokens into text, one at a time and never half a character.
///
/// A token is open until its text is certain. Each call of [`advance`](Self::advance) or [`flush`](Self::flush) replaces
/// [`text`](Self::text) and [`ends`](Self::ends), and closes open tokens in the order in which they came.
pub trait Detokenize: fmt::Debug + Send + Sync {
    /// Takes a token. Its text may be taken out of it.
    fn advance(&mut self, token: &mut Token);

    /// Closes all tokens. Bytes that make no character become U+FFFD.
    fn flush(&mut self);

    /// The text that became certain by the last call.
    fn text(&self) -> &str;

    /// Where the text of each token that the last call closed ends in [`text`](Self::text).
    fn ends(&self) -> &[usize];

    /// What the open tokens would be if the text ended here, without an unfinished last character.
    fn tentative(&self) -> &str {
        ""
    }

    /// Whether the open tokens end within a character.
    fn holds_half_a_character(&self) -> bool {
        false
    }

    /// The text of a special token that is left out of the answer. A stop string may contain it.
    fn special(&self, _id: u32) -> Option<&str> {
        None
    }
}

/// For engines that know the text of each token: [`Token::text`] is taken as it is, and certain at once.
#[derive(Debug, Clone, Default)]
pub struct Verbatim {
    text: String,
    /// The end of the token that the last call closed, if it closed one.
    end: Option<usize>,
}

impl Detokenize for Verbatim {
    fn advance(&mut self, token: &mut Token) {
        self.text = std::mem::take(&mut token.text);
        self.end = Some(self.text.len());
    }

    fn flush(&mut self) {
        self.text.clear();
        self.end = None;
    }

    fn text(&self) -> &str {
        &self.text
    }

    fn ends(&self) -> &[usize] {
        self.end.as_slice()
    }
}
