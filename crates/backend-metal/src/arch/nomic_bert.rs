//! Nomic BERT: a BERT with rotary positions and gates. Tensors have the publisher's names or those of transformers 5.

use std::rc::Rc;

use inference_core::{Error, Result as LoadResult};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{bert, config::Config};
use crate::nn::{
    Architecture, Attention, AttentionParams, Dimensions, Embedding, Encoder, GatedMlp, LayerNorm, PostNorm,
    Rope, TextEmbeddings, Weights,
};

#[derive(Debug, Deserialize)]
struct Own {
    type_vocab_size: usize,
    /// Positions of the training, where config.json counts those that a scaled rope may reach.
    #[serde(default)]
    max_trained_positions: Option<usize>,
}

/// Names of config.json, and those that all families have here.
const RENAMED: &[(&str, &str)] = &[
    ("n_embd", "hidden_size"),
    ("n_inner", "intermediate_size"),
    ("n_layer", "num_hidden_layers"),
    ("n_head", "num_attention_heads"),
    ("n_positions", "max_position_embeddings"),
    ("layer_norm_epsilon", "rms_norm_eps"),
    ("layer_norm_eps", "rms_norm_eps"),
];

/// Keys that the publisher's code reads, and the one value of each that is known here.
const FIXED: &[(&str, Value)] = &[
    ("prenorm", Value::Bool(false)),
    ("causal", Value::Bool(false)),
    ("use_rms_norm", Value::Bool(false)),
    ("qkv_proj_bias", Value::Bool(false)),
    ("mlp_fc1_bias", Value::Bool(false)),
    ("mlp_fc2_bias", Value::Bool(false)),
    ("rotary_emb_interleaved", Value::Bool(false)),
];

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "vocab_size": 30528, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-12,
        "type_vocab_size": 2, "tie_word_embeddings": true,
    });
    let manifest = weights.manifest();
    let Config { mut dims, own, value } = Config::<Own>::read_renamed(manifest, None, defaults, RENAMED)?;
    check(weights, &value)?;
    let model =
        weights.at(["nomic_bert", "bert"].into_iter().find(|scope| weights.has_any(scope)).unwrap_or(""));
    // The publisher's base has another name than all others'.
    let theta = value.get("rotary_emb_base").and_then(Value::as_f64).unwrap_or(1000.0);
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), theta)?);
    if let Some(trained) = own.max_trained_positions.filter(|trained| *trained > 0) {
        dims.max_position_embeddings = dims.max_position_embeddings.min(trained);
    }
    let types = Some(own.type_vocab_size).filter(|types| *types > 0);
    let embeddings = embeddings(&model, &dims, types)?;
    let layers = if model.has_any("encoder") { model.at("encoder") } else { model.at("") };
    let layers = dims.layers(&layers)?.map(|layer| block(&layer, &dims, &rope));
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    bert::skip_heads(weights, &model);
    Ok(Box::new(Encoder::new(weights, &dims, embeddings, layers, None, None)))
}

/// Refuses what the publisher's code would do and this does not.
fn check(weights: &Weights<'_>, config: &Value) -> LoadResult<()> {
    let invalid = |key: &str, found: &Value, expected: &str| {
        let reason = format!("{found}, expected {expected}");
        Err(Error::invalid_key(weights.manifest().config_path(), key, reason))
    };
    for (key, expected) in FIXED {
        if let Some(found) = config.get(key).filter(|found| *found != expected) {
            return invalid(key, found, &expected.to_string());
        }
    }
    if let Some(found) = config.get("rotary_emb_fraction").filter(|found| found.as_f64() != Some(1.0)) {
        return invalid("rotary_emb_fraction", found, "1.0");
    }
    match config.get("activation_function") {
        None => Ok(()),
        Some(found) if found == "swiglu" => Ok(()),
        Some(found) => invalid("activation_function", found, "\"swiglu\""),
    }
}

fn embeddings(model: &Weights<'_>, dims: &Dimensions, types: Option<usize>) -> LoadResult<TextEmbeddings> {
    let tables = model.at("embeddings");
    let table = |name: &str, rows: usize| Embedding::load(&tables.at(name), rows, dims.hidden_size);
    let norm = if model.has_any("emb_ln") { model.at("emb_ln") } else { tables.at("LayerNorm") };
    Ok(TextEmbeddings {
        words: table("word_embeddings", dims.vocab_size)?,
        positions: None,
        types: types.map(|types| Ok((table("token_type_embeddings", types)?, types))).transpose()?,
        norm: LayerNorm::load(&norm, dims.hidden_size, dims.rms_norm_eps, true, false)?,
    })
}

fn block(layer: &Weights<'_>, dims: &Dimensions, rope: &Rc<Rope>) -> LoadResult<PostNorm<GatedMlp>> {
    let norm =
        |name: &str| LayerNorm::load(&layer.at(name), dims.hidden_size, dims.rms_norm_eps, true, false);
    let (attend, bias) = (AttentionParams::both_ways(dims.scale()), [false; 2]);
    let (heads, rope, mlp) = (dims.heads(), Some(rope.clone()), layer.at("mlp"));
    if layer.has_any("attn") {
        let names = ["Wqkv", "out_proj"];
        return Ok(PostNorm {
            self_attn: Attention::load_fused(&layer.at("attn"), names, heads, bias, rope, attend)?,
            attention_norm: norm("norm1")?,
            mlp: GatedMlp::load_named(&mlp, ["fc12", "fc11", "fc2"], dims)?,
            output_norm: norm("norm2")?,
        });
    }
    Ok(PostNorm {
        self_attn: Attention::load(&layer.at("self_attn"), heads, bias, rope, attend)?,
        attention_norm: norm("post_attention_layernorm")?,
        mlp: GatedMlp::load(&mlp, dims, false)?,
        output_norm: norm("post_mlp_layernorm")?,
    })
}
