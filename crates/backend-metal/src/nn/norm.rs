//! Normalisation.

use inference_core::{Error, Result as LoadResult};
use mlx_rs::{Array, error::Result, fast};

use super::{ops::scalar, weights::Weights};

/// Root mean square normalisation over the last axis, with a weight for each element.
#[derive(Debug, Clone)]
pub(crate) struct RmsNorm {
    weight: Array,
    eps: f32,
}

impl RmsNorm {
    /// The norm at `weights`, of vectors of `size` elements.
    pub(crate) fn load(weights: &Weights<'_>, size: usize, eps: f32) -> LoadResult<Self> {
        Ok(Self { weight: weights.take("weight", &[size])?, eps })
    }

    /// As [`load`](Self::load), where the checkpoint holds the weights less one.
    pub(crate) fn load_offset(weights: &Weights<'_>, size: usize, eps: f32) -> LoadResult<Self> {
        let stored = weights.take("weight", &[size])?;
        let weight = scalar(1.0, stored.dtype())
            .and_then(|one| stored.add(one))
            .and_then(|weight| weight.eval().map(|()| weight))
            .map_err(|error| Error::backend("mlx", "bind the weights", error))?;
        Ok(Self { weight, eps })
    }

    /// `[.., size]` → the same
    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        fast::rms_norm(x, Some(&self.weight), self.eps)
    }
}
