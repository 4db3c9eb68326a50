//! Log-probabilities of tokens, as OpenAI's APIs write them.

use std::collections::HashMap;

use inference_core::{TextModel, Token};
use serde::Serialize;

use crate::error::ApiResult;

/// A token's log-probability.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct TokenLogprob {
    pub(crate) token: String,
    pub(crate) logprob: f32,
    /// The bytes of the text; `None` where it is a part of a character.
    pub(crate) bytes: Option<Vec<u8>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) top_logprobs: Option<Vec<TokenLogprob>>,
}

impl TokenLogprob {
    /// With an empty list where the bytes are not known: the Responses API has no null there.
    pub(crate) fn with_bytes(mut self) -> Self {
        self.bytes.get_or_insert_default();
        self.top_logprobs = self.top_logprobs.map(|top| top.into_iter().map(Self::with_bytes).collect());
        self
    }
}

/// Names tokens, and remembers the names.
#[derive(Debug, Default)]
pub(crate) struct TokenNames(HashMap<u32, String>);

impl TokenNames {
    /// The log-probabilities of tokens that were generated, with those of the alternatives.
    ///
    /// # Errors
    /// The backend cannot decode, or the model is closed.
    pub(crate) async fn logprobs(
        &mut self,
        model: &dyn TextModel,
        tokens: &[Token],
    ) -> ApiResult<Vec<TokenLogprob>> {
        let mut all = Vec::with_capacity(tokens.len());
        for token in tokens {
            let mut top = Vec::with_capacity(token.top.len());
            for alternative in &token.top {
                let text = self.name(model, alternative.id).await?;
                top.push(entry(text, alternative.log_probability, None));
            }
            // The text of a token that ends a character is that of the whole character.
            let logprob = token.log_probability.unwrap_or(f32::NEG_INFINITY);
            all.push(entry(token.text.clone(), logprob, Some(top)));
        }
        Ok(all)
    }

    async fn name(&mut self, model: &dyn TextModel, id: u32) -> ApiResult<String> {
        if let Some(name) = self.0.get(&id) {
            return Ok(name.clone());
        }
        let name = model.decode(vec![id]).await?;
        self.0.insert(id, name.clone());
        Ok(name)
    }
}

fn entry(token: String, logprob: f32, top_logprobs: Option<Vec<TokenLogprob>>) -> TokenLogprob {
    let bytes = (!token.contains(char::REPLACEMENT_CHARACTER)).then(|| token.as_bytes().to_vec());
    // JSON has no −∞; OpenAI writes this in its place.
    TokenLogprob { token, logprob: logprob.max(-9999.0), bytes, top_logprobs }
}
