//! The model of a tokenizer: words to tokens, by the `tokenizers` crate and within bounds.

use std::{collections::HashMap, path::Path};

use ahash::{AHashMap, AHashSet};
use inference_core::{Error, Result};
use tokenizers::{
    Model as _, ModelWrapper,
    models::{bpe::BPE, unigram::Unigram, wordlevel::WordLevel, wordpiece::WordPiece},
};

use super::{
    byte_level,
    file::{ModelFile, ModelKind},
    limits::{
        MAX_UNIGRAM_NODES, MAX_UNIGRAM_TOKEN_BYTES, MAX_UNIGRAM_WORK, MAX_WORD_BYTES, MAX_WORD_PIECE_CHARS,
        Work,
    },
    vocab::{Merges, Vocab},
};

/// Words that one text's cache holds, and their longest length in bytes.
const CACHED_WORDS: usize = 1 << 14;
const CACHED_WORD_BYTES: usize = 64;

/// A vocabulary, and how words become tokens of it.
#[derive(Debug, Clone)]
pub(super) struct Model {
    inner: ModelWrapper,
    /// The longest word in bytes that is turned into tokens at once.
    max_word: usize,
    /// Pairs of characters within tokens, where words may be as long as the text.
    inner_pairs: Option<InnerPairs>,
    spelling: Spelling,
    max_token_bytes: usize,
}

/// Pairs of neighbouring characters that some token holds: between any other two, BPE never merges.
#[derive(Debug, Clone)]
struct InnerPairs {
    pairs: AHashSet<(char, char)>,
    /// Characters that are tokens.
    chars: AHashSet<char>,
}

/// Which texts the vocabulary can spell without loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Any in the byte-level alphabet.
    ByteLevel,
    /// Any: bytes have tokens of their own.
    ByteFallback,
    /// Some characters become one token for unknown text, or nothing.
    Lossy,
}

/// The tokens of words that one text has had.
#[derive(Debug, Default)]
pub(super) struct WordCache(HashMap<String, Vec<u32>>);

impl Model {
    /// Builds the model; `long_words` says that no pattern bounds the length of words.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the key.
    pub(super) fn new(path: &Path, file: ModelFile, long_words: bool) -> Result<Self> {
        let invalid = |key: &str, reason: String| Error::invalid_key(path, format!("model.{key}"), reason);
        let kind = file.kind().ok_or_else(|| invalid("type", UNTYPED.to_owned()))?;
        file.check_keys(kind).map_err(|(key, reason)| invalid(key, reason))?;
        match kind {
            ModelKind::Bpe => bpe(file, long_words).map_err(|(key, reason)| invalid(key, reason)),
            ModelKind::WordPiece | ModelKind::WordLevel => {
                words(file, kind).map_err(|(key, reason)| invalid(key, reason))
            }
            ModelKind::Unigram => unigram(file).map_err(|(key, reason)| invalid(key, reason)),
        }
    }

    /// Appends a word's ids.
    ///
    /// # Errors
    /// The work's limits; [`Error::InvalidPrompt`]: the word is too long, or has no tokens.
    pub(super) fn encode_word(
        &self,
        word: &str,
        cache: &mut WordCache,
        work: &mut Work<'_>,
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        let Some(inner) = self.inner_pairs.as_ref().filter(|_| word.len() > CACHED_WORD_BYTES) else {
            return self.encode_part(word, cache, work, ids);
        };
        let mut start = 0;
        let mut before = None;
        for (at, c) in word.char_indices() {
            if before.is_some_and(|before| inner.separates(before, c)) {
                self.encode_part(&word[start..at], cache, work, ids)?;
                start = at;
            }
            before = Some(c);
        }
        self.encode_part(&word[start..], cache, work, ids)
    }

