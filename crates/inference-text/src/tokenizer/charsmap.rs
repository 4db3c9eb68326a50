//! SentencePiece's precompiled character map: a double-array trie of sequences, and what each is replaced by.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use unicode_segmentation::UnicodeSegmentation as _;

/// Bytes of one replacement. Unicode's longest has 33.
const MAX_REPLACEMENT: usize = 64;

/// Longer graphemes are replaced character by character, as SentencePiece does.
const MAX_GRAPHEME: usize = 5;

/// A character map. Its trie is not trusted: a lookup that leaves it finds nothing.
#[derive(Debug, Clone)]
pub(super) struct Charsmap {
    trie: Vec<u32>,
    /// Replacements, each ended by a zero byte.
    replacements: String,
}

impl Charsmap {
    /// Reads the map as tokenizer.json has it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(base64: &str) -> Result<Self, String> {
        let bytes = STANDARD.decode(base64).map_err(|error| format!("is not base64: {error}"))?;
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or("is shorter than its header")?;
        let length = u32::from_le_bytes(*length) as usize / 4 * 4;
        if length > rest.len() || length == 0 {
            return Err(format!("has a trie of {length} bytes in {} bytes", rest.len()));
        }
        let (trie, replacements) = rest.split_at(length);
        let trie = trie.chunks_exact(4).map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]]));
        let replacements =
            String::from_utf8(replacements.to_vec()).map_err(|_| "has replacements that are not UTF-8")?;
        let longest = replacements.split('\0').map(str::len).max().unwrap_or(0);
        if longest > MAX_REPLACEMENT {
            return Err(format!("has a replacement of {longest} bytes, expected at most {MAX_REPLACEMENT}"));
        }
        Ok(Self { trie: trie.collect(), replacements })
    }

    /// By how much the map may lengthen a text.
    pub(super) fn factor(&self) -> usize {
        self.replacements.split('\0').map(str::len).max().unwrap_or(0).max(1)
    }

    /// Appends the normalized text.
    pub(super) fn apply(&self, text: &str, into: &mut String) {
        for grapheme in text.graphemes(true) {
            match self.replacement(grapheme).filter(|_| grapheme.len() <= MAX_GRAPHEME) {
                Some(text) => into.push_str(text),
                None => {
                    for c in grapheme.chars() {
                        match self.replacement(c.encode_utf8(&mut [0; 4])) {
                            Some(text) => into.push_str(text),
                            None => into.push(c),
                        }
                    }
                }
            }
        }
    }

    /// What the shortest sequence that a text begins with is replaced by.
    fn replacement(&self, text: &str) -> Option<&str> {
        let unit = |at: usize| self.trie.get(at).copied();
        let offset = |unit: u32| ((unit >> 10) as usize) << ((unit & (1 << 9)) >> 6);
        let mut at = offset(unit(0)?);
        for byte in text.bytes().take_while(|byte| *byte != 0) {
            at ^= usize::from(byte);
            let node = unit(at)?;
            if node & (1 << 31 | 0xff) != u32::from(byte) {
                return None;
            }
            at ^= offset(node);
            if node & (1 << 8) != 0 {
                let start = (unit(at)? & !(1 << 31)) as usize;
                return self.replacements.get(start..)?.split('\0').next();
            }
        }
        None
    }
}
