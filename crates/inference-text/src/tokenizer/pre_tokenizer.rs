//! Cutting a text into words, which the model turns into tokens one by one.
//!
//! Words are handed on as they are found: a text of millions of characters takes no more memory than itself, and the
//! work's limits are looked at between any two of them.

use std::{path::Path, sync::LazyLock};

use inference_core::{Error, Result};
use unicode_categories::UnicodeCategories as _;

use super::{
    byte_level,
    file::{Behavior, PreTokenizerStep, PrependScheme},
    limits::Work,
    pattern::{Pattern, PatternCompiler},
};

/// GPT-2's words.
static BYTE_LEVEL_WORDS: LazyLock<Pattern> = LazyLock::new(|| {
    Pattern::constant(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
});
static WHITESPACE_WORDS: LazyLock<Pattern> = LazyLock::new(|| Pattern::constant(r"\w+|[^\w\s]+"));

/// The steps that cut a text.
#[derive(Debug, Clone)]
pub(super) struct PreTokenizer(Vec<Step>);

/// What takes the words.
pub(super) type Sink<'s> = dyn FnMut(&mut Work<'_>, &str) -> Result<()> + 's;

#[derive(Debug, Clone)]
enum Step {
    Split { pattern: Pattern, behavior: Behavior, invert: bool },
    Chars { separates: fn(char) -> bool, behavior: Behavior },
    Delimiter(char),
    Bert,
    Whitespace,
    ByteLevel { add_prefix_space: bool, use_regex: bool },
    Metaspace { replacement: char, scheme: PrependScheme, split: bool },
    FixedLength(usize),
}

/// A piece of a text.
#[derive(Debug, Clone, Copy)]
struct Piece<'a> {
    text: &'a str,
    /// Whether it begins where the prompt does.
    first: bool,
}

impl PreTokenizer {
    /// Builds the steps; `knows_start` says that the normalizer never drops a text's first character.
    ///
    /// # Errors
    /// [`Error::InvalidModel`]: parameters contradict each other or are beyond their bounds.
    pub(super) fn new(
        path: &Path,
        steps: Vec<PreTokenizerStep>,
        knows_start: bool,
        patterns: &mut PatternCompiler<'_>,
    ) -> Result<Self> {
        let mut built = Vec::new();
        for (at, step) in steps.into_iter().enumerate() {
            built.push(Step::new(path, step, at == 0 && knows_start, patterns)?);
        }
        Ok(Self(built))
    }

    /// Cuts a text; `first` says whether it is the prompt's beginning.
    ///
    /// # Errors
    /// The work's limits, and whatever the sink gives.
    pub(super) fn split(
        &self,
        text: &str,
        first: bool,
        work: &mut Work<'_>,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        run(&self.0, Piece { text, first }, work, sink)
    }

    /// Whether it treats a text's beginning differently from what lies behind a token.
    pub(super) fn knows_first(&self) -> bool {
        let is_first = |step: &Step| matches!(step, Step::Metaspace { scheme: PrependScheme::First, .. });
        self.0.iter().any(is_first)
    }

    /// Whether words may be as long as the text.
    pub(super) fn has_no_pattern(&self) -> bool {
        !self.0.iter().any(|step| match step {
            Step::Split { pattern, .. } => !pattern.is_literal(),
            Step::ByteLevel { use_regex, .. } => *use_regex,
            _ => false,
        })
    }

    /// Whether no character of a text is left out.
    pub(super) fn is_lossless(&self) -> bool {
        self.0.iter().all(|step| match step {
            Step::Split { behavior, .. } | Step::Chars { behavior, .. } => *behavior != Behavior::Removed,
            Step::Delimiter(_) | Step::Bert | Step::Whitespace => false,
            Step::ByteLevel { .. } | Step::Metaspace { .. } | Step::FixedLength(_) => true,
        })
    }

    /// Whether words are spelled in the byte-level alphabet.
    pub(super) fn is_byte_level(&self) -> bool {
        self.0.iter().any(|step| matches!(step, Step::ByteLevel { .. }))
    }
}

fn run(steps: &[Step], piece: Piece<'_>, work: &mut Work<'_>, sink: &mut Sink<'_>) -> Result<()> {
    if piece.text.is_empty() {
        return Ok(());
    }
    let Some((step, rest)) = steps.split_first() else {
        return sink(work, piece.text);
    };
    step.apply(piece, work, &mut |work, piece| run(rest, piece, work, sink))
}

