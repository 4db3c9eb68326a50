//! What each token id contributes to the text, worked out once at load.

use tokenizers::{Decoder as _, DecoderWrapper};

/// Ids that a tokenizer may use. The table below has a row for each, so that an id near 2³² is an error and not 32 GB.
const MAX_IDS: usize = 1 << 24;

/// Ids without a token that any vocabulary may have; beyond these, as many as it has tokens. Each takes memory.
const MAX_GAPS: usize = 1 << 16;

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
    steps: Vec<DecoderWrapper>,
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
    /// Works out the pieces of all tokens.
    ///
    /// # Errors
    /// A reason, where the decoder cannot be applied token by token or the ids are absurd.
    pub(crate) fn new(tokenizer: &tokenizers::Tokenizer) -> Result<Self, String> {
        let steps = Steps::of(tokenizer.get_decoder())?;
        let vocabulary = tokenizer.get_vocab(true);
        let size = vocabulary.values().max().map_or(0, |id| *id as usize + 1);
        let limit = MAX_IDS.min(2 * vocabulary.len() + MAX_GAPS);
        if size > limit {
            let token = vocabulary.iter().max_by_key(|(_, id)| **id).map_or("", |(token, _)| token.as_str());
            return Err(format!("token {token:?} has id {}, expected ids below {limit}", size - 1));
        }
        let added = tokenizer.get_added_vocabulary();
        let tokens: Vec<Option<String>> = (0..size as u32).map(|id| tokenizer.id_to_token(id)).collect();
        let mut kinds: Vec<Kind> = tokens
            .iter()
            .map(|token| Kind {
                known: token.is_some(),
                special: token.as_ref().is_some_and(|token| added.is_special_token(token)),
                byte: false,
            })
            .collect();
        let texts =
            steps.apply_to_rest(tokens.iter().map(|token| token.clone().unwrap_or_default()).collect())?;

        let mut bytes = Vec::with_capacity(texts.iter().map(String::len).sum());
        let mut ends = Vec::with_capacity(size);
        for (text, kind) in texts.iter().zip(&mut kinds) {
            match (steps.join, fallback_byte(text)) {
                (Join::ByteFallback, Some(byte)) => {
                    kind.byte = true;
                    bytes.push(byte);
                }
                (Join::Bytes, _) => bytes.extend(byte_level(text)),
                _ => bytes.extend_from_slice(text.as_bytes()),
            }
            ends.push(
                u32::try_from(bytes.len())
                    .map_err(|_| "the tokens have more than 4 GiB of text".to_owned())?,
            );
        }
        let first = steps.indexed.then(|| First { tokens, steps: steps.each });
        Ok(Self { bytes, ends, kinds, join: steps.join, strip: steps.strip, first })
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

    /// The text of a token as the first of a text, where that differs by rule from [`get`](Self::get).
    pub(crate) fn first(&self, id: u32) -> Option<String> {
        let First { tokens, steps } = self.first.as_ref()?;
        apply(steps, vec![tokens.get(id as usize)?.clone()?]).ok()?.pop()
    }
}

/// A tokenizer's decoder, taken apart.
struct Steps {
    /// Steps that look at one token alone, or at whether it is the first.
    each: Vec<DecoderWrapper>,
    /// Whether any of `each` looks at whether a token is the first.
    indexed: bool,
    /// No decoder at all: tokens are words.
    spaced: bool,
    join: Join,
    strip: (char, usize),
}

impl Steps {
    fn of(decoder: Option<&DecoderWrapper>) -> Result<Self, String> {
        let mut steps =
            Self { each: vec![], indexed: false, spaced: false, join: Join::Text, strip: (' ', 0) };
        let Some(decoder) = decoder else {
            return Ok(Self { spaced: true, indexed: true, ..steps });
        };
        let mut flat = Vec::new();
        flatten(decoder, &mut flat);
        let mut fused = false;
        for decoder in flat {
            match decoder {
                DecoderWrapper::Fuse(_) => fused = true,
                DecoderWrapper::ByteLevel(_) if steps.join == Join::Text && !fused => {
                    steps.join = Join::Bytes;
                    fused = true;
                }
                DecoderWrapper::ByteFallback(_) if steps.join == Join::Text && !fused => {
                    steps.join = Join::ByteFallback;
                }
                DecoderWrapper::Strip(strip) if fused && strip.stop == 0 && steps.strip.1 == 0 => {
                    steps.strip = (strip.content, strip.start);
                }
                DecoderWrapper::Replace(_) | DecoderWrapper::Strip(_) if steps.alone(fused) => {
                    steps.each.push(decoder.clone());
                }
                DecoderWrapper::Metaspace(_) | DecoderWrapper::WordPiece(_) if steps.alone(fused) => {
                    steps.indexed = true;
                    steps.each.push(decoder.clone());
                }
                other => {
                    return Err(format!(
                        "decoder step {} cannot be applied to a text that arrives token by token",
                        name(other)
                    ));
                }
            }
        }
        Ok(steps)
    }

    /// Whether a step at this place would still see tokens one by one.
    fn alone(&self, fused: bool) -> bool {
        !fused && self.join == Join::Text
    }

    /// The texts of all tokens as they stand behind another token.
    fn apply_to_rest(&self, tokens: Vec<String>) -> Result<Vec<String>, String> {
        if self.spaced {
            return Ok(tokens.into_iter().map(|token| format!(" {token}")).collect());
        }
        let expected = tokens.len();
        // A token in front makes all others not the first.
        let mut texts = apply(&self.each, [vec!["x".to_owned()], tokens].concat())?;
        if texts.len() != expected + 1 {
            return Err("the decoder joins or drops tokens".to_owned());
        }
        texts.remove(0);
        Ok(texts)
    }
}

fn apply(steps: &[DecoderWrapper], tokens: Vec<String>) -> Result<Vec<String>, String> {
    steps.iter().try_fold(tokens, |tokens, step| step.decode_chain(tokens)).map_err(|error| error.to_string())
}

fn flatten<'a>(decoder: &'a DecoderWrapper, into: &mut Vec<&'a DecoderWrapper>) {
    match decoder {
        DecoderWrapper::Sequence(sequence) => {
            sequence.get_decoders().iter().for_each(|step| flatten(step, into));
        }
        single => into.push(single),
    }
}

fn name(decoder: &DecoderWrapper) -> &'static str {
    match decoder {
        DecoderWrapper::BPE(_) => "BPEDecoder",
        DecoderWrapper::ByteLevel(_) => "ByteLevel",
        DecoderWrapper::WordPiece(_) => "WordPiece",
        DecoderWrapper::Metaspace(_) => "Metaspace",
        DecoderWrapper::CTC(_) => "CTC",
        DecoderWrapper::Sequence(_) => "Sequence",
        DecoderWrapper::Replace(_) => "Replace",
        DecoderWrapper::Fuse(_) => "Fuse",
        DecoderWrapper::Strip(_) => "Strip",
        DecoderWrapper::ByteFallback(_) => "ByteFallback",
    }
}

/// The byte that a token of the form `<0xE4>` stands for.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// The bytes that a byte-level token stands for: each of its characters is one byte, or else it is plain text.
fn byte_level(token: &str) -> Vec<u8> {
    token.chars().map(byte_of).collect::<Option<_>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The byte behind a character of GPT-2's alphabet: printable Latin-1 stands for itself, the 68 other bytes for the
/// characters from U+0100.
fn byte_of(c: char) -> Option<u8> {
    match c as u32 {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}
