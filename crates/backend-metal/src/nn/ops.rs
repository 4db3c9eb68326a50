//! Operations that the CPU's kernels or MLX compute, by the execution mode.

use mlx_rs::{Array, error::Result, ops};

use super::cpu::{self, Draw};

/// The index of the largest element of the last axis, u32: `[.., n]` → `[..]`.
pub(crate) fn argmax(x: &Array) -> Result<Array> {
    cpu::argmax(x).unwrap_or_else(|| ops::indexing::argmax_axis(x, -1, false))
}

/// The index of the largest element of each row, u32, and a number that is finite where the row has no NaN and its largest element
/// is finite, f32: `[B, n]` → `[B]`, `[B]`.
pub(crate) fn argmax_with_score(x: &Array) -> Result<(Array, Array)> {
    let Some(ids) = cpu::argmax(x) else {
        let ids = ops::indexing::argmax_axis(x, -1, false)?;
        return Ok((ids, ops::logsumexp_axis(x, -1, false)?.as_type::<f32>()?));
    };
    // Our kernel takes NaN for the largest.
    let ids = ids?;
    let score = x.take_along_axis(ids.reshape(&[-1, 1])?, -1)?.reshape(&[-1])?;
    Ok((ids, score.as_type::<f32>()?))
}

/// Draws a token of each row of logits, u32, with its log-probability, f32: `[B, V]` → `[B]`, `[B]`. `None` where the CPU's kernels do not
/// compute.
pub(crate) fn draw(logits: &Array, draws: Vec<Draw>) -> Option<Result<[Array; 2]>> {
    cpu::draw(logits, draws)
}

/// `x · w`, `[.., in]`, `[in, out]` → `[.., out]`, with gradients by both.
pub(super) fn matmul(x: &Array, w: &Array) -> Result<Array> {
    cpu::matmul_differentiable(x, w).unwrap_or_else(|| x.matmul(w))
}
