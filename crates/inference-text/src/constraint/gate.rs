//! A model reasons first: the constraint holds for what comes after.

use std::{ops::Range, sync::Arc};

use inference_core::TokenMask;

use super::trie::Tokens;
use crate::AnswerFormat;

/// Where an answer stands between reasoning and what is constrained.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    phase: Phase,
    family: Option<Arc<Family>>,
}

/// A family's delimiters of reasoning, as a model's tokens write them.
#[derive(Debug)]
pub(super) struct Family {
    /// Whether every answer begins within reasoning.
    always: bool,
    /// The token that opens reasoning, where that is one.
    begin: Option<u32>,
    end: &'static [u8],
    /// Tokens that would end reasoning and go on with more than line breaks, each with how much of the end stands before it.
    straddling: Vec<(u32, Range<usize>)>,
}

#[derive(Debug, Clone, PartialEq)]
enum Phase {
    /// Nothing was said: the model may open reasoning.
    Start,
    /// The last bytes of reasoning, fewer than its end has.
    Reasoning(Vec<u8>),
    /// Reasoning has ended: a line break may follow.
    Gap,
    /// The constraint has the say.
    Answer,
}

impl Family {
    /// `None` where the family has no reasoning. It looks at every token.
    pub(super) fn new(format: &AnswerFormat, tokens: &Tokens) -> Option<Self> {
        let end = format.thinking_end()?;
        // gpt-oss says on which channel it speaks: all before the last one's text is reasoning.
        let (end, always) = match end.find("<|channel|>final") {
            Some(at) => (&end[at..], true),
            None => (end, false),
        };
        let end = end.as_bytes();
        let begin = format
            .thinking_begin()
            .and_then(|text| (0..tokens.len()).find(|id| tokens.bytes(*id) == text.as_bytes()));
        let straddling =
            (0..tokens.len()).filter_map(|id| straddles(tokens.bytes(id), end).map(|before| (id, before)));
        Some(Self { always, begin, end, straddling: straddling.collect() })
    }
}

impl Gate {
    /// The gate of an answer; `family` is `None` where the model's has no reasoning.
    pub(super) fn new(family: Option<Arc<Family>>, starts_in_reasoning: bool) -> Self {
        let phase = match &family {
            None => Phase::Answer,
            Some(family) if starts_in_reasoning || family.always => Phase::Reasoning(Vec::new()),
            Some(_) => Phase::Start,
        };
        Self { phase, family }
    }

    /// Whether the constraint alone decides.
    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Answer
    }

    /// Whether the constraint has a say.
    pub(super) fn asks_constraint(&self) -> bool {
        !matches!(self.phase, Phase::Reasoning(_))
    }

    /// Allows what may come besides what the constraint allows.
    pub(super) fn mask(&self, mask: &mut TokenMask, tokens: &Tokens) {
        let Some(family) = &self.family else { return };
        match &self.phase {
            Phase::Start => family.begin.iter().for_each(|id| mask.allow(*id)),
            Phase::Gap => tokens.line_breaks.iter().for_each(|id| mask.allow(*id)),
            Phase::Answer => {}
            Phase::Reasoning(tail) => {
                mask.allow_words(tokens.texts.words());
                for (id, before) in &family.straddling {
                    if tail.ends_with(&family.end[before.clone()]) {
                        mask.ban(*id);
                    }
                }
            }
        }
    }

    /// Takes a token; whether it is the constraint's. `allowed` says whether the constraint allows it.
    pub(super) fn accept(&mut self, id: u32, tokens: &Tokens, allowed: impl FnOnce(u32) -> bool) -> bool {
        let Some(family) = self.family.clone() else { return true };
        match &mut self.phase {
            Phase::Answer => return true,
            Phase::Start if Some(id) == family.begin => self.phase = Phase::Reasoning(Vec::new()),
            Phase::Gap if tokens.line_breaks.contains(&id) && !allowed(id) => self.phase = Phase::Answer,
            Phase::Start | Phase::Gap => {
                self.phase = Phase::Answer;
                return true;
            }
            Phase::Reasoning(tail) => {
                tail.extend_from_slice(tokens.bytes(id));
                match find(tail, family.end) {
                    // What follows in the token is line breaks.
                    Some(at) if at + family.end.len() == tail.len() => self.phase = Phase::Gap,
                    Some(_) => self.phase = Phase::Answer,
                    None => {
                        tail.drain(..(tail.len() + 1).saturating_sub(family.end.len()));
                    }
                }
            }
        }
        false
    }
}

/// Where a token would end reasoning and go on with more than line breaks: which part of the end has to stand before it.
fn straddles(bytes: &[u8], end: &[u8]) -> Option<Range<usize>> {
    let goes_on = |rest: &[u8]| rest.iter().any(|byte| *byte != b'\n');
    if let Some(at) = find(bytes, end) {
        return goes_on(&bytes[at + end.len()..]).then_some(0..0);
    }
    // Of several places the one with the least before it is reached first.
    (1..end.len())
        .find(|before| bytes.strip_prefix(&end[*before..]).is_some_and(goes_on))
        .map(|before| 0..before)
}

fn find(text: &[u8], pattern: &[u8]) -> Option<usize> {
    text.windows(pattern.len()).position(|window| window == pattern)
}
