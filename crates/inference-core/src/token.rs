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

    /// The same token with its log-probability and the `top` likeliest tokens, from the log-probabilities of the whole
    /// vocabulary. Of equal ones, the lower id comes first.
    ///
    /// # Panics
    /// `log_probabilities` has none for this token's id.
    #[must_use]
    pub fn with_log_probabilities(mut self, log_probabilities: &[f32], top: usize) -> Self {
        self.log_probability = Some(log_probabilities[self.id as usize]);
        let mut all: Vec<_> = (0..).zip(log_probabilities).map(|(id, p)| Alternative::new(id, *p)).collect();
        let order = |a: &Alternative, b: &Alternative| {
            b.log_probability.total_cmp(&a.log_probability).then(a.id.cmp(&b.id))
        };
        if top < all.len() {
            all.select_nth_unstable_by(top, order);
            all.truncate(top);
        }
        all.sort_unstable_by(order);
        self.top = all;
        self
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_first_and_of_equals_the_lower_id() {
        let log_probabilities = [-3.0, -1.0, -2.0, -1.0];
        for (top, expected) in [(0, vec![]), (3, vec![1, 3, 2]), (9, vec![1, 3, 2, 0])] {
            let token = Token::new(2, "c").with_log_probabilities(&log_probabilities, top);
            assert_eq!(token.log_probability, Some(-2.0));
            assert_eq!(token.top.iter().map(|other| other.id).collect::<Vec<_>>(), expected);
        }
    }
}
