//! Attention, and the norms and rotary positions before it.

use std::sync::Arc;

use cpu_kernels::{Heads, KvCache, KvView, PackedTexts, Queries, RmsNorm};
use mlx_rs::{
    Array,
    error::{Exception, Result},
};

use super::{
    super::{attention_params::AttentionParams, exec::ExecMode, parameter::Weight},
    kernel::{KernelResult, kernel_result, kernels, promoted},
    operand::{FloatView, Vectors, floats_mut},
};
use crate::mlx::{
    differentiated,
    primitive::{Shape, primitive, primitive_one},
};

/// What is done to the queries and keys of a layer after their projection.
pub(in crate::nn) struct QkNormRope<'a> {
    /// Heads of queries, heads of keys and of values, the width of one.
    pub(in crate::nn) heads: [i32; 3],
    /// The norms of each head of queries and of keys: weight and epsilon.
    pub(in crate::nn) norms: Option<[(Array, f32); 2]>,
    /// Their rotary positions.
    pub(in crate::nn) rotary: Option<&'a RotaryTable>,
    /// Whether gates of each head of queries lie behind it.
    pub(in crate::nn) gated: bool,
}

/// Cosines and sines of the positions of a forward pass, the same for all layers with one rope.
#[derive(Debug, Clone)]
pub(crate) struct RotaryTable {
    /// Pairs of elements that are rotated.
    pub(crate) pairs: usize,
    /// The cosines and behind them the sines of each token: `[rows, tokens, 2, pairs]`.
    pub(crate) cos_sin: Arc<[f32]>,
    /// Whether pairs are neighbours, rather than from the two halves of what is rotated.
    pub(crate) interleaved: bool,
}

impl RotaryTable {
    /// The same as the kernels read it.
    pub(super) fn view(&self) -> cpu_kernels::RotaryTable<'_> {
        let Self { pairs, cos_sin, interleaved } = self;
        cpu_kernels::RotaryTable { pairs: *pairs, cos_sin, interleaved: *interleaved }
    }
}

/// Queries, keys and values, in one `[B, T, (heads + 2 kv_heads) · head_dim]`, normalised and rotated → each
/// `[B, heads, T, head_dim]`.
pub(in crate::nn) fn qk_norm_rope(qkv: &Array, how: &QkNormRope<'_>) -> Option<Result<[Array; 3]>> {
    if ExecMode::current() != ExecMode::CpuKernels {
        return None;
    }
    let &[batch, tokens, width] = qkv.shape() else { return None };
    let [heads, kv_heads, head_dim] = how.heads;
    let norms = how.norms.iter().flatten().map(|(weight, _)| weight);
    let dtype = promoted([qkv.dtype()].into_iter().chain(norms.clone().map(Array::dtype)))?;
    // From one head to the next, in parts.
    let step = 1 + i32::from(how.gated);
    if width != (step * heads + 2 * kv_heads) * head_dim {
        return None;
    }
    let eps = how.norms.as_ref().map(|norms| [norms[0].1, norms[1].1]);
    let rotary = how.rotary.cloned();
    let arrays: Vec<_> = [qkv].into_iter().chain(norms).collect();
    let sizes = [heads, kv_heads, kv_heads].map(|heads| [batch, heads, tokens, head_dim]);
    let shapes = [0, 1, 2].map(|part| Shape { sizes: &sizes[part], dtype, donor: None });
    Some(primitive(c"qk_norm_rope", &arrays, shapes, move |inputs, outputs| {
        let (kernels, qkv) = (kernels()?, FloatView::of(inputs[0])?);
        let angles = rotary.as_ref().map(RotaryTable::view);
        let mut first = 0;
        for (part, output) in outputs.iter_mut().enumerate() {
            let [rows, heads, tokens, head_dim] = sizes[part].map(|size| size as usize);
            let weight = match eps {
                Some(eps) if part < 2 => Some((FloatView::of(inputs[1 + part])?, eps[part])),
                _ => None,
            };
            let norm = weight.as_ref().map(|(weight, eps)| RmsNorm { weight: weight.floats(), eps: *eps });
            let token_stride = width as usize;
            let head_stride = if part == 0 { step as usize * head_dim } else { head_dim };
            let vectors = Heads { data: qkv.from(first), head_stride, token_stride };
            let vectors = Queries { first: vectors, row_stride: tokens * token_stride, tokens };
            let angles = angles.as_ref().filter(|_| part < 2);
            let sizes = [rows, heads, head_dim];
            kernel_result(kernels.norm_rope(&vectors, sizes, norm.as_ref(), angles, floats_mut(output)?))?;
            first += heads * head_stride;
        }
        Ok(())
    }))
}

