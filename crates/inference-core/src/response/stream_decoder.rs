//! From generated ids to tokens with text.

use std::{collections::VecDeque, sync::Arc};

use super::{Detokenize, StopPosition, StopStrings};
use crate::Token;

/// Gives generated tokens their text, and finds stop strings across them.
///
/// Every token that is pushed comes out once, in order. It is held back, whole, while its text is undecided: its bytes do
/// not make a character yet, or its text may be the beginning of a stop string. All texts together are the full text,
/// without a stop string and what follows it; tokens that lie wholly in that part have an empty text. A push takes
/// amortized constant time.
#[derive(Debug)]
pub struct StreamDecoder {
    detokenizer: Box<dyn Detokenize>,
    stops: Option<Arc<StopStrings>>,
    position: StopPosition,
    /// The position after the detokenizer's tentative text, and how much of that it has seen.
    tentative: (StopPosition, usize),
    /// Special tokens that a stop string may begin in: the text before each, in the whole text, and the length of its own.
    specials: VecDeque<(usize, usize)>,
    /// Text whose tokens did not come out yet; `start` is its place in the whole text.
    text: String,
    start: usize,
    /// Tokens whose text is known, with its end in the whole text.
    known: VecDeque<(Token, usize)>,
    /// Tokens whose text the detokenizer still holds.
    open: VecDeque<Token>,
    stopped: bool,
}

impl StreamDecoder {
    /// A decoder for one answer.
    #[must_use]
    pub fn new(detokenizer: impl Detokenize + 'static, stops: Option<StopStrings>) -> Self {
        Self {
            detokenizer: Box::new(detokenizer),
            stops: stops.filter(|stops| !stops.strings().is_empty()).map(Arc::new),
            position: StopPosition::START,
            tentative: (StopPosition::START, 0),
            specials: VecDeque::new(),
            text: String::new(),
            start: 0,
            known: VecDeque::new(),
            open: VecDeque::new(),
            stopped: false,
        }
    }

    /// Takes a generated token and appends the tokens that are decided by it. Returns the stop string that ends the text
    /// here, once; then all tokens so far are out, and further tokens have no text.
    pub fn push(&mut self, mut token: Token, decided: &mut Vec<Token>) -> Option<String> {
        if self.stopped {
            token.text.clear();
            decided.push(token);
            return None;
        }
        let id = token.id;
        self.detokenizer.advance(&mut token);
        self.open.push_back(token);
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
        self.give_out(decided);
        stop
    }

    /// Appends the tokens that are still held. Bytes that make no character become U+FFFD. Returns the stop string that
    /// this text ends with, if it does.
    pub fn finish(&mut self, decided: &mut Vec<Token>) -> Option<String> {
        if self.stopped {
            return None;
        }
        self.detokenizer.flush();
        let stop = self.take_in();
        self.stopped = true;
        self.give_out(decided);
        stop
    }

    /// Takes the detokenizer's new text; the stop string in it, at which the text is cut.
    fn take_in(&mut self) -> Option<String> {
        let new = self.detokenizer.text();
        let end = self.start + self.text.len();
        for token_end in self.detokenizer.ends() {
            let Some(token) = self.open.pop_front() else { break };
            self.known.push_back((token, end + token_end));
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

    /// Appends the tokens whose text can no longer change; all of them once the text has ended.
    fn give_out(&mut self, decided: &mut Vec<Token>) {
        let undecided = match &self.stops {
            Some(stops) if !self.stopped => stops.undecided(self.position),
            _ => 0,
        };
        let end = self.start + self.text.len();
        let certain = end - self.text_within(end, undecided);
        let mut taken = 0;
        while self.known.front().is_some_and(|(_, end)| self.stopped || *end <= certain) {
            let Some((mut token, end)) = self.known.pop_front() else { break };
            // Behind a stop string there is no text to take.
            let end = (end - self.start).clamp(taken, self.text.len());
            self.text[taken..end].clone_into(&mut token.text);
            decided.push(token);
            taken = end;
        }
        if self.stopped {
            for (at, mut token) in std::mem::take(&mut self.open).into_iter().enumerate() {
                // Text of a token that never closed: its first characters, before the bytes that a stop string cut off.
                token.text = if at == 0 { self.text[taken..].to_owned() } else { String::new() };
                decided.push(token);
            }
            taken = self.text.len();
        }
        self.text.drain(..taken);
        self.start += taken;
    }
}
