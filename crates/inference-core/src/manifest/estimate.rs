//! The memory that a model needs, by its config and tensor shapes.

use serde::Serialize;

use super::{
    ModelManifest,
    config::Config,
    layers::{self, LayerKind},
};
use crate::{Dtype, Error, KvBits, Result};

/// The bytes that a model needs to run, before any of them is allocated.
///
/// - **Weights**: the tensors as stored.
/// - **Keys and values**: for each layer, 2 × batch × positions × key-value heads × head dimension × bytes of the type
///   that most of its floating-point tensors have; with latent attention, `kv_lora_rank` and `qk_rope_head_dim` instead of 2 × heads ×
///   head dimension. `positions` is the context; in a layer with a sliding window, the
///   smaller of context and window; in a layer with a recurrent state none. [`ModelManifest::layer_kinds`] gives the kind
///   of each layer. Quantised keys and values take their bits, and a scale and a bias of that type for each
///   [group](KvBits::group_size).
///
/// An encoder keeps no keys and values.
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
        Err(Error::out_of_memory(what, needed, available))
    }
}

impl ModelManifest {
    /// The bytes needed to run `batch` texts of `context` tokens each. `kv_bits` is the width of a quantised KV cache; `None`:
    /// keys and values are not quantised.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the key of config.json that is missing or makes no sense; [`Error::InvalidOption`] if
    /// `context` or `batch` is zero or beyond what 64 bits count, or heads cannot be quantised.
    pub fn estimate(&self, context: usize, batch: usize, kv_bits: Option<KvBits>) -> Result<MemoryEstimate> {
        estimate(self, context, batch, kv_bits)
    }
}

fn estimate(
    manifest: &ModelManifest,
    context: usize,
    batch: usize,
    kv_bits: Option<KvBits>,
) -> Result<MemoryEstimate> {
    for (option, value) in [("context_length", context), ("batch", batch)] {
        if value == 0 {
            return Err(Error::invalid_option(option, "is 0, expected at least 1"));
        }
    }
    if manifest.is_encoder() {
        return Ok(MemoryEstimate { weight_bytes: manifest.weight_bytes(), kv_bytes: 0 });
    }
    let path = manifest.config_path();
    let config = Config::new(&path, &manifest.config);
    let layers = required(&config, "num_hidden_layers")?;
    // Each layer has several tensors.
    if layers > manifest.tensors.len() {
        let reason = format!("is {layers}, but the files hold {} tensors", manifest.tensors.len());
        return Err(config.invalid("num_hidden_layers", reason));
    }
    let kinds = layers::kinds(&config, layers)?;
    if kinds.iter().all(|kind| *kind == LayerKind::Recurrent) {
        return Ok(MemoryEstimate { weight_bytes: manifest.weight_bytes(), kv_bytes: 0 });
    }
    let (elements, head) = kept_elements(manifest, &config)?;
    let size = manifest.float_dtype().map_or(2, Dtype::size);
    let position = match kv_bits {
        None => elements.checked_mul(size),
        Some(bits) => {
            let group = bits.group_size(head).ok_or_else(|| bits.unsupported_error(head))?;
            (bits.get() * group / 8 + 2 * size).checked_mul(elements / group)
        }
    };

    let positions = |kind: &LayerKind| match *kind {
        LayerKind::FullAttention => context as u64,
        LayerKind::SlidingAttention { window } => window.min(context) as u64,
        LayerKind::Recurrent => 0,
    };
    let bytes = || {
        let positions = kinds.iter().map(positions).try_fold(0_u64, u64::checked_add)?;
        [batch, position?].iter().try_fold(positions, |bytes, n| bytes.checked_mul(*n as u64))
    };
    let Some(kv_bytes) = bytes() else {
        let reason = format!("{context} tokens in {batch} texts need more bytes than 64 bits count");
        return Err(Error::invalid_option("context_length", reason));
    };
    Ok(MemoryEstimate { weight_bytes: manifest.weight_bytes(), kv_bytes })
}

fn required(config: &Config<'_>, name: &str) -> Result<usize> {
    let missing = || config.invalid(name, "is missing, expected a whole number from 1");
    config.count(&[name])?.ok_or_else(missing)
}

/// The elements of one position's keys and values in one layer, and of one head: of all where the config does not say.
fn kept_elements(manifest: &ModelManifest, config: &Config<'_>) -> Result<(usize, usize)> {
    if let (Some(rank), Some(rotated)) =
        (config.count(&["kv_lora_rank"])?, config.count(&["qk_rope_head_dim"])?)
    {
        return Ok((rank + rotated, rotated));
    }
    let (width, head) = key_width(manifest, config)?;
    let overflow = || config.invalid("head_dim", format!("is {head}, of keys {width} wide"));
    Ok((width.checked_mul(2).ok_or_else(overflow)?, head))
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
