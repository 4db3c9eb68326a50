//! The parameters of a layer's attention.

use super::{exec::ExecMode, parameter::Weight};

/// The parameters of a layer's attention.
#[derive(Debug, Clone)]
pub(crate) struct AttentionParams {
    /// Factor of the scores.
    pub(crate) scale: f32,
    /// Sliding window: how many positions a query attends to, its own included. `None` is all positions before it.
    pub(crate) window: Option<usize>,
    /// Chunks: a query attends to the positions before it from the last multiple of this on. All are kept.
    pub(crate) chunk: Option<usize>,
    /// Soft cap: scores `s` become `cap · tanh(s / cap)`.
    pub(crate) softcap: Option<f32>,
    /// Attention sinks: for each head a score that takes part in the softmax and has no value, `[heads]`.
    pub(crate) sinks: Option<Weight>,
}

impl AttentionParams {
    /// Attention to all positions before, without cap and sinks.
    pub(crate) fn full(scale: f32) -> Self {
        Self { scale, window: None, chunk: None, softcap: None, sinks: None }
    }

    /// Whether MLX's fused attention cannot compute it: it has no soft cap, and with sinks it has no gradient on GPUs.
    pub(super) fn needs_manual(&self) -> bool {
        self.softcap.is_some() || self.sinks.is_some() && ExecMode::current().is_differentiable()
    }
}
