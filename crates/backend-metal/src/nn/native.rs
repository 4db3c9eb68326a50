//! What a model spends its time in, computed by our own kernels on the CPU. Each function is one operation of the graph, or
//! `None` where it is MLX's to compute: on another device, while gradients are traced, or of types that the kernels lack.

use std::{borrow::Cow, sync::Arc};

use cpu_kernels::{
    Angles, Cache, Floats, FloatsMut, Gates, Heads, Kernels, Matrices, Norm, Queries, Scales, Weights,
};
use half::{bf16, f16};
use mlx_rs::{Array, Dtype, error::Result};

use super::{
    custom::{Input, Output, Reason, Shape, custom, custom_one, native},
    linear::Matrix,
    mlp::{Activation, Gating},
    ops::{Mode, Packed, Scheme},
    pass::Attend,
};

type Done<T = ()> = std::result::Result<T, Reason>;

/// `x · wᵀ + bias`: `[.., in]`, `[out]` → `[.., out]`.
pub(super) fn multiply(x: &Array, matrix: &Matrix, bias: Option<&Array>) -> Option<Result<Array>> {
    if !native() {
        return None;
    }
    let stack = Stack::of(matrix)?;
    let dtype = promoted([x.dtype()].into_iter().chain(stack.dtype).chain(bias.map(Array::dtype)))?;
    if stack.layout.count != 1 || x.dim(-1) as usize != stack.layout.inputs {
        return None;
    }
    let mut sizes = x.shape().to_vec();
    *sizes.last_mut()? = stack.layout.outputs as i32;
    let arrays: Vec<_> = [x].into_iter().chain(stack.arrays).chain(bias).collect();
    let (layout, has_bias) = (stack.layout, bias.is_some());
    Some(custom_one(c"multiply", &arrays, &sizes, dtype, move |inputs, output| {
        let (x, weights) = inputs.split_first().ok_or("no inputs")?;
        let (weights, bias) =
            if has_bias { weights.split_at(weights.len() - 1) } else { (weights, [].as_slice()) };
        let bias = bias.first().copied().map(Held::of).transpose()?;
        let x = Held::of(*x)?;
        layout.with(weights, |w| {
            Ok(kernels()?.multiply(x.floats(), w, bias.as_ref().map(Held::floats), floats_mut(output)?))
        })
    }))
}

/// Of a stack: `x · w[i]ᵀ` with one `i` of `indices` (u32) for each row of the result: `[.., 1, in]`, `[..]` → `[.., 1, out]`. The
/// rows of x are as many as the indices, or as the last axis of indices goes into them.
pub(super) fn gather(x: &Array, matrix: &Matrix, indices: &Array) -> Option<Result<Array>> {
    if !native() {
        return None;
    }
    let stack = Stack::of(matrix)?;
    let dtype = promoted([x.dtype()].into_iter().chain(stack.dtype))?;
    let &[ref rows @ .., 1, width] = x.shape() else { return None };
    let fits = match (rows, indices.shape()) {
        (rows, indices) if rows == indices => true,
        ([rows @ .., 1], [indices @ .., _]) => rows == indices,
        _ => false,
    };
    if !fits || width as usize != stack.layout.inputs || indices.dtype() != Dtype::Uint32 {
        return None;
    }
    let sizes = [indices.shape(), &[1, stack.layout.outputs as i32]].concat();
    let arrays: Vec<_> = [x, indices].into_iter().chain(stack.arrays).collect();
    let layout = stack.layout;
    Some(custom_one(c"gather", &arrays, &sizes, dtype, move |inputs, output| {
        let [x, picks, weights @ ..] = inputs else { return Err("no inputs".into()) };
        let (x, picks) = (Held::of(*x)?, picks.elements::<u32>()?);
        layout.with(weights, |w| Ok(kernels()?.multiply_picked(x.floats(), w, &picks, floats_mut(output)?)))
    }))
}

