//! Attention with MLX's operations.

use std::collections::HashMap;

use mlx_rs::{
    Array,
    error::{Exception, Result},
    fast::ScaledDotProductAttentionMask as Mask,
    ops,
};

use super::{attention_params::AttentionParams, parameter::Weight};
use crate::mlx::{fast, scalar, slice};

/// Causal masks, shared by all layers that show as many positions.
#[derive(Debug, Default)]
pub(crate) struct Masks {
    /// By the number of queries, the number of keys and the window.
    known: HashMap<(i32, i32, Option<usize>), Array>,
}

impl Masks {
    /// Attention of the last T positions to all of them, `[B, kv_heads, S, head_dim]` → `[B, heads, T, head_dim]`.
    pub(super) fn attend(
        &mut self,
        [queries, keys, values]: [&Array; 3],
        params: &AttentionParams,
    ) -> Result<Array> {
        let (tokens, seen) = (queries.dim(2), keys.dim(2));
        let window = params.window.filter(|window| (*window as i32) < seen);
        if tokens > 1 && window.is_none() && !params.needs_manual() {
            let sinks = params.sinks.as_ref().map(Weight::get).transpose()?;
            let (mask, sinks) = (Some(Mask::Causal), sinks.as_ref());
            return fast::attention([queries, keys, values], params.scale, mask, sinks);
        }
        let needed = tokens > 1 || window.is_some();
        let mask = needed.then(|| self.mask(tokens, seen, window)).transpose()?;
        masked(queries, keys, values, params, mask.as_ref())
    }

    /// The mask of the last T of `seen` positions: `[T, seen]`, true where a query attends to a key.
    fn mask(&mut self, tokens: i32, seen: i32, window: Option<usize>) -> Result<Array> {
        if let Some(mask) = self.known.get(&(tokens, seen, window)) {
            return Ok(mask.clone());
        }
        let keys = ops::arange::<_, i32>(0, seen, None)?.expand_dims(0)?;
        let queries = ops::arange::<_, i32>(seen - tokens, seen, None)?.expand_dims(1)?;
        let mut mask = keys.le(&queries)?;
        if let Some(window) = window {
            mask = mask.logical_and(keys.gt(queries.subtract(Array::from_int(window as i32))?)?)?;
        }
        self.known.insert((tokens, seen, window), mask.clone());
        Ok(mask)
    }
}

/// `[B, heads, T, head_dim]` → `[B, T, heads · head_dim]`
pub(super) fn flatten_heads(heads: &Array) -> Result<Array> {
    let heads = heads.swap_axes(1, 2)?;
    heads.reshape(&[heads.dim(0), heads.dim(1), -1])
}

/// Attention to what the mask allows, `[T, S]` or `[B, 1, T, S]`, or to everything → `[B, heads, T, head_dim]`.
pub(super) fn masked(
    queries: &Array,
    keys: &Array,
    values: &Array,
    params: &AttentionParams,
    mask: Option<&Array>,
) -> Result<Array> {
    if params.needs_manual() {
        return manual_attention(queries, keys, values, params, mask);
    }
    let sinks = params.sinks.as_ref().map(Weight::get).transpose()?;
    fast::attention([queries, keys, values], params.scale, mask.map(Mask::Array), sinks.as_ref())
}

/// The same, operation by operation: see [`AttentionParams::needs_manual`].
fn manual_attention(
    queries: &Array,
    keys: &Array,
    values: &Array,
    params: &AttentionParams,
    mask: Option<&Array>,
) -> Result<Array> {
    let &[batch, heads, tokens, head_dim] = queries.shape() else {
        return Err(Exception::custom("queries must be [B, heads, T, head_dim]"));
    };
    let kv_heads = keys.dim(1);
    let group = heads / kv_heads;
    let number = |value| scalar(value, queries.dtype());
    // Heads that share keys and values lie next to each other.
    let queries =
        queries.multiply(number(params.scale)?)?.reshape(&[batch, kv_heads, group, tokens, head_dim])?;
    let (keys, values) = (keys.expand_dims(2)?, values.expand_dims(2)?);
    let mut scores = queries.matmul(keys.swap_axes(-1, -2)?)?;
    if let Some(cap) = params.softcap {
        scores = ops::tanh(scores.divide(number(cap)?)?)?.multiply(number(cap)?)?;
    }
    let masked_out = number(f32::NEG_INFINITY)?;
    scores = match mask {
        Some(mask) if mask.ndim() == 4 => ops::select(&mask.expand_dims(1)?, &scores, masked_out)?,
        Some(mask) => ops::select(mask, &scores, masked_out)?,
        None => scores,
    };
    let seen = scores.dim(-1);
    if let Some(sinks) = &params.sinks {
        let sinks = sinks.get()?.as_dtype(scores.dtype())?.reshape(&[kv_heads, group, 1, 1])?;
        let sinks = ops::broadcast_to(&sinks, &[batch, kv_heads, group, tokens, 1])?;
        scores = ops::concatenate(&[scores, sinks], -1)?;
    }
    let weights = ops::softmax_axis(&scores, -1, true)?;
    slice(&weights, 4, 0, seen)?.matmul(values)?.reshape(&[batch, heads, tokens, head_dim])
}

/// Attention with MLX's operations, `[1, T, heads · head_dim]`.
#[cfg(test)]
pub(super) fn plain(x: [&Array; 3], params: &AttentionParams) -> Result<Array> {
    flatten_heads(&Masks::default().attend(x, params)?)
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Device, random, transforms, with_device};

    use super::*;
    use crate::nn::exec::ExecMode;

    #[test]
    fn sinks_while_gradients_are_traced_are_those_of_the_fused_attention() {
        with_device(Device::cpu(), || {
            let drawn = |seed, shape: &[i32]| {
                random::uniform::<f32, f32>(-1.0, 1.0, shape, &random::key(seed).unwrap()).unwrap()
            };
            let (tokens, heads, kv_heads) = (9, 6, 2);
            let x: Vec<_> = [(1, heads), (2, kv_heads), (3, kv_heads)]
                .map(|(seed, heads)| drawn(seed, &[2, heads, tokens, 8]))
                .into_iter()
                .chain([drawn(4, &[heads])])
                .collect();
            let g = drawn(5, &[2, tokens, heads * 8]);
            for window in [None, Some(4)] {
                let by_each = |mix: &dyn Fn(&[Array]) -> Result<Array>| {
                    let loss = |x: &[Array]| Ok::<_, Exception>(vec![mix(x)?.multiply(&g)?.sum(false)?]);
                    let mut by_each = transforms::value_and_grad_with_argnums(loss, [0, 1, 2, 3].as_slice());
                    let (mut values, gradients) = by_each(&x).unwrap();
                    values.extend(gradients);
                    values
                };
                let how = |x: &[Array]| AttentionParams {
                    window,
                    sinks: Some(Weight::from(x[3].clone())),
                    ..AttentionParams::full(0.25)
                };
                let ours =
                    by_each(&|x| ExecMode::MlxDifferentiable.scope(|| plain([&x[0], &x[1], &x[2]], &how(x))));
                let fused = by_each(&|x| plain([&x[0], &x[1], &x[2]], &how(x)));
                for (ours, fused) in ours.iter().zip(&fused) {
                    assert_eq!(ours.shape(), fused.shape());
                    let far = ours.subtract(fused).unwrap().abs().unwrap().max(false).unwrap();
                    assert!(far.item_exact::<f32>() < 1e-5, "window {window:?}: {far:?}");
                }
            }
        });
    }
}