/// What takes the pieces of one step.
type Next<'n> = dyn FnMut(&mut Work<'_>, Piece<'_>) -> Result<()> + 'n;

impl Step {
    fn new(
        path: &Path,
        step: PreTokenizerStep,
        knows_start: bool,
        patterns: &mut PatternCompiler<'_>,
    ) -> Result<Self> {
        let invalid =
            |key: &str, reason: &str| Error::invalid_key(path, format!("pre_tokenizer.{key}"), reason);
        Ok(match step {
            PreTokenizerStep::Split { pattern, behavior, invert } => {
                Self::Split { pattern: patterns.compile("pre_tokenizer", &pattern)?, behavior, invert }
            }
            PreTokenizerStep::Punctuation { behavior } => Self::Chars { separates: is_punctuation, behavior },
            PreTokenizerStep::Digits { individual_digits } => {
                let behavior = if individual_digits { Behavior::Isolated } else { Behavior::Contiguous };
                Self::Chars { separates: char::is_numeric, behavior }
            }
            PreTokenizerStep::WhitespaceSplit {} => {
                Self::Chars { separates: char::is_whitespace, behavior: Behavior::Removed }
            }
            PreTokenizerStep::CharDelimiterSplit { delimiter } => Self::Delimiter(delimiter),
            PreTokenizerStep::BertPreTokenizer {} => Self::Bert,
            PreTokenizerStep::Whitespace {} => Self::Whitespace,
            PreTokenizerStep::ByteLevel(level) => {
                Self::ByteLevel { add_prefix_space: level.add_prefix_space, use_regex: level.use_regex }
            }
            PreTokenizerStep::Metaspace(metaspace) => {
                let scheme = metaspace.scheme().ok_or_else(|| {
                    invalid(
                        "prepend_scheme",
                        "does not match `add_prefix_space`, which is false: expected \"never\"",
                    )
                })?;
                if scheme == PrependScheme::First && !knows_start {
                    return Err(invalid(
                        "prepend_scheme",
                        "is \"first\" behind a step that may drop a text's first character, expected \"always\" or \"never\"",
                    ));
                }
                Self::Metaspace { replacement: metaspace.replacement, scheme, split: metaspace.splits() }
            }
            PreTokenizerStep::FixedLength { length: 0 } => {
                return Err(invalid("length", "is 0, expected a number of characters"));
            }
            PreTokenizerStep::FixedLength { length } => Self::FixedLength(length),
        })
    }

    fn apply(&self, piece: Piece<'_>, work: &mut Work<'_>, next: &mut Next<'_>) -> Result<()> {
        match self {
            Self::Split { pattern, behavior, invert } => cut(piece, work, *behavior, next, |work, cuts| {
                pattern.split(piece.text, work, |work, start, end, found| {
                    cuts.push(work, start, end, found != *invert)
                })
            }),
            Self::Whitespace => cut(piece, work, Behavior::Removed, next, |work, cuts| {
                WHITESPACE_WORDS
                    .split(piece.text, work, |work, start, end, found| cuts.push(work, start, end, !found))
            }),
            Self::Chars { separates, behavior } => {
                cut(piece, work, *behavior, next, |work, cuts| by_char(piece.text, work, cuts, separates))
            }
            Self::Delimiter(delimiter) => cut(piece, work, Behavior::Removed, next, |work, cuts| {
                by_char(piece.text, work, cuts, |c| c == *delimiter)
            }),
            Self::Bert => {
                let mut words = |work: &mut Work<'_>, piece: Piece<'_>| {
                    cut(piece, work, Behavior::Isolated, next, |work, cuts| {
                        by_char(piece.text, work, cuts, is_punctuation)
                    })
                };
                cut(piece, work, Behavior::Removed, &mut words, |work, cuts| {
                    by_char(piece.text, work, cuts, char::is_whitespace)
                })
            }
            Self::ByteLevel { add_prefix_space, use_regex } => {
                bytes(piece, *add_prefix_space, *use_regex, work, next)
            }
            Self::Metaspace { replacement, scheme, split } => {
                metaspace(piece, *replacement, *scheme, *split, work, next)
            }
            Self::FixedLength(length) => {
                let mut rest = piece;
                while !rest.text.is_empty() {
                    let end = rest.text.char_indices().nth(*length).map_or(rest.text.len(), |(at, _)| at);
                    let (head, tail) = rest.text.split_at(end);
                    next(work, Piece { text: head, first: rest.first })?;
                    rest = Piece { text: tail, first: false };
                }
                Ok(())
            }
        }
    }
}