    fn encode_part(
        &self,
        word: &str,
        cache: &mut WordCache,
        work: &mut Work<'_>,
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        work.check()?;
        work.advance(word.len());
        if let Some(known) = cache.0.get(word) {
            ids.extend(known);
            return work.check_tokens(ids.len());
        }
        if word.len() > self.max_word {
            let (length, limit) = (word.len(), self.max_word);
            let reason =
                format!("has {length} bytes that the tokenizer takes for one word, expected at most {limit}");
            return Err(Error::invalid_prompt(reason));
        }
        let tokens = self
            .inner
            .tokenize(word)
            .map_err(|error| Error::invalid_prompt(format!("cannot be tokenized: {error}")))?;
        let start = ids.len();
        ids.extend(tokens.iter().map(|token| token.id));
        if word.len() <= CACHED_WORD_BYTES && cache.0.len() < CACHED_WORDS {
            cache.0.insert(word.to_owned(), ids[start..].to_vec());
        }
        work.check_tokens(ids.len())
    }

    pub(super) fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    pub(super) fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// How many tokens it has: added tokens get the ids behind.
    pub(super) fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size()
    }

    /// All ids with their tokens.
    pub(super) fn vocab(&self) -> impl Iterator<Item = (String, u32)> {
        self.inner.get_vocab().into_iter()
    }

    pub(super) fn spelling(&self) -> Spelling {
        self.spelling
    }

    /// Bytes of the longest token.
    pub(super) fn max_token_bytes(&self) -> usize {
        self.max_token_bytes
    }
}

const UNTYPED: &str = "is missing, and the other keys are those of no model; expected \"BPE\", \"WordPiece\", \"WordLevel\" or \"Unigram\"";