/// Root mean square normalisation of the last axis.
pub(super) fn rms_norm(x: &Array, weight: &Array, eps: f32) -> Option<Result<Array>> {
    if !native() {
        return None;
    }
    let dtype = promoted([x.dtype(), weight.dtype()])?;
    if weight.shape() != &x.shape()[x.ndim().checked_sub(1)?..] {
        return None;
    }
    Some(custom_one(c"rms_norm", &[x, weight], x.shape(), dtype, move |inputs, output| {
        let (x, weight) = (Held::of(inputs[0])?, Held::of(inputs[1])?);
        let norm = Norm { weight: weight.floats(), eps };
        to_reason(kernels()?.rms_norm(x.floats(), &norm, floats_mut(output)?))
    }))
}

/// Where the two halves of a feed-forward block are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Halves<'a> {
    /// In two arrays alike, `[.., size]`.
    Apart(&'a Array, &'a Array),
    /// In one, `[.., 2 · size]`, gates first.
    Joined(&'a Array),
    /// In one, taking turns.
    Interleaved(&'a Array),
}

/// [`Gating`] of two halves → `[.., size]`.
pub(super) fn gate(halves: Halves<'_>, gating: Gating) -> Option<Result<Array>> {
    if !native() {
        return None;
    }
    let gating = match gating {
        Gating::Plain(Activation::Silu) => cpu_kernels::Gating::Silu,
        Gating::Plain(Activation::GeluTanh) => cpu_kernels::Gating::GeluTanh,
        Gating::Plain(Activation::Gelu) => return None,
        Gating::Clamped { alpha, limit } => cpu_kernels::Gating::Clamped { alpha, limit },
    };
    let (arrays, share) = match halves {
        Halves::Apart(gates, ups) if gates.shape() == ups.shape() => (vec![gates, ups], 1),
        Halves::Joined(joined) | Halves::Interleaved(joined) if joined.dim(-1) % 2 == 0 => (vec![joined], 2),
        _ => return None,
    };
    let dtype = promoted(arrays.iter().map(|array| array.dtype()))?;
    let mut sizes = arrays[0].shape().to_vec();
    *sizes.last_mut()? /= share;
    let size = *sizes.last()? as usize;
    let (offset, step) = if matches!(halves, Halves::Interleaved(_)) { (1, 2) } else { (size, 1) };
    Some(custom_one(c"gate", &arrays, &sizes, dtype, move |inputs, output| {
        let first = Held::of(inputs[0])?;
        let second = inputs.get(1).copied().map(Held::of).transpose()?;
        let ups = second.as_ref().map_or_else(|| first.from(offset), Held::floats);
        let gates = Gates { gates: first.floats(), ups, row_stride: size * share as usize, step };
        to_reason(kernels()?.gate(&gates, gating, size, floats_mut(output)?))
    }))
}

/// How the queries and keys of a layer are made ready.
pub(super) struct Arrangement<'a> {
    /// Heads of queries, heads of keys and of values, the width of one.
    pub(super) heads: [i32; 3],
    /// What each head of queries, and of keys, is normalised with: the weight and the small number.
    pub(super) norms: Option<[(Array, f32); 2]>,
    /// How they are rotated.
    pub(super) turns: Option<&'a Turns>,
}

/// Rotations of the tokens of a pass, the same for all its layers.
#[derive(Debug, Clone)]
pub(crate) struct Turns {
    /// Pairs of elements that are rotated.
    pub(crate) pairs: usize,
    /// The cosines and behind them the sines of each token: `[rows, tokens, 2, pairs]`.
    pub(crate) turns: Arc<[f32]>,
}

