//! A whole answer.

use futures::StreamExt as _;
use serde::Serialize;

use crate::{AssistantMessage, Finish, Result, Token, TokenStream};

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Completion {
    /// The text: the tokens' texts in one.
    pub text: String,
    /// The same text, split into text for the reader, reasoning and tool calls.
    pub answer: AssistantMessage,
    /// The tokens.
    pub tokens: Vec<Token>,
    /// How it ended and what it cost.
    pub finish: Finish,
}

impl Completion {
    /// Reads a stream to its end.
    ///
    /// # Errors
    /// Whatever ended the stream.
    pub async fn from_stream(mut stream: TokenStream) -> Result<Self> {
        let mut parser = stream.take_parser();
        let (mut text, mut tokens, mut events) = (String::new(), Vec::new(), Vec::new());
        while let Some(token) = stream.next().await {
            let token = token?;
            text.push_str(&token.text);
            parser.push(&token, &mut events);
            tokens.push(token);
        }
        parser.finish(&mut events);
        let mut answer = AssistantMessage::default();
        answer.extend(events);
        Ok(Self { text, answer, tokens, finish: stream.finish().await? })
    }
}
