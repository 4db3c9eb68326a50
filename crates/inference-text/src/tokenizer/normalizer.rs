//! Changing a text's characters before it is cut into words.

use std::{borrow::Cow, path::Path, sync::Arc};

use inference_core::{Error, Result};
use tokenizers::{
    NormalizedString, Normalizer as _, NormalizerWrapper,
    normalizers::{BertNormalizer, ByteLevel, Lowercase, NFC, NFD, NFKC, NFKD, Nmt, StripAccents},
};

use super::{
    charsmap::Charsmap,
    file::NormalizerStep,
    limits::{MAX_NORMALIZED_BYTES, MAX_PASSAGE_BYTES, MAX_STEP_TEXT, Work},
    pattern::{Pattern, PatternCompiler},
};

/// Bytes that are normalized at once, where the text can be cut there.
const CHUNK: usize = 16 << 10;

/// The steps that a text's characters go through.
#[derive(Debug, Clone)]
pub(super) struct Normalizer(Vec<Step>);

#[derive(Debug, Clone)]
enum Step {
    Prepend(String),
    Strip {
        left: bool,
        right: bool,
    },
    Replace {
        pattern: Pattern,
        content: String,
    },
    Precompiled(Arc<Charsmap>),
    /// A step of the `tokenizers` crate whose result depends on neighbouring characters alone.
    Local {
        step: Box<NormalizerWrapper>,
        factor: usize,
        shrink: usize,
        ascii: Ascii,
    },
}

/// What a local step does to ASCII text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ascii {
    Unchanged,
    Changed,
}

/// A normalized text.
pub(super) struct Normalized<'a> {
    pub(super) text: Cow<'a, str>,
    /// Whether its beginning was made of the text's first character, as the `tokenizers` crate counts.
    pub(super) keeps_first: bool,
}

impl Normalizer {
    /// Builds the steps.
    ///
    /// # Errors
    /// [`Error::InvalidModel`]: a parameter is beyond its bounds.
    pub(super) fn new(
        path: &Path,
        steps: Vec<NormalizerStep>,
        patterns: &mut PatternCompiler<'_>,
    ) -> Result<Self> {
        let build = |step| Step::new(path, step, patterns);
        Ok(Self(steps.into_iter().map(build).collect::<Result<_>>()?))
    }

    /// Normalizes a text.
    ///
    /// # Errors
    /// The work's limits; [`Error::InvalidPrompt`]: the result is too long.
    pub(super) fn apply<'a>(&self, text: &'a str, work: &mut Work<'_>) -> Result<Normalized<'a>> {
        let mut normalized = Normalized { text: Cow::Borrowed(text), keeps_first: true };
        for (at, step) in self.0.iter().enumerate() {
            let leading = step.apply(&mut normalized.text, work)?;
            if let (Some(end), Some(first)) = (leading, text.chars().next()) {
                let mut of_first = Cow::Owned(first.to_string());
                for step in &self.0[..at] {
                    step.apply(&mut of_first, work)?;
                }
                // What replaces several characters counts as made of the last of them.
                normalized.keeps_first &= end <= of_first.len();
            }
            // What is put before a text counts as its beginning.
            normalized.keeps_first |= matches!(step, Step::Prepend(_));
        }
        Ok(normalized)
    }

    /// Whether a text's first character always leaves something at the text's beginning.
    pub(super) fn keeps_start(&self) -> bool {
        self.0.iter().all(|step| match step {
            Step::Prepend(_) | Step::Precompiled(_) => true,
            Step::Replace { content, .. } => !content.is_empty(),
            Step::Local { shrink, .. } => *shrink > 0,
            Step::Strip { .. } => false,
        })
    }

    /// Whether a text's first character may become several.
    pub(super) fn lengthens_start(&self) -> bool {
        self.0.iter().any(|step| match step {
            Step::Prepend(_) | Step::Replace { .. } | Step::Precompiled(_) => true,
            Step::Local { factor, .. } => *factor > 1,
            Step::Strip { .. } => false,
        })
    }

