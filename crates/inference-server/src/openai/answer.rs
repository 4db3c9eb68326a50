//! What chat completions and completions have in common, whole and streamed.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{generation::End, logprobs::TokenLogprob};

/// What a stream has besides the answer.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamOptions {
    /// A last chunk with the usage.
    pub(super) include_usage: Option<bool>,
    /// Has no effect: nothing is padded here.
    #[allow(dead_code, reason = "read to be known")]
    include_obfuscation: Option<bool>,
}

/// The log-probabilities of a choice.
#[derive(Debug, Serialize)]
pub(super) struct Logprobs {
    pub(super) content: Vec<TokenLogprob>,
    pub(super) refusal: Option<()>,
}

/// The name of an end.
pub(super) fn finish_reason(end: &End) -> &'static str {
    match end {
        End::Stop | End::StopString(_) => "stop",
        End::Length => "length",
        End::Calls => "tool_calls",
    }
}
