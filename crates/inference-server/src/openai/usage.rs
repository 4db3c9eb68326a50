//! What a request cost, as OpenAI's chat and completion APIs say it.

use serde::Serialize;
use utoipa::ToSchema;

use crate::generation::Ended;

/// Tokens of a request.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    pub(crate) total_tokens: usize,
    pub(crate) prompt_tokens_details: PromptDetails,
    pub(crate) completion_tokens_details: CompletionDetails,
}

#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub(crate) struct PromptDetails {
    /// Tokens whose keys and values were found in a cache.
    pub(crate) cached_tokens: usize,
}

#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub(crate) struct CompletionDetails {
    pub(crate) reasoning_tokens: usize,
}

impl Usage {
    /// Adds an answer to a prompt that was not counted yet.
    pub(crate) fn add_prompt(&mut self, ended: &Ended) {
        self.prompt_tokens += ended.metrics.prompt_tokens;
        self.prompt_tokens_details.cached_tokens += ended.metrics.cached_tokens;
        self.add_answer(ended);
    }

    /// Adds one more answer to the same prompt.
    pub(crate) fn add_answer(&mut self, ended: &Ended) {
        self.completion_tokens += ended.metrics.generated_tokens;
        self.completion_tokens_details.reasoning_tokens += ended.reasoning_tokens;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}