    /// By how much the steps may shorten a text at most; `None` where there is no bound.
    pub(super) fn shrink(&self) -> Option<usize> {
        self.0.iter().try_fold(1, |total: usize, step| Some(total.saturating_mul(step.shrink()?)))
    }
}

impl Step {
    fn new(path: &Path, step: NormalizerStep, patterns: &mut PatternCompiler<'_>) -> Result<Self> {
        let bounded = |key: &str, text: String| {
            let length = text.len();
            if length > MAX_STEP_TEXT {
                let reason = format!("has {length} bytes, expected at most {MAX_STEP_TEXT}");
                return Err(Error::invalid_key(path, format!("normalizer.{key}"), reason));
            }
            Ok(text)
        };
        // The longest that Unicode makes of a character, and the shortest that it makes of a sequence of them.
        let local = |step: NormalizerWrapper, factor| {
            Ok(Self::Local { step: Box::new(step), factor, shrink: 4, ascii: Ascii::Unchanged })
        };
        let changed = |step: NormalizerWrapper, factor, shrink| {
            Ok(Self::Local { step: Box::new(step), factor, shrink, ascii: Ascii::Changed })
        };
        match step {
            NormalizerStep::Nfc {} => local(NFC.into(), 3),
            NormalizerStep::Nfd {} => local(NFD.into(), 4),
            NormalizerStep::Nfkc {} => local(NFKC.into(), 11),
            NormalizerStep::Nfkd {} => local(NFKD.into(), 11),
            NormalizerStep::Lowercase {} => changed(Lowercase.into(), 3, 4),
            NormalizerStep::StripAccents {} => changed(StripAccents.into(), 1, 0),
            NormalizerStep::Nmt {} => changed(Nmt.into(), 1, 0),
            NormalizerStep::BertNormalizer { clean_text, handle_chinese_chars, strip_accents, lowercase } => {
                let step = BertNormalizer::new(clean_text, handle_chinese_chars, strip_accents, lowercase);
                changed(step.into(), 8, 0)
            }
            NormalizerStep::ByteLevel {} => changed(ByteLevel::new().into(), 2, 1),
            NormalizerStep::Precompiled { precompiled_charsmap } => {
                let map = Charsmap::parse(&precompiled_charsmap);
                let invalid = |reason| Error::invalid_key(path, "normalizer.precompiled_charsmap", reason);
                Ok(Self::Precompiled(Arc::new(map.map_err(invalid)?)))
            }
            NormalizerStep::Strip { strip_left, strip_right } => {
                Ok(Self::Strip { left: strip_left, right: strip_right })
            }
            NormalizerStep::Prepend { prepend } => Ok(Self::Prepend(bounded("prepend", prepend)?)),
            NormalizerStep::Replace { pattern, content } => {
                let content = bounded("content", content)?;
                Ok(Self::Replace { pattern: patterns.compile("normalizer", &pattern)?, content })
            }
        }
    }

    /// Normalizes a text. Some: several characters at its beginning were replaced, and the end of those.
    fn apply(&self, normalized: &mut Cow<'_, str>, work: &mut Work<'_>) -> Result<Option<usize>> {
        let mut leading = None;
        match self {
            Self::Prepend(prefix) => {
                if !normalized.is_empty() {
                    normalized.to_mut().insert_str(0, prefix);
                }
            }
            Self::Strip { left, right } => strip(normalized, *left, *right),
            Self::Replace { pattern, content } => {
                leading = replace(normalized, pattern, content, work)?;
            }
            Self::Local { ascii: Ascii::Unchanged, .. } if normalized.is_ascii() => {}
            Self::Local { step, factor, .. } => {
                chunks(normalized, *factor, work, |chunk, into| local(step, chunk, into))?;
            }
            Self::Precompiled(map) => {
                chunks(normalized, map.factor(), work, |chunk, into| {
                    map.apply(chunk, into);
                    Ok(())
                })?;
            }
        }
        check_length(normalized.len())?;
        Ok(leading)
    }

