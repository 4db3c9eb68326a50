//! Searching a text for a literal or a regular expression, within bounds.

use std::path::Path;

use fancy_regex::{Regex, RegexBuilder};
use inference_core::{Error, Result};

use super::{
    file::TextPattern,
    limits::{MAX_BACKTRACKS, MAX_PATTERN_SIZE, MAX_PATTERNS, MAX_STEP_TEXT, Work},
};

/// Compiles the patterns of one file.
pub(super) struct PatternCompiler<'a> {
    path: &'a Path,
    /// Bytes of patterns that the file may still have.
    left: usize,
}

impl<'a> PatternCompiler<'a> {
    pub(super) fn new(path: &'a Path) -> Self {
        Self { path, left: MAX_PATTERNS }
    }

    /// Compiles a pattern.
    ///
    /// # Errors
    /// [`Error::InvalidModel`]: it is invalid or too large.
    pub(super) fn compile(&mut self, key: &str, pattern: &TextPattern) -> Result<Pattern> {
        let invalid = |reason: String| Error::invalid_key(self.path, format!("{key}.pattern"), reason);
        let regex = match pattern {
            TextPattern::String(text) if text.len() > MAX_STEP_TEXT => {
                let length = text.len();
                return Err(invalid(format!("has {length} bytes, expected at most {MAX_STEP_TEXT}")));
            }
            TextPattern::String(text) => fancy_regex::escape(text).into_owned(),
            TextPattern::Regex(regex) => regex.clone(),
        };
        self.left = self.left.checked_sub(regex.len()).ok_or_else(|| {
            invalid(format!("all patterns together have more than {MAX_PATTERNS} bytes, the most allowed"))
        })?;
        let regex = RegexBuilder::new(&regex)
            .backtrack_limit(MAX_BACKTRACKS)
            .delegate_size_limit(MAX_PATTERN_SIZE)
            .build()
            .map_err(|error| invalid(format!("is not a valid pattern: {error}")))?;
        Ok(Pattern { regex, is_literal: matches!(pattern, TextPattern::String(_)) })
    }
}

/// A compiled pattern.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    regex: Regex,
    is_literal: bool,
}

impl Pattern {
    /// A pattern of this program's own.
    pub(super) fn constant(regex: &'static str) -> Self {
        Self { regex: Regex::new(regex).expect("the pattern is a constant and valid"), is_literal: false }
    }

    /// Whether it matches one text only.
    pub(super) fn is_literal(&self) -> bool {
        self.is_literal
    }

    /// Whether it matches somewhere in a short text.
    pub(super) fn is_in(&self, text: &str) -> bool {
        self.regex.is_match(text).unwrap_or(false)
    }

    /// Cuts a text into matches and what lies between them, in order; `each` gets start, end, and whether it is a match.
    ///
    /// # Errors
    /// The work's limits; [`Error::InvalidPrompt`]: a match takes too many steps; whatever `each` gives.
    pub(super) fn split(
        &self,
        text: &str,
        work: &mut Work<'_>,
        mut each: impl FnMut(&mut Work<'_>, usize, usize, bool) -> Result<()>,
    ) -> Result<()> {
        // The crate finds nothing in an empty text, not even a pattern that matches nothing.
        if text.is_empty() {
            return Ok(());
        }
        let mut end = 0;
        for found in self.regex.find_iter(text) {
            work.check()?;
            let found = found.map_err(|error| {
                Error::invalid_prompt(format!(
                    "the tokenizer's pattern {:?} fails on it: {error}",
                    self.regex.as_str()
                ))
            })?;
            if end != found.start() {
                each(work, end, found.start(), false)?;
            }
            each(work, found.start(), found.end(), true)?;
            end = found.end();
        }
        if end != text.len() {
            each(work, end, text.len(), false)?;
        }
        Ok(())
    }
}
