//! What config.json and the tensor headers say of a model, under the names that its many families use.

use inference_core::{Error, ModelInfo, ModelManifest, Result};
use serde_json::Value;

use crate::ID;

/// The context of a model that names none, such as one with a recurrent state.
const UNBOUNDED: usize = 1 << 20;

/// The description of a model before it is loaded; parameters and end-of-sequence ids come later.
pub(crate) fn describe(manifest: &ModelManifest, context_length: Option<usize>) -> Result<ModelInfo> {
    check_sizes(manifest)?;
    check_lengths(manifest)?;
    let mut info = ModelInfo::from_manifest(ID, manifest)?;
    if info.vocab_size == 0 {
        let reason = "is missing, expected the number of token ids";
        return Err(Error::invalid_key(manifest.config_path(), "vocab_size", reason));
    }
    let own = manifest.context_length()?.unwrap_or(UNBOUNDED);
    info.context_length = context_length.unwrap_or(own);
    if info.context_length > own {
        tracing::warn!(info.context_length, own, "the context is longer than the model was made for");
    }
    Ok(info)
}

/// Refuses sizes that the weights cannot have: the child would build a model of that size before it looks at them.
fn check_sizes(manifest: &ModelManifest) -> Result<()> {
    let tensors = manifest.tensors();
    let dimensions = tensors.values().flat_map(|tensor| tensor.shape.iter().copied());
    // A packed weight has up to 32 values in a word.
    let widest = dimensions.max().unwrap_or(0).saturating_mul(32);
    let keys = [("num_hidden_layers", tensors.len()), ("vocab_size", widest), ("hidden_size", widest)];
    let keys = keys.into_iter().chain([("num_attention_heads", widest), ("intermediate_size", widest)]);
    for (key, most) in keys {
        // Some models have a size for each layer.
        if manifest.config().get(key).is_some_and(Value::is_array) {
            continue;
        }
        let size = number(manifest, &[key])?;
        if let Some(size) = size.filter(|size| *size == 0 || *size > most) {
            let reason = format!("{size}, expected from 1 to {most} by the tensors that there are");
            return Err(Error::invalid_key(manifest.config_path(), key, reason));
        }
    }
    Ok(())
}

/// Refuses files that became shorter since their headers were read: MLX says no more than that it could not read.
fn check_lengths(manifest: &ModelManifest) -> Result<()> {
    for (index, path) in manifest.files().iter().enumerate() {
        let tensors = manifest.tensors().values().filter(|tensor| tensor.file == index);
        let expected = tensors.map(|tensor| tensor.range.end).max().unwrap_or(0);
        let length = std::fs::metadata(path).map_err(|source| Error::io("read", path, source))?.len();
        if length < expected {
            let reason = format!("has {length} bytes, its header promises {expected}");
            return Err(Error::invalid_file(path, reason));
        }
    }
    Ok(())
}

/// The first of these keys that config.json has, at its top or in the part about text of a model for several media.
fn number(manifest: &ModelManifest, names: &[&str]) -> Result<Option<usize>> {
    let config = manifest.config();
    let places = [Some(config), config.get("text_config"), config.get("language_config")];
    for (place, name) in
        places.into_iter().flatten().flat_map(|place| names.iter().map(move |name| (place, name)))
    {
        match place.get(name) {
            None | Some(Value::Null) => {}
            Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(n) => return Ok(Some(n)),
                None => {
                    let reason = format!("{value}, expected a whole number");
                    return Err(Error::invalid_key(manifest.config_path(), *name, reason));
                }
            },
        }
    }
    Ok(None)
}
