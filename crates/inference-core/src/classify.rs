//! Classification: one forward pass over a prompt, and what the model would say next.

use serde::Serialize;

/// The verdict on one prompt.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Classification {
    /// The likeliest next token.
    pub token: u32,
    /// Its text.
    pub text: String,
    /// The labels that were asked for, in the order given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<LabelScore>,
    /// The next token's logits, one for each id of the vocabulary, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logits: Option<Vec<f32>>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
}

impl Classification {
    /// The likeliest next token after a prompt of `prompt_tokens` tokens, without labels or logits.
    pub fn new(token: u32, text: impl Into<String>, prompt_tokens: usize) -> Self {
        Self { token, text: text.into(), prompt_tokens, ..Self::default() }
    }

    /// The likeliest label; `None` where none was asked for. The first of equals.
    #[must_use]
    pub fn best(&self) -> Option<&LabelScore> {
        self.labels
            .iter()
            .reduce(|best, label| if label.probability > best.probability { label } else { best })
    }
}

/// How likely one label is as the continuation of a prompt.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LabelScore {
    /// The label's text.
    pub label: String,
    /// The natural logarithm of the probability that the model continues with exactly these tokens.
    pub log_probability: f32,
    /// The probability among the labels asked for: they add up to 1.
    pub probability: f32,
}

impl LabelScore {
    /// Scores from the log-probabilities of labels: a softmax over them gives the probabilities.
    #[must_use]
    pub fn normalize(labels: &[String], log_probabilities: &[f32]) -> Vec<Self> {
        let highest = log_probabilities.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f32 = log_probabilities.iter().map(|l| (l - highest).exp()).sum();
        let scores = labels.iter().zip(log_probabilities);
        scores
            .map(|(label, &log_probability)| Self {
                label: label.clone(),
                log_probability,
                probability: (log_probability - highest).exp() / total,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_add_up_and_the_best_is_the_likeliest() {
        let labels = ["a", "b", "c"].map(str::to_owned);
        let labels = LabelScore::normalize(&labels, &[-3.0, -1.0, -2.0]);
        let total: f32 = labels.iter().map(|label| label.probability).sum();
        assert!((total - 1.0).abs() < 1e-6);
        let classification = Classification { labels, ..Classification::default() };
        assert_eq!(classification.best().unwrap().label, "b");
        assert_eq!(Classification::default().best(), None);
    }
}
