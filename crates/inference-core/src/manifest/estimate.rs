//! The memory that a model needs, by its config and tensor shapes.

use serde::Serialize;
use serde_json::Value;

use super::{
    ModelManifest,
    config::{Config, Found},
};
use crate::{Dtype, Error, KvBits, Result};

/// The bytes that a model needs to run, before any of them is allocated.
///
/// - **Weights**: the tensors as stored.
/// - **Keys and values**: for each layer, 2 × batch × positions × key-value heads × head dimension × bytes of the type
///   that most of its floating-point tensors have. `positions` is the context; in a layer with a sliding window, the smaller of context and window. Which layers
///   slide, `layer_types` says, or `sliding_window_pattern` (every n-th layer does not). A window without either counts as
///   none: the figure is then an upper bound. Quantised ones take their bits, and a scale and a bias of that type for each
///   [group](KvBits::group_size).
///
/// Activations are left out: they are small next to these, and depend on the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemoryEstimate {
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// Bytes of the keys and values at the given context and batch.
    pub kv_bytes: u64,
}

impl MemoryEstimate {
    /// Both together.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.weight_bytes.saturating_add(self.kv_bytes)
    }

    /// Refuses what does not fit into `available` bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] with both numbers.
    pub fn check(&self, available: u64) -> Result<()> {
        let needed = self.total_bytes();
        if needed <= available {
            return Ok(());
        }
        let what =
            format!("the model ({} of weights, {} of keys and values)", self.weight_bytes, self.kv_bytes);
        Err(Error::OutOfMemory { what, needed, available })
    }
}

pub(super) fn estimate(
    manifest: &ModelManifest,
    context: usize,
    batch: usize,
    kv_bits: Option<KvBits>,
) -> Result<MemoryEstimate> {
    for (option, value) in [("context_length", context), ("batch", batch)] {
        if value == 0 {
            return Err(Error::InvalidOption { option, reason: "is 0, expected at least 1".to_owned() });
        }
    }
    let path = manifest.config_path();
    let config = Config::new(&path, &manifest.config);
    let layers = required(&config, "num_hidden_layers")?;
    // Each layer has several tensors.
    if layers > manifest.tensors.len() {
        let reason = format!("is {layers}, but the files hold {} tensors", manifest.tensors.len());
        return Err(config.invalid("num_hidden_layers", reason));
    }
    let (width, head) = key_width(manifest, &config)?;
    let size = manifest.stored_dtype().map_or(2, Dtype::size);
    let position = match kv_bits {
        None => width.checked_mul(size),
        Some(bits) => {
            let group = bits.group_size(head).ok_or_else(|| bits.unsupported_error(head))?;
            (bits.get() * group / 8 + 2 * size).checked_mul(width / group)
        }
    };

    let (windowed, window) = windows(&config, layers)?;
    let positions = |layers: usize, each: usize| (layers as u64).checked_mul(each as u64);
    let bytes = || {
        let positions = positions(layers - windowed, context)?
            .checked_add(positions(windowed, window.unwrap_or(context).min(context))?)?;
        [2, batch, position?].iter().try_fold(positions, |bytes, n| bytes.checked_mul(*n as u64))
    };
    let Some(kv_bytes) = bytes() else {
        let reason = format!("{context} tokens in {batch} texts need more bytes than 64 bits count");
        return Err(Error::InvalidOption { option: "context_length", reason });
    };
    Ok(MemoryEstimate { weight_bytes: manifest.weight_bytes(), kv_bytes })
}

fn required(config: &Config<'_>, name: &str) -> Result<usize> {
    let missing = || config.invalid(name, "is missing, expected a whole number from 1");
    config.count(&[name])?.ok_or_else(missing)
}

/// The width of one layer's keys, heads × head dimension, and of one head: of all where the config does not say.
fn key_width(manifest: &ModelManifest, config: &Config<'_>) -> Result<(usize, usize)> {
    let heads = config.count(&["num_attention_heads"])?;
    let Some(heads) = heads else {
        // A config may leave the heads to the architecture's defaults; the projection's rows tell.
        let keys = manifest.tensors.iter().find(|(name, tensor)| {
            let language = !name.contains("vision") && !name.contains("audio");
            language && name.ends_with("layers.0.self_attn.k_proj.weight") && tensor.shape.len() == 2
        });
        let missing = || config.invalid("num_attention_heads", "is missing, expected a whole number from 1");
        return keys.map(|(_, tensor)| (tensor.shape[0], tensor.shape[0])).ok_or_else(missing);
    };
    let key_heads = config.count(&["num_key_value_heads"])?.unwrap_or(heads);
    let head = match config.count(&["head_dim"])? {
        Some(head) => head,
        None => required(config, "hidden_size")? / heads,
    };
    let overflow = || config.invalid("head_dim", format!("is {head}, with {key_heads} key-value heads"));
    Ok((key_heads.checked_mul(head).ok_or_else(overflow)?, head))
}

/// How many of the layers slide, and the window that they slide in.
fn windows(config: &Config<'_>, layers: usize) -> Result<(usize, Option<usize>)> {
    let off = config.find(&["use_sliding_window"]).is_some_and(|found| *found.value == Value::Bool(false));
    let window = if off { None } else { config.count(&["sliding_window"])? };
    if window.is_none() {
        return Ok((0, None));
    }
    if let Some(Found { key, value }) = config.find(&["layer_types"]) {
        let Value::Array(types) = value else { return Err(config.wrong(key, value, "a list of strings")) };
        if types.len() != layers {
            let reason = format!("has {} entries, expected {layers}, one for each layer", types.len());
            return Err(config.invalid(key, reason));
        }
        return Ok((types.iter().filter(|kind| *kind == "sliding_attention").count(), window));
    }
    match config.count(&["sliding_window_pattern"])? {
        Some(pattern) => Ok((layers - layers / pattern, window)),
        None => Ok((0, None)),
    }
}
