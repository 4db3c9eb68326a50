//! An answer in parts, as it streams in.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::Stream;

use crate::{ChatEvent, Error, Finish, Result, TokenStream, chat::OutputParser};

/// The parts of one answer, in order: [`TokenStream::events`].
///
/// It ends as the stream of tokens does: with `None`, after which [`finish`](Self::finish) says how, or with one `Err`, before
/// which all that was said is given out.
#[derive(Debug)]
#[must_use = "a stream that is dropped cancels its generation"]
pub struct ChatStream {
    tokens: TokenStream,
    parser: Box<dyn OutputParser>,
    events: VecDeque<ChatEvent>,
    /// What comes after the events: the end, perhaps with an error.
    end: Option<Option<Error>>,
}

impl ChatStream {
    pub(crate) fn new(mut tokens: TokenStream) -> Self {
        let parser = tokens.take_parser();
        Self { tokens, parser, events: VecDeque::new(), end: None }
    }

    /// The request's number in this process, as spans and logs have it.
    #[must_use]
    pub fn request(&self) -> u64 {
        self.tokens.request()
    }

    /// How the generation ended. Reads and drops the parts that are left; call it after the last one to lose none.
    ///
    /// # Errors
    /// As [`TokenStream::finish`].
    pub async fn finish(&mut self) -> Result<Finish> {
        match self.end.as_mut().and_then(Option::take) {
            Some(error) => Err(error),
            None => self.tokens.finish().await,
        }
    }
}

impl Stream for ChatStream {
    type Item = Result<ChatEvent>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(event) = this.events.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if let Some(end) = &mut this.end {
                return Poll::Ready(end.take().map(Err));
            }
            let mut events = Vec::new();
            match ready!(Pin::new(&mut this.tokens).poll_next(cx)) {
                Some(Ok(token)) => this.parser.push(&token, &mut events),
                end => {
                    this.parser.finish(&mut events);
                    this.end = Some(end.and_then(Result::err));
                }
            }
            this.events.extend(events);
        }
    }
}

impl TokenStream {
    /// The answer's parts in place of its tokens: text, reasoning, tool calls.
    pub fn events(self) -> ChatStream {
        ChatStream::new(self)
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt as _, executor::block_on};

    use super::*;
    use crate::{CancellationToken, FinishReason, Metrics, Token};

    /// Takes every text for reasoning, and gives it out one token late.
    #[derive(Debug, Default)]
    struct Late(String);

    impl OutputParser for Late {
        fn push(&mut self, token: &Token, events: &mut Vec<ChatEvent>) {
            self.finish(events);
            self.0.clone_from(&token.text);
        }

        fn finish(&mut self, events: &mut Vec<ChatEvent>) {
            let held = std::mem::take(&mut self.0);
            events.extend((!held.is_empty()).then_some(ChatEvent::Thinking(held)));
        }
    }

    fn stream(end: Result<Finish>) -> TokenStream {
        let (mut sink, stream) = TokenStream::channel("test", 4, CancellationToken::new());
        sink.send(Token::new(1, "a"));
        sink.send(Token::new(2, "b"));
        sink.end(end);
        stream
    }

    fn finish() -> Finish {
        Finish::new(FinishReason::Length, Metrics::default())
    }

    #[test]
    fn without_a_reader_all_is_text() {
        let mut events = stream(Ok(finish())).events();
        let texts: Vec<_> = block_on(events.by_ref().map(Result::unwrap).collect());
        assert_eq!(texts, [ChatEvent::Text("a".into()), ChatEvent::Text("b".into())]);
        assert_eq!(block_on(events.finish()).unwrap().reason, FinishReason::Length);
    }

    #[test]
    fn what_is_held_comes_before_the_error() {
        let mut events = stream(Err(Error::Closed)).with_parser(Late::default()).events();
        let said: Vec<_> = block_on(events.by_ref().take(2).map(Result::unwrap).collect());
        assert_eq!(said, [ChatEvent::Thinking("a".into()), ChatEvent::Thinking("b".into())]);
        assert!(matches!(block_on(events.next()), Some(Err(Error::Closed))));
        assert!(block_on(events.next()).is_none());
    }
}