/// The output of attention `[B, T, heads · head_dim]` times σ of the gates, which lie behind each head of queries in `qkv`, of a type that
/// [`qk_norm_rope`] knows.
pub(in crate::nn) fn gate_heads(qkv: &Array, output: &Array, [heads, head_dim]: [i32; 2]) -> Result<Array> {
    let (sizes, width) = ([qkv.dim(0), heads, head_dim].map(|size| size as usize), qkv.dim(2) as usize);
    let tokens = qkv.dim(1) as usize;
    primitive_one(c"gate_heads", &[qkv, output], output.shape(), output.dtype(), move |inputs, out| {
        let [qkv, x] = inputs else { return Err("two inputs were expected".into()) };
        let (qkv, x) = (FloatView::of(*qkv)?, FloatView::of(*x)?);
        let head_dim = sizes[2];
        let first = Heads { data: qkv.from(head_dim), head_stride: 2 * head_dim, token_stride: width };
        let gates = Queries { first, row_stride: tokens * width, tokens };
        kernel_result(kernels()?.gate_heads(&gates, sizes, x.floats(), floats_mut(out)?))
    })
}

/// Attention of queries `[B, heads, T, head_dim]`, which are of the last T positions, to keys and values
/// `[B, kv_heads, S, head_dim]` → `[B, T, heads · head_dim]`.
pub(in crate::nn) fn attention(inputs: [&Array; 3], how: &AttentionParams) -> Option<Result<Array>> {
    match ExecMode::current() {
        ExecMode::CpuKernels => forward(inputs, how),
        ExecMode::CpuKernelsDifferentiable => differentiable(inputs, how),
        ExecMode::Mlx | ExecMode::MlxDifferentiable => None,
    }
}

/// The same with a gradient by the three: of tokens to those before them, without cap and sinks.
fn differentiable([queries, keys, values]: [&Array; 3], how: &AttentionParams) -> Option<Result<Array>> {
    let dtype = queries.dtype();
    let alike = [keys, values].iter().all(|of| of.dtype() == dtype && of.dim(2) == queries.dim(2));
    let plain = how.softcap.is_none() && how.sinks.is_none() && promoted([dtype]).is_some();
    if !alike || !plain {
        return None;
    }
    let (forwards, how) = (how.clone(), how.clone());
    let run = move |inputs: &[Array]| {
        let [queries, keys, values] = inputs else { return Err(Exception::custom("attention of three")) };
        let unknown = || Err(Exception::custom("attention of unknown floats"));
        forward([queries, keys, values], &forwards).unwrap_or_else(unknown)
    };
    let inputs = [queries.clone(), keys.clone(), values.clone()];
    Some(differentiated(&inputs, run, move |inputs, g| backward(inputs, g, &how)))
}

fn backward(inputs: &[Array], g: &Array, how: &AttentionParams) -> Result<Vec<Array>> {
    let [queries, keys, values] = inputs else { return Err(Exception::custom("attention of three")) };
    let (scale, window, dtype) = (how.scale, how.window, queries.dtype());
    let shapes = [queries, keys, values].map(|of| Shape { sizes: of.shape(), dtype, donor: None });
    let by =
        primitive(c"attention_backward", &[queries, keys, values, g], shapes, move |inputs, outputs| {
            let &[_, heads, tokens, head_dim] = inputs[0].shape() else {
                return Err("queries of no heads".into());
            };
            let [queries, keys, values, gradient] = [
                FloatView::of(inputs[0])?,
                FloatView::of(inputs[1])?,
                FloatView::of(inputs[2])?,
                FloatView::of(inputs[3])?,
            ];
            let attended = cpu_kernels::AttentionBackward {
                queries: queries.floats(),
                keys: keys.floats(),
                values: values.floats(),
                gradient: gradient.floats(),
                tokens: tokens as usize,
            };
            let how = cpu_kernels::AttentionParams {
                heads: heads as usize,
                kv_heads: inputs[1].shape()[1] as usize,
                head_dim: head_dim as usize,
                scale,
                window,
                softcap: None,
                sinks: None,
            };
            let [queries, keys, values] = outputs else { return Err("three outputs were expected".into()) };
            let by = [floats_mut(queries)?, floats_mut(keys)?, floats_mut(values)?];
            kernel_result(kernels()?.attention_backward(&attended, &how, by))
        })?;
    Ok(by.into())
}

