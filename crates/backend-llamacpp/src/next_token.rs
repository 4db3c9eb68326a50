//! What a model says next: log-probabilities, without an answer.

use inference_core::Result;
use serde_json::{Map, Value, json};

use crate::{
    client::Requests,
    protocol::{Part, Probabilities},
};

/// A parser of answers that takes nothing for anything. llama-server's own refuses texts that are no UTF-8, which any model can
/// come to.
pub(crate) const NO_PARSER: &str = r#"{"parsers":[{"type":"epsilon"}],"rules":{},"root":0}"#;

/// The log-probabilities of the `count` likeliest tokens after a text, by the model alone.
///
/// The server gives none for a token that ends inside a character, so another one, `plain`, is forced: the log-probabilities are
/// those before that.
pub(crate) async fn next_token(
    requests: &Requests,
    text: &[u32],
    plain: u32,
    count: usize,
) -> Result<Probabilities> {
    let body = next_token_body(text, plain, count);
    let mut part: Part =
        requests.post("/completion", &Value::Object(body), "compute log-probabilities").await?;
    Ok(part.completion_probabilities.pop().unwrap_or_default())
}

/// The request of [`next_token`].
pub(crate) fn next_token_body(text: &[u32], plain: u32, count: usize) -> Map<String, Value> {
    let body = json!({
        "prompt": text, "n_predict": 1, "cache_prompt": true, "chat_parser": NO_PARSER, "n_probs": count, "logit_bias": [[plain, 1e6]],
        "samplers": ["temperature"], "temperature": 0.0,
    });
    match body {
        Value::Object(body) => body,
        _ => Map::new(),
    }
}
