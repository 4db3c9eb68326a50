//! The layers behind the pooling of an embedding model.

use inference_core::backend::DenseActivation;
use mlx_rs::{Array, error::Result, ops};

/// A layer behind the pooling: act(W · x + b), in single precision.
#[derive(Debug)]
pub(crate) struct DenseLayer {
    /// `[inputs, outputs]`
    pub(crate) weight: Array,
    /// `[outputs]`
    pub(crate) bias: Option<Array>,
    pub(crate) activation: DenseActivation,
}

impl DenseLayer {
    /// Vectors `[texts, inputs]` through these layers, one after the other.
    pub(crate) fn forward_all(layers: &[Self], x: Array) -> Result<Array> {
        layers.iter().try_fold(x, |x, layer| layer.forward(&x))
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        let product = x.matmul(&self.weight)?;
        let sum = self.bias.as_ref().map_or(Ok(product.clone()), |bias| product.add(bias))?;
        match self.activation {
            DenseActivation::Tanh => ops::tanh(&sum),
            DenseActivation::Relu => ops::maximum(&sum, Array::from_f32(0.0)),
            _ => Ok(sum),
        }
    }
}