fn forward([queries, keys, values]: [&Array; 3], how: &AttentionParams) -> Option<Result<Array>> {
    let &[batch, heads, tokens, head_dim] = queries.shape() else { return None };
    let dtype = promoted([queries.dtype(), keys.dtype(), values.dtype()])?;
    // MLX looks the products up by one type; so do we, for what a mixture would come to.
    let sinks = how.sinks.as_ref().map(Weight::bound);
    if sinks.as_ref().is_some_and(|sinks| promoted([sinks.dtype()]).is_none()) {
        return None;
    }
    let arrays: Vec<_> = [queries, keys, values].into_iter().chain(&sinks).collect();
    let (scale, window, softcap) = (how.scale, how.window, how.softcap);
    Some(primitive_one(
        c"attention",
        &arrays,
        &[batch, tokens, heads * head_dim],
        dtype,
        move |inputs, output| {
            let [queries, keys, values, sinks @ ..] = inputs else { return Err("no inputs".into()) };
            let (queries, keys, values) =
                (Vectors::of(*queries)?, Vectors::of(*keys)?, Vectors::of(*values)?);
            let sinks = sinks.first().copied().map(FloatView::of).transpose()?;
            let [rows, kv_heads, len, _] = keys.sizes;
            let caches = (0..rows).map(|row| {
                Ok(KvCache {
                    keys: KvView::Floats(keys.heads(row)?),
                    values: KvView::Floats(values.heads(row)?),
                    len,
                })
            });
            let caches = caches.collect::<KernelResult<Vec<_>>>()?;
            let [_, heads, tokens, head_dim] = queries.sizes;
            let how = cpu_kernels::AttentionParams {
                heads,
                kv_heads,
                head_dim,
                scale,
                // Positions that go round in a window of this length are not in order, and all of them are seen.
                window: window.filter(|window| *window < len),
                softcap,
                sinks: sinks.as_ref().map(FloatView::floats),
            };
            let queries = Queries { first: queries.heads(0)?, row_stride: queries.strides[0], tokens };
            kernel_result(kernels()?.attention(&queries, &caches, &how, floats_mut(output)?))
        },
    ))
}

