//! What is done to vectors between products: norms and gates.

use cpu_kernels::{Draw, ElementActivation, GluInput, LayerNorm, RmsNorm};
use mlx_rs::{Array, Dtype, error::Result};

use super::{
    super::{
        activation::{Activation, Gating},
        exec::ExecMode,
    },
    kernel::{KernelResult, kernel_result, kernels, promoted},
    operand::{FloatView, floats_mut},
};
use crate::mlx::primitive::{Shape, primitive, primitive_one};

/// Root mean square normalisation of the last axis.
pub(in crate::nn) fn rms_norm(x: &Array, weight: &Array, eps: f32) -> Option<Result<Array>> {
    if ExecMode::current() != ExecMode::CpuKernels {
        return None;
    }
    let dtype = promoted([x.dtype(), weight.dtype()])?;
    if weight.shape() != &x.shape()[x.ndim().checked_sub(1)?..] {
        return None;
    }
    Some(primitive_one(c"rms_norm", &[x, weight], x.shape(), dtype, move |inputs, output| {
        let (x, weight) = (FloatView::of(inputs[0])?, FloatView::of(inputs[1])?);
        let norm = RmsNorm { weight: weight.floats(), eps };
        kernel_result(kernels()?.rms_norm(x.floats(), &norm, floats_mut(output)?))
    }))
}

/// Normalisation of x, or of x + y, by mean and variance of the last axis.
pub(in crate::nn) fn layer_norm(
    x: &Array,
    y: Option<&Array>,
    weight: &Array,
    bias: Option<&Array>,
    eps: f32,
) -> Option<Result<Array>> {
    if ExecMode::current() != ExecMode::CpuKernels || y.is_some_and(|y| y.shape() != x.shape()) {
        return None;
    }
    let arrays: Vec<_> = [x, weight].into_iter().chain(y).chain(bias).collect();
    let dtype = promoted(arrays.iter().map(|array| array.dtype()))?;
    let size = &x.shape()[x.ndim().checked_sub(1)?..];
    if weight.shape() != size || bias.is_some_and(|bias| bias.shape() != size) {
        return None;
    }
    let adds = usize::from(y.is_some());
    Some(primitive_one(c"layer_norm", &arrays, x.shape(), dtype, move |inputs, output| {
        let held = inputs.iter().map(|input| FloatView::of(*input)).collect::<KernelResult<Vec<_>>>()?;
        let [x, weight, rest @ ..] = held.as_slice() else {
            return Err("x and weights were expected".into());
        };
        let (y, bias) = rest.split_at(adds.min(rest.len()));
        let bias = bias.first().map(FloatView::floats);
        let norm = LayerNorm { weight: weight.floats(), bias, eps };
        let y = y.first().map(FloatView::floats);
        kernel_result(kernels()?.layer_norm(x.floats(), y, &norm, floats_mut(output)?))
    }))
}

/// The kernel's activation.
pub(super) fn element_activation(activation: Activation) -> ElementActivation {
    match activation {
        Activation::Silu => ElementActivation::Silu,
        Activation::Gelu => ElementActivation::Gelu,
        Activation::GeluTanh => ElementActivation::GeluTanh,
        Activation::Relu => ElementActivation::Relu,
        Activation::Relu2 => ElementActivation::Relu2,
    }
}

/// The kernel's gated linear unit.
pub(super) fn gated_linear_unit(gating: Gating) -> Option<cpu_kernels::Glu> {
    Some(match gating {
        Gating::Glu(Activation::Silu) => cpu_kernels::Glu::Silu,
        Gating::Glu(Activation::GeluTanh) => cpu_kernels::Glu::GeluTanh,
        Gating::Glu(Activation::Gelu) => cpu_kernels::Glu::Gelu,
        Gating::Glu(Activation::Relu | Activation::Relu2) => return None,
        Gating::Clamped { alpha, limit } => cpu_kernels::Glu::Clamped { alpha, limit },
    })
}

/// An activation of each element.
pub(in crate::nn) fn activate(x: &Array, activation: Activation) -> Option<Result<Array>> {
    if ExecMode::current() != ExecMode::CpuKernels {
        return None;
    }
    let activation = element_activation(activation);
    let dtype = promoted([x.dtype()])?;
    Some(primitive_one(c"activate", &[x], x.shape(), dtype, move |inputs, output| {
        kernel_result(kernels()?.activate(
            FloatView::of(inputs[0])?.floats(),
            activation,
            floats_mut(output)?,
        ))
    }))
}

