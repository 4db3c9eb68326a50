//! Which experts a token goes to.

use cpu_kernels::Routing;
use mlx_rs::{Array, Dtype, error::Result};

use super::{
    super::exec::ExecMode,
    kernel::{kernel_result, kernels, promoted},
    operand::{FloatView, floats_mut},
};
use crate::mlx::primitive::{Shape, primitive, primitive_one};

/// How experts are picked and weighted: see `cpu_kernels::Routing`, which has a bias besides.
#[derive(Debug, Clone, Copy)]
pub(in crate::nn) struct Picking {
    pub(in crate::nn) sigmoid: bool,
    pub(in crate::nn) groups: Option<[usize; 2]>,
    pub(in crate::nn) top_k: usize,
    pub(in crate::nn) normalize: Option<f32>,
    pub(in crate::nn) scale: f32,
}

impl Picking {
    /// The kernel's routing, with what is added to the scores for the choice.
    pub(super) fn routing(self, bias: Option<&[f32]>) -> Routing<'_> {
        let Self { sigmoid, groups, top_k, normalize, scale } = self;
        Routing { sigmoid, bias, groups, top_k, normalize, scale }
    }
}

/// Scores `[.., experts]`, and what is added to them for the choice, `[experts]` → the picked experts (u32) and their weights (f32),
/// `[.., top_k]` each.
pub(in crate::nn) fn route(scores: &Array, bias: Option<&Array>, how: Picking) -> Option<Result<[Array; 2]>> {
    let known =
        promoted([scores.dtype()]).is_some() && bias.is_none_or(|bias| bias.dtype() == Dtype::Float32);
    if ExecMode::current() != ExecMode::CpuKernels || !known {
        return None;
    }
    let (experts, rows) = scores.shape().split_last()?;
    let (experts, sizes) = (*experts as usize, [rows, &[how.top_k as i32]].concat());
    let shape = |dtype| Shape { sizes: &sizes, dtype, donor: None };
    let arrays: Vec<_> = [scores].into_iter().chain(bias).collect();
    Some(primitive(
        c"route",
        &arrays,
        [shape(Dtype::Uint32), shape(Dtype::Float32)],
        move |inputs, outputs| {
            let scores = FloatView::of(inputs[0])?;
            let bias = inputs.get(1).map(|bias| bias.elements::<f32>()).transpose()?;
            let routing = how.routing(bias.as_deref());
            let [picks, weights] = outputs else { return Err("two outputs were expected".into()) };
            let (picks, weights) = (picks.elements::<u32>()?, weights.elements::<f32>()?);
            kernel_result(kernels()?.route(scores.floats(), experts, &routing, picks, weights))
        },
    ))
}

/// What picked experts give, `[.., top_k, size]`, times their weights (f32), `[.., top_k]`, summed → `[.., size]`.
pub(in crate::nn) fn mix(outputs: &Array, weights: &Array) -> Option<Result<Array>> {
    let known = promoted([outputs.dtype()]).is_some() && weights.dtype() == Dtype::Float32;
    let &[ref rows @ .., _, size] = outputs.shape() else { return None };
    if ExecMode::current() != ExecMode::CpuKernels
        || !known
        || outputs.shape()[..outputs.ndim() - 1] != *weights.shape()
    {
        return None;
    }
    let sizes = [rows, &[size]].concat();
    Some(primitive_one(c"mix", &[outputs, weights], &sizes, outputs.dtype(), move |inputs, out| {
        let (outputs, weights) = (FloatView::of(inputs[0])?, inputs[1].elements::<f32>()?);
        kernel_result(kernels()?.mix(outputs.floats(), &weights, floats_mut(out)?))
    }))
}
