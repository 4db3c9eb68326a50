//! A model's tokens and merges, refused before they are too many.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::limits::{MAX_MERGES, MAX_TOKEN_BYTES, MAX_TOKENS, MAX_VOCAB_BYTES};

/// The tokens of a model.
#[derive(Debug)]
pub(super) enum Vocab {
    /// With their ids.
    Ids(Vec<(String, u32)>),
    /// In the order of their ids, with their log-probabilities.
    Scores(Vec<(String, f64)>),
}

/// Pairs of tokens that become one, most important first.
#[derive(Debug)]
pub(super) struct Merges(pub(super) Vec<(String, String)>);

/// Counts a vocabulary's tokens and bytes.
#[derive(Default)]
struct Size {
    tokens: usize,
    bytes: usize,
}

impl Size {
    fn add<E: serde::de::Error>(&mut self, token: &str) -> Result<(), E> {
        self.tokens += 1;
        self.bytes += token.len();
        if token.len() > MAX_TOKEN_BYTES {
            let start: String = token.chars().take(20).collect();
            let length = token.len();
            return Err(E::custom(format!(
                "token {start:?}… has {length} bytes, expected at most {MAX_TOKEN_BYTES}"
            )));
        }
        if self.tokens > MAX_TOKENS || self.bytes > MAX_VOCAB_BYTES {
            return Err(E::custom(format!(
                "more than {MAX_TOKENS} tokens, or more than {MAX_VOCAB_BYTES} bytes of them"
            )));
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Vocab;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tokens with their ids, or a list of tokens with their scores")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
                let (mut size, mut entries) = (Size::default(), Vec::new());
                while let Some((token, id)) = map.next_entry::<String, u32>()? {
                    size.add(&token)?;
                    entries.push((token, id));
                }
                Ok(Vocab::Ids(entries))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vocab, A::Error> {
                let (mut size, mut entries) = (Size::default(), Vec::new());
                while let Some((token, score)) = seq.next_element::<(String, f64)>()? {
                    size.add(&token)?;
                    entries.push((token, score));
                }
                Ok(Vocab::Scores(entries))
            }
        }
        deserializer.deserialize_any(Entries)
    }
}

/// A pair, or a line of a merges.txt.
enum Merge {
    Pair(String, String),
    Line(String),
}

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Forms;
        impl<'de> Visitor<'de> for Forms {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("two tokens, in a list or separated by a space")
            }

            fn visit_str<E: serde::de::Error>(self, line: &str) -> Result<Merge, E> {
                Ok(Merge::Line(line.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge, A::Error> {
                match (seq.next_element()?, seq.next_element()?, seq.next_element::<IgnoredAny>()?) {
                    (Some(left), Some(right), None) => Ok(Merge::Pair(left, right)),
                    _ => Err(A::Error::custom("expected two tokens")),
                }
            }
        }
        deserializer.deserialize_any(Forms)
    }
}

impl<'de> Deserialize<'de> for Merges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Merges;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of pairs of tokens")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merges, A::Error> {
                let mut merges = Vec::new();
                while let Some(merge) = seq.next_element()? {
                    if merges.len() == MAX_MERGES {
                        return Err(A::Error::custom(format!("more than {MAX_MERGES} merges")));
                    }
                    match merge {
                        Merge::Pair(left, right) => merges.push((left, right)),
                        // The head of a merges.txt.
                        Merge::Line(line) if line.starts_with("#version") => {}
                        Merge::Line(line) => match line.split_once(' ') {
                            Some((left, right)) if !right.contains(' ') => {
                                merges.push((left.to_owned(), right.to_owned()));
                            }
                            _ => return Err(A::Error::custom(format!("{line:?} is no pair of tokens"))),
                        },
                    }
                }
                Ok(Merges(merges))
            }
        }
        deserializer.deserialize_seq(Pairs)
    }
}
