//! The choice of experts by a router's scores.

use cuda_kernels::{DevicePtr, RoutingSpec};
use mlx_rs::{
    Array, Dtype,
    error::Result,
    ops::{self, indexing::take_along_axis},
    stop_gradient,
};

use super::{
    cpu,
    cuda::{SpecBuilder, Unsupported},
    exec::ExecMode,
};
use crate::mlx::{scalar, slice};

/// How experts are picked by the router's scores, and weighted.
#[derive(Debug)]
pub(crate) struct Routing {
    /// What is made of the scores.
    pub(crate) scoring: Scoring,
    /// What is added to them for the choice, not for the weights: `[experts]`, f32.
    pub(crate) bias: Option<Array>,
    /// Experts are picked from the best groups: how many groups there are, and how many are the best. A group is as good as its two
    /// best experts together.
    pub(crate) groups: Option<[usize; 2]>,
    /// Experts for each token.
    pub(crate) top_k: usize,
    /// Whether the weights of the picked experts are made to sum to one.
    pub(crate) normalize: bool,
    /// What is added to that sum before weights are divided by it.
    pub(crate) epsilon: f32,
    /// Factor of the weights.
    pub(crate) scale: f32,
}

/// What is made of a router's scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scoring {
    /// Probabilities of all experts.
    Softmax,
    /// Each expert's own probability.
    Sigmoid,
}

impl Routing {
    /// Probabilities of all experts.
    pub(crate) fn softmax(top_k: usize, normalize: bool) -> Self {
        Self {
            scoring: Scoring::Softmax,
            bias: None,
            groups: None,
            top_k,
            normalize,
            epsilon: 0.0,
            scale: 1.0,
        }
    }

    /// Each expert's own probability.
    pub(crate) fn sigmoid(top_k: usize, normalize: bool) -> Self {
        Self { scoring: Scoring::Sigmoid, epsilon: 1e-20, ..Self::softmax(top_k, normalize) }
    }

    pub(super) fn picking(&self) -> cpu::Picking {
        cpu::Picking {
            sigmoid: self.scoring == Scoring::Sigmoid,
            groups: self.groups,
            top_k: self.top_k,
            normalize: self.normalize.then_some(self.epsilon),
            scale: self.scale,
        }
    }

    /// What the kernels of CUDA need to know.
    pub(super) fn describe(
        &self,
        builder: &mut SpecBuilder,
    ) -> std::result::Result<RoutingSpec, Unsupported> {
        // All fields, so that none is forgotten.
        let Self { scoring, bias, groups, top_k, normalize, epsilon, scale } = self;
        if groups.is_some() {
            return Err(Unsupported("experts of the best groups".to_owned()));
        }
        Ok(RoutingSpec {
            scoring: match scoring {
                Scoring::Softmax => cuda_kernels::Scoring::Softmax,
                Scoring::Sigmoid => cuda_kernels::Scoring::Sigmoid,
            },
            bias: bias.as_ref().map_or(Ok(DevicePtr::NULL), |bias| builder.single(bias))?,
            top_k: *top_k,
            normalize: normalize.then_some(*epsilon),
            scale: *scale,
        })
    }

    /// Scores `[.., experts]` → the picked experts and their weights, `[.., top_k]` each.
    pub(crate) fn pick(&self, scores: &Array) -> Result<[Array; 2]> {
        if let Some(picked) = cpu::route(scores, self.bias.as_ref(), self.picking()) {
            return picked;
        }
        let scores = scores.as_dtype(Dtype::Float32)?;
        let scores = match self.scoring {
            Scoring::Softmax => ops::softmax_axis(&scores, -1, true)?,
            Scoring::Sigmoid => ops::sigmoid(&scores)?,
        };
        let mut choice = match &self.bias {
            Some(bias) => scores.add(bias)?,
            None => scores.clone(),
        };
        if let Some(groups) = self.groups {
            choice = best_groups(&choice, groups)?;
        }
        let picks = largest(&choice, self.top_k)?;
        let picks = if ExecMode::current().is_differentiable() { stop_gradient(picks)? } else { picks };
        let mut weights = take_along_axis(&scores, &picks, -1)?;
        if self.normalize {
            let sum = weights.sum_axis(-1, true)?;
            let sum = if self.epsilon > 0.0 { sum.add(Array::from_f32(self.epsilon))? } else { sum };
            weights = weights.divide(sum)?;
        }
        if self.scale.to_bits() != 1.0_f32.to_bits() {
            weights = weights.multiply(Array::from_f32(self.scale))?;
        }
        Ok([picks, weights])
    }
}

/// The places of the largest elements of the last axis, in any order.
fn largest(x: &Array, count: usize) -> Result<Array> {
    let first = x.dim(-1) - count as i32;
    let order = ops::argpartition_axis(x, first, -1)?;
    slice(&order, order.ndim() - 1, first, x.dim(-1))
}

/// The scores of the experts in the best groups; those of others are less than any.
fn best_groups(scores: &Array, [groups, best]: [usize; 2]) -> Result<Array> {
    let rows = &scores.shape()[..scores.ndim() - 1];
    let grouped = scores.reshape(&[rows, &[groups as i32, -1]].concat())?;
    let two = largest(&grouped, 2.min(grouped.dim(-1) as usize))?;
    let of_groups = take_along_axis(&grouped, &two, -1)?.sum_axis(-1, false)?;
    let picked = largest(&of_groups, best)?.expand_dims(-1)?;
    let is_best = ops::arange::<_, u32>(0, groups as i32, None)?.eq(&picked)?.any_axis(-2, false)?;
    let worst = ops::select(&is_best.expand_dims(-1)?, &grouped, scalar(f32::NEG_INFINITY, Dtype::Float32)?)?;
    worst.reshape(scores.shape())
}
