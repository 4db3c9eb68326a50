//! What an adapter adds to single matrices.

use inference_core::{Error, Result, backend::AdapterManifest, train::Method};
use mlx_rs::{Array, Dtype, error::Result as MlxResult};

use super::experts::stacked_name;
use crate::{
    load::adapter::check_size,
    mlx::{Tensors, mlx_dtype, scalar, slice},
};

/// What an adapter adds to a matrix, in float32.
#[derive(Debug, Clone)]
pub(super) struct Delta {
    pub(super) path: String,
    a: Array,
    b: Array,
    /// DoRA's: the norms that rows are given.
    magnitude: Option<Array>,
    scale: f32,
    /// Which expert's the matrix is, where the files hold each for itself.
    expert: Option<i32>,
}

impl Delta {
    /// The matrix, in float32, with the adapter in it.
    pub(super) fn apply(&self, weight: &Array) -> MlxResult<Array> {
        let Self { a, b, .. } = self;
        let delta = match (a.ndim(), self.expert) {
            // Of experts A is [experts, rank, inputs] and B [experts, outputs, rank].
            (3, Some(expert)) => {
                let one = |stack: &Array| slice(stack, 0, expert, expert + 1)?.squeeze_axes(&[0]);
                one(b)?.matmul(one(a)?)?
            }
            (3, None) => b.matmul(a)?,
            _ if self.path.ends_with("embed_tokens") => a.matmul(b)?,
            _ => a.matmul(b)?.swap_axes(-1, -2)?,
        };
        let adapted = weight.add(delta.multiply(scalar(self.scale, Dtype::Float32)?)?)?;
        let Some(magnitude) = &self.magnitude else { return Ok(adapted) };
        let norms = adapted.square()?.sum_axis(-1, false)?.sqrt()?;
        adapted.multiply(magnitude.divide(norms)?.expand_dims(-1)?)
    }
}

/// What an adapter adds to each of its layers.
pub(super) fn read(adapter: &AdapterManifest) -> Result<Vec<Delta>> {
    check_size(adapter)?;
    let path = adapter.file();
    let tensors = Tensors::open(&path)?;
    let (Method::Lora(options) | Method::Dora(options)) = &adapter.config().method else {
        return Ok(Vec::new());
    };
    let read = |layer: &str, part: &str| {
        let Some(info) = adapter.tensors().get(&format!("{layer}.{part}")) else { return Ok(None) };
        let array = tensors.read(info, mlx_dtype(info.dtype).unwrap_or(Dtype::Float32))?;
        let wide = array.as_dtype(Dtype::Float32);
        wide.map(Some).map_err(|error| Error::backend("mlx", "read an adapter", error))
    };
    let layers = adapter.layers().iter().map(|layer| {
        let missing = || Error::invalid_key(&path, &layer.path, "lacks lora_a or lora_b");
        Ok(Delta {
            path: layer.path.clone(),
            a: read(&layer.path, "lora_a")?.ok_or_else(missing)?,
            b: read(&layer.path, "lora_b")?.ok_or_else(missing)?,
            magnitude: read(&layer.path, "m")?,
            scale: options.scale,
            expert: None,
        })
    });
    layers.collect()
}

/// What is added to a matrix of the model's files, which may be that of a single expert.
pub(super) fn find(layers: &[Delta], stem: &str) -> Option<Delta> {
    let named = |name: &str| layers.iter().find(|layer| layer.path == name).cloned();
    named(stem).or_else(|| {
        let (stack, expert) = stacked_name(stem)?;
        Some(Delta { expert: Some(expert as i32), ..named(&stack)? })
    })
}
