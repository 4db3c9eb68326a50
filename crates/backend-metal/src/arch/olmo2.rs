//! OLMo 2: norms after each part instead of before, and over all heads of queries and keys together.

use std::rc::Rc;

use inference_core::Result as LoadResult;
use mlx_rs::{Array, error::Result};
use serde::Deserialize;
use serde_json::json;

use super::config::Config;
use crate::nn::{
    Architecture, Attention, AttentionParams, Block, Decoder, Dimensions, ForwardPass, GatedMlp, LayerState,
    QkNorm, Recorded, Recording, RmsNorm, Rope, Value, Weights,
};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
}

/// x + norm(attention(x)), then the same with the feed-forward block.
#[derive(Debug)]
pub(super) struct PostNorm {
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: GatedMlp,
    post_feedforward_layernorm: RmsNorm,
}

impl PostNorm {
    /// The block of the layer at `weights`, around its attention.
    pub(super) fn load(weights: &Weights<'_>, dims: &Dimensions, self_attn: Attention) -> LoadResult<Self> {
        Ok(Self {
            self_attn,
            post_attention_layernorm: dims.norm(&weights.at("post_attention_layernorm"))?,
            mlp: GatedMlp::load(&weights.at("mlp"), dims, false)?,
            post_feedforward_layernorm: dims.norm(&weights.at("post_feedforward_layernorm"))?,
        })
    }
}

impl Block for PostNorm {
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        let mixed = self.self_attn.forward(x, pass, layer)?;
        let x = self.post_attention_layernorm.add(x, &mixed)?;
        self.post_feedforward_layernorm.add(&x, &self.mlp.forward(&x)?)
    }

    fn record(&self, x: Value, recording: &mut Recording<'_, '_>, layer: usize) -> Recorded {
        let mixed = self.self_attn.record(x, recording, layer)?;
        let x = recording.add(x, mixed, Some(&self.post_attention_layernorm))?;
        let output = self.mlp.record(x, recording)?;
        recording.add(x, output, Some(&self.post_feedforward_layernorm))
    }

    fn state(&self) -> LayerState {
        self.self_attn.state()
    }
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": false, "tie_word_embeddings": false, "hidden_act": "silu",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
    });
    let Config { dims, own, value } = Config::<Own>::read(weights.manifest(), None, defaults)?;
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?);
    let layers = dims.layers(&model)?.map(|layer| {
        let (attention, bias) = (layer.at("self_attn"), [own.attention_bias; 2]);
        let attend = AttentionParams::full(dims.scale());
        let self_attn = Attention::load(&attention, dims.heads(), bias, Some(rope.clone()), attend)?
            .with_norm(QkNorm::load_whole(&attention, &dims)?);
        PostNorm::load(&layer, &dims, self_attn)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    Ok(Box::new(Decoder::load(weights, &model, &dims, layers, &[&rope])?))
}
