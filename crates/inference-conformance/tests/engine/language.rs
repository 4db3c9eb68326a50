//! The language: 40 syllables, and how likely each is after two others.

use inference_core::Message;

pub(crate) const VOCAB: u32 = 40;
pub(crate) const EOS: u32 = 0;

/// Ids of a text: any character is one of the syllables.
pub(crate) fn tokenise(text: &str) -> Vec<u32> {
    text.chars().map(|c| 1 + c as u32 % (VOCAB - 1)).collect()
}

/// Ids of a conversation: each turn, and who speaks, in turn.
pub(crate) fn render(messages: &[Message]) -> Vec<u32> {
    messages.iter().flat_map(|m| [vec![1 + m.role as u32], tokenise(&m.content)]).flatten().collect()
}

/// What stands after these ids: a hash of the last two and the candidate, in eighths of a thousandth. Exact in `f32`.
pub(crate) fn logits(ids: &[u32], salt: u64) -> Vec<f64> {
    let mut last = ids.iter().rev().copied();
    let state = u64::from(last.next().unwrap_or(0)) * 64 + u64::from(last.next().unwrap_or(0)) + salt * 9973;
    let logit = |id| f64::from((mix(state << 8 | u64::from(id)) % 65_536) as u32) / 8192.0 - 4.0;
    let mut logits: Vec<f64> = (0..VOCAB).map(logit).collect();
    logits[EOS as usize] = -9.0;
    logits
}

pub(crate) fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

pub(crate) fn syllable(id: u32) -> String {
    let (consonants, vowels) = (b"bdfgklmn", b"aeiou");
    let letters = [consonants[id as usize / 5 % 8], vowels[id as usize % 5]];
    letters.iter().map(|letter| char::from(*letter)).collect()
}
