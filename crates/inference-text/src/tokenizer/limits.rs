//! Bounds on what a tokenizer's files may hold, and on the work that one text may cause.

use std::time::Duration;

use chat_template::WorkClock;
use inference_core::{CancellationToken, Error, Result};

/// tokenizer.json: twice the largest published one (Gemma 3's, 33 MB).
pub(crate) const MAX_TOKENIZER_JSON: u64 = 64 << 20;
/// The other files: Gemma 3's tokenizer_config.json has 1.2 MB.
pub(crate) const MAX_CONFIG_JSON: u64 = 16 << 20;

/// Memory of the JSON that describes the normalizer. A precompiled character map takes up to 330 KB.
pub(super) const MAX_NORMALIZER_JSON: usize = 1 << 20;
/// Memory of the JSON that describes any other part of the pipeline.
pub(super) const MAX_STEP_JSON: usize = 64 << 10;

/// Steps of one part of the pipeline.
pub(super) const MAX_STEPS: usize = 32;
/// Bytes of a string that a step inserts, searches or removes.
pub(super) const MAX_STEP_TEXT: usize = 256;
/// Bytes of all regular expressions of a file together. DeepSeek V3's has 230, GPT-4o's 430.
pub(super) const MAX_PATTERNS: usize = 4 << 10;
/// Memory of one compiled regular expression.
pub(super) const MAX_PATTERN_SIZE: usize = 2 << 20;
/// Steps back that the regular expression engine may take for one match.
pub(super) const MAX_BACKTRACKS: usize = 1_000_000;

/// Tokens of a vocabulary.
pub(super) const MAX_TOKENS: usize = 1 << 20;
/// Bytes of one token: the longest published one has 2,048.
pub(super) const MAX_TOKEN_BYTES: usize = 4 << 10;
/// Bytes of all tokens: Gemma 3 has 2.3 MB.
pub(super) const MAX_VOCAB_BYTES: usize = 16 << 20;
/// Merges of a BPE vocabulary: Gemini has 580,604.
pub(super) const MAX_MERGES: usize = 1 << 20;
/// Bytes of one token of a Unigram vocabulary, which is a path of nodes in its trie.
pub(super) const MAX_UNIGRAM_TOKEN_BYTES: usize = 256;
/// Nodes of a Unigram vocabulary's trie: each takes some 300 bytes.
pub(super) const MAX_UNIGRAM_NODES: usize = 1 << 20;
/// Steps that Unigram may take for one word.
pub(super) const MAX_UNIGRAM_WORK: usize = 1 << 28;
/// Characters of a word that WordPiece cuts: the time is cubic in it. Published vocabularies have 100.
pub(super) const MAX_WORD_PIECE_CHARS: usize = 256;
/// Bytes of a word that BPE merges at once: it takes some hundred bytes of memory for each.
pub(super) const MAX_WORD_BYTES: usize = 2 << 20;

/// Tokens added to a vocabulary: speech models add up to 65,536.
pub(super) const MAX_ADDED_TOKENS: usize = 1 << 17;
/// Bytes of one added token.
pub(super) const MAX_ADDED_TOKEN_BYTES: usize = 512;
/// Bytes of all added tokens: the automaton that finds them takes some hundred for each.
pub(super) const MAX_ADDED_BYTES: usize = 2 << 20;
/// Special tokens that are put around a text.
pub(super) const MAX_TEMPLATE_TOKENS: usize = 64;

/// Bytes of a text after normalization.
pub(super) const MAX_NORMALIZED_BYTES: usize = crate::MAX_TEXT_BYTES;
/// Bytes that a passage without any safe place to cut it may become when it is normalized.
pub(super) const MAX_PASSAGE_BYTES: usize = 4 << 20;

/// How long any text may take.
const GRACE: Duration = Duration::from_secs(1);
/// Bytes a second beyond that: real tokenizers reach millions.
const MIN_BYTES_PER_SECOND: usize = 256 << 10;

/// Conditions under which a text is tokenized.
#[derive(Debug, Clone)]
pub struct EncodeLimits {
    /// Tokens after which the text is refused as too long.
    pub max_tokens: usize,
    /// The caller's wish to stop.
    pub cancel: CancellationToken,
}

impl Default for EncodeLimits {
    fn default() -> Self {
        Self { max_tokens: usize::MAX, cancel: CancellationToken::new() }
    }
}

/// The work on one text so far, held against its bounds.
#[derive(Debug)]
pub(super) struct Work<'a> {
    limits: &'a EncodeLimits,
    clock: WorkClock,
    /// Bytes of the text as the caller gave it: what steps make of it earns no time.
    bytes: usize,
    done: usize,
}

impl<'a> Work<'a> {
    /// No work yet on a text of so many bytes.
    pub(super) fn new(limits: &'a EncodeLimits, bytes: usize) -> Self {
        Self { limits, clock: WorkClock::start(), bytes, done: 0 }
    }

    /// Notes that this many bytes of text need no further work of one kind.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.done += bytes;
    }

    /// Tests whether work may go on.
    ///
    /// # Errors
    /// [`Error::Cancelled`]; [`Error::InvalidPrompt`]: it takes far longer than it does with any real tokenizer.
    pub(super) fn check(&self) -> Result<()> {
        if self.limits.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let done = self.done.min(self.bytes) as u64;
        let earned = Duration::from_millis(done * 1000 / MIN_BYTES_PER_SECOND as u64);
        if self.clock.exceeds(GRACE + earned) {
            let reason = "takes too long to tokenize: the tokenizer's patterns or vocabulary are too slow for this text";
            return Err(Error::invalid_prompt(reason));
        }
        Ok(())
    }

    /// Tests whether a text may have this many tokens.
    ///
    /// # Errors
    /// [`Error::ContextExceeded`].
    pub(super) fn check_tokens(&self, tokens: usize) -> Result<()> {
        let limit = self.limits.max_tokens;
        if tokens > limit { Err(Error::context_exceeded(tokens, limit)) } else { Ok(()) }
    }
}