/// Queries, keys and values, in one `[B, T, (heads + 2 kv_heads) · head_dim]`, normalised and rotated → each
/// `[B, heads, T, head_dim]`.
pub(super) fn arrange(qkv: &Array, how: &Arrangement<'_>) -> Option<Result<[Array; 3]>> {
    if !native() {
        return None;
    }
    let &[batch, tokens, width] = qkv.shape() else { return None };
    let [heads, kv_heads, head_dim] = how.heads;
    let norms = how.norms.iter().flatten().map(|(weight, _)| weight);
    let dtype = promoted([qkv.dtype()].into_iter().chain(norms.clone().map(Array::dtype)))?;
    if width != (heads + 2 * kv_heads) * head_dim {
        return None;
    }
    let eps = how.norms.as_ref().map(|norms| [norms[0].1, norms[1].1]);
    let turns = how.turns.cloned();
    let arrays: Vec<_> = [qkv].into_iter().chain(norms).collect();
    let sizes = [heads, kv_heads, kv_heads].map(|heads| [batch, heads, tokens, head_dim]);
    let shapes = [0, 1, 2].map(|part| Shape { sizes: &sizes[part], dtype, donor: None });
    Some(custom(c"arrange", &arrays, shapes, move |inputs, outputs| {
        let (kernels, qkv) = (kernels()?, Held::of(inputs[0])?);
        let angles = turns.as_ref().map(|Turns { pairs, turns }| Angles { pairs: *pairs, turns });
        let mut first = 0;
        for (part, output) in outputs.iter_mut().enumerate() {
            let [rows, heads, tokens, head_dim] = sizes[part].map(|size| size as usize);
            let weight = match eps {
                Some(eps) if part < 2 => Some((Held::of(inputs[1 + part])?, eps[part])),
                _ => None,
            };
            let norm = weight.as_ref().map(|(weight, eps)| Norm { weight: weight.floats(), eps: *eps });
            let token_stride = width as usize;
            let vectors = Heads { data: qkv.from(first), head_stride: head_dim, token_stride };
            let vectors = Queries { first: vectors, row_stride: tokens * token_stride, tokens };
            let angles = angles.as_ref().filter(|_| part < 2);
            let sizes = [rows, heads, head_dim];
            to_reason(kernels.rotate(&vectors, sizes, norm.as_ref(), angles, floats_mut(output)?))?;
            first += heads * head_dim;
        }
        Ok(())
    }))
}

/// Attention of several rows: queries `[B, heads, T, head_dim]` and, for each row, or in one for all of them, keys and values
/// `[1 or B, kv_heads, S, head_dim]` → `[B, T, heads · head_dim]`. The queries are of the last T positions.
pub(super) fn attend(queries: &Array, rows: &[[&Array; 2]], how: &Attend) -> Option<Result<Array>> {
    if !native() {
        return None;
    }
    let &[batch, heads, tokens, head_dim] = queries.shape() else { return None };
    let cached = rows.iter().flatten().copied();
    let dtype = promoted([queries.dtype()].into_iter().chain(cached.clone().map(Array::dtype)))?;
    // MLX looks the products up by one type; so do we, for what a mixture would come to.
    if how.sinks.as_ref().is_some_and(|sinks| promoted([sinks.dtype()]).is_none()) {
        return None;
    }
    let arrays: Vec<_> = [queries].into_iter().chain(cached).chain(how.sinks.as_deref()).collect();
    let (count, scale, window, softcap) = (rows.len(), how.scale, how.window, how.softcap);
    Some(custom_one(c"attend", &arrays, &[batch, tokens, heads * head_dim], dtype, move |inputs, output| {
        let queries = Vectors::of(inputs[0])?;
        let sinks = inputs.get(1 + 2 * count).copied().map(Held::of).transpose()?;
        let rows: Vec<_> = inputs[1..=2 * count].iter().map(|x| Vectors::of(*x)).collect::<Done<_>>()?;
        let [_, kv_heads, ..] = rows[0].sizes;
        let longest = rows.iter().map(|vectors| vectors.sizes[2]).max();
        let caches: Vec<Cache<'_>> = rows
            .chunks_exact(2)
            .flat_map(|pair| (0..pair[0].sizes[0]).map(move |row| (row, pair)))
            .map(|(row, pair)| {
                let [keys, values] = [pair[0].heads(row), pair[1].heads(row)];
                Ok(Cache { keys: keys?, values: values?, len: pair[0].sizes[2] })
            })
            .collect::<Done<_>>()?;
        let [_, heads, tokens, head_dim] = queries.sizes;
        let how = cpu_kernels::Attend {
            heads,
            kv_heads,
            head_dim,
            scale,
            // Positions that go round in a window of this length are not in order, and all of them are seen.
            window: window.filter(|window| Some(*window) < longest),
            softcap,
            sinks: sinks.as_ref().map(Held::floats),
        };
        let queries = Queries { first: queries.heads(0)?, row_stride: queries.strides[0], tokens };
        to_reason(kernels()?.attend(&queries, &caches, &how, floats_mut(output)?))
    }))
}

