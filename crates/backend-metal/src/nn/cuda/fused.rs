//! What is one kernel on CUDA where MLX has several operations. Each function returns `None` elsewhere, where gradients are traced, and
//! for what the kernels do not know.

use mlx_rs::{Array, error::Result};

use super::super::{
    activation::{Activation, Gating},
    cpu::NormWeight,
    exec::{ExecMode, on_cuda},
};
use crate::mlx::fused::{self, Gate, QkNormRope};

/// Whether operations are fused here.
pub(in crate::nn) fn is_in_use() -> bool {
    #[cfg(test)]
    if crate::mlx::stand_in::Pretence::current() == Some(crate::mlx::stand_in::Pretence::Cuda) {
        return ExecMode::current() == ExecMode::Mlx;
    }
    ExecMode::current() == ExecMode::Mlx && on_cuda() && fused::are_usable()
}

/// [`Gating`] of gates and what they let through, from one array `[.., 2 · size]`, gates first or taking turns → `[.., size]`.
pub(in crate::nn) fn glu(joined: &Array, gating: Gating, interleaved: bool) -> Option<Result<Array>> {
    let gate = match gating {
        Gating::Glu(Activation::Silu) => Gate::Silu,
        Gating::Glu(Activation::Gelu) => Gate::Gelu,
        Gating::Glu(Activation::GeluTanh) => Gate::GeluTanh,
        Gating::Glu(Activation::Relu2) => Gate::Relu2,
        Gating::Glu(Activation::Relu) => return None,
        Gating::Clamped { alpha, limit } => Gate::Clamped { alpha, limit },
    };
    if is_in_use() { fused::glu(joined, gate, interleaved) } else { None }
}

/// x + y, where y may be normalised before; and, where two are wanted, that normalised with `after`.
pub(in crate::nn) fn add_rms_norm<const N: usize>(
    terms: [&Array; 2],
    before: Option<&NormWeight>,
    after: Option<&NormWeight>,
) -> Option<Result<[Array; N]>> {
    let norm = |norm: Option<&'_ NormWeight>| norm.map(|(weights, eps)| (weights.clone(), *eps));
    if !is_in_use() {
        return None;
    }
    let (before, after) = (norm(before), norm(after));
    let [before, after] = [&before, &after].map(|norm| norm.as_ref().map(|(weights, eps)| (weights, *eps)));
    fused::add_rms_norm(terms, before, after)
}

/// Queries, keys and values from one array, ready for attention: `[B, heads, T, width]` each.
pub(in crate::nn) fn qk_norm_rope(
    qkv: &Array,
    starts: &Array,
    how: &QkNormRope<'_>,
) -> Option<Result<[Array; 3]>> {
    if !is_in_use() {
        return None;
    }
    // Queries lie as the output projection reads them, so that attention's output needs no copy.
    let ready = fused::qk_norm_rope(qkv, starts, how)?;
    Some(ready.and_then(|[queries, keys, values]| Ok([queries.swap_axes(1, 2)?, keys, values])))
}
