//! From generated ids to tokens with text.

use std::{collections::VecDeque, sync::Arc};

use crate::{Detokenizer, StopStrings, stop::Position};

/// One generated token with its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextEvent<T> {
    /// The id that was pushed.
    pub id: u32,
    /// The token's text. A character that spans several tokens belongs to the token that completes it.
    pub text: String,
    /// What was pushed with the id.
    pub data: T,
}

/// Turns generated ids into tokens with text, and finds stop strings across them.
///
/// Every pushed id gives exactly one event, in order. A token is held back, whole, while its text is undecided: its bytes
/// do not make a character yet, or its text may be the beginning of a stop string. The texts of all events in one are the
/// full text, from which a stop string and all that follows it are left out; tokens that lie wholly in that part have an
/// empty text. A push costs amortised constant time.
///
/// `T` is what the engine attaches to each token, log-probabilities say.
#[derive(Debug)]
pub struct TextAssembler<T> {
    detokenizer: Detokenizer,
    stops: Option<Arc<StopStrings>>,
    position: Position,
    /// The position after the detokenizer's tentative text, and how much of that it has seen.
    tentative: (Position, usize),
    /// Special tokens that a stop string may begin in: the text before each, in the whole text, and the length of its own.
    specials: VecDeque<(usize, usize)>,
    /// Text of which no event was given out; `start` is its place in the whole text.
    text: String,
    start: usize,
    /// Tokens whose text is known, with its end in the whole text.
    known: VecDeque<(u32, T, usize)>,
    /// Tokens whose text the detokenizer still holds.
    open: VecDeque<(u32, T)>,
    stopped: bool,
}

impl<T> TextAssembler<T> {
    /// An assembler for one generation.
    #[must_use]
    pub fn new(detokenizer: Detokenizer, stops: Option<Arc<StopStrings>>) -> Self {
        Self {
            detokenizer,
            stops: stops.filter(|stops| !stops.strings().is_empty()),
            position: Position::START,
            tentative: (Position::START, 0),
            specials: VecDeque::new(),
            text: String::new(),
            start: 0,
            known: VecDeque::new(),
            open: VecDeque::new(),
            stopped: false,
        }
    }

    /// Takes one generated id and appends the events that are decided by it. Returns the stop string that ends the text
    /// here, once; the events of all tokens so far are then given out, and further tokens have no text.
    pub fn push(&mut self, id: u32, data: T, events: &mut Vec<TextEvent<T>>) -> Option<String> {
        if self.stopped {
            events.push(TextEvent { id, text: String::new(), data });
            return None;
        }
        self.open.push_back((id, data));
        self.detokenizer.advance(id);
        let stop = self.take_in().or_else(|| self.take_special(id)).or_else(|| {
            // Bytes that may yet turn out broken hold back their text, but if the text ended here they would not be.
            if self.stops_in_tentative() {
                self.detokenizer.flush();
                return self.take_in();
            }
            None
        });
        if stop.is_some() {
            self.stopped = true;
        }
        self.give_out(events);
        stop
    }

    /// Appends the events that are still held. Bytes that make no character become U+FFFD.
    pub fn finish(&mut self, events: &mut Vec<TextEvent<T>>) -> Option<String> {
        if self.stopped {
            return None;
        }
        self.detokenizer.flush();
        let stop = self.take_in();
        self.stopped = true;
        self.give_out(events);
        stop
    }

    /// Takes the detokenizer's new text; the stop string in it, at which the text is cut.
    fn take_in(&mut self) -> Option<String> {
        let new = self.detokenizer.text();
        let end = self.start + self.text.len();
        for token_end in self.detokenizer.ends() {
            let (id, data) =
                self.open.pop_front().expect("the detokenizer closes only tokens that were pushed");
            self.known.push_back((id, data, end + token_end));
        }
        self.text.push_str(new);
        let stops = self.stops.as_ref()?;
        for (at, byte) in new.bytes().enumerate() {
            self.position = stops.step(self.position, byte);
            if let Some(index) = stops.complete(self.position) {
                let stop = stops.strings()[index].clone();
                let begun = self.text_within(end + at + 1, stop.len());
                self.text.truncate(end + at + 1 - begun - self.start);
                return Some(stop);
            }
        }
        if !new.is_empty() || self.detokenizer.tentative().is_empty() {
            self.tentative = (self.position, 0);
        }
        None
    }

