//! How a layer attends.

use super::{exec::is_tracing, parameter::Weight};

/// How a layer attends.
#[derive(Debug, Clone)]
pub(crate) struct AttentionParams {
    /// What the products of queries and keys are multiplied by.
    pub(crate) scale: f32,
    /// Positions that a query sees, its own included; `None` is all before it.
    pub(crate) window: Option<usize>,
    /// Scores `s` become `cap · tanh(s / cap)`.
    pub(crate) softcap: Option<f32>,
    /// For each head a score that takes part in the softmax and has no value, `[heads]`.
    pub(crate) sinks: Option<Weight>,
}

impl AttentionParams {
    /// Attention to all positions before, and nothing more.
    pub(crate) fn full(scale: f32) -> Self {
        Self { scale, window: None, softcap: None, sinks: None }
    }

    /// Whether MLX's fused attention cannot compute it: it caps no scores, and on GPUs has no gradient where there are sinks.
    pub(super) fn is_stepwise(&self) -> bool {
        self.softcap.is_some() || self.sinks.is_some() && is_tracing()
    }
}