/// Attention of whole texts, of these lengths, to themselves: queries `[N, heads, 1, head_dim]`, keys and values
/// `[N, kv_heads, 1, head_dim]` → `[N, 1, heads · head_dim]`.
pub(in crate::nn) fn attention_packed(
    [queries, keys, values]: [&Array; 3],
    lengths: &Arc<[usize]>,
    params: &AttentionParams,
) -> Option<Result<Array>> {
    let AttentionParams { scale, both_ways, window, chunk: _, softcap, ref sinks, ref bias } = *params;
    if ExecMode::current() != ExecMode::CpuKernels || sinks.is_some() || bias.is_some() {
        return None;
    }
    let &[tokens, heads, 1, head_dim] = queries.shape() else { return None };
    let dtype = promoted([queries.dtype(), keys.dtype(), values.dtype()])?;
    let (lengths, sizes) = (lengths.clone(), [tokens, 1, heads * head_dim]);
    Some(primitive_one(
        c"attention_packed",
        &[queries, keys, values],
        &sizes,
        dtype,
        move |inputs, output| {
            let [queries, keys, values] = inputs else { return Err("three inputs were expected".into()) };
            let (queries, keys, values) =
                (Vectors::of(*queries)?, Vectors::of(*keys)?, Vectors::of(*values)?);
            let [_, heads, _, head_dim] = queries.sizes;
            let params = cpu_kernels::AttentionParams {
                heads,
                kv_heads: keys.sizes[1],
                head_dim,
                scale,
                window,
                softcap,
                sinks: None,
            };
            // Each token is a row.
            let [stride, kv_stride, value_stride] =
                [&queries, &keys, &values].map(|vectors| vectors.strides[0]);
            let texts = PackedTexts {
                queries: Heads { token_stride: stride, ..queries.heads(0)? },
                keys: Heads { token_stride: kv_stride, ..keys.heads(0)? },
                values: Heads { token_stride: value_stride, ..values.heads(0)? },
                lengths: &lengths,
            };
            kernel_result(kernels()?.attention_packed(&texts, &params, !both_ways, floats_mut(output)?))
        },
    ))
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Device, transforms, with_device};

    use super::*;
    use crate::{
        mlx::slice,
        nn::{
            cpu::kernel::testing::{FLOATS, check, drawn, wide},
            exec::ExecMode,
        },
    };

    #[test]
    fn attention_is_that_of_mlx() {
        with_device(Device::cpu(), || {
            for dtype in FLOATS {
                for (tokens, len) in [(1, 1), (1, 33), (5, 5), (5, 70), (40, 40)] {
                    for (window, softcap, sinks) in
                        [(None, None, false), (Some(4), None, true), (None, Some(2.0), false)]
                    {
                        let queries = drawn(1, &[1, tokens, 6, 16], dtype).swap_axes(1, 2).unwrap();
                        // As in a cache: the room behind is not read.
                        let [keys, values] = [2, 3]
                            .map(|seed| slice(&drawn(seed, &[1, 2, 96, 16], dtype), 2, 0, len).unwrap());
                        let sinks = sinks.then(|| drawn(4, &[6], dtype).into());
                        let how = AttentionParams { window, softcap, sinks, ..AttentionParams::full(0.25) };
                        let ours = attention([&queries, &keys, &values], &how).unwrap().unwrap();
                        let wide_how = AttentionParams {
                            sinks: how.sinks.as_ref().map(|sinks| wide(&sinks.bound()).into()),
                            ..how
                        };
                        let mlx = crate::nn::sdpa::plain(
                            [&wide(&queries), &wide(&keys), &wide(&values)],
                            &wide_how,
                        );
                        let what =
                            format!("{dtype:?}, {tokens} of {len}, window {window:?}, cap {softcap:?}");
                        check(&ours, &mlx.unwrap(), dtype, &what);
                    }
                }
            }
        });
    }

    #[test]
    fn gradients_of_attention_are_those_of_mlx() {
        with_device(Device::cpu(), || {
            for (tokens, window) in [(5, None), (150, None), (150, Some(40))] {
                let [queries, keys, values] = [(1, 6), (2, 2), (3, 2)]
                    .map(|(seed, heads)| drawn(seed, &[1, heads, tokens, 16], FLOATS[0]));
                let g = drawn(4, &[1, tokens, 96], FLOATS[0]);
                let how = AttentionParams { window, ..AttentionParams::full(0.25) };
                let gradients = |of: &dyn Fn([&Array; 3]) -> Result<Array>| {
                    let sum = |x: &[Array]| {
                        Ok::<_, Exception>(vec![of([&x[0], &x[1], &x[2]])?.multiply(&g)?.sum(false)?])
                    };
                    let mut gradients = transforms::value_and_grad_with_argnums(sum, [0, 1, 2].as_slice());
                    ExecMode::CpuKernelsDifferentiable
                        .scope(|| gradients(&[queries.clone(), keys.clone(), values.clone()]))
                        .unwrap()
                        .1
                };
                let ours = gradients(&|x| attention(x, &how).unwrap());
                let mlx = gradients(&|x| crate::nn::sdpa::plain(x, &how));
                for (ours, mlx) in ours.iter().zip(&mlx) {
                    check(ours, mlx, FLOATS[0], &format!("{tokens} tokens, window {window:?}"));
                }
            }
        });
    }
}