    fn shrink(&self) -> Option<usize> {
        match self {
            Self::Prepend(_) => Some(1),
            Self::Local { shrink, .. } => Some(*shrink).filter(|shrink| *shrink > 0),
            Self::Strip { .. } | Self::Replace { .. } | Self::Precompiled(_) => None,
        }
    }
}

fn check_length(length: usize) -> Result<()> {
    if length > MAX_NORMALIZED_BYTES {
        let reason =
            format!("becomes longer than {MAX_NORMALIZED_BYTES} bytes when the tokenizer normalizes it");
        return Err(Error::invalid_prompt(reason));
    }
    Ok(())
}

fn strip(normalized: &mut Cow<'_, str>, left: bool, right: bool) {
    let text = &**normalized;
    let end = if right { text.trim_end().len() } else { text.len() };
    let start = if left { text[..end].len() - text[..end].trim_start().len() } else { 0 };
    if start > 0 || end < text.len() {
        *normalized = Cow::Owned(text[start..end].to_owned());
    }
}

/// Replaces what matches. Some: several characters at the text's beginning did, and the end of those.
fn replace(
    normalized: &mut Cow<'_, str>,
    pattern: &Pattern,
    content: &str,
    work: &mut Work<'_>,
) -> Result<Option<usize>> {
    let mut leading = None;
    let text = &**normalized;
    let mut replaced = String::with_capacity(text.len());
    let mut changed = false;
    pattern.split(text, work, |work, start, end, found| {
        if found {
            if start == 0 && text[..end].chars().nth(1).is_some() {
                leading = Some(end);
            }
            changed = true;
            replaced.push_str(content);
        } else {
            replaced.push_str(&text[start..end]);
        }
        work.advance((end - start) / 4);
        check_length(replaced.len())
    })?;
    if changed {
        *normalized = Cow::Owned(replaced);
    }
    Ok(leading)
}

/// Runs a step chunk by chunk: the crate keeps some forty bytes about each byte of what it normalizes. `step` appends what
/// comes of a chunk.
fn chunks(
    normalized: &mut Cow<'_, str>,
    factor: usize,
    work: &mut Work<'_>,
    step: impl Fn(&str, &mut String) -> Result<()>,
) -> Result<()> {
    let mut rest = &**normalized;
    let mut result = String::with_capacity(rest.len());
    while !rest.is_empty() {
        work.check()?;
        let (chunk, tail) = rest.split_at(safe_cut(rest, CHUNK));
        if chunk.len() > CHUNK && chunk.len().saturating_mul(factor) > MAX_PASSAGE_BYTES {
            let length = chunk.len();
            let reason =
                format!("has a passage of {length} bytes that the tokenizer can only normalize as a whole");
            return Err(Error::invalid_prompt(reason));
        }
        step(chunk, &mut result)?;
        check_length(result.len())?;
        work.advance(chunk.len() / 4);
        rest = tail;
    }
    *normalized = Cow::Owned(result);
    Ok(())
}

fn local(step: &NormalizerWrapper, chunk: &str, into: &mut String) -> Result<()> {
    let mut string = NormalizedString::from(chunk);
    step.normalize(&mut string)
        .map_err(|error| Error::invalid_prompt(format!("the tokenizer cannot normalize it: {error}")))?;
    into.push_str(string.get());
    Ok(())
}

/// The first place from `wanted` on between two characters that never change each other; the text's end without one.
fn safe_cut(text: &str, wanted: usize) -> usize {
    // Neither composes with a character before it, nor belongs to the same grapheme.
    let apart = |c: char| {
        (c.is_ascii() && c != '\n') || matches!(c, '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}')
    };
    if text.len() <= wanted {
        return text.len();
    }
    let mut start = wanted;
    while !text.is_char_boundary(start) {
        start += 1;
    }
    let mut chars = text[start..].char_indices();
    let Some((_, mut before)) = chars.next() else { return text.len() };
    for (at, c) in chars {
        if apart(before) && apart(c) {
            return start + at;
        }
        before = c;
    }
    text.len()
}
