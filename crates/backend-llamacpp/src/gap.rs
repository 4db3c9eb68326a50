//! Tokens that a stream leaves out.
//!
//! llama-server sends a token once the text is whole characters, and then only that token: those before it, which ended inside a
//! character, are counted and not sent. Their bytes are known, though: those of the text that was sent, without those of the
//! token that was. Mostly one sequence of tokens alone has these bytes.

use std::collections::HashMap;

use inference_text::Tokenizer;

/// The ids of a vocabulary by the bytes that they add to a text.
#[derive(Debug)]
pub(crate) struct TokensByBytes(HashMap<Vec<u8>, Vec<u32>>);

impl TokensByBytes {
    pub(crate) fn new(tokenizer: &Tokenizer) -> Self {
        let mut ids = HashMap::<Vec<u8>, Vec<u32>>::new();
        for id in 0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX) {
            let bytes = tokenizer.token_bytes(id).filter(|_| tokenizer.special(id).is_none());
            if let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) {
                ids.entry(bytes.to_vec()).or_default().push(id);
            }
        }
        Self(ids)
    }

    /// The only `count` tokens that, before `last`, make this text and leave a character open all the while; `None` where there is not
    /// exactly one such sequence.
    pub(crate) fn left_out(&self, text: &str, last: &[u8], count: usize) -> Option<Vec<u32>> {
        // Bytes that make no character are not what was generated.
        if text.contains('\u{fffd}') {
            return None;
        }
        let bytes = text.as_bytes().strip_suffix(last)?;
        let mut found = Vec::new();
        self.search(bytes, 0, count, &mut Vec::new(), &mut found);
        match found.as_mut_slice() {
            [only] => Some(std::mem::take(only)),
            _ => None,
        }
    }

    /// Adds the sequences of `count` more tokens that cover `bytes` from `start`; at most two.
    fn search(
        &self,
        bytes: &[u8],
        start: usize,
        count: usize,
        so_far: &mut Vec<u32>,
        found: &mut Vec<Vec<u32>>,
    ) {
        if count == 0 {
            if start == bytes.len() {
                found.push(so_far.clone());
            }
            return;
        }
        for end in start + 1..=bytes.len() {
            if !ends_inside_a_character(&bytes[..end]) {
                continue;
            }
            for id in self.0.get(&bytes[start..end]).into_iter().flatten() {
                if found.len() > 1 {
                    return;
                }
                so_far.push(*id);
                self.search(bytes, end, count - 1, so_far, found);
                so_far.pop();
            }
        }
    }
}

/// Whether the last bytes begin a character of UTF-8 that needs more.
fn ends_inside_a_character(bytes: &[u8]) -> bool {
    let width = |byte: u8| match byte {
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf7 => 4,
        _ => 1,
    };
    (1..=bytes.len().min(3)).any(|back| width(bytes[bytes.len() - back]) > back)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(tokens: &[&[u8]]) -> TokensByBytes {
        let mut ids = HashMap::<Vec<u8>, Vec<u32>>::new();
        for (id, bytes) in (0..).zip(tokens) {
            ids.entry(bytes.to_vec()).or_default().push(id);
        }
        TokensByBytes(ids)
    }

    #[test]
    fn the_only_sequence_is_found() {
        // 🦊 is f0 9f a6 8a.
        let known = vocabulary(&[b"\xf0\x9f", b"\xa6", b"\x8a", b" ", b" \xf0\x9f", b"a"]);
        assert_eq!(known.left_out("🦊", b"\x8a", 2), Some(vec![0, 1]));
        assert_eq!(known.left_out(" 🦊", b"\x8a", 2), Some(vec![4, 1]));
        assert_eq!(known.left_out(" 🦊", b"\x8a", 3), None, "a space alone would have been sent");
        assert_eq!(known.left_out("🦊", b"\x8a", 1), None);
        assert_eq!(known.left_out("🦊", b"\x8b", 2), None);
        assert_eq!(known.left_out("\u{fffd}", b"", 1), None);
    }

    #[test]
    fn two_sequences_are_none() {
        let known = vocabulary(&[b"\xf0", b"\x9f\xa6", b"\xf0\x9f", b"\xa6", b"\x8a"]);
        assert_eq!(known.left_out("🦊", b"\x8a", 2), None);
    }
}
