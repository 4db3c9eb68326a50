//! A tokenizer's tokens as bytes, and the trie that masks are computed on.

use std::sync::Arc;

use inference_core::{ConstraintVocabulary, TokenMask};
use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::Tokenizer;

/// Bytes of a token at most: the trie's own limit is a little higher. A longer token is never allowed.
const MAX_TOKEN_BYTES: usize = 1000;

/// Bytes of all tokens at most, so that the trie's nodes can be numbered.
const MAX_TOTAL_BYTES: usize = 4_000_000;

/// The tokens of a model, as constraints see them.
pub(super) struct Tokens {
    trie: TokTrie,
    eos: Vec<u32>,
    /// All tokens that stand for text and do not end it.
    pub(super) texts: TokenMask,
    /// Those that are line breaks and nothing else.
    pub(super) line_breaks: Vec<u32>,
}

impl Tokens {
    /// # Errors
    /// A reason: the vocabulary is too large, or has no token that ends a text.
    pub(super) fn new(tokenizer: &Tokenizer) -> Result<Arc<Self>, String> {
        let len = tokenizer.vocab_size();
        let eos: Vec<u32> = tokenizer.eos_ids().iter().copied().filter(|id| (*id as usize) < len).collect();
        let Some(first_eos) = eos.first() else {
            return Err(
                "the model has no end-of-sequence token, by which a constrained answer ends".to_owned()
            );
        };
        let (mut words, mut texts, mut line_breaks) =
            (Vec::with_capacity(len), TokenMask::new(len), Vec::new());
        let mut total = 0;
        for id in 0..len as u32 {
            let mut bytes = Vec::new();
            let text =
                tokenizer.token_bytes(id).filter(|text| text.len() < MAX_TOKEN_BYTES).unwrap_or_default();
            if tokenizer.special(id).is_some() || eos.contains(&id) {
                // Grammars cannot say what begins so, but by the token's name.
                bytes.push(TokTrie::SPECIAL_TOKEN_MARKER);
            }
            if !text.is_empty() {
                bytes.extend_from_slice(&text);
                if !eos.contains(&id) {
                    texts.allow(id);
                }
                if bytes.iter().all(|byte| *byte == b'\n') {
                    line_breaks.push(id);
                }
            }
            total += bytes.len();
            words.push(bytes);
        }
        if total > MAX_TOTAL_BYTES {
            return Err(format!("the vocabulary has {total} bytes, expected at most {MAX_TOTAL_BYTES}"));
        }
        let trie = TokTrie::from(&TokRxInfo::new(len as u32, *first_eos), &words).with_eos_tokens(&eos);
        Ok(Arc::new(Self { trie, eos, texts, line_breaks }))
    }

    /// The bytes of a token; a special token's are those of its text.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        if id as usize >= self.trie.vocab_size() {
            return &[];
        }
        let bytes = self.trie.token(id);
        bytes.strip_prefix(&[TokTrie::SPECIAL_TOKEN_MARKER]).unwrap_or(bytes)
    }

    pub(super) fn len(&self) -> u32 {
        self.trie.vocab_size() as u32
    }

    /// What custom constraints are told.
    pub(super) fn vocabulary(&self, vocab_size: usize) -> ConstraintVocabulary {
        ConstraintVocabulary::new(vocab_size, self.eos.clone())
    }
}

/// The tokens as llguidance asks for them. It never tokenizes: masks are made of bytes, and any way to cut a text is allowed.
struct Environment(Arc<Tokens>);

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.0.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.0.trie.greedy_tokenize(bytes)
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

pub(super) fn environment(tokens: &Arc<Tokens>) -> TokEnv {
    Arc::new(Environment(Arc::clone(tokens)))
}
