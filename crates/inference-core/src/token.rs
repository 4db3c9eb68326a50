//! One token of an answer.

use serde::Serialize;

/// One generated token.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Token {
    /// The id in the model's vocabulary.
    pub id: u32,
    /// Its text. A token is delivered once its text is certain: not while a character or a possible stop string is
    /// incomplete. A character that spans several tokens belongs to the token that completes it.
    pub text: String,
    /// The natural logarithm of its probability after bias and penalties, before filters and temperature, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_probability: Option<f32>,
    /// The likeliest tokens at this place, likeliest first, where asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<Alternative>,
}

impl Token {
    /// A token without log-probabilities.
    pub fn new(id: u32, text: impl Into<String>) -> Self {
        Self { id, text: text.into(), ..Self::default() }
    }
}

/// A token that might have been chosen. [`TextModel::decode`](crate::TextModel::decode) gives its text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Alternative {
    /// The id in the model's vocabulary.
    pub id: u32,
    /// The natural logarithm of its probability.
    pub log_probability: f32,
}

impl Alternative {
    /// A token and the natural logarithm of its probability.
    #[must_use]
    pub fn new(id: u32, log_probability: f32) -> Self {
        Self { id, log_probability }
    }
}
