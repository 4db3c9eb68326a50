//! Added tokens: found in a text before it is split into words.

use std::{collections::HashMap, path::Path, sync::LazyLock};

use aho_corasick::{AhoCorasick, MatchKind};
use inference_core::{Error, Result};

use super::{
    file::AddedTokenEntry,
    limits::{MAX_ADDED_BYTES, MAX_ADDED_TOKEN_BYTES, MAX_ADDED_TOKENS, Work},
    model::Model,
    normalizer::Normalizer,
    pattern::Pattern,
};

/// How a token is matched, and whether texts for readers leave it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AddedToken {
    pub(super) content: String,
    pub(super) single_word: bool,
    pub(super) lstrip: bool,
    pub(super) rstrip: bool,
    /// Whether its normalized form is searched in the normalized text.
    pub(super) normalized: bool,
    pub(super) special: bool,
}

/// All added tokens.
#[derive(Debug, Clone, Default)]
pub(super) struct AddedTokens {
    ids: HashMap<String, u32>,
    tokens: HashMap<u32, AddedToken>,
    /// What is searched, where it differs from the content.
    normalized: HashMap<u32, String>,
    raw_matcher: Option<Matcher>,
    normalized_matcher: Option<Matcher>,
}

/// Finds tokens in a text, the longest of those that begin first.
#[derive(Debug, Clone)]
struct Matcher {
    automaton: AhoCorasick,
    /// The id behind each pattern.
    ids: Vec<u32>,
}

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part<'a> {
    Token(u32),
    /// Text between tokens, and where it begins.
    Text(&'a str, usize),
}

impl From<AddedTokenEntry> for AddedToken {
    fn from(entry: AddedTokenEntry) -> Self {
        let AddedTokenEntry { id: _, content, single_word, lstrip, rstrip, normalized, special } = entry;
        Self { content, single_word, lstrip, rstrip, normalized, special }
    }
}

impl AddedTokens {
    /// Adds tokens: those that the vocabulary has keep their ids, others get the next that are free. A token that is there
    /// already gets the new flags.
    ///
    /// # Errors
    /// A reason, where there are too many or they are too long.
    pub(super) fn add(
        &mut self,
        tokens: impl IntoIterator<Item = AddedToken>,
        model: &Model,
    ) -> std::result::Result<(), String> {
        let size = model.vocab_size() as u32;
        let mut next = self.tokens.keys().max().map_or(size, |max| size.max(max.saturating_add(1)));
        for token in tokens {
            if token.content.is_empty() {
                continue;
            }
            let length = token.content.len();
            if length > MAX_ADDED_TOKEN_BYTES {
                let start: String = token.content.chars().take(20).collect();
                return Err(format!(
                    "token {start:?}… has {length} bytes, expected at most {MAX_ADDED_TOKEN_BYTES}"
                ));
            }
            let known = self.ids.get(&token.content).copied().or_else(|| model.token_to_id(&token.content));
            let id = known.unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            // Once special, always special: so it is with the library that wrote the file.
            let special = token.special || self.is_special(&token.content);
            let token = AddedToken { special, ..token };
            self.ids.insert(token.content.clone(), id);
            self.tokens.insert(id, token);
            if self.tokens.len() > MAX_ADDED_TOKENS {
                return Err(format!("more than {MAX_ADDED_TOKENS} added tokens"));
            }
        }
        let bytes: usize = self.ids.keys().map(String::len).sum();
        if bytes > MAX_ADDED_BYTES {
            return Err(format!(
                "all added tokens together have {bytes} bytes, expected at most {MAX_ADDED_BYTES}"
            ));
        }
        Ok(())
    }

    /// Prepares the search, after the last [`add`](Self::add).
    ///
    /// # Errors
    /// [`Error::InvalidModel`].
    pub(super) fn build(&mut self, path: &Path, normalizer: &Normalizer) -> Result<()> {
        let invalid = |reason: String| Error::invalid_key(path, "added_tokens", reason);
        let limits = super::EncodeLimits::default();
        let length = self.tokens.values().map(|token| token.content.len()).sum();
        let (mut bytes, mut work) = (0, Work::new(&limits, length));
        for (id, token) in self.tokens.iter().filter(|(_, token)| token.normalized) {
            let normalized = normalizer.apply(&token.content, &mut work);
            let normalized = normalized.map_err(|error| invalid(error.to_string()))?.text;
            bytes += normalized.len();
            if bytes > 2 * MAX_ADDED_BYTES {
                return Err(invalid(format!(
                    "become more than {} bytes when normalized",
                    2 * MAX_ADDED_BYTES
                )));
            }
            if *normalized != token.content {
                self.normalized.insert(*id, normalized.into_owned());
            }
        }
        let (mut raw, mut normalized) = (Vec::new(), Vec::new());
        for (id, token) in &self.tokens {
            if token.normalized {
                normalized.push((self.normalized.get(id).unwrap_or(&token.content).as_str(), *id));
            } else {
                raw.push((token.content.as_str(), *id));
            }
        }
        self.raw_matcher = Matcher::new(raw).map_err(invalid)?;
        self.normalized_matcher = Matcher::new(normalized).map_err(invalid)?;
        Ok(())
    }

