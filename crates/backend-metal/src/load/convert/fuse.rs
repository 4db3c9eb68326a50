//! A model and an adapter in one: the folder of a model that gives what the two give together.

use std::{collections::BTreeSet, path::Path};

use inference_core::{AdapterManifest, Error, Method, ModelManifest, Result, TensorInfo};
use mlx_rs::{Array, Dtype, error::Result as MlxResult};

use super::{
    experts::{Joined, stacked_name},
    plan::{Plan, is_part_of_packed},
    publish,
};
use crate::{
    load::{Progress, Reader, Tensors, mlx_dtype, with_trained_weights},
    nn::ops::{scalar, slice},
};

/// What becomes of a quantised model.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct FuseOptions {
    /// Whether all its weights are written in full. Otherwise those that are adapted are quantised again as they were, which
    /// rounds what was learnt.
    pub dequantize: bool,
}

/// Writes the model of `source` with what `adapter` adds to it to the new folder `target`. Blocks until done; `observe` is called
/// as tensors are read, and ends it with [`Error::Cancelled`] by returning `false`.
///
/// # Errors
/// [`Error::InvalidOption`] where the target exists; [`Error::InvalidModel`] names a layer that the model's files do not hold under
/// its name; [`Error::Io`].
pub fn fuse(
    source: &ModelManifest,
    adapter: &AdapterManifest,
    target: &Path,
    options: &FuseOptions,
    observe: &mut dyn FnMut(Progress) -> bool,
) -> Result<()> {
    let source = &with_trained_weights(source.clone(), Some(adapter))?;
    let layers = read(adapter)?;
    let mut plan = Plan::default();
    let mut used = BTreeSet::new();
    for (name, tensor) in source.tensors() {
        let stem = name.strip_suffix(".weight");
        let packed = |stem: &str| source.tensors().contains_key(&format!("{stem}.scales"));
        if let Some((stem, (layer, expert))) = stem.and_then(|stem| Some((stem, find(&layers, stem)?))) {
            used.insert(layer.path.as_str());
            plan.add_delta(source, stem, Delta { expert, ..layer.clone() }, options.dequantize)?;
        } else if is_part_of_packed(source, name) {
            let stem = name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem);
            if !options.dequantize && find(&layers, stem).is_none() {
                plan.keep(name, tensor);
            }
        } else {
            match stem {
                Some(stem) if options.dequantize && packed(stem) => plan.dequantize(source, stem)?,
                _ => plan.keep(name, tensor),
            }
        }
    }
    if let Some(layer) = layers.iter().find(|layer| !used.contains(layer.path.as_str())) {
        return Err(Error::invalid_key(adapter.file(), &layer.path, absent(source, &layer.path)));
    }
    let config = if options.dequantize { plan.config(source) } else { source.config().clone() };
    publish(&plan, &Reader::new(source, observe), &config, target)
}

/// Why the model's files hold no matrix of this name.
fn absent(source: &ModelManifest, path: &str) -> String {
    let holds = |(name, tensor): &(&String, &TensorInfo)| {
        Joined::of(source, name, tensor).is_some_and(|joined| joined.stems.iter().any(|stem| stem == path))
    };
    match source.tensors().iter().find(holds) {
        Some((name, _)) => format!(
            "the model's files hold these experts joined, as {name}, into which nothing is fused: convert the model first, with \
             --bits or, packed ones, --dense"
        ),
        None => "the model's files hold no matrix of this name".to_owned(),
    }
}

/// What an adapter adds to a matrix, in float32.
#[derive(Debug, Clone)]
pub(super) struct Delta {
    path: String,
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

fn read(adapter: &AdapterManifest) -> Result<Vec<Delta>> {
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

/// The adapter of a matrix of the model's files; and which of its experts the matrix is, where each is stored for itself.
fn find<'a>(layers: &'a [Delta], stem: &str) -> Option<(&'a Delta, Option<i32>)> {
    let named = |name: &str| layers.iter().find(|layer| layer.path == name);
    named(stem).map(|layer| (layer, None)).or_else(|| {
        let (stack, expert) = stacked_name(stem)?;
        Some((named(&stack)?, Some(expert as i32)))
    })
}

#[cfg(test)]
mod tests {
    use inference_core::Dtype as Stored;

    use super::*;
    use crate::load::Writer;

    #[test]
    fn joined_experts_are_named_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), r#"{"model_type": "mixtral"}"#).unwrap();
        let joined = ("model.layers.0.mlp.experts.gate_up_proj".to_owned(), Stored::F32, vec![2, 4, 2]);
        let path = folder.path().join("model.safetensors");
        let mut file = Writer::create(&path, [&joined].into_iter()).unwrap();
        file.add(&Array::from_slice(&[0.0_f32; 16], &[2, 4, 2])).unwrap();
        file.finish().unwrap();
        let source = ModelManifest::read(folder.path()).unwrap();
        let why = |name: &str| absent(&source, &format!("model.layers.0.mlp.switch_mlp.{name}"));
        assert!(why("up_proj").contains("as model.layers.0.mlp.experts.gate_up_proj"), "{}", why("up_proj"));
        assert!(why("down_proj").contains("no matrix"), "{}", why("down_proj"));
    }
}
