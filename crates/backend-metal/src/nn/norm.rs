//! RMS norm.

use inference_core::Result as LoadResult;
use mlx_rs::{Array, error::Result};

use super::{
    cpu,
    cuda::fused as cuda,
    parameter::{Weight, WeightTransform},
    weights::Weights,
};
use crate::mlx::fast;

/// Root mean square normalisation over the last axis, with a weight for each element.
#[derive(Debug, Clone)]
pub(crate) struct RmsNorm {
    weight: Weight,
    eps: f32,
}

impl RmsNorm {
    /// The norm at `weights`, of vectors of `size` elements. `offset`: the checkpoint stores the weights minus one.
    pub(crate) fn load(weights: &Weights<'_>, size: usize, eps: f32, offset: bool) -> LoadResult<Self> {
        let form = if offset { WeightTransform::PlusOne } else { WeightTransform::Stored };
        Ok(Self { weight: Weight::load(&[weights], None, "weight", &[vec![size]], form)?, eps })
    }

    /// `[.., size]` → the same
    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        let weight = self.weight.get()?;
        match cpu::rms_norm(x, &weight, self.eps) {
            Some(normalised) => normalised,
            None => fast::rms_norm(x, Some(&weight), self.eps),
        }
    }

    /// Normalisation without weights: `[.., size]` → the same.
    pub(crate) fn without_weight(x: &Array, eps: f32) -> Result<Array> {
        fast::rms_norm(x, None, eps)
    }

    /// x + norm(y): `[.., size]` each.
    pub(crate) fn add(&self, x: &Array, y: &Array) -> Result<Array> {
        let parts = self.parts()?;
        if let Some(added) = cuda::add_rms_norm([x, y], Some(&parts), None) {
            return added.map(|[sum]| sum);
        }
        match is_small(x).then(|| cpu::add_rms_norm([x, y], Some(parts), None)).flatten() {
            Some(added) => added.map(|[sum]| sum),
            None => x.add(self.forward(y)?),
        }
    }

    /// The sum x + y and its norm. With `before`, y is normalised first. `[.., size]` each.
    pub(crate) fn of_sum(&self, x: &Array, y: &Array, before: Option<&Self>) -> Result<[Array; 2]> {
        let (first, second) = (before.map(Self::parts).transpose()?, Some(self.parts()?));
        if let Some(added) = cuda::add_rms_norm([x, y], first.as_ref(), second.as_ref()) {
            return added;
        }
        match is_small(x).then(|| cpu::add_rms_norm([x, y], first, second)).flatten() {
            Some(added) => added,
            None => {
                let sum = match before {
                    Some(before) => x.add(before.forward(y)?)?,
                    None => x.add(y)?,
                };
                let normalised = self.forward(&sum)?;
                Ok([sum, normalised])
            }
        }
    }

    /// Weight and epsilon.
    pub(crate) fn parts(&self) -> Result<(Array, f32)> {
        Ok((self.weight.get()?, self.eps))
    }
}

/// A norm of the residual stream.
#[derive(Debug, Clone)]
pub(crate) enum Norm {
    /// Root mean square.
    Rms(RmsNorm),
    /// Mean and variance.
    Layer(LayerNorm),
}

impl Norm {
    /// `[.., size]` → the same
    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        match self {
            Self::Rms(norm) => norm.forward(x),
            Self::Layer(norm) => norm.forward(x),
        }
    }
}

/// Normalisation by mean and variance of the last axis.
#[derive(Debug, Clone)]
pub(crate) struct LayerNorm {
    weight: Option<Weight>,
    bias: Option<Weight>,
    eps: f32,
}

impl LayerNorm {
    /// The norm at `weights`, of vectors of `size` elements, with a bias or without. `offset`: the checkpoint stores the weights minus
    /// one.
    pub(crate) fn load(
        weights: &Weights<'_>,
        size: usize,
        eps: f32,
        bias: bool,
        offset: bool,
    ) -> LoadResult<Self> {
        let form = if offset { WeightTransform::PlusOne } else { WeightTransform::Stored };
        let weight = Weight::load(&[weights], None, "weight", &[vec![size]], form)?;
        let bias = bias.then(|| weights.take("bias", &[size])).transpose()?;
        Ok(Self { weight: Some(weight), bias, eps })
    }

    /// `[.., size]` → the same
    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        let weight = self.weight.as_ref().map(Weight::get).transpose()?;
        let bias = self.bias.as_ref().map(Weight::get).transpose()?;
        match weight.as_ref().and_then(|weight| cpu::layer_norm(x, None, weight, bias.as_ref(), self.eps)) {
            Some(normalised) => normalised,
            None => fast::layer_norm(x, weight.as_ref(), bias.as_ref(), self.eps),
        }
    }

    /// Weight, bias and epsilon.
    pub(crate) fn parts(&self) -> Result<(Option<Array>, Option<Array>, f32)> {
        let [weight, bias] =
            [&self.weight, &self.bias].map(|part| part.as_ref().map(Weight::get).transpose());
        Ok((weight?, bias?, self.eps))
    }

    /// The norm of x + y: `[.., size]` each.
    pub(crate) fn of_sum(&self, x: &Array, y: &Array) -> Result<Array> {
        let weight = self.weight.as_ref().map(Weight::get).transpose()?;
        let bias = self.bias.as_ref().map(Weight::get).transpose()?;
        match weight.and_then(|weight| cpu::layer_norm(x, Some(y), &weight, bias.as_ref(), self.eps)) {
            Some(normalised) => normalised,
            None => self.forward(&x.add(y)?),
        }
    }
}

/// Whether sum and norm are faster as one operation: for many vectors, MLX's sum in place is faster.
fn is_small(x: &Array) -> bool {
    x.size() <= 1 << 16
}
