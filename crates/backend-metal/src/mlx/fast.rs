//! MLX's fused operations.
//!
//! On a GPU each is one operation of the graph. On the CPU most are several: tests that count the graph of a GPU have a stand-in for
//! each.

use mlx_rs::{
    Array,
    error::Result,
    fast::{self, ScaledDotProductAttentionMask as Mask},
};

/// Root mean square normalisation of the last axis.
pub(crate) fn rms_norm(x: &Array, weight: Option<&Array>, eps: f32) -> Result<Array> {
    #[cfg(test)]
    if let Some(one) = super::stand_in::of(x, &[weight]) {
        return one;
    }
    fast::rms_norm(x, weight, eps)
}

/// Normalisation of the last axis by mean and variance.
pub(crate) fn layer_norm(x: &Array, weight: Option<&Array>, bias: Option<&Array>, eps: f32) -> Result<Array> {
    #[cfg(test)]
    if let Some(one) = super::stand_in::of(x, &[weight, bias]) {
        return one;
    }
    fast::layer_norm(x, weight, bias, eps)
}

/// How heads are rotated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rotation<'a> {
    /// Leading elements of a head that are rotated.
    pub(crate) dims: i32,
    /// Whether pairs are neighbours.
    pub(crate) interleaved: bool,
    /// The base of the frequencies, where none are listed.
    pub(crate) base: Option<f32>,
    /// Factor of the positions.
    pub(crate) scale: f32,
    /// The reciprocals of the frequencies, `[dims / 2]`.
    pub(crate) freqs: Option<&'a Array>,
}

/// Rotates `[B, H, T, head_dim]` from position `offset` on.
pub(crate) fn rope(x: &Array, how: Rotation<'_>, offset: i32) -> Result<Array> {
    let Rotation { dims, interleaved, base, scale, freqs } = how;
    #[cfg(test)]
    if let Some(one) = super::stand_in::of(x, &[freqs]) {
        return one;
    }
    fast::rope(x, dims, interleaved, base, scale, offset, freqs)
}

/// The same, row b from position `offsets[b]` on.
pub(crate) fn rope_each(x: &Array, how: Rotation<'_>, offsets: &Array) -> Result<Array> {
    let Rotation { dims, interleaved, base, scale, freqs } = how;
    #[cfg(test)]
    if let Some(one) = super::stand_in::of(x, &[Some(offsets), freqs]) {
        return one;
    }
    fast::rope_dynamic(x, dims, interleaved, base, scale, offsets, freqs)
}

/// Attention of `[B, heads, T, head_dim]` to keys and values `[B, kv_heads, S, head_dim]`, → `[B, heads, T, head_dim]`.
pub(crate) fn attention(
    [queries, keys, values]: [&Array; 3],
    scale: f32,
    mask: Option<Mask<'_>>,
    sinks: Option<&Array>,
) -> Result<Array> {
    #[cfg(test)]
    if let Some(one) = super::stand_in::of(queries, &[Some(keys), Some(values), sinks]) {
        return one;
    }
    fast::scaled_dot_product_attention(queries, keys, values, scale, mask, sinks)
}
