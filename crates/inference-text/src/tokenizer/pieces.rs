//! What each token id contributes to the text, worked out once at load.

use tokenizers::decoders::wordpiece::cleanup;

use super::{
    byte_level,
    file::{DecoderStep, PrependScheme, TextPattern},
};

/// Ids that a tokenizer may use. The table below has a row for each, so that an id near 2³² is an error and not 32 GB.
const MAX_IDS: usize = 1 << 24;

/// Ids without a token that any vocabulary may have; beyond these, as many as it has tokens. Each takes memory.
const MAX_GAPS: usize = 1 << 16;

/// Bytes of a string that a step searches or inserts, and characters that it strips.
const MAX_STEP_TEXT: usize = 256;

/// Bytes of one token's text.
const MAX_PIECE: usize = 64 << 10;

/// How often the texts of all tokens may be as long as the tokens.
const MAX_GROWTH: usize = 4;

/// The table of all tokens' texts, after the decoder's steps that look at one token alone.
pub(crate) struct Pieces {
    bytes: Vec<u8>,
    /// Where the piece of each id ends in `bytes`.
    ends: Vec<u32>,
    kinds: Vec<Kind>,
    /// How pieces become text.
    pub(crate) join: Join,
    /// A character cut from the text's beginning, and how often at most.
    pub(crate) strip: (char, usize),
    /// The steps, where they treat the first token of a text differently from the table's pieces.
    first: Option<First>,
}

/// How pieces become text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Join {
    /// One after the other.
    Text,
    /// Runs of single bytes are UTF-8 together, or wholly U+FFFD.
    ByteFallback,
    /// All pieces are bytes of one UTF-8 text; what is malformed in it becomes U+FFFD.
    Bytes,
}

#[derive(Debug, Clone, Copy)]
struct Kind {
    /// The vocabulary has the id.
    known: bool,
    special: bool,
    /// The piece is one byte of a character that the vocabulary lacks.
    byte: bool,
}

#[derive(Debug)]
struct First {
    tokens: Vec<Option<String>>,
    steps: Steps,
}

/// What one token adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// Nothing: it is not in the vocabulary, or special and not wanted.
    Nothing,
    /// Whole characters, or under [`Join::Bytes`] any bytes.
    Text(&'a [u8]),
    /// A byte of a run.
    Byte(u8),
}

impl std::fmt::Debug for Pieces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pieces").field("len", &self.len()).field("join", &self.join).finish_non_exhaustive()
    }
}

impl Pieces {
    /// Works out the pieces of all tokens. Without a decoder, tokens are words.
    ///
    /// # Errors
    /// A reason, where the decoder cannot be applied token by token or the ids are absurd.
    pub(super) fn new(
        vocabulary: &[(String, u32)],
        is_special: impl Fn(&str) -> bool,
        decoder: Option<Vec<DecoderStep>>,
    ) -> Result<Self, String> {
        let steps = Steps::new(decoder)?;
        let last = vocabulary.iter().max_by_key(|(_, id)| *id);
        let size = last.map_or(0, |(_, id)| *id as usize + 1);
        let limit = MAX_IDS.min(2 * vocabulary.len() + MAX_GAPS);
        if size > limit {
            let token = last.map_or("", |(token, _)| token.as_str());
            return Err(format!("token {token:?} has id {}, expected ids below {limit}", size - 1));
        }
        let mut tokens: Vec<Option<&str>> = vec![None; size];
        for (token, id) in vocabulary {
            tokens[*id as usize] = Some(token);
        }
        let total: usize = vocabulary.iter().map(|(token, _)| token.len() + 1).sum();
        let limit = MAX_GROWTH * total + MAX_PIECE;
        let mut bytes = Vec::with_capacity(total);
        let mut ends = Vec::with_capacity(size);
        let mut kinds = Vec::with_capacity(size);
        for token in &tokens {
            let known = token.is_some();
            let mut kind = Kind { known, special: token.is_some_and(&is_special), byte: false };
            if let Some(token) = token {
                let text = steps.apply(token, false)?;
                match (steps.join, fallback_byte(&text)) {
                    (Join::ByteFallback, Some(byte)) => {
                        kind.byte = true;
                        bytes.push(byte);
                    }
                    (Join::Bytes, _) => bytes.extend(byte_level::bytes_of(&text)),
                    _ => bytes.extend_from_slice(text.as_bytes()),
                }
            }
            if bytes.len() > limit {
                return Err(format!("makes more than {limit} bytes of {total} bytes of tokens"));
            }
            kinds.push(kind);
            ends.push(bytes.len() as u32);
        }
        let (join, strip) = (steps.join, steps.strip);
        let tokens = tokens.into_iter().map(|token| token.map(str::to_owned));
        let first = steps.indexed.then(|| First { tokens: tokens.collect(), steps });
        Ok(Self { bytes, ends, kinds, join, strip, first })
    }

    /// One more than the largest id.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// What a token adds that is not the first of its text.
    pub(crate) fn get(&self, id: u32, skip_special: bool) -> Piece<'_> {
        let id = id as usize;
        match self.kinds.get(id) {
            Some(kind) if kind.known && !(kind.special && skip_special) => {
                let start = if id == 0 { 0 } else { self.ends[id - 1] as usize };
                let bytes = &self.bytes[start..self.ends[id] as usize];
                if kind.byte { Piece::Byte(bytes[0]) } else { Piece::Text(bytes) }
            }
            _ => Piece::Nothing,
        }
    }

    /// The text of a special token, which texts for readers leave out; `None` for any other.
    pub(crate) fn special(&self, id: u32) -> Option<&str> {
        match (self.get(id, true), self.get(id, false)) {
            (Piece::Nothing, Piece::Text(text)) => std::str::from_utf8(text).ok(),
            _ => None,
        }
    }

    /// The text of a token as the first of a text, where that differs by rule from [`get`](Self::get).
    pub(crate) fn first(&self, id: u32) -> Option<String> {
        let First { tokens, steps } = self.first.as_ref()?;
        steps.apply(tokens.get(id as usize)?.as_deref()?, true).ok()
    }
}

