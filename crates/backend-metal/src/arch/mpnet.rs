//! MPNet: a BERT whose scores depend on the distance of two tokens, too.

use std::rc::Rc;

use inference_core::{Error, Result as LoadResult};
use serde::Deserialize;
use serde_json::json;

use super::{bert, config::Config};
use crate::nn::{
    Architecture, AttentionParams, BUCKETS, Encoder, HeadActivation, PositionIds, RelativeBias,
    RelevanceHead, Weights,
};

#[derive(Debug, Deserialize)]
struct Own {
    relative_attention_num_buckets: usize,
}

/// The padding token, which the family's code has as a number.
const PADDING: u32 = 1;

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "vocab_size": 30527, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "hidden_act": "gelu", "max_position_embeddings": 512, "rms_norm_eps": 1e-12,
        "tie_word_embeddings": true, "relative_attention_num_buckets": BUCKETS,
    });
    let renamed = [("layer_norm_eps", "rms_norm_eps")];
    let Config { mut dims, own, .. } =
        Config::<Own>::read_renamed(weights.manifest(), None, defaults, &renamed)?;
    let buckets = own.relative_attention_num_buckets;
    if buckets != BUCKETS {
        let reason = format!("{buckets}, expected {BUCKETS}");
        return Err(Error::invalid_key(
            weights.manifest().config_path(),
            "relative_attention_num_buckets",
            reason,
        ));
    }
    let model = weights.at(if weights.has_any("mpnet") { "mpnet" } else { "" });
    let embeddings = bert::embeddings(&model, &mut dims, None, PositionIds::Beyond { padding: PADDING })?;
    let encoder = model.at("encoder");
    let bias =
        encoder.at("relative_attention_bias").take_wide("weight", &[BUCKETS, dims.num_attention_heads])?;
    let bias = Rc::new(RelativeBias::new(bias));
    let layers = dims.layers_named(&encoder, "layer")?.map(|layer| {
        let attend = AttentionParams { bias: Some(bias.clone()), ..AttentionParams::both_ways(dims.scale()) };
        let names = ["q", "k", "v", "o"];
        bert::block_with(&layer, &layer.at("attention.attn"), names, "attention.LayerNorm", &dims, attend)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    let classifier = weights.at("classifier");
    let dense = (&classifier.at("dense"), HeadActivation::Tanh);
    let head = RelevanceHead::load(&classifier.at("out_proj"), dense, &dims)?;
    bert::skip_heads(weights, &model);
    Ok(Box::new(Encoder::new(weights, &dims, embeddings, layers, None, head)))
}
