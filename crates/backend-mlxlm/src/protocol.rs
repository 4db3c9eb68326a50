//! The messages between parent and child, one JSON object a line; `docs/src/protocol.md` describes each.

use serde::{Deserialize, Serialize};

/// The version of the protocol that this crate speaks.
pub(crate) const VERSION: u32 = 1;

/// What the parent asks for.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Request {
    Load(Load),
    Generate(Box<Generate>),
    Classify(Classify),
    /// Lets a generation go on for this many tokens more.
    Credit {
        id: u64,
        tokens: usize,
    },
    Cancel {
        id: u64,
    },
    /// What may come next in a generation that asks for it.
    Mask {
        id: u64,
        /// Base64 of little-endian u32: a bit for each id, the lowest first. `None` allows all.
        words: Option<String>,
    },
    Stats {
        id: u64,
    },
    Close {
        id: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Load {
    pub(crate) id: u64,
    pub(crate) path: String,
    pub(crate) adapter: Option<String>,
    pub(crate) max_batch: usize,
    pub(crate) prefill_chunk: usize,
    pub(crate) memory_limit: Option<u64>,
    pub(crate) cache_limit: Option<u64>,
    pub(crate) trust_remote_code: bool,
}

/// Fields that are left out have no effect.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Generate {
    pub(crate) id: u64,
    pub(crate) prompt: Vec<u32>,
    pub(crate) max_tokens: usize,
    /// Tokens that may be sent before the parent gives more credit.
    pub(crate) credit: usize,
    /// Ids that end the text.
    pub(crate) stop: Vec<u32>,
    pub(crate) seed: u64,
    pub(crate) temperature: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) min_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) top_k: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) xtc: Option<Xtc>,
    /// An infinite bias is `null`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) logit_bias: Vec<(u32, Option<f32>)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) repetition_penalty: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) presence_penalty: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) frequency_penalty: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) penalty_window: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) min_tokens: Option<usize>,
    /// Ids that may not be chosen before `min_tokens`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) eos: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) logprobs: Option<usize>,
    /// Whether the child asks which tokens may come next, each time.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) masked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Xtc {
    pub(crate) probability: f32,
    pub(crate) threshold: f32,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Classify {
    pub(crate) id: u64,
    pub(crate) prompts: Vec<Vec<u32>>,
    pub(crate) labels: Vec<Vec<u32>>,
    pub(crate) logits: bool,
}

