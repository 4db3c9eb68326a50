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
    /// The norm at `weights`, of vectors of `size` elements. `offset` says that the checkpoint holds its weights less one.
    pub(crate) fn load(weights: &Weights<'_>, size: usize, eps: f32, offset: bool) -> LoadResult<Self> {
        let mut weight = weights.take_vector("weight", &[size])?;
        if offset {
            weight = scalar(1.0, weight.dtype())
                .and_then(|one| weight.add(one))
                .and_then(|weight| weight.eval().map(|()| weight))
                .map_err(|error| Error::backend("mlx", "bind the weights", error))?;
        }
        Ok(Self { weight, eps })
    }

    /// `[.., size]` → the same
    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        fast::rms_norm(x, Some(&self.weight), self.eps)
    }
}
