//! Which experts a token goes to.

use cpu_kernels::Routing;
use mlx_rs::{Array, Dtype, error::Result};

use super::{
    super::{exec::ExecMode, moe},
    kernel::{kernel_result, kernels, promoted},
    operand::FloatView,
};
use crate::mlx::primitive::{Shape, primitive};

/// Scores `[.., experts]` → the picked experts (u32) and their weights (f32), `[.., top_k]` each.
pub(in crate::nn) fn route(scores: &Array, routing: &moe::Routing) -> Option<Result<[Array; 2]>> {
    if ExecMode::current() != ExecMode::CpuKernels || promoted([scores.dtype()]).is_none() {
        return None;
    }
    let (experts, rows) = scores.shape().split_last()?;
    let sizes = [rows, &[routing.top_k as i32]].concat();
    let shape = |dtype| Shape { sizes: &sizes, dtype, donor: None };
    let arrays: Vec<_> = [scores].into_iter().chain(&routing.bias).collect();
    let (experts, sigmoid) = (*experts as usize, routing.scoring == moe::Scoring::Sigmoid);
    let (groups, top_k, scale) = (routing.groups, routing.top_k, routing.scale);
    let normalise = routing.normalise.then_some(routing.epsilon);
    Some(primitive(
        c"route",
        &arrays,
        [shape(Dtype::Uint32), shape(Dtype::Float32)],
        move |inputs, outputs| {
            let scores = FloatView::of(inputs[0])?;
            let bias = inputs.get(1).map(|bias| bias.elements::<f32>()).transpose()?;
            let routing = Routing { sigmoid, bias: bias.as_deref(), groups, top_k, normalise, scale };
            let [picks, weights] = outputs else { return Err("two outputs were expected".into()) };
            let (picks, weights) = (picks.elements::<u32>()?, weights.elements::<f32>()?);
            kernel_result(kernels()?.route(scores.floats(), experts, &routing, picks, weights))
        },
    ))
}
