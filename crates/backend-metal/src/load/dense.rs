//! The layers behind the pooling of an embedding model.

use half::{bf16, f16};
use inference_core::{
    Dtype, Error, Pooling, Result,
    backend::{DenseConfig, EmbeddingConfig, TensorInfo},
};
use mlx_rs::Array;

use crate::nn::{DenseLayer, ModelConfig};

/// Reads the layers behind the pooling of a model.
///
/// # Errors
/// [`Error::InvalidModel`]: one does not fit what comes before it, or its file became shorter; [`Error::OutOfMemory`], [`Error::Io`].
pub(crate) fn load_dense(config: &EmbeddingConfig, model: &ModelConfig) -> Result<Vec<DenseLayer>> {
    let mut size = model.hidden_size;
    let layer = |dense: &DenseConfig| {
        if dense.inputs != size {
            let reason = format!("is {}, but what comes before has {size} elements", dense.inputs);
            return Err(Error::invalid_key(&dense.config_path, "in_features", reason));
        }
        size = dense.outputs;
        super::check_free_memory(dense.weight.bytes().saturating_mul(2), || {
            dense.weights_path.display().to_string()
        })?;
        let weight = array(dense, &dense.weight, &[dense.outputs as i32, dense.inputs as i32])?;
        let bias = dense.bias.as_ref().map(|bias| array(dense, bias, &[dense.outputs as i32])).transpose()?;
        let failed = |error| Error::backend("mlx", "bind the weights", error);
        let weight = weight.swap_axes(0, 1).and_then(|weight| weight.contiguous()).map_err(failed)?;
        weight.eval().map_err(failed)?;
        Ok(DenseLayer { weight, bias, activation: dense.activation })
    };
    config.dense.iter().map(layer).collect()
}

/// How a model makes a vector of a text where its folder does not say: an encoder as sentence-transformers does, a decoder by its last
/// token, which alone has seen all of the text.
pub(crate) fn default_pooling(model: &ModelConfig) -> Pooling {
    if model.encodes { Pooling::Mean } else { Pooling::Last }
}

/// A tensor in single precision.
fn array(dense: &DenseConfig, tensor: &TensorInfo, shape: &[i32]) -> Result<Array> {
    let bytes = dense.read_tensor(tensor)?;
    let values: Vec<f32> = match tensor.dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|x| f16::from_le_bytes(*x).to_f32()).collect(),
        Dtype::Bf16 => bytes.as_chunks().0.iter().map(|x| bf16::from_le_bytes(*x).to_f32()).collect(),
        other => {
            let reason = format!("has tensors of type {other:?}, expected F32, F16 or BF16");
            return Err(Error::invalid_file(&dense.weights_path, reason));
        }
    };
    Ok(Array::from_slice(&values, shape))
}