fn kernels() -> Done<Kernels> {
    to_reason(Kernels::new())
}

fn to_reason<T>(result: cpu_kernels::Result<T>) -> Done<T> {
    result.map_err(|error| error.to_string().into())
}

/// The type of a product of arrays of these types, where the kernels know them.
fn promoted(dtypes: impl IntoIterator<Item = Dtype>) -> Option<Dtype> {
    let known = |dtype| matches!(dtype, Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
    dtypes.into_iter().map(|dtype| known(dtype).then_some(dtype)).reduce(|all, dtype| {
        let (all, dtype) = (all?, dtype?);
        Some(if all == dtype { all } else { Dtype::Float32 })
    })?
}

/// A matrix or a stack of them as the graph has it.
struct Stack<'a> {
    layout: Layout,
    /// The elements, and the scales and biases of quantised ones.
    arrays: Vec<&'a Array>,
    /// The type of its elements, or of its groups' scales where those are floats that products take part of.
    dtype: Option<Dtype>,
}

/// How the arrays of a [`Stack`] are to be read.
#[derive(Clone, Copy)]
struct Layout {
    count: usize,
    outputs: usize,
    inputs: usize,
    scheme: Option<cpu_kernels::Scheme>,
}

impl<'a> Stack<'a> {
    fn of(matrix: &'a Matrix) -> Option<Self> {
        match matrix {
            Matrix::Dense(transposed) => {
                let (count, inputs, outputs) = sizes(transposed)?;
                let layout = Layout { count, outputs, inputs, scheme: None };
                Some(Self { layout, arrays: vec![transposed], dtype: Some(transposed.dtype()) })
            }
            Matrix::Packed(Packed { weight, scales, biases, scheme }) => {
                let (count, outputs, words) = sizes(weight)?;
                let Scheme { mode, bits, group_size } = *scheme;
                let mode = match mode {
                    Mode::Affine => cpu_kernels::Mode::Affine,
                    Mode::Mxfp4 => cpu_kernels::Mode::Mxfp4,
                    Mode::Nvfp4 => cpu_kernels::Mode::Nvfp4,
                    Mode::Mxfp8 => cpu_kernels::Mode::Mxfp8,
                };
                let scheme = cpu_kernels::Scheme { mode, bits, group_size };
                let layout = Layout { count, outputs, inputs: words * 32 / bits, scheme: Some(scheme) };
                let dtype = biases.is_some().then(|| scales.dtype());
                Some(Self { layout, arrays: [weight, scales].into_iter().chain(biases).collect(), dtype })
            }
        }
    }
}

/// The matrices of `[.., rows, columns]`, their rows and columns.
fn sizes(stack: &Array) -> Option<(usize, usize, usize)> {
    match *stack.shape() {
        [rows, columns] => Some((1, rows as usize, columns as usize)),
        [count, rows, columns] => Some((count as usize, rows as usize, columns as usize)),
        _ => None,
    }
}

