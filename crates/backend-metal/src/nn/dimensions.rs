//! The sizes that config.json has for every family.

use std::collections::BTreeSet;

use inference_core::{Error, ModelManifest, Result};
use serde::Deserialize;

use super::{
    activation::Activation, architecture::ModelConfig, cache::LayerState, norm::RmsNorm, rope::RopeShape,
    weights::Weights,
};

/// The sizes that every family's config.json has, by their names there.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Dimensions {
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    #[serde(default)]
    pub(crate) num_key_value_heads: Option<usize>,
    #[serde(default)]
    pub(crate) head_dim: Option<usize>,
    pub(crate) vocab_size: usize,
    pub(crate) max_position_embeddings: usize,
    pub(crate) rms_norm_eps: f32,
    #[serde(alias = "hidden_activation")]
    pub(crate) hidden_act: Activation,
    pub(crate) tie_word_embeddings: bool,
    /// Whether the output layer has a bias.
    #[serde(default)]
    pub(crate) lm_head_bias: bool,
    /// Whether the family's checkpoints store the weights of norms minus one.
    #[serde(skip)]
    pub(crate) norm_offset: bool,
}

/// The sizes of an attention block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    /// The width of the residual stream.
    pub(crate) hidden_size: usize,
    /// Heads of queries.
    pub(crate) heads: usize,
    /// Heads of keys and values, which divide those of queries.
    pub(crate) kv_heads: usize,
    /// The width of one head.
    pub(crate) head_dim: usize,
}

impl Dimensions {
    /// The sizes of attention.
    pub(crate) fn heads(&self) -> Heads {
        Heads {
            hidden_size: self.hidden_size,
            heads: self.num_attention_heads,
            kv_heads: self.kv_heads(),
            head_dim: self.head_dim(),
        }
    }

    /// The width of one head.
    pub(crate) fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// What rope needs.
    pub(crate) fn rope(&self) -> RopeShape {
        RopeShape { head_dim: self.head_dim(), max_positions: self.max_position_embeddings }
    }

    /// The usual scale of attention scores: `1 / √head_dim`.
    pub(crate) fn scale(&self) -> f32 {
        (self.head_dim() as f32).sqrt().recip()
    }

    /// A norm of the residual stream.
    pub(crate) fn norm(&self, weights: &Weights<'_>) -> Result<RmsNorm> {
        RmsNorm::load(weights, self.hidden_size, self.rms_norm_eps, self.norm_offset)
    }

    fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// The model's config for the engine. The layers keep these states.
    pub(crate) fn model_config(
        &self,
        weights: &Weights<'_>,
        states: Vec<LayerState>,
        length_dependent: bool,
    ) -> ModelConfig {
        let manifest = weights.manifest();
        ModelConfig {
            vocab_size: self.vocab_size,
            layers: self.num_hidden_layers,
            hidden_size: self.hidden_size,
            context_length: self.max_position_embeddings,
            kv_heads: self.kv_heads(),
            head_dim: self.head_dim(),
            states,
            length_dependent,
            parameters: manifest.parameters(),
            dtype: weights.float_name().to_owned(),
            generates: true,
            encodes: false,
            scores: false,
        }
    }

    /// The scopes of the layers below `weights`, after a check that the files have as many as the config says.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names both numbers.
    pub(crate) fn layers<'a>(
        &self,
        weights: &Weights<'a>,
    ) -> Result<impl Iterator<Item = Weights<'a>> + use<'a>> {
        self.layers_named(weights, "layers")
    }

    /// The same of layers that are called otherwise.
    ///
    /// # Errors
    /// As [`layers`](Self::layers).
    pub(crate) fn layers_named<'a>(
        &self,
        weights: &Weights<'a>,
        name: &str,
    ) -> Result<impl Iterator<Item = Weights<'a>> + use<'a>> {
        let prefix = weights.name(format_args!("{name}."));
        let names = weights.manifest().tensors().keys();
        let found: BTreeSet<usize> =
            names.filter_map(|name| name.strip_prefix(&prefix)?.split('.').next()?.parse().ok()).collect();
        // More layers than the config has are found as tensors that nothing takes.
        if let Some(missing) = (0..=found.len()).find(|i| *i < self.num_hidden_layers && !found.contains(i)) {
            let reason = format!("{}, but the files hold no {prefix}{missing}", self.num_hidden_layers);
            return Err(Error::invalid_key(weights.manifest().config_path(), "num_hidden_layers", reason));
        }
        let layers = weights.at(name);
        Ok((0..self.num_hidden_layers).map(move |i| layers.index(i)))
    }

    /// Checks that the sizes make sense.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the key that does not.
    pub(crate) fn check(&self, manifest: &ModelManifest) -> Result<()> {
        const LARGEST: usize = 1 << 24;
        let invalid =
            |key: &str, reason: String| Err(Error::invalid_key(manifest.config_path(), key, reason));
        let counts = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.kv_heads()),
            ("head_dim", self.head_dim.unwrap_or(1)),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (key, count) in counts {
            let largest = if key == "max_position_embeddings" { i32::MAX as usize } else { LARGEST };
            if count == 0 || (count > largest && key != "num_hidden_layers") {
                return invalid(key, format!("{count}, expected a number from 1 to {largest}"));
            }
        }
        if self.head_dim.is_none() && !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let reason =
                format!("{} heads do not divide hidden_size {}", self.num_attention_heads, self.hidden_size);
            return invalid("num_attention_heads", reason);
        }
        if !self.head_dim().is_multiple_of(2) {
            return invalid("head_dim", format!("{}, expected an even number", self.head_dim()));
        }
        if !self.num_attention_heads.is_multiple_of(self.kv_heads()) {
            let reason =
                format!("{} do not divide num_attention_heads {}", self.kv_heads(), self.num_attention_heads);
            return invalid("num_key_value_heads", reason);
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return invalid(
                "rms_norm_eps",
                format!("{}, expected a small positive number", self.rms_norm_eps),
            );
        }
        Ok(())
    }
}
