//! The parameters of a layer's attention.

use std::rc::Rc;

use super::{exec::ExecMode, parameter::Weight, relative_bias::RelativeBias};

/// The parameters of a layer's attention.
#[derive(Debug, Clone)]
pub(crate) struct AttentionParams {
    /// Factor of the scores.
    pub(crate) scale: f32,
    /// Whether a query attends to the positions behind its own, too: in encoders.
    pub(crate) both_ways: bool,
    /// Sliding window: how many positions a query attends to, its own included; both ways, on each side. `None` is all positions.
    pub(crate) window: Option<usize>,
    /// Chunks: a query attends to the positions before it from the last multiple of this on. All are kept.
    pub(crate) chunk: Option<usize>,
    /// Soft cap: scores `s` become `cap · tanh(s / cap)`.
    pub(crate) softcap: Option<f32>,
    /// Attention sinks: for each head a score that takes part in the softmax and has no value, `[heads]`.
    pub(crate) sinks: Option<Weight>,
    /// What is added to scores by the distance of key and query, in encoders.
    pub(crate) bias: Option<Rc<RelativeBias>>,
}

impl AttentionParams {
    /// Attention to all positions before, without cap and sinks.
    pub(crate) fn full(scale: f32) -> Self {
        Self { scale, both_ways: false, window: None, chunk: None, softcap: None, sinks: None, bias: None }
    }

    /// Attention to all positions of a text.
    pub(crate) fn both_ways(scale: f32) -> Self {
        Self { both_ways: true, ..Self::full(scale) }
    }

    /// Whether MLX's fused attention cannot compute it: it has no soft cap, and with sinks it has no gradient on GPUs.
    pub(super) fn needs_manual(&self) -> bool {
        self.softcap.is_some() || self.sinks.is_some() && ExecMode::current().is_differentiable()
    }
}