/// What the child says.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// The first message, once.
    Hello(Hello),
    Loaded {
        id: u64,
        parameters: u64,
        device: String,
        #[serde(flatten)]
        memory: Memory,
    },
    Progress {
        id: u64,
    },
    Token {
        id: u64,
        token: u32,
        #[serde(default, deserialize_with = "present")]
        logprob: Option<Option<f32>>,
        #[serde(default)]
        top: Vec<(u32, Option<f32>)>,
    },
    /// Asks which tokens may come next.
    Mask {
        id: u64,
        /// The token before; none before the first.
        token: Option<u32>,
    },
    Finished(Finished),
    Classified(Classified),
    /// A classification was cancelled.
    Cancelled {
        id: u64,
    },
    Stats {
        id: u64,
        #[serde(flatten)]
        memory: Memory,
    },
    Error {
        /// Without one: about a line that could not be read.
        id: Option<u64>,
        kind: ErrorKind,
        message: String,
        /// Bytes that could not be had.
        #[serde(default)]
        needed: u64,
    },
    Closed {
        id: u64,
    },
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(crate) struct Hello {
    pub(crate) protocol: u32,
    pub(crate) mlx_lm: Option<String>,
    pub(crate) mlx: Option<String>,
    pub(crate) python: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Memory {
    pub(crate) active_memory: u64,
    pub(crate) peak_memory: u64,
    pub(crate) cache_memory: u64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Finished {
    pub(crate) id: u64,
    pub(crate) reason: Reason,
    /// The token that ended the text.
    #[serde(default)]
    pub(crate) token: Option<u32>,
    /// Seconds.
    pub(crate) queued: f64,
    pub(crate) prefill: f64,
    /// Bytes.
    pub(crate) peak_memory: u64,
    pub(crate) active_memory: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reason {
    Stop,
    Length,
    Cancelled,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Classified {
    pub(crate) id: u64,
    pub(crate) index: usize,
    pub(crate) token: u32,
    #[serde(default)]
    pub(crate) scores: Vec<Option<f32>>,
    /// Base64 of little-endian float32.
    #[serde(default)]
    pub(crate) logits: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ErrorKind {
    /// A line that is no request.
    Protocol,
    /// mlx_lm or something it needs cannot be imported.
    Import,
    /// The model's folder is at fault.
    InvalidModel,
    /// The adapter's folder is at fault.
    InvalidAdapter,
    OutOfMemory,
    /// Anything else.
    Failed,
}

impl Event {
    /// The request that it belongs to.
    pub(crate) fn id(&self) -> Option<u64> {
        match self {
            Self::Hello(_) => None,
            Self::Error { id, .. } => *id,
            Self::Finished(finished) => Some(finished.id),
            Self::Classified(classified) => Some(classified.id),
            Self::Loaded { id, .. }
            | Self::Progress { id }
            | Self::Token { id, .. }
            | Self::Mask { id, .. }
            | Self::Cancelled { id }
            | Self::Stats { id, .. }
            | Self::Closed { id } => Some(*id),
        }
    }
}

/// JSON has no infinity: `null` stands for −∞.
pub(crate) fn or_minus_infinity(value: Option<f32>) -> f32 {
    value.unwrap_or(f32::NEG_INFINITY)
}

/// The floats in base64 of their little-endian bytes; `None` if it is not that.
pub(crate) fn decode_floats(base64: &str) -> Option<Vec<f32>> {
    let digits = base64.trim_end_matches('=').as_bytes();
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.chunks(4) {
        let mut bits = 0u32;
        for digit in group {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * (4 - group.len());
        bytes.extend(&bits.to_be_bytes()[1..group.len()]);
    }
    let (floats, rest) = bytes.as_chunks::<4>();
    rest.is_empty().then(|| floats.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

/// Words in base64 of their little-endian bytes.
pub(crate) fn encode_words(words: &[u32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let digit = char::from(DIGITS[(bits >> (18 - 6 * place) & 63) as usize]);
            text.push(if place <= group.len() { digit } else { '=' });
        }
    }
    text
}

/// Tells `null` from a missing field.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Option<f32>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_object_with_what_is_set() {
        let generate = Generate {
            id: 3,
            prompt: vec![1, 2],
            max_tokens: 8,
            logit_bias: vec![(5, None)],
            ..Generate::default()
        };
        let json = serde_json::to_value(Request::Generate(Box::new(generate))).unwrap();
        let expected = serde_json::json!({
            "op": "generate", "id": 3, "prompt": [1, 2], "max_tokens": 8, "credit": 0, "stop": [], "seed": 0,
            "temperature": 0.0, "logit_bias": [[5, null]],
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn minus_infinity_is_told_from_nothing() {
        let token = |line: &str| match serde_json::from_str(line).unwrap() {
            Event::Token { logprob, .. } => logprob,
            other => panic!("{other:?}"),
        };
        assert_eq!(token(r#"{"event":"token","id":1,"token":2}"#), None);
        assert_eq!(token(r#"{"event":"token","id":1,"token":2,"logprob":null}"#), Some(None));
        assert_eq!(token(r#"{"event":"token","id":1,"token":2,"logprob":-0.5}"#), Some(Some(-0.5)));
    }

    #[test]
    fn floats_survive_base64() {
        // Python: base64.b64encode(struct.pack("<3f", 1.0, -2.5, 3e-9))
        assert_eq!(decode_floats("AACAPwAAIMCPKE4x"), Some(vec![1.0, -2.5, 3e-9]));
        assert_eq!(decode_floats("AACAPw=="), Some(vec![1.0]));
        assert_eq!(decode_floats("AACA"), None);
        assert_eq!(decode_floats("AA*A"), None);
        assert_eq!(decode_floats(""), Some(vec![]));
    }

    #[test]
    fn words_are_base64() {
        // Python: base64.b64encode(struct.pack("<2I", 1, 0x80000005))
        assert_eq!(encode_words(&[1, 0x8000_0005]), "AQAAAAUAAIA=");
        let floats = [0.5_f32, -3.0, 7e9, 1.0];
        let words = floats.map(f32::to_bits);
        for n in 0..4 {
            assert_eq!(decode_floats(&encode_words(&words[..n])), Some(floats[..n].to_vec()));
        }
    }
}