    /// Whether some are searched in the normalized text.
    pub(super) fn has_normalized(&self) -> bool {
        self.normalized_matcher.is_some()
    }

    /// Parts of a text that was not normalized.
    ///
    /// # Errors
    /// The work's limits, and whatever `each` gives.
    pub(super) fn split_raw<'t>(
        &self,
        text: &'t str,
        work: &mut Work<'_>,
        each: &mut dyn FnMut(&mut Work<'_>, Part<'t>) -> Result<()>,
    ) -> Result<()> {
        self.split(self.raw_matcher.as_ref(), text, work, each)
    }

    /// Parts of a text that was normalized.
    ///
    /// # Errors
    /// As [`split_raw`](Self::split_raw).
    pub(super) fn split_normalized<'t>(
        &self,
        text: &'t str,
        work: &mut Work<'_>,
        each: &mut dyn FnMut(&mut Work<'_>, Part<'t>) -> Result<()>,
    ) -> Result<()> {
        self.split(self.normalized_matcher.as_ref(), text, work, each)
    }

    fn split<'t>(
        &self,
        matcher: Option<&Matcher>,
        text: &'t str,
        work: &mut Work<'_>,
        each: &mut dyn FnMut(&mut Work<'_>, Part<'t>) -> Result<()>,
    ) -> Result<()> {
        let mut end = 0;
        let Some(matcher) = matcher else {
            return if text.is_empty() { Ok(()) } else { each(work, Part::Text(text, 0)) };
        };
        for found in matcher.automaton.find_iter(text) {
            work.check()?;
            let id = matcher.ids[found.pattern().as_usize()];
            let token = &self.tokens[&id];
            let (before, after) = (&text[..found.start()], &text[found.end()..]);
            let joined = || {
                before.chars().next_back().is_some_and(is_word) || after.chars().next().is_some_and(is_word)
            };
            if token.single_word && joined() {
                continue;
            }
            let start = if token.lstrip { before.trim_end().len().max(end) } else { found.start() };
            if end < start {
                each(work, Part::Text(&text[end..start], end))?;
            }
            let swallowed = if token.rstrip { after.len() - after.trim_start().len() } else { 0 };
            let stop = found.end() + swallowed;
            // A token before this one may have swallowed all of it.
            if start < stop {
                each(work, Part::Token(id))?;
            }
            end = end.max(stop);
        }
        if end < text.len() {
            each(work, Part::Text(&text[end..], end))?;
        }
        Ok(())
    }

    /// The id of a token by its content.
    pub(super) fn id(&self, content: &str) -> Option<u32> {
        self.ids.get(content).copied()
    }

    /// A token as decoders see it.
    pub(super) fn text(&self, id: u32) -> Option<&str> {
        let token = self.tokens.get(&id)?;
        Some(self.normalized.get(&id).unwrap_or(&token.content))
    }

    /// The tokens with their ids, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &AddedToken)> {
        self.tokens.iter().map(|(id, token)| (*id, token))
    }

    pub(super) fn get(&self, id: u32) -> Option<&AddedToken> {
        self.tokens.get(&id)
    }

    /// Whether a token with this text is special.
    pub(super) fn is_special(&self, text: &str) -> bool {
        self.ids.get(text).and_then(|id| self.tokens.get(id)).is_some_and(|token| token.special)
    }
}

impl Matcher {
    fn new(mut patterns: Vec<(&str, u32)>) -> std::result::Result<Option<Self>, String> {
        if patterns.is_empty() {
            return Ok(None);
        }
        patterns.sort_unstable();
        if let Some(pair) = patterns.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(format!("two added tokens are searched as {:?}", pair[0].0));
        }
        if patterns[0].0.is_empty() {
            return Err("an added token is empty when normalized".to_owned());
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(patterns.iter().map(|(text, _)| text))
            .map_err(|error| error.to_string())?;
        Ok(Some(Self { automaton, ids: patterns.into_iter().map(|(_, id)| id).collect() }))
    }
}

/// A character of a word, as `\w` in a regular expression.
fn is_word(c: char) -> bool {
    static WORD: LazyLock<Pattern> = LazyLock::new(|| Pattern::constant(r"\w"));
    WORD.is_in(c.encode_utf8(&mut [0; 4]))
}