type KeyResult<T> = std::result::Result<T, (&'static str, String)>;

impl ModelFile {
    /// The type; files of the first versions have none, and then their keys decide.
    fn kind(&self) -> Option<ModelKind> {
        match (&self.vocab, &self.merges) {
            _ if self.kind.is_some() => self.kind,
            (Vocab::Ids(_), Some(_)) => Some(ModelKind::Bpe),
            (Vocab::Ids(_), None) if self.max_input_chars_per_word.is_some() => Some(ModelKind::WordPiece),
            (Vocab::Ids(_), None) if self.unk_token.is_some() => Some(ModelKind::WordLevel),
            (Vocab::Scores(_), None) => Some(ModelKind::Unigram),
            _ => None,
        }
    }

    /// Refuses keys that a type does not have.
    fn check_keys(&self, kind: ModelKind) -> KeyResult<()> {
        use ModelKind::{Bpe, Unigram, WordLevel, WordPiece};
        let keys: [(&'static str, bool, &[ModelKind]); 10] = [
            ("dropout", self.dropout.is_some(), &[Bpe]),
            ("unk_token", self.unk_token.is_some(), &[Bpe, WordPiece, WordLevel]),
            ("continuing_subword_prefix", self.continuing_subword_prefix.is_some(), &[Bpe, WordPiece]),
            ("end_of_word_suffix", self.end_of_word_suffix.is_some(), &[Bpe]),
            ("fuse_unk", self.fuse_unk.is_some(), &[Bpe]),
            ("byte_fallback", self.byte_fallback.is_some(), &[Bpe, Unigram]),
            ("ignore_merges", self.ignore_merges.is_some(), &[Bpe]),
            ("max_input_chars_per_word", self.max_input_chars_per_word.is_some(), &[WordPiece]),
            ("unk_id", self.unk_id.is_some(), &[Unigram]),
            ("merges", self.merges.is_some(), &[Bpe]),
        ];
        match keys.into_iter().find(|(_, set, kinds)| *set && !kinds.contains(&kind)) {
            Some((key, ..)) => Err((key, format!("is a key that a {kind:?} model does not have"))),
            None => Ok(()),
        }
    }

    fn ids(&mut self) -> KeyResult<Vec<(String, u32)>> {
        match std::mem::replace(&mut self.vocab, Vocab::Ids(Vec::new())) {
            Vocab::Ids(entries) => Ok(entries),
            Vocab::Scores(_) => {
                Err(("vocab", "is a list, expected an object of tokens with their ids".to_owned()))
            }
        }
    }
}

fn bpe(mut file: ModelFile, long_words: bool) -> KeyResult<Model> {
    if file.dropout.is_some_and(|dropout| dropout != 0.0) {
        return Err(("dropout", "makes tokens random, expected null or 0".to_owned()));
    }
    let entries = file.ids()?;
    let Merges(merges) = file.merges.take().ok_or(("merges", "is missing".to_owned()))?;
    let prefix = file.continuing_subword_prefix.take().filter(|prefix| !prefix.is_empty());
    let suffix = file.end_of_word_suffix.take().filter(|suffix| !suffix.is_empty());
    if let Some((_, right)) = merges
        .iter()
        .find(|(_, right)| prefix.as_ref().is_some_and(|prefix| !right.starts_with(prefix.as_str())))
    {
        return Err(("merges", format!("{right:?} does not begin with continuing_subword_prefix")));
    }
    let max_token_bytes = longest(entries.iter().map(|(token, _)| token));
    // The crate joins a merge in a buffer of the longest token's length, before it looks the result up.
    let dropped = prefix.as_ref().map_or(0, String::len);
    if let Some((left, right)) =
        merges.iter().find(|(left, right)| left.len() + right.len() - dropped > max_token_bytes)
    {
        return Err((
            "merges",
            format!("{left:?} and {right:?} make a token that the vocabulary does not have"),
        ));
    }
    let byte_fallback = file.byte_fallback.unwrap_or(false);
    let spelling = spelling(&entries, byte_fallback);
    let cuttable = long_words && prefix.is_none() && suffix.is_none();
    let inner_pairs = if cuttable { InnerPairs::new(&entries) } else { None };
    let vocab: AHashMap<String, u32> = entries.into_iter().collect();
    // The crate's own cache stays behind in each thread that used it.
    let mut builder = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .cache_capacity(0)
        .fuse_unk(file.fuse_unk.unwrap_or(false))
        .byte_fallback(byte_fallback)
        .ignore_merges(file.ignore_merges.unwrap_or(false));
    if let Some(unk_token) = file.unk_token {
        builder = builder.unk_token(unk_token);
    }
    if let Some(prefix) = prefix {
        builder = builder.continuing_subword_prefix(prefix);
    }
    if let Some(suffix) = suffix {
        builder = builder.end_of_word_suffix(suffix);
    }
    let inner = builder.build().map_err(|error| ("merges", error.to_string()))?.into();
    Ok(Model { inner, max_word: MAX_WORD_BYTES, inner_pairs, spelling, max_token_bytes })
}

fn words(mut file: ModelFile, kind: ModelKind) -> KeyResult<Model> {
    let entries = file.ids()?;
    let max_token_bytes = longest(entries.iter().map(|(token, _)| token));
    let vocab: AHashMap<String, u32> = entries.into_iter().collect();
    let unk_token = file.unk_token.ok_or(("unk_token", "is missing".to_owned()))?;
    let inner: ModelWrapper = if kind == ModelKind::WordPiece {
        let chars =
            file.max_input_chars_per_word.ok_or(("max_input_chars_per_word", "is missing".to_owned()))?;
        if chars > MAX_WORD_PIECE_CHARS {
            let reason = format!("is {chars}, expected at most {MAX_WORD_PIECE_CHARS}");
            return Err(("max_input_chars_per_word", reason));
        }
        let prefix = file.continuing_subword_prefix;
        WordPiece::builder()
            .vocab(vocab)
            .unk_token(unk_token)
            .continuing_subword_prefix(prefix.ok_or(("continuing_subword_prefix", "is missing".to_owned()))?)
            .max_input_chars_per_word(chars)
            .build()
            .map_err(|error| ("vocab", error.to_string()))?
            .into()
    } else {
        WordLevel::builder()
            .vocab(vocab)
            .unk_token(unk_token)
            .build()
            .map_err(|error| ("vocab", error.to_string()))?
            .into()
    };
    let max_word = usize::MAX;
    Ok(Model { inner, max_word, inner_pairs: None, spelling: Spelling::Lossy, max_token_bytes })
}

fn unigram(file: ModelFile) -> KeyResult<Model> {
    let Vocab::Scores(entries) = file.vocab else {
        return Err(("vocab", "is an object, expected a list of tokens with their scores".to_owned()));
    };
    let max_token_bytes = longest(entries.iter().map(|(token, _)| token));
    if max_token_bytes > MAX_UNIGRAM_TOKEN_BYTES {
        let reason =
            format!("has a token of {max_token_bytes} bytes, expected at most {MAX_UNIGRAM_TOKEN_BYTES}");
        return Err(("vocab", reason));
    }
    let cost = trie_cost(&entries)?;
    let inner = Unigram::from(entries, file.unk_id, file.byte_fallback.unwrap_or(false));
    let inner = inner.map_err(|error| ("vocab", error.to_string()))?.into();
    let max_word = MAX_UNIGRAM_WORK / cost;
    Ok(Model { inner, max_word, inner_pairs: None, spelling: Spelling::Lossy, max_token_bytes })
}

/// Steps that Unigram takes at each byte of a text at most: it copies each token that the text there begins with.
fn trie_cost(entries: &[(String, f64)]) -> KeyResult<usize> {
    let mut tokens: Vec<&str> = entries.iter().map(|(token, _)| token.as_str()).collect();
    tokens.sort_unstable();
    let (mut nodes, mut most) = (0, 0);
    let mut last = "";
    // Tokens that are beginnings of the current one, and their bytes together.
    let mut beginnings: Vec<&str> = Vec::new();
    for token in tokens {
        let common = last.bytes().zip(token.bytes()).take_while(|(a, b)| a == b).count();
        nodes += token.len() - common;
        if nodes > MAX_UNIGRAM_NODES {
            return Err((
                "vocab",
                format!("takes more than {MAX_UNIGRAM_NODES} nodes as a trie, the most allowed"),
            ));
        }
        while beginnings.last().is_some_and(|beginning| !token.starts_with(beginning)) {
            beginnings.pop();
        }
        beginnings.push(token);
        most = most.max(token.len() + beginnings.iter().map(|beginning| beginning.len()).sum::<usize>());
        last = token;
    }
    Ok(most.max(1))
}

fn longest<'a>(tokens: impl Iterator<Item = &'a String>) -> usize {
    tokens.map(String::len).max().unwrap_or(0).max(1)
}

fn spelling(entries: &[(String, u32)], byte_fallback: bool) -> Spelling {
    let tokens: AHashSet<&str> =
        entries.iter().filter(|(token, _)| token.len() <= 6).map(|(token, _)| token.as_str()).collect();
    if (0..=255).all(|byte| tokens.contains(byte_level::char_of(byte).encode_utf8(&mut [0; 4]) as &str)) {
        return Spelling::ByteLevel;
    }
    if byte_fallback && (0..=255u8).all(|byte| tokens.contains(format!("<0x{byte:02X}>").as_str())) {
        return Spelling::ByteFallback;
    }
    Spelling::Lossy
}

impl InnerPairs {
    /// `None` where two tokens share an id: merges go by ids.
    fn new(entries: &[(String, u32)]) -> Option<Self> {
        let mut ids = AHashSet::with_capacity(entries.len());
        let (mut pairs, mut chars) = (AHashSet::new(), AHashSet::new());
        for (token, id) in entries {
            if !ids.insert(id) {
                return None;
            }
            let mut before = None;
            let mut length = 0;
            for c in token.chars() {
                pairs.extend(before.map(|before| (before, c)));
                before = Some(c);
                length += 1;
            }
            if length == 1 {
                chars.extend(before);
            }
        }
        Some(Self { pairs, chars })
    }

    /// Whether no token can hold both characters, one after the other.
    fn separates(&self, before: char, c: char) -> bool {
        self.chars.contains(&before) && self.chars.contains(&c) && !self.pairs.contains(&(before, c))
    }
}