fn bytes(
    piece: Piece<'_>,
    add_prefix_space: bool,
    use_regex: bool,
    work: &mut Work<'_>,
    next: &mut Next<'_>,
) -> Result<()> {
    let spaced;
    let mut text = piece.text;
    if add_prefix_space && !text.starts_with(' ') {
        spaced = format!(" {text}");
        text = &spaced;
    }
    let mut spelled = String::new();
    let mut spell = |work: &mut Work<'_>, text: &str, first: bool| {
        spelled.clear();
        spelled.extend(text.bytes().map(byte_level::char_of));
        next(work, Piece { text: &spelled, first })
    };
    if use_regex {
        return BYTE_LEVEL_WORDS.split(text, work, |work, start, end, _| {
            spell(work, &text[start..end], piece.first && start == 0)
        });
    }
    spell(work, text, piece.first)
}

fn metaspace(
    piece: Piece<'_>,
    replacement: char,
    scheme: PrependScheme,
    split: bool,
    work: &mut Work<'_>,
    next: &mut Next<'_>,
) -> Result<()> {
    let mut text = String::with_capacity(piece.text.len() + 4);
    let prepends = match scheme {
        PrependScheme::Always => true,
        PrependScheme::First => piece.first,
        PrependScheme::Never => false,
    };
    if prepends && !piece.text.starts_with([replacement, ' ']) {
        text.push(replacement);
    }
    text.extend(piece.text.chars().map(|c| if c == ' ' { replacement } else { c }));
    if !split {
        return next(work, Piece { text: &text, first: piece.first });
    }
    cut(Piece { text: &text, first: piece.first }, work, Behavior::MergedWithNext, next, |work, cuts| {
        by_char(&text, work, cuts, |c| c == replacement)
    })
}

fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation() || c.is_punctuation()
}

/// Finds single characters, and what lies between them.
fn by_char(
    text: &str,
    work: &mut Work<'_>,
    cuts: &mut Cuts<'_, '_>,
    separates: impl Fn(char) -> bool,
) -> Result<()> {
    let mut end = 0;
    for (at, c) in text.char_indices() {
        if separates(c) {
            if end < at {
                cuts.push(work, end, at, false)?;
            }
            end = at + c.len_utf8();
            cuts.push(work, at, end, true)?;
        }
    }
    if end < text.len() {
        cuts.push(work, end, text.len(), false)?;
    }
    Ok(())
}

/// Turns separators and what lies between them into pieces.
struct Cuts<'a, 'n> {
    piece: Piece<'a>,
    behavior: Behavior,
    next: &'a mut Next<'n>,
    /// A piece that may still grow: start, end, and whether its last part separates.
    open: Option<(usize, usize, bool)>,
}

fn cut(
    piece: Piece<'_>,
    work: &mut Work<'_>,
    behavior: Behavior,
    next: &mut Next<'_>,
    find: impl FnOnce(&mut Work<'_>, &mut Cuts<'_, '_>) -> Result<()>,
) -> Result<()> {
    let mut cuts = Cuts { piece, behavior, next, open: None };
    find(work, &mut cuts)?;
    cuts.close(work)
}

impl Cuts<'_, '_> {
    fn push(&mut self, work: &mut Work<'_>, start: usize, end: usize, separates: bool) -> Result<()> {
        let grows = match (self.behavior, self.open) {
            (Behavior::Removed, _) if separates => return Ok(()),
            (Behavior::Removed | Behavior::Isolated, _) => return self.emit(work, start, end),
            (Behavior::Contiguous, Some((_, _, open))) => open == separates,
            (Behavior::MergedWithPrevious, Some((_, _, open))) => separates && !open,
            (Behavior::MergedWithNext, Some((_, _, open))) => open && !separates,
            (_, None) => false,
        };
        match &mut self.open {
            Some((_, open_end, kind)) if grows => (*open_end, *kind) = (end, separates),
            _ => {
                self.close(work)?;
                self.open = Some((start, end, separates));
            }
        }
        Ok(())
    }

    fn close(&mut self, work: &mut Work<'_>) -> Result<()> {
        match self.open.take() {
            Some((start, end, _)) => self.emit(work, start, end),
            None => Ok(()),
        }
    }

    fn emit(&mut self, work: &mut Work<'_>, start: usize, end: usize) -> Result<()> {
        if start == end {
            return Ok(());
        }
        (self.next)(work, Piece { text: &self.piece.text[start..end], first: self.piece.first && start == 0 })
    }
}