    /// A special token is no text, but a stop string may hold it: the stop string that is complete with it, at whose
    /// beginning the text is cut.
    fn take_special(&mut self, id: u32) -> Option<String> {
        let stops = Arc::clone(self.stops.as_ref()?);
        let special = self.detokenizer.special(id)?.to_owned();
        // Text that the detokenizer holds back stands before the token, if it becomes text at all.
        let mut position = if self.tentative.1 > 0 { self.tentative.0 } else { self.position };
        for (at, byte) in special.bytes().enumerate() {
            position = stops.step(position, byte);
            let Some(index) = stops.complete(position) else { continue };
            let stop = stops.strings()[index].clone();
            // Half a character between the text and the token becomes a character that the string does not hold.
            if self.detokenizer.holds_half_a_character() && stop.len() > at + 1 {
                continue;
            }
            self.detokenizer.flush();
            // The text held back may complete a stop string of its own.
            if let Some(earlier) = self.take_in() {
                return Some(earlier);
            }
            let end = self.start + self.text.len();
            let begun = self.text_within(end, stop.len().saturating_sub(at + 1));
            self.text.truncate(end - begun - self.start);
            return Some(stop);
        }
        self.position = special.bytes().fold(self.position, |position, byte| stops.step(position, byte));
        self.tentative = (self.position, 0);
        self.specials.push_back((self.start + self.text.len(), special.len()));
        // No match reaches further back than the longest stop string.
        let undecided = stops.undecided(self.position);
        let mut reach: usize = self.specials.iter().map(|(_, length)| length).sum();
        while let Some((_, length)) = self.specials.front().filter(|_| reach > undecided) {
            reach -= length;
            if reach < undecided {
                break;
            }
            self.specials.pop_front();
        }
        None
    }

    /// How much of the last `bytes` that the matcher saw is text: the rest is special tokens. `end` is where the text ends.
    fn text_within(&self, end: usize, bytes: usize) -> usize {
        if bytes == 0 {
            return 0;
        }
        let (mut left, mut text, mut at) = (bytes, 0, end);
        for (place, length) in self.specials.iter().rev() {
            let before = at - place;
            if before >= left {
                break;
            }
            text += before;
            left = (left - before).saturating_sub(*length);
            at = *place;
        }
        text + left.min(at)
    }

    /// Whether a stop string is complete in the text that the detokenizer would give if it ended here.
    fn stops_in_tentative(&mut self) -> bool {
        let Some(stops) = &self.stops else { return false };
        let text = self.detokenizer.tentative();
        let (position, seen) = &mut self.tentative;
        text.bytes().skip(std::mem::replace(seen, text.len())).any(|byte| {
            *position = stops.step(*position, byte);
            stops.complete(*position).is_some()
        })
    }

    /// Appends the events of tokens whose text can no longer change; all of them once the text has ended.
    fn give_out(&mut self, events: &mut Vec<TextEvent<T>>) {
        let undecided = match &self.stops {
            Some(stops) if !self.stopped => stops.undecided(self.position),
            _ => 0,
        };
        let end = self.start + self.text.len();
        let decided = end - self.text_within(end, undecided);
        let mut taken = 0;
        while self.known.front().is_some_and(|(_, _, end)| self.stopped || *end <= decided) {
            let Some((id, data, end)) = self.known.pop_front() else { break };
            // Behind a stop string there is no text to take.
            let end = (end - self.start).clamp(taken, self.text.len());
            events.push(TextEvent { id, text: self.text[taken..end].to_owned(), data });
            taken = end;
        }
        if self.stopped {
            for (at, (id, data)) in std::mem::take(&mut self.open).into_iter().enumerate() {
                // Text of a token that never closed: its first characters, before the bytes that a stop string cut off.
                let text = if at == 0 { self.text[taken..].to_owned() } else { String::new() };
                events.push(TextEvent { id, text, data });
            }
            taken = self.text.len();
        }
        self.text.drain(..taken);
        self.start += taken;
    }
}
