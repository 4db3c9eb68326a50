//! Requests of one length: how many, how long, and what their callers saw.

use std::time::Duration;

use inference::FinishReason;

/// The requests of one trial.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) batch: usize,
    /// Tokens of each prompt.
    pub(super) prompt_tokens: usize,
    /// Tokens that each request generates.
    pub(super) generate_tokens: usize,
    /// Whether they go over HTTP.
    pub(super) http: bool,
}

/// What the caller of one request saw.
#[derive(Debug)]
pub(super) struct Request {
    /// When each token came, from the start of the trial.
    pub(super) tokens: Vec<Duration>,
    /// 0 where the caller cannot tell.
    pub(super) peak_memory: u64,
    pub(super) reason: FinishReason,
}