impl Layout {
    /// Runs `work` on the matrices in these arrays.
    fn with(
        self,
        arrays: &[Input<'_>],
        work: impl FnOnce(&Matrices<'_>) -> Done<cpu_kernels::Result<()>>,
    ) -> Done {
        let Self { count, outputs, inputs, scheme } = self;
        let run = |weights| to_reason(work(&Matrices { count, outputs, inputs, weights })?);
        match (scheme, arrays) {
            (None, [transposed]) => run(Weights::Dense(Held::transposed(*transposed)?.floats())),
            (Some(scheme), [words, scales, biases]) => {
                let (words, scales, biases) = (words.elements()?, Held::of(*scales)?, Held::of(*biases)?);
                let scales = Scales::Affine { scales: scales.floats(), biases: biases.floats() };
                run(Weights::Packed { scheme, words: &words, scales })
            }
            (Some(scheme), [words, scales]) => {
                let (words, scales) = (words.elements()?, scales.elements()?);
                run(Weights::Packed { scheme, words: &words, scales: Scales::Bytes(&scales) })
            }
            _ => Err("a matrix in an unexpected number of arrays".into()),
        }
    }
}

/// Floats in row-major order, where they lie or copied.
enum Held<'a> {
    F32(Cow<'a, [f32]>),
    F16(Cow<'a, [f16]>),
    Bf16(Cow<'a, [bf16]>),
}

/// `$held::<type>` of the type of `$input`, in the variant of `$kind` for it.
macro_rules! by_type {
    ($kind:ident, $input:expr, $read:path) => {
        match $input.dtype() {
            Some(Dtype::Float32) => $kind::F32($read($input)?),
            Some(Dtype::Float16) => $kind::F16($read($input)?),
            Some(Dtype::Bfloat16) => $kind::Bf16($read($input)?),
            other => return Err(format!("{other:?} where floats were expected").into()),
        }
    };
}

impl<'a> Held<'a> {
    fn of(input: Input<'a>) -> Done<Self> {
        Ok(by_type!(Held, input, Input::elements))
    }

    fn transposed(input: Input<'a>) -> Done<Self> {
        Ok(by_type!(Held, input, Input::transposed))
    }

    /// Those from element `start` on.
    fn from(&self, start: usize) -> Floats<'_> {
        fn tail<T>(floats: &[T], start: usize) -> &[T] {
            floats.get(start..).unwrap_or_default()
        }
        match self {
            Self::F32(floats) => Floats::F32(tail(floats, start)),
            Self::F16(floats) => Floats::F16(tail(floats, start)),
            Self::Bf16(floats) => Floats::Bf16(tail(floats, start)),
        }
    }

    fn floats(&self) -> Floats<'_> {
        match self {
            Self::F32(floats) => Floats::F32(floats),
            Self::F16(floats) => Floats::F16(floats),
            Self::Bf16(floats) => Floats::Bf16(floats),
        }
    }
}

fn floats_mut<'a>(output: &'a mut Output<'_>) -> Done<FloatsMut<'a>> {
    Ok(by_type!(FloatsMut, output, Output::elements))
}

/// Vectors `[rows, heads, tokens, head_dim]` where they lie.
struct Vectors<'a> {
    data: Floats<'a>,
    sizes: [usize; 4],
    strides: [usize; 4],
}

impl<'a> Vectors<'a> {
    fn of(input: Input<'a>) -> Done<Self> {
        let data = by_type!(Floats, input, Input::span);
        let (sizes, strides) = (input.shape(), input.strides());
        let (Ok(sizes), Ok(strides)) = (<[i32; 4]>::try_from(sizes), <[i64; 4]>::try_from(strides)) else {
            return Err("vectors that are not [rows, heads, tokens, head_dim]".into());
        };
        if strides[3] != 1 && sizes[3] != 1 {
            return Err("vectors whose elements lie apart".into());
        }
        Ok(Self {
            data,
            sizes: sizes.map(|size| size as usize),
            strides: strides.map(|stride| stride as usize),
        })
    }

