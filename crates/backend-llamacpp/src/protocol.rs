//! What llama-server says, in the parts that are read here. <https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md>

use std::time::Duration;

use inference_core::{Alternative, Token};
use serde::{Deserialize, Deserializer};

/// A part of an answer to `/completion`, or the whole of one that is no stream.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Part {
    pub(crate) content: String,
    pub(crate) tokens: Vec<u32>,
    /// Tokens chosen so far, those included that the stream leaves out.
    pub(crate) tokens_predicted: usize,
    /// How far the prompt is computed. Then `tokens` has nothing to say.
    pub(crate) prompt_progress: Option<PromptProgress>,
    pub(crate) completion_probabilities: Vec<Probabilities>,
    /// This is the last part.
    pub(crate) stop: bool,
    pub(crate) stop_type: StopType,
    pub(crate) timings: Timings,
    pub(crate) error: Option<ServerError>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct PromptProgress {
    pub(crate) total: usize,
    /// Tokens whose keys and values the slot held already.
    pub(crate) cache: usize,
    pub(crate) processed: usize,
}

/// Why the server ended an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StopType {
    /// It goes on.
    #[default]
    None,
    /// An id that ends texts.
    Eos,
    /// The number of tokens, or the context.
    Limit,
    /// A stop string; none is asked for.
    Word,
}

/// Milliseconds and counts of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Timings {
    pub(crate) cache_n: usize,
    pub(crate) prompt_ms: f64,
    pub(crate) predicted_ms: f64,
}

impl Timings {
    pub(crate) fn prefill(&self) -> Duration {
        milliseconds(self.prompt_ms)
    }
}

fn milliseconds(ms: f64) -> Duration {
    Duration::try_from_secs_f64(ms / 1000.0).unwrap_or_default()
}

/// One token's log-probability and those of the likeliest: the model's own, before bias, penalties and filters.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Probabilities {
    #[serde(flatten)]
    pub(crate) chosen: Likely,
    pub(crate) top_logprobs: Vec<Likely>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Likely {
    pub(crate) id: u32,
    #[serde(deserialize_with = "log_probability")]
    pub(crate) logprob: f32,
}

/// JSON has no infinity: the server writes the lowest number, or `null`.
fn log_probability<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
    let value = Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NEG_INFINITY);
    Ok(if value <= f64::from(f32::MIN) { f32::NEG_INFINITY } else { value as f32 })
}

impl Probabilities {
    /// The token with its log-probability and those of the `top` likeliest.
    pub(crate) fn token(&self, top: usize) -> Token {
        let mut token = Token::new(self.chosen.id, "");
        token.log_probability = Some(self.chosen.logprob);
        token.top = self.alternatives(top);
        token
    }

    /// The `top` likeliest tokens.
    pub(crate) fn alternatives(&self, top: usize) -> Vec<Alternative> {
        self.top_logprobs.iter().take(top).map(|likely| Alternative::new(likely.id, likely.logprob)).collect()
    }

    /// The log-probability of this token, where it is among those listed.
    pub(crate) fn of(&self, id: u32) -> Option<f32> {
        self.top_logprobs.iter().find(|likely| likely.id == id).map(|likely| likely.logprob)
    }
}

/// The vectors of one text, as `/embedding` gives them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Embedded {
    pub(crate) index: usize,
    /// One where it pools.
    embedding: Vec<Vec<Option<f32>>>,
}

impl Embedded {
    /// The vector, where there is one. JSON has `null` for what is no number.
    pub(crate) fn only(mut self) -> Option<Vec<f32>> {
        let vector = self.embedding.pop().filter(|vector| self.embedding.is_empty() && !vector.is_empty())?;
        Some(vector.into_iter().map(|x| x.unwrap_or(f32::NAN)).collect())
    }
}

/// What the server says went wrong.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ServerError {
    pub(crate) message: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
}

/// An answer that is an error.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Refusal {
    pub(crate) error: ServerError,
}

/// What `/v1/models` says of the model.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Models {
    pub(crate) data: Vec<Listed>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Listed {
    pub(crate) meta: Option<Meta>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Meta {
    pub(crate) n_vocab: usize,
    pub(crate) n_embd: usize,
    pub(crate) n_params: u64,
    pub(crate) size: u64,
}

/// One slot, as `/slots` lists it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct SlotState {
    pub(crate) n_ctx: usize,
    #[cfg(test)]
    pub(crate) is_processing: bool,
}

/// How a slot was saved or restored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct SlotAction {
    pub(crate) n_saved: usize,
    pub(crate) n_restored: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts of answers of llama-server b10434.
    #[test]
    fn recorded_parts_are_read() {
        let part: Part = serde_json::from_str(
            r#"{"index":0,"content":" Paris","tokens":[7042],"stop":false,"id_slot":-1,"tokens_predicted":1,"tokens_evaluated":5,
            "completion_probabilities":[{"id":7042,"token":" Paris","bytes":[32,80],"logprob":-0.24127253890037537,"top_logprobs":[
            {"id":7042,"token":" Paris","bytes":[32,80],"logprob":-0.24127253890037537},
            {"id":260,"token":" the","bytes":[32],"logprob":-3.4028234663852886e+38}]}]}"#,
        )
        .unwrap();
        let token = part.completion_probabilities[0].token(2);
        assert_eq!((part.tokens.as_slice(), token.id, token.top.len()), ([7042].as_slice(), 7042, 2));
        assert_eq!(token.top[1].log_probability, f32::NEG_INFINITY);
        assert!(token.log_probability.is_some_and(|l| (l + 0.241_272_54).abs() < 1e-7));
        let progress: Part = serde_json::from_str(
            r#"{"index":0,"content":"","tokens":[0],"stop":false,"id_slot":-1,"tokens_predicted":0,"tokens_evaluated":31,
            "prompt_progress":{"total":31,"cache":30,"processed":30,"time_ms":0}}"#,
        )
        .unwrap();
        assert_eq!(progress.prompt_progress, Some(PromptProgress { total: 31, cache: 30, processed: 30 }));
        let last: Part = serde_json::from_str(
            r#"{"index":0,"content":"","tokens":[],"id_slot":3,"stop":true,"tokens_predicted":4,"stop_type":"limit",
            "timings":{"cache_n":0,"prompt_n":5,"prompt_ms":40.398,"predicted_n":4,"predicted_ms":85.174}}"#,
        )
        .unwrap();
        assert!(last.stop && last.stop_type == StopType::Limit);
        assert_eq!(last.timings.prefill(), Duration::from_micros(40_398));
        let refused: Refusal = serde_json::from_str(
            r#"{"error":{"code":400,"message":"request (9000 tokens) exceeds the available context size (2048 tokens), try increasing it",
            "type":"exceed_context_size_error","n_prompt_tokens":9000,"n_ctx":2048}}"#,
        )
        .unwrap();
        assert_eq!(refused.error.kind, "exceed_context_size_error");
    }
}
