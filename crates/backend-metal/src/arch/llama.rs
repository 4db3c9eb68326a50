//! Llama 2, 3 and 3.x.

use std::rc::Rc;

use inference_core::Result as LoadResult;
use mlx_rs::{Array, error::Result};
use serde::Deserialize;
use serde_json::json;

use super::{Architecture, config::Config};
use crate::nn::{Attend, Attention, Block, Decoder, GatedMlp, Pass, RmsNorm, Rope, Weights};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    mlp_bias: bool,
}

/// x + attention(norm(x)), then the same with the feed-forward block.
#[derive(Debug)]
pub(super) struct PreNormBlock {
    pub(super) input_layernorm: RmsNorm,
    pub(super) self_attn: Attention,
    pub(super) post_attention_layernorm: RmsNorm,
    pub(super) mlp: GatedMlp,
}

impl Block for PreNormBlock {
    fn forward(&self, x: &Array, pass: &mut Pass<'_>, layer: usize) -> Result<Array> {
        let x = x.add(self.self_attn.forward(&self.input_layernorm.forward(x)?, pass, layer)?)?;
        x.add(self.mlp.forward(&self.post_attention_layernorm.forward(&x)?)?)
    }

    fn window(&self) -> Option<usize> {
        self.self_attn.window()
    }
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let Config { dims, own, value } = Config::<Own>::read(
        weights.manifest(),
        None,
        json!({
            "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": false, "hidden_act": "silu",
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
        }),
    )?;
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?);
    let layers = dims.layers(&model)?.map(|layer| {
        let attend = Attend { scale: dims.scale(), window: None, softcap: None, sinks: None };
        let norm = |name| RmsNorm::load(&layer.at(name), dims.hidden_size, dims.rms_norm_eps);
        let (attention, mlp) = (layer.at("self_attn"), layer.at("mlp"));
        LoadResult::Ok(PreNormBlock {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::load(
                &attention,
                dims.heads(),
                [own.attention_bias; 2],
                Some(rope.clone()),
                attend,
            )?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: GatedMlp::load(
                &mlp,
                dims.hidden_size,
                dims.intermediate_size,
                dims.hidden_act,
                own.mlp_bias,
            )?,
        })
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    Ok(Box::new(Decoder::load(weights, &model, &dims, layers, rope.switch())?))
}