    /// Those of one row.
    fn heads(&self, row: usize) -> Done<Heads<'a>> {
        let start = row * self.strides[0];
        let data = match self.data {
            Floats::F32(data) => data.get(start..).map(Floats::F32),
            Floats::F16(data) => data.get(start..).map(Floats::F16),
            Floats::Bf16(data) => data.get(start..).map(Floats::Bf16),
        };
        let data = data.ok_or("a row beyond the end")?;
        Ok(Heads { data, head_stride: self.strides[1], token_stride: self.strides[2] })
    }
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Device, ops, random, with_device};

    use super::*;
    use crate::nn::{
        custom::tracing,
        ops::{dequantize, quantize, slice},
    };

    const FLOATS: [Dtype; 3] = [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16];

    fn drawn(seed: u64, shape: &[i32], dtype: Dtype) -> Array {
        let key = random::key(seed).unwrap();
        random::uniform::<f32, f32>(-1.0, 1.0, shape, &key).unwrap().as_dtype(dtype).unwrap()
    }

    fn wide(x: &Array) -> Array {
        x.as_dtype(Dtype::Float32).unwrap()
    }

    /// Both round sums of numbers of about 1 once, in their own order.
    fn check(ours: &Array, mlx: &Array, dtype: Dtype, what: &str) {
        assert_eq!((ours.shape(), ours.dtype()), (mlx.shape(), dtype), "{what}");
        let worst = wide(ours).subtract(mlx).unwrap().abs().unwrap().max(false).unwrap().item_exact::<f32>();
        let largest = mlx.abs().unwrap().max(false).unwrap().item_exact::<f32>();
        let tolerance = match dtype {
            Dtype::Float32 => 2e-6,
            Dtype::Float16 => 1e-3,
            _ => 8e-3,
        };
        assert!(worst <= tolerance * largest.max(1.0), "{what}: {worst} of {largest}");
    }

    fn schemes() -> impl Iterator<Item = Scheme> {
        let affine = [2, 3, 4, 5, 6, 8]
            .into_iter()
            .flat_map(|bits| [32, 64, 128].map(|group_size| Scheme { mode: Mode::Affine, bits, group_size }));
        let floats = [(Mode::Mxfp4, 4, 32), (Mode::Nvfp4, 4, 16), (Mode::Mxfp8, 8, 32)];
        affine.chain(floats.map(|(mode, bits, group_size)| Scheme { mode, bits, group_size }))
    }

    /// Each form of a stack of these sizes, and the same in full, `[.., out, in]`.
    fn matrices(sizes: &[i32], dtype: Dtype) -> impl Iterator<Item = (String, Matrix, Array)> {
        let full = drawn(1, sizes, dtype);
        let dense = Matrix::Dense(full.swap_axes(-1, -2).unwrap().into());
        let packed = {
            let full = full.clone();
            schemes().map(move |scheme| {
                let packed = quantize(&full, scheme).unwrap();
                let restored = dequantize(&packed, Dtype::Float32).unwrap();
                (format!("{scheme:?} {dtype:?}"), Matrix::Packed(packed), restored)
            })
        };
        [(format!("dense {dtype:?}"), dense, wide(&full))].into_iter().chain(packed)
    }

    #[test]
    fn products_are_those_of_mlx() {
        with_device(Device::cpu(), || {
            for dtype in FLOATS {
                for (what, matrix, full) in matrices(&[24, 256], dtype) {
                    for rows in [1, 2, 7, 40] {
                        let x = drawn(2, &[1, rows, 256], dtype);
                        let bias = drawn(3, &[24], dtype);
                        let ours = multiply(&x, &matrix, Some(&bias)).unwrap().unwrap();
                        let mlx = wide(&x).matmul(full.swap_axes(-1, -2).unwrap()).unwrap();
                        check(&ours, &mlx.add(wide(&bias)).unwrap(), dtype, &format!("{what}, {rows} rows"));
                    }
                }
            }
        });
    }

    #[test]
    fn gathered_products_are_those_of_mlx() {
        with_device(Device::cpu(), || {
            for dtype in FLOATS {
                for (what, matrix, full) in matrices(&[5, 24, 256], dtype) {
                    let full = full.swap_axes(-1, -2).unwrap();
                    let shared = Array::from_slice(&[4_u32, 0, 2, 2, 3, 1, 0, 4, 1, 3, 2, 0], &[2, 2, 3]);
                    let sorted = Array::from_slice(&[0_u32, 0, 1, 3, 3, 3, 4], &[7]);
                    for (rows, picks) in [
                        (vec![2, 2, 1, 1, 256], &shared),
                        (vec![2, 2, 3, 1, 256], &shared),
                        (vec![7, 1, 256], &sorted),
                    ] {
                        let x = drawn(2, &rows, dtype);
                        let ours = gather(&x, &matrix, picks).unwrap().unwrap();
                        let mlx = ops::gather_mm(wide(&x), &full, None, picks, false).unwrap();
                        check(&ours, &mlx, dtype, &format!("{what}, {rows:?}"));
                    }
                }
            }
        });
    }

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
                        let how = Attend { scale: 0.25, window, softcap, sinks };
                        let ours = attend(&queries, &[[&keys, &values]], &how).unwrap().unwrap();
                        let wide_how =
                            Attend { sinks: how.sinks.as_deref().map(|sinks| wide(sinks).into()), ..how };
                        let mlx = crate::nn::pass::plain(
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
    fn norms_and_gates_are_those_of_mlx() {
        with_device(Device::cpu(), || {
            for dtype in FLOATS {
                for shape in [vec![3, 1, 40], vec![2, 300, 256]] {
                    let (x, other) = (drawn(1, &shape, dtype), drawn(2, &shape, dtype));
                    let weight = drawn(3, &shape[2..], dtype);
                    let ours = rms_norm(&x, &weight, 1e-5).unwrap().unwrap();
                    let mlx = mlx_rs::fast::rms_norm(wide(&x), Some(&wide(&weight)), 1e-5).unwrap();
                    check(&ours, &mlx, dtype, &format!("rms_norm {dtype:?} {shape:?}"));
                    for gating in [
                        Gating::Plain(Activation::Silu),
                        Gating::Plain(Activation::GeluTanh),
                        Gating::Clamped { alpha: 1.7, limit: 0.5 },
                    ] {
                        let mlx = tracing(|| gating.apply(&wide(&x), &wide(&other)).unwrap());
                        let joined = ops::concatenate(&[&x, &other], -1).unwrap();
                        let turns = ops::stack(&[&x, &other], -1).unwrap();
                        let turns = turns.reshape(joined.shape()).unwrap();
                        for halves in
                            [Halves::Apart(&x, &other), Halves::Joined(&joined), Halves::Interleaved(&turns)]
                        {
                            let ours = gate(halves, gating).unwrap().unwrap();
                            check(&ours, &mlx, dtype, &format!("{gating:?} {dtype:?} {shape:?}"));
                        }
                    }
                }
            }
            assert!(
                gate(Halves::Joined(&drawn(1, &[4], Dtype::Float32)), Gating::Plain(Activation::Gelu))
                    .is_none()
            );
        });
    }

    #[test]
    fn rows_attend_each_to_its_own() {
        with_device(Device::cpu(), || {
            let queries = drawn(1, &[3, 6, 1, 16], Dtype::Float32);
            let caches = [7, 1, 33]
                .map(|len| [2, 3].map(|seed| drawn(seed + len, &[1, 2, len as i32, 16], Dtype::Float32)));
            let how = Attend { window: Some(33), ..Attend::all(0.25) };
            let rows: Vec<_> = caches.iter().map(|[keys, values]| [keys, values]).collect();
            let ours = attend(&queries, &rows, &how).unwrap().unwrap();
            for (index, [keys, values]) in rows.into_iter().enumerate() {
                let row = |x: &Array| slice(x, 0, index as i32, index as i32 + 1).unwrap();
                let mlx = crate::nn::pass::plain([&row(&queries), keys, values], &how).unwrap();
                check(&row(&ours), &mlx, Dtype::Float32, &format!("row {index}"));
            }
        });
    }

    #[test]
    fn what_the_kernels_do_not_know_is_left_to_mlx() {
        with_device(Device::cpu(), || {
            let matrix = Matrix::Dense(drawn(1, &[4, 8], Dtype::Float32).into());
            let x = drawn(2, &[2, 4], Dtype::Float32);
            assert!(multiply(&x, &matrix, None).is_some());
            assert!(tracing(|| multiply(&x, &matrix, None)).is_none());
            let whole = x.as_dtype(Dtype::Int32).unwrap();
            assert!(multiply(&whole, &matrix, None).is_none());
        });
    }
}
