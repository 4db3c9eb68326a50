//! Qwen 2 and 2.5: a Llama with biases on queries, keys and values, and windows on the later layers where asked for.

use std::rc::Rc;

use inference_core::{ModelManifest, Result as LoadResult};
use serde::Deserialize;
use serde_json::json;

use super::config::{Config, LayerType, Layers, text_section, tower};
use crate::nn::{
    Architecture, Attention, AttentionParams, Decoder, Dimensions, GatedMlp, PreNorm, Rope, Weights,
};

/// Which layers of a Qwen have a window.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Windows {
    use_sliding_window: bool,
    pub(super) max_window_layers: usize,
    #[serde(flatten)]
    layers: Layers,
}

impl Windows {
    /// The window of each layer.
    pub(super) fn of_layers(
        &self,
        manifest: &ModelManifest,
        dims: &Dimensions,
    ) -> LoadResult<impl Iterator<Item = Option<usize>>> {
        let first = self.max_window_layers;
        self.by_rule(manifest, dims, move |i| i >= first)
    }

    /// The same, where layers that `slides` names have one unless config.json lists them.
    pub(super) fn by_rule(
        &self,
        manifest: &ModelManifest,
        dims: &Dimensions,
        slides: impl Fn(usize) -> bool,
    ) -> LoadResult<impl Iterator<Item = Option<usize>>> {
        let types = self.layers.clone().types(manifest, dims, move |i| {
            if slides(i) { LayerType::SlidingAttention } else { LayerType::FullAttention }
        })?;
        Ok(types.map(|layer_type| self.layers.window(layer_type).filter(|_| self.use_sliding_window)))
    }
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "tie_word_embeddings": false, "hidden_act": "silu", "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
        "use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 28,
    });
    let Config { dims, own, value } =
        Config::<Windows>::read(weights.manifest(), text_section(weights.manifest()), defaults)?;
    let [root, model] = tower(weights);
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?);
    let windows = own.of_layers(weights.manifest(), &dims)?;
    let layers = dims.layers(&model)?.zip(windows).map(|(layer, window)| {
        let attend = AttentionParams { window, ..AttentionParams::full(dims.scale()) };
        let attention = layer.at("self_attn");
        let self_attn = Attention::load(&attention, dims.heads(), [true, false], Some(rope.clone()), attend)?;
        PreNorm::load(&layer, &dims, self_attn, GatedMlp::load(&layer.at("mlp"), &dims, false)?)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    Ok(Box::new(Decoder::load(&root, &model, &dims, layers, &[&rope])?))
}
