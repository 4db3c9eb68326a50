//! ModernBERT: rotary positions, gates, norms before each part, and windows on most layers.

use std::rc::Rc;

use inference_core::{Error, Result as LoadResult};
use mlx_rs::{Array, error::Result};
use serde::Deserialize;
use serde_json::json;

use super::config::{Config, LayerType, Layers, rope_by_type};
use crate::nn::{
    Activation, Architecture, Attention, AttentionParams, Block, Dimensions, Embedding, Encoder, ForwardPass,
    GatedMlp, HeadActivation, LayerNorm, LayerState, Linear, RelevanceHead, Rope, TextEmbeddings, Weights,
    gives_one,
};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    mlp_bias: bool,
    norm_bias: bool,
    local_attention: usize,
    global_attn_every_n_layers: usize,
    classifier_pooling: ClassifierPooling,
    classifier_bias: bool,
    classifier_activation: Activation,
    #[serde(flatten)]
    layers: Layers,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ClassifierPooling {
    Cls,
    Mean,
}

/// A block: x + attention(norm(x)), then x + mlp(norm(x)). The first has no norm before its attention.
#[derive(Debug)]
struct ModernBlock {
    attn_norm: Option<LayerNorm>,
    attn: Attention,
    mlp_norm: LayerNorm,
    mlp: GatedMlp,
}

impl Block for ModernBlock {
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        let normalised = self.attn_norm.as_ref().map(|norm| norm.forward(x)).transpose()?;
        let x = x.add(self.attn.forward(normalised.as_ref().unwrap_or(x), pass, layer)?)?;
        x.add(self.mlp.forward(&self.mlp_norm.forward(&x)?)?)
    }

    fn state(&self) -> LayerState {
        LayerState::default()
    }
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "vocab_size": 50368, "hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22,
        "num_attention_heads": 12, "hidden_activation": "gelu", "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "norm_bias": false, "attention_bias": false, "mlp_bias": false,
        "local_attention": 128, "global_attn_every_n_layers": 3, "classifier_pooling": "cls",
        "classifier_bias": false, "classifier_activation": "gelu", "tie_word_embeddings": true,
    });
    let manifest = weights.manifest();
    let renamed = [("norm_eps", "rms_norm_eps")];
    let Config { dims, own, value } = Config::<Own>::read_renamed(manifest, None, defaults, &renamed)?;
    let invalid = |key: &str, reason: &str| Err(Error::invalid_key(manifest.config_path(), key, reason));
    if own.mlp_bias {
        return invalid("mlp_bias", "is true, expected false");
    }
    if own.global_attn_every_n_layers == 0 {
        return invalid("global_attn_every_n_layers", "is 0, expected a positive number");
    }
    let settings = rope_by_type(&value, [("global_rope_theta", 160_000.0), ("local_rope_theta", 10_000.0)]);
    let rope = |name| Rope::load(weights, &settings, Some(name), dims.rope(), 10_000.0).map(Rc::new);
    let ropes = [rope("full_attention")?, rope("sliding_attention")?];
    let model = weights.at(if weights.has_any("model") { "model" } else { "" });
    let every = own.global_attn_every_n_layers;
    let types = own.layers.clone().types(manifest, &dims, |i| {
        if i.is_multiple_of(every) { LayerType::FullAttention } else { LayerType::SlidingAttention }
    })?;
    let layers = dims.layers(&model)?.zip(types).enumerate();
    let layers = layers.map(|(at, (layer, kind))| block(&layer, at, kind, &dims, &own, &ropes));
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    let norm = |weights: &Weights<'_>| {
        LayerNorm::load(weights, dims.hidden_size, dims.rms_norm_eps, own.norm_bias, false)
    };
    let embeddings = TextEmbeddings {
        words: Embedding::load(&model.at("embeddings.tok_embeddings"), dims.vocab_size, dims.hidden_size)?,
        positions: None,
        types: None,
        norm: norm(&model.at("embeddings.norm"))?,
    };
    let final_norm = norm(&model.at("final_norm"))?;
    let head = head(weights, &dims, &own, norm)?;
    // Those of other tasks.
    weights.skip(|name| ["head.", "classifier.", "decoder."].iter().any(|part| name.starts_with(part)));
    Ok(Box::new(Encoder::new(weights, &dims, embeddings, layers, Some(final_norm), head)))
}

fn block(
    layer: &Weights<'_>,
    at: usize,
    kind: LayerType,
    dims: &Dimensions,
    own: &Own,
    [full, sliding]: &[Rc<Rope>; 2],
) -> LoadResult<ModernBlock> {
    let norm = |name: &str| {
        LayerNorm::load(&layer.at(name), dims.hidden_size, dims.rms_norm_eps, own.norm_bias, false)
    };
    // Half of the window on each side, and the token itself.
    let (rope, window) = match kind {
        LayerType::FullAttention => (full, None),
        LayerType::SlidingAttention => (sliding, Some(own.local_attention / 2 + 1)),
    };
    let attend = AttentionParams { window, ..AttentionParams::both_ways(dims.scale()) };
    let (heads, bias, names) = (dims.heads(), [own.attention_bias; 2], ["Wqkv", "Wo"]);
    Ok(ModernBlock {
        attn_norm: (at > 0).then(|| norm("attn_norm")).transpose()?,
        attn: Attention::load_fused(&layer.at("attn"), names, heads, bias, Some(rope.clone()), attend)?,
        mlp_norm: norm("mlp_norm")?,
        mlp: GatedMlp::load_fused(&layer.at("mlp"), ["Wi", "Wo"], dims)?,
    })
}

/// What scores pairs of texts, where the checkpoint has it.
fn head(
    weights: &Weights<'_>,
    dims: &Dimensions,
    own: &Own,
    norm: impl Fn(&Weights<'_>) -> LoadResult<LayerNorm>,
) -> LoadResult<Option<RelevanceHead>> {
    let (classifier, head, size) = (weights.at("classifier"), weights.at("head"), dims.hidden_size);
    if !gives_one(&classifier) {
        return Ok(None);
    }
    let dense = Linear::load(&head.at("dense"), size, size, own.classifier_bias)?;
    Ok(Some(RelevanceHead {
        takes_mean: own.classifier_pooling == ClassifierPooling::Mean,
        dense: Some((dense, HeadActivation::Other(own.classifier_activation))),
        norm: Some(norm(&head.at("norm"))?),
        output: Linear::load(&classifier, 1, size, true)?,
    }))
}
