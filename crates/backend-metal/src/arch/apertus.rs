//! Apertus: a Llama with norms of queries and keys, and a feed-forward part without gates whose activation is learnt.

use std::rc::Rc;

use inference_core::Result as LoadResult;
use mlx_rs::{Array, Dtype, error::Result, ops};
use serde::Deserialize;
use serde_json::json;

use super::config::Config;
use crate::nn::{
    Architecture, Attention, AttentionParams, Decoder, Dimensions, FeedForward, Linear, PreNorm, QkNorm,
    Rope, Weight, Weights,
};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
}

/// down(xielu(up(x)))
#[derive(Debug)]
struct Mlp {
    up_proj: Linear,
    down_proj: Linear,
    /// `[1]` each, before softplus.
    alpha_p: Weight,
    alpha_n: Weight,
    /// Scalars.
    beta: Array,
    eps: Array,
}

impl Mlp {
    fn load(weights: &Weights<'_>, dims: &Dimensions) -> LoadResult<Self> {
        let (hidden, intermediate) = (dims.hidden_size, dims.intermediate_size);
        let act = weights.at("act_fn");
        Ok(Self {
            up_proj: Linear::load(&weights.at("up_proj"), intermediate, hidden, false)?,
            down_proj: Linear::load(&weights.at("down_proj"), hidden, intermediate, false)?,
            alpha_p: act.take_exact("alpha_p", &[1])?,
            alpha_n: act.take_exact("alpha_n", &[1])?,
            beta: act.take_wide("beta", &[])?,
            eps: act.take_wide("eps", &[])?,
        })
    }
}

impl FeedForward for Mlp {
    /// xIELU (Huang and Schlag 2024, arXiv 2411.13010).
    fn forward(&self, x: &Array) -> Result<Array> {
        let up = self.up_proj.forward(x)?;
        let x = up.as_dtype(Dtype::Float32)?;
        let softplus =
            |of: &Weight| ops::logaddexp(of.get()?.as_dtype(Dtype::Float32)?, Array::from_f32(0.0));
        let (positive, negative) = (softplus(&self.alpha_p)?, softplus(&self.alpha_n)?.add(&self.beta)?);
        let linear = x.multiply(&self.beta)?;
        let above = x.multiply(&x)?.multiply(positive)?.add(&linear)?;
        let below =
            ops::expm1(ops::minimum(&x, &self.eps)?)?.subtract(&x)?.multiply(negative)?.add(&linear)?;
        let activated = ops::select(&x.gt(Array::from_f32(0.0))?, &above, &below)?;
        self.down_proj.forward(&activated.as_dtype(up.dtype())?)
    }
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": false, "tie_word_embeddings": false, "max_position_embeddings": 65536, "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 12_000_000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
        "activation": "xielu", "hidden_activation": "silu",
    });
    // The activation has parameters of its own, and is not among those of gated blocks.
    let renamed = [("hidden_act", "activation")];
    let Config { dims, own, mut value } =
        Config::<Own>::read_renamed(weights.manifest(), None, defaults, &renamed)?;
    if weights.manifest().config().get("rope_scaling").is_some_and(|scaling| !scaling.is_null())
        && weights.manifest().config().get("rope_parameters").is_none()
        && let Some(config) = value.as_object_mut()
    {
        config.remove("rope_parameters");
    }
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 12_000_000.0)?);
    let layers = dims.layers(&model)?.map(|layer| {
        let (attention, params) = (layer.at("self_attn"), AttentionParams::full(dims.scale()));
        let bias = [own.attention_bias; 2];
        let self_attn = Attention::load(&attention, dims.heads(), bias, Some(rope.clone()), params)?
            .with_norm(QkNorm::load_heads(&attention, &dims)?);
        LoadResult::Ok(PreNorm {
            input_layernorm: dims.norm(&layer.at("attention_layernorm"))?,
            self_attn,
            post_attention_layernorm: dims.norm(&layer.at("feedforward_layernorm"))?,
            mlp: Mlp::load(&layer.at("mlp"), &dims)?,
        })
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    Ok(Box::new(Decoder::load(weights, &model, &dims, layers, &[&rope])?))
}
