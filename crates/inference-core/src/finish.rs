//! How a generation ended.

use serde::Serialize;

use crate::{Feature, Metrics};

/// How a generation ended, and what it cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Finish {
    /// The request's number in this process, as spans and logs have it in the field `request`; 0 outside of a loaded model.
    pub request: u64,
    /// Why there is no further token.
    pub reason: FinishReason,
    /// What it cost.
    pub metrics: Metrics,
    /// Options that were set and had no effect on this request: tools with a chat template that has none, a sampling value
    /// of generation_config.json that the backend lacks, ….
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub without_effect: Vec<Feature>,
}

impl Finish {
    /// The end of a generation, from its engine.
    #[must_use]
    pub fn new(reason: FinishReason, metrics: Metrics) -> Self {
        Self { request: 0, reason, metrics, without_effect: Vec::new() }
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model or the caller's stop condition ended it.
    Stop(StopCause),
    /// The limit on tokens, or the context, was reached.
    Length,
    /// The caller cancelled; what was produced before was delivered.
    Cancelled,
}

/// What ended a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopCause {
    /// One of the model's end-of-sequence tokens, which is not part of the text.
    EndOfSequence(u32),
    /// One of the caller's stop tokens, which is not part of the text.
    StopToken(u32),
    /// One of the caller's stop strings, which is not part of the text.
    StopString(String),
}