/// What a vector is normalised with: the weights, and what is added to the mean of squares.
pub(in crate::nn) type NormWeight = (Array, f32);

/// x + y, where y may be normalised before; and, where two are wanted, that normalised with `after`.
pub(in crate::nn) fn add_rms_norm<const N: usize>(
    [x, y]: [&Array; 2],
    before: Option<NormWeight>,
    after: Option<NormWeight>,
) -> Option<Result<[Array; N]>> {
    if ExecMode::current() != ExecMode::CpuKernels
        || x.shape() != y.shape()
        || N != 1 + usize::from(after.is_some())
    {
        return None;
    }
    let (size, dtype) = (*x.shape().last()?, promoted([x.dtype()])?);
    let eps = [&before, &after].map(|norm| norm.as_ref().map(|(_, eps)| *eps));
    let weights = [before, after].into_iter().flatten().map(|(weight, _)| weight);
    let weights: Vec<_> = weights.collect();
    let fits = |weight: &Array| weight.shape() == [size] && weight.dtype() == dtype;
    if y.dtype() != dtype || !weights.iter().all(fits) {
        return None;
    }
    let arrays: Vec<_> = [x, y].into_iter().chain(&weights).collect();
    let shapes = [(); N].map(|()| Shape { sizes: x.shape(), dtype, donor: None });
    Some(primitive(c"add_rms_norm", &arrays, shapes, move |inputs, outputs| {
        let held = inputs.iter().map(|input| FloatView::of(*input)).collect::<KernelResult<Vec<_>>>()?;
        let ([x, y], weights) = held.split_first_chunk().ok_or("two terms were expected")?;
        let mut weights = weights.iter();
        let mut norm = |eps: Option<f32>| Some(RmsNorm { eps: eps?, weight: weights.next()?.floats() });
        let [before, after] = [norm(eps[0]), norm(eps[1])];
        let (sum, out) = outputs.split_first_mut().ok_or("a sum was expected")?;
        let out = out.first_mut().map(floats_mut).transpose()?;
        let terms = [x.floats(), y.floats()];
        let added = kernels()?.add_rms_norm(
            terms,
            size as usize,
            before.as_ref(),
            floats_mut(sum)?,
            after.as_ref().zip(out),
        );
        kernel_result(added)
    }))
}

/// The index of the largest element of the last axis, u32: `[.., size]` → `[..]`.
pub(in crate::nn) fn argmax(x: &Array) -> Option<Result<Array>> {
    let (size, rows) = x.shape().split_last()?;
    if ExecMode::current() != ExecMode::CpuKernels || *size == 0 || promoted([x.dtype()]).is_none() {
        return None;
    }
    Some(primitive_one(c"argmax", &[x], rows, Dtype::Uint32, move |inputs, output| {
        kernel_result(kernels()?.argmax(FloatView::of(inputs[0])?.floats(), output.elements::<u32>()?))
    }))
}

/// A token of each row of logits, u32, and its log-probability, f32: `[B, V]` → `[B]`, `[B]`.
pub(in crate::nn) fn draw(logits: &Array, draws: Vec<Draw>) -> Option<Result<[Array; 2]>> {
    if ExecMode::current() != ExecMode::CpuKernels || promoted([logits.dtype()]).is_none() {
        return None;
    }
    let sizes = [draws.len() as i32];
    let outputs = [Dtype::Uint32, Dtype::Float32].map(|dtype| Shape { sizes: &sizes, dtype, donor: None });
    Some(primitive(c"draw", &[logits], outputs, move |inputs, outputs| {
        let logits = FloatView::of(inputs[0])?;
        let [ids, scores] = outputs else { return Err("ids and log-probabilities were expected".into()) };
        let (ids, scores) = (ids.elements::<u32>()?, scores.elements::<f32>()?);
        kernel_result(kernels()?.draw(logits.floats(), &draws, ids, scores))
    }))
}

