//! A model and an adapter in one: the folder of a model that gives what the two give together.

use std::{collections::BTreeSet, path::Path};

use inference_core::{
    Error, ModelManifest, Result,
    backend::{AdapterManifest, TensorInfo},
};

use super::{
    delta,
    experts::FusedExperts,
    plan::{Plan, is_part_of_packed},
    publish,
};
use crate::{
    load::with_trained_weights,
    mlx::{Progress, Reader},
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
    let layers = delta::read(adapter)?;
    let mut plan = Plan::default();
    let mut used = BTreeSet::new();
    for (name, tensor) in source.tensors() {
        let stem = name.strip_suffix(".weight");
        let packed = |stem: &str| source.tensors().contains_key(&format!("{stem}.scales"));
        if let Some((stem, delta)) = stem.and_then(|stem| Some((stem, delta::find(&layers, stem)?))) {
            used.insert(delta.path.clone());
            plan.add_delta(source, stem, delta, options.dequantize)?;
        } else if is_part_of_packed(source, name) {
            let stem = name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem);
            if !options.dequantize && delta::find(&layers, stem).is_none() {
                plan.keep(name, tensor);
            }
        } else {
            match stem {
                Some(stem) if options.dequantize && packed(stem) => plan.dequantize(source, stem)?,
                _ => plan.keep(name, tensor),
            }
        }
    }
    if let Some(layer) = layers.iter().find(|layer| !used.contains(&layer.path)) {
        return Err(Error::invalid_key(adapter.file(), &layer.path, absent(source, &layer.path)));
    }
    let config = if options.dequantize { plan.config(source) } else { source.config().clone() };
    publish(&plan, &Reader::new(source, observe), &config, target)
}

/// Why the model's files hold no matrix of this name.
fn absent(source: &ModelManifest, path: &str) -> String {
    let holds = |(name, tensor): &(&String, &TensorInfo)| {
        FusedExperts::of(source, name, tensor)
            .is_some_and(|fused| fused.stems.iter().any(|stem| stem == path))
    };
    match source.tensors().iter().find(holds) {
        Some((name, _)) => format!(
            "the model's files hold these experts joined, as {name}, into which nothing is fused: convert the model first, with \
             --bits or, packed ones, --dense"
        ),
        None => "the model's files hold no matrix of this name".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use inference_core::Dtype as Stored;
    use mlx_rs::Array;

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