/// A tokenizer's decoder, taken apart.
#[derive(Debug)]
struct Steps {
    /// Steps that look at one token alone, or at whether it is the first.
    each: Vec<Step>,
    /// Whether any of `each` looks at whether a token is the first.
    indexed: bool,
    join: Join,
    strip: (char, usize),
}

/// A step that looks at one token.
#[derive(Debug)]
enum Step {
    /// Words have spaces between them.
    Spaced,
    Replace {
        text: String,
        by: String,
    },
    Strip {
        content: char,
        start: usize,
    },
    Metaspace {
        replacement: char,
        drops_first: bool,
    },
    WordPiece {
        prefix: String,
        cleanup: bool,
    },
}

impl Steps {
    fn new(decoder: Option<Vec<DecoderStep>>) -> Result<Self, String> {
        let mut steps = Self { each: vec![], indexed: false, join: Join::Text, strip: (' ', 0) };
        let Some(decoder) = decoder else {
            return Ok(Self { each: vec![Step::Spaced], indexed: true, ..steps });
        };
        let mut fused = false;
        for step in decoder {
            // Whether a step at this place would still see tokens one by one.
            let alone = !fused && steps.join == Join::Text;
            match step {
                DecoderStep::Fuse {} => fused = true,
                DecoderStep::ByteLevel(_) if alone => {
                    steps.join = Join::Bytes;
                    fused = true;
                }
                DecoderStep::ByteFallback {} if alone => steps.join = Join::ByteFallback,
                DecoderStep::Strip { stop: 1.., .. } => {
                    return Err(
                        "a Strip step has a `stop`, expected 0: where a text ends is not known".to_owned()
                    );
                }
                DecoderStep::Strip { start, .. } if start > MAX_STEP_TEXT => {
                    return Err(format!(
                        "a Strip step has `start` {start}, expected at most {MAX_STEP_TEXT}"
                    ));
                }
                DecoderStep::Strip { content, start, .. } if fused && steps.strip.1 == 0 => {
                    steps.strip = (content, start);
                }
                DecoderStep::Strip { content, start, .. } if alone => {
                    steps.each.push(Step::Strip { content, start });
                }
                DecoderStep::Replace { pattern, content } if alone => {
                    steps.each.push(Step::replace(pattern, content)?);
                }
                DecoderStep::Metaspace(metaspace) if alone => {
                    let scheme =
                        metaspace.scheme().ok_or("`prepend_scheme` does not match `add_prefix_space`")?;
                    let drops_first = scheme != PrependScheme::Never;
                    steps.indexed = true;
                    steps.each.push(Step::Metaspace { replacement: metaspace.replacement, drops_first });
                }
                DecoderStep::WordPiece { prefix, cleanup } if alone => {
                    steps.indexed = true;
                    steps.each.push(Step::WordPiece { prefix, cleanup });
                }
                other => {
                    return Err(format!("{other:?} cannot be applied to a text that arrives token by token"));
                }
            }
        }
        Ok(steps)
    }

    /// A token's text, as the first of a text or behind another.
    fn apply(&self, token: &str, first: bool) -> Result<String, String> {
        let mut text = token.to_owned();
        for step in &self.each {
            text = step.apply(text, first);
            if text.len() > MAX_PIECE {
                let start: String = token.chars().take(20).collect();
                return Err(format!("makes more than {MAX_PIECE} bytes of the token {start:?}…"));
            }
        }
        Ok(text)
    }
}

impl Step {
    fn replace(pattern: TextPattern, by: String) -> Result<Self, String> {
        match pattern {
            TextPattern::Regex(regex) => {
                Err(format!("a Replace step has the regular expression {regex:?}, expected a string"))
            }
            TextPattern::String(text) if text.is_empty() => {
                Err("a Replace step has an empty pattern, expected a string".to_owned())
            }
            TextPattern::String(text) if text.len().max(by.len()) > MAX_STEP_TEXT => Err(format!(
                "a Replace step has a string of more than {MAX_STEP_TEXT} bytes, the most allowed"
            )),
            TextPattern::String(text) => Ok(Self::Replace { text, by }),
        }
    }

    fn apply(&self, text: String, first: bool) -> String {
        match self {
            Self::Spaced if first => text,
            Self::Spaced => format!(" {text}"),
            Self::Replace { text: pattern, by } if text.contains(pattern.as_str()) => {
                text.replace(pattern, by)
            }
            Self::Replace { .. } => text,
            Self::Strip { content, start } => {
                let mut rest = text.as_str();
                for _ in 0..*start {
                    let Some(stripped) = rest.strip_prefix(*content) else { break };
                    rest = stripped;
                }
                rest.to_owned()
            }
            Self::Metaspace { replacement, drops_first } if first && *drops_first => {
                text.replace(*replacement, "")
            }
            Self::Metaspace { replacement, .. } => text.replace(*replacement, " "),
            Self::WordPiece { prefix, cleanup: clean } => {
                let text = match text.strip_prefix(prefix.as_str()) {
                    _ if first => text,
                    Some(rest) => rest.to_owned(),
                    None => format!(" {text}"),
                };
                if *clean { cleanup(&text) } else { text }
            }
        }
    }
}

/// The byte that a token of the form `<0xE4>` stands for.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}
