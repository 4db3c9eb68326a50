//! The text of a request as it becomes certain.

use std::time::Instant;

use inference_core::{FinishReason, Token, backend::TokenSink};

use super::{Fault, model::Run};

/// The text of a request: the last token waits, in case that held text has to go with it.
pub(crate) struct Text {
    fault: Fault,
    stops: Vec<String>,
    whole: String,
    sent: usize,
    last: Option<Token>,
    pub(crate) generated: usize,
    pub(crate) first: Option<Instant>,
    /// Tokens kept to the end, by the engine that streams when all is done.
    kept: Vec<Token>,
}

impl Text {
    pub(crate) fn new(run: &Run) -> Self {
        let mut stops = run.options.stop.as_deref().unwrap_or_default().to_vec();
        if run.fault.is("the_earliest_stop_string_wins") {
            stops.truncate(1);
        }
        let (whole, last, first) = (String::new(), None, None);
        Self { fault: run.fault.clone(), stops, whole, sent: 0, last, generated: 0, first, kept: Vec::new() }
    }

    /// Takes a token; the stop string that it completes.
    pub(crate) fn push(&mut self, mut token: Token, sink: &mut TokenSink, lossy: bool) -> Option<String> {
        self.generated += 1;
        self.first.get_or_insert_with(Instant::now);
        if let Some(last) = self.last.take()
            && !lossy
        {
            if self.fault.is("tokens_arrive_as_they_are_made") {
                self.kept.push(last);
            } else {
                sink.send(last);
            }
        }
        let from = if self.fault.is("stop_strings_end_the_text_across_tokens") {
            self.whole.len()
        } else {
            self.sent
        };
        self.whole.push_str(&token.text);
        let found = self.stops.iter().filter_map(|stop| Some((from + self.whole[from..].find(stop)?, stop)));
        let matched = found.min_by_key(|found| found.0).map(|(at, stop)| (at, stop.clone()));
        let certain = match &matched {
            Some((at, _)) => *at,
            None => (self.sent..self.whole.len()).find(|at| self.undecided(*at)).unwrap_or(self.whole.len()),
        };
        token.text = self.whole[self.sent..certain].to_owned();
        self.sent = certain;
        self.last = Some(token);
        matched.map(|(at, stop)| {
            self.whole.truncate(at);
            stop
        })
    }

    fn undecided(&self, at: usize) -> bool {
        self.stops.iter().any(|stop| stop.starts_with(&self.whole[at..]))
    }

    /// Sends what waits.
    pub(crate) fn end(&mut self, sink: &mut TokenSink, reason: &FinishReason) {
        self.kept.drain(..).for_each(|token| sink.send(token));
        let Some(mut last) = self.last.take() else { return };
        if !self.fault.is("an_absent_stop_string_changes_nothing") {
            last.text.push_str(&self.whole[self.sent..]);
        }
        if self.fault.is("the_texts_add_up") && *reason == FinishReason::Length {
            last.text.clear();
        }
        sink.send(last);
    }
}
