//! Stop strings, found in a text that arrives in pieces.

use crate::{Error, Result};

/// Bytes that the stop strings of one request may have together: the automaton has a node for each.
const MAX_TOTAL: usize = 64 << 10;

const ROOT: u32 = 0;

/// A set of strings that end a text, compiled to an Aho–Corasick automaton: one pass over the text finds any of them,
/// however many there are, in time linear in the text.
///
/// The match that is complete first wins, so where a text is cut into tokens never matters; of several that are complete
/// at the same byte, the one that begins first.
#[derive(Debug, Clone)]
pub struct StopStrings {
    strings: Vec<String>,
    nodes: Vec<Node>,
}

#[derive(Debug, Clone)]
struct Node {
    /// Sorted by byte.
    children: Vec<(u8, u32)>,
    /// The node of the longest proper suffix that some string begins with.
    fallback: u32,
    /// Bytes from the root: how much of the text's end may become a match.
    depth: u32,
    /// The longest string that is complete here.
    complete: Option<u32>,
}

/// What a text so far means for the matches to come: the state of the automaton.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopPosition(u32);

impl StopPosition {
    /// The empty text.
    pub const START: Self = Self(ROOT);
}

impl StopStrings {
    /// Compiles the strings.
    ///
    /// # Errors
    /// [`Error::InvalidOption`]: one of them is empty, or all together have more than 64 KiB.
    pub fn new<S: Into<String>>(strings: impl IntoIterator<Item = S>) -> Result<Self> {
        let strings: Vec<String> = strings.into_iter().map(Into::into).collect();
        let invalid = |reason: String| Err(Error::invalid_option("stop", reason));
        if strings.iter().any(String::is_empty) {
            return invalid("an empty string would end every text at once".to_owned());
        }
        let total: usize = strings.iter().map(String::len).sum();
        if total > MAX_TOTAL {
            return invalid(format!("the stop strings have {total} bytes, expected at most {MAX_TOTAL}"));
        }
        let mut stops = Self { strings, nodes: vec![Node::at(0)] };
        stops.plant();
        stops.link();
        Ok(stops)
    }

    /// The strings, in the order given.
    #[must_use]
    pub fn strings(&self) -> &[String] {
        &self.strings
    }

    /// The position after one more byte of the text.
    #[must_use]
    pub fn step(&self, position: StopPosition, byte: u8) -> StopPosition {
        let mut at = position.0;
        loop {
            if let Some(next) = self.nodes[at as usize].child(byte) {
                return StopPosition(next);
            }
            if at == ROOT {
                return StopPosition(ROOT);
            }
            at = self.nodes[at as usize].fallback;
        }
    }

    /// The string that is complete at this position, as an index into [`strings`](Self::strings).
    #[must_use]
    pub fn complete(&self, position: StopPosition) -> Option<usize> {
        self.nodes[position.0 as usize].complete.map(|index| index as usize)
    }

    /// How many bytes of the text's end may be the beginning of a match.
    #[must_use]
    pub fn undecided(&self, position: StopPosition) -> usize {
        self.nodes[position.0 as usize].depth as usize
    }

    /// The trie of all strings.
    fn plant(&mut self) {
        for (index, string) in self.strings.iter().enumerate() {
            let mut at = ROOT;
            for &byte in string.as_bytes() {
                at = self.nodes[at as usize].child(byte).unwrap_or_else(|| {
                    let next = self.nodes.len() as u32;
                    let depth = self.nodes[at as usize].depth + 1;
                    self.nodes.push(Node::at(depth));
                    let children = &mut self.nodes[at as usize].children;
                    let place = children.partition_point(|(b, _)| *b < byte);
                    children.insert(place, (byte, next));
                    next
                });
            }
            self.nodes[at as usize].complete.get_or_insert(index as u32);
        }
    }

    /// The fallbacks, breadth first: a node's fallback is shallower than the node.
    fn link(&mut self) {
        let mut queue = std::collections::VecDeque::from([ROOT]);
        while let Some(at) = queue.pop_front() {
            for (byte, child) in self.nodes[at as usize].children.clone() {
                let fallback = match at {
                    ROOT => ROOT,
                    _ => self.step(StopPosition(self.nodes[at as usize].fallback), byte).0,
                };
                let inherited = self.nodes[fallback as usize].complete;
                let node = &mut self.nodes[child as usize];
                node.fallback = fallback;
                node.complete = node.complete.or(inherited);
                queue.push_back(child);
            }
        }
    }
}

impl Node {
    fn at(depth: u32) -> Self {
        Self { children: Vec::new(), fallback: ROOT, depth, complete: None }
    }

    fn child(&self, byte: u8) -> Option<u32> {
        self.children.binary_search_by_key(&byte, |(b, _)| *b).ok().map(|place| self.children[place].1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Start of the first match and the index of its string.
    fn find(stops: &StopStrings, text: &str) -> Option<(usize, usize)> {
        let mut position = StopPosition::START;
        text.bytes().enumerate().find_map(|(at, byte)| {
            position = stops.step(position, byte);
            let index = stops.complete(position)?;
            Some((at + 1 - stops.strings[index].len(), index))
        })
    }

    #[test]
    fn the_first_complete_match_wins_and_of_equals_the_longest() {
        let stops = StopStrings::new(["abcde", "bc", "abc"]).unwrap();
        assert_eq!(find(&stops, "xabcde"), Some((1, 2)));
        assert_eq!(find(&stops, "xabde bc"), Some((6, 1)));
        assert_eq!(find(&stops, "ab"), None);
    }

    #[test]
    fn a_failed_beginning_falls_back_to_a_shorter_one() {
        let stops = StopStrings::new(["aab"]).unwrap();
        assert_eq!(find(&stops, "aaab"), Some((1, 0)));
        let position = "xaa".bytes().fold(StopPosition::START, |p, b| stops.step(p, b));
        assert_eq!(stops.undecided(position), 2);
    }

    #[test]
    fn strings_that_make_no_sense_are_refused() {
        assert!(matches!(StopStrings::new([""]), Err(Error::InvalidOption { option: "stop", .. })));
        assert!(matches!(StopStrings::new(["x".repeat(MAX_TOTAL + 1)]), Err(Error::InvalidOption { .. })));
    }

    proptest! {
        #[test]
        fn equals_a_search_by_hand(stops in prop::collection::vec("[ab]{1,4}", 1..5), text in "[abc]{0,40}") {
            let compiled = StopStrings::new(stops.clone()).unwrap();
            let by_hand = (1..=text.len()).find_map(|end| {
                let complete = stops.iter().enumerate().filter(|(_, s)| text[..end].ends_with(s.as_str()));
                let longest = complete.max_by_key(|(index, s)| (s.len(), usize::MAX - index));
                longest.map(|(index, s)| (end - s.len(), index))
            });
            prop_assert_eq!(find(&compiled, &text), by_hand);
        }
    }
}