/// Logits `[B, V]` without the tokens that rows may not have, which are −∞: for each row a bit for each token, or all.
pub(in crate::nn) fn ban(logits: &Array, allowed: &[Option<Vec<u32>>]) -> Option<Result<Array>> {
    if ExecMode::current() != ExecMode::CpuKernels || promoted([logits.dtype()]).is_none() {
        return None;
    }
    let (shape, allowed) =
        (Shape { sizes: logits.shape(), dtype: logits.dtype(), donor: Some(0) }, allowed.to_vec());
    let banned = primitive(c"ban", &[logits], [shape], move |_, outputs| {
        let [output] = outputs else { return Err("logits were expected".into()) };
        let allowed: Vec<_> = allowed.iter().map(Option::as_deref).collect();
        kernel_result(cpu_kernels::ban(&allowed, floats_mut(output)?))
    });
    Some(banned.map(|[banned]| banned))
}

/// Where the two halves of a feed-forward block are.
#[derive(Debug, Clone, Copy)]
pub(in crate::nn) enum Halves<'a> {
    /// In two arrays alike, `[.., size]`.
    Apart(&'a Array, &'a Array),
    /// In one, `[.., 2 · size]`, gates first.
    Joined(&'a Array),
    /// In one, taking turns.
    Interleaved(&'a Array),
}

/// [`Gating`] of two halves → `[.., size]`.
pub(in crate::nn) fn glu(halves: Halves<'_>, gating: Gating) -> Option<Result<Array>> {
    if ExecMode::current() != ExecMode::CpuKernels {
        return None;
    }
    let gating = gated_linear_unit(gating)?;
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
    Some(primitive_one(c"glu", &arrays, &sizes, dtype, move |inputs, output| {
        let first = FloatView::of(inputs[0])?;
        let second = inputs.get(1).copied().map(FloatView::of).transpose()?;
        let ups = second.as_ref().map_or_else(|| first.from(offset), FloatView::floats);
        let gates = GluInput { gates: first.floats(), ups, row_stride: size * share as usize, step };
        kernel_result(kernels()?.glu(&gates, gating, size, floats_mut(output)?))
    }))
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Device, ops, with_device};

    use super::*;
    use crate::nn::{
        cpu::kernel::testing::{FLOATS, check, drawn, wide},
        exec::ExecMode,
    };

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
                    let norm =
                        |x: &Array| mlx_rs::fast::rms_norm(wide(x), Some(&wide(&weight)), 1e-5).unwrap();
                    for before in [None, Some((weight.clone(), 1e-5))] {
                        let term = if before.is_some() { norm(&other) } else { wide(&other) };
                        let sum = wide(&x).add(&term).unwrap();
                        let ours: [Array; 2] =
                            add_rms_norm([&x, &other], before.clone(), Some((weight.clone(), 1e-5)))
                                .unwrap()
                                .unwrap();
                        let what = format!("add {dtype:?} {shape:?}, {}", before.is_some());
                        check(&ours[0], &sum, dtype, &what);
                        check(&ours[1], &norm(&ours[0]), dtype, &what);
                        let [alone] = add_rms_norm([&x, &other], before, None).unwrap().unwrap();
                        assert!(alone.eq_values(&ours[0]).unwrap(), "{what}");
                    }
                    let largest = ops::indexing::argmax_axis(&x, -1, false).unwrap();
                    assert!(argmax(&x).unwrap().unwrap().eq_values(&largest).unwrap());
                    for gating in [
                        Gating::Glu(Activation::Silu),
                        Gating::Glu(Activation::GeluTanh),
                        Gating::Glu(Activation::Gelu),
                        Gating::Clamped { alpha: 1.7, limit: 0.5 },
                    ] {
                        let mlx = ExecMode::Mlx.scope(|| gating.apply(&wide(&x), &wide(&other)).unwrap());
                        let joined = ops::concatenate(&[&x, &other], -1).unwrap();
                        let turns = ops::stack(&[&x, &other], -1).unwrap();
                        let turns = turns.reshape(joined.shape()).unwrap();
                        for halves in
                            [Halves::Apart(&x, &other), Halves::Joined(&joined), Halves::Interleaved(&turns)]
                        {
                            let ours = glu(halves, gating).unwrap().unwrap();
                            check(&ours, &mlx, dtype, &format!("{gating:?} {dtype:?} {shape:?}"));
                        }
                    }
                }
            }
            assert!(
                glu(Halves::Joined(&drawn(1, &[4], Dtype::Float32)), Gating::Glu(Activation::Relu)).is_none()
            );
        });
    }
}
