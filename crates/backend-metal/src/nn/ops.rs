//! Operations that the CPU's kernels or MLX compute.

use mlx_rs::{Array, error::Result, ops};

use super::cpu;

/// The index of the largest element of the last axis, u32: `[.., n]` → `[..]`.
pub(crate) fn argmax(x: &Array) -> Result<Array> {
    cpu::argmax(x).unwrap_or_else(|| ops::indexing::argmax_axis(x, -1, false))
}

/// `x · w`, `[.., in]`, `[in, out]` → `[.., out]`, where a gradient may be taken by both.
pub(super) fn times(x: &Array, w: &Array) -> Result<Array> {
    cpu::times(x, w).unwrap_or_else(|| x.matmul(w))
}
