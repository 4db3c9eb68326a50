//! The merges of a SentencePiece vocabulary, which GGUF has scores for instead.
//!
//! SentencePiece merges the two neighbours whose union has the highest score, the leftmost of equals. Listing every way to make each
//! token of two others, tokens with the highest score first, gives byte-pair merges that do the same.

use std::collections::HashMap;

use crate::{Error, Result};

/// The most merges; Gemini has 580,604.
pub(super) const MOST_MERGES: usize = 1 << 21;

/// The longest token that merges are found for, in bytes: SentencePiece's own limit is 16 characters, Gemma has one of 93 bytes.
const LONGEST_TOKEN: usize = 512;

/// Bytes of all tokens.
const MOST_BYTES: usize = 16 << 20;

/// Pairs of tokens that become one, the first to merge first. `tokens` are those that can be merged, with their scores.
///
/// # Errors
/// [`Error::Invalid`]: tokens too long to be real.
pub(super) fn merges<'a>(tokens: &[(&'a str, f32)]) -> Result<Vec<(&'a str, &'a str)>> {
    let bytes: usize = tokens.iter().map(|(token, _)| token.len()).sum();
    let longest = tokens.iter().map(|(token, _)| token.len()).max().unwrap_or(0);
    if longest > LONGEST_TOKEN || bytes > MOST_BYTES {
        let reason = format!(
            "has tokens of {longest} bytes, {bytes} bytes in all; expected at most {LONGEST_TOKEN} and {MOST_BYTES}"
        );
        return Err(Error::at("tokenizer.ggml.tokens", reason));
    }
    let places: HashMap<&str, usize> = tokens.iter().enumerate().map(|(i, (token, _))| (*token, i)).collect();
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    order.sort_by(|a, b| tokens[*b].1.total_cmp(&tokens[*a].1).then(a.cmp(b)));
    let mut merges = Vec::new();
    for token in order.into_iter().map(|i| tokens[i].0) {
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let known = |(left, right)| Some((*places.get(left)?, *places.get(right)?, left, right));
        let mut pairs: Vec<_> = cuts.filter_map(known).collect();
        pairs.sort_unstable_by_key(|pair| (pair.0, pair.1));
        merges.extend(pairs.into_iter().map(|pair| (pair.2, pair.3)));
        if merges.len() > MOST_MERGES {
            let reason = format!("can be made of each other in more than {MOST_MERGES} ways");
            return Err(Error::at("tokenizer.ggml.tokens", reason));
        }
    }
    Ok(merges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_score_merges_first() {
        let tokens = [("a", -9.0), ("b", -9.0), ("c", -9.0), ("ab", -2.0), ("bc", -1.0), ("abc", -3.0)];
        let expected = [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c")];
        assert_eq!(merges(&tokens).unwrap(), expected);
        assert!(merges(&[(&"a".repeat(513), 0.0)]).is_err());
    }
}
