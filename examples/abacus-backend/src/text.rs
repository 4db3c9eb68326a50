//! When text is certain: what may be the beginning of a stop string is held back.

use std::sync::Arc;

use inference_core::{Token, backend::TokenSink};

/// The text of one request. The last token waits for the next, so that text held back can still go with it.
pub(crate) struct Text {
    stops: Arc<[String]>,
    held: String,
    waiting: Option<Token>,
}

impl Text {
    pub(crate) fn new(stops: Arc<[String]>) -> Self {
        Self { stops, held: String::new(), waiting: None }
    }

    // ANCHOR: text
    /// Takes a token with its own text, and sends it with what became certain. The stop string that it completes, if any.
    pub(crate) fn push(&mut self, mut token: Token, sink: &mut TokenSink) -> Option<String> {
        self.held.push_str(&token.text);
        let found = self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)));
        let stopped = found.min_by_key(|(at, _)| *at).map(|(at, stop)| (at, stop.clone()));
        let certain = match &stopped {
            Some((at, _)) => *at,
            None => self.first_undecided(),
        };
        token.text = self.held.drain(..certain).collect();
        if let Some(before) = self.waiting.replace(token) {
            sink.send(before);
        }
        stopped.map(|(_, stop)| {
            self.held.clear();
            stop
        })
    }

    /// Sends what is left.
    pub(crate) fn end(mut self, sink: &mut TokenSink) {
        if let Some(mut last) = self.waiting.take() {
            last.text.push_str(&self.held);
            sink.send(last);
        }
    }
    // ANCHOR_END: text

    fn first_undecided(&self) -> usize {
        let begins = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        self.held.char_indices().map(|(at, _)| at).find(begins).unwrap_or(self.held.len())
    }
}
