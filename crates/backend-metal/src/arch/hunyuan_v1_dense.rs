//! Hunyuan: a Llama whose queries and keys are normalised after they are rotated.

use std::rc::Rc;

use inference_core::{Error, Result as LoadResult};
use serde::Deserialize;
use serde_json::{Value, json};

use super::config::Config;
use crate::nn::{
    Architecture, Attention, AttentionParams, Decoder, GatedMlp, PreNorm, QkNorm, Rope, Weights,
};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    use_qk_norm: bool,
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": false, "use_qk_norm": true, "tie_word_embeddings": false, "hidden_act": "silu",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
    });
    let Config { dims, own, mut value } = Config::<Own>::read(weights.manifest(), None, defaults)?;
    stretch_base(weights, &mut value, dims.head_dim())?;
    let model = weights.at("model");
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 10_000.0)?);
    let layers = dims.layers(&model)?.map(|layer| {
        let (attention, params) = (layer.at("self_attn"), AttentionParams::full(dims.scale()));
        let bias = [own.attention_bias; 2];
        let mut self_attn = Attention::load(&attention, dims.heads(), bias, Some(rope.clone()), params)?;
        if own.use_qk_norm {
            let norms = QkNorm::load_named(&attention, ["query_layernorm", "key_layernorm"], &dims)?;
            self_attn = self_attn.with_norm(norms).with_rope_first();
        }
        PreNorm::load(&layer, &dims, self_attn, GatedMlp::load(&layer.at("mlp"), &dims, false)?)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    Ok(Box::new(Decoder::load(weights, &model, &dims, layers, &[&rope])?))
}

/// The publisher calls a base that is stretched once and for all by `alpha` "dynamic": writes the stretched base in its place.
fn stretch_base(weights: &Weights<'_>, config: &mut Value, head_dim: usize) -> LoadResult<()> {
    let top = config.get("rope_theta").and_then(Value::as_f64);
    for section in ["rope_parameters", "rope_scaling"] {
        let Some(settings) = config.get_mut(section).and_then(Value::as_object_mut) else { continue };
        let kind = settings.get("rope_type").or_else(|| settings.get("type")).and_then(Value::as_str);
        let Some(alpha) = settings.get("alpha").filter(|alpha| !alpha.is_null() && kind == Some("dynamic"))
        else {
            continue;
        };
        let alpha = alpha.as_f64().filter(|alpha| alpha.is_finite() && *alpha > 0.0);
        let Some(alpha) = alpha.filter(|_| head_dim > 2) else {
            let (path, key) = (weights.manifest().config_path(), format!("{section}.alpha"));
            return Err(Error::invalid_key(
                path,
                key,
                "expected a positive number, and heads of more than 2",
            ));
        };
        let theta = settings.get("rope_theta").and_then(Value::as_f64).or(top).unwrap_or(10_000.0);
        let dims = head_dim as f64;
        let stretched = theta * alpha.powf(dims / (dims - 2.0));
        settings.insert("rope_theta".to_owned(), json!(stretched));
        settings.insert("rope_type".to_owned(), json!("default"));
        settings.remove("type");
    }
    Ok(())
}
