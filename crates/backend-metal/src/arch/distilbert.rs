//! DistilBERT: a BERT without types of tokens.

use inference_core::Result as LoadResult;
use serde::Deserialize;
use serde_json::json;

use super::{bert, config::Config};
use crate::nn::{
    Activation, Architecture, Attention, AttentionParams, Dimensions, Encoder, HeadActivation, LayerNorm,
    PlainMlp, PositionIds, PostNorm, RelevanceHead, Weights,
};

#[derive(Debug, Deserialize)]
struct Own {}

/// Names of config.json, and those that all families have here.
const RENAMED: &[(&str, &str)] = &[
    ("dim", "hidden_size"),
    ("hidden_dim", "intermediate_size"),
    ("n_layers", "num_hidden_layers"),
    ("n_heads", "num_attention_heads"),
    ("activation", "hidden_act"),
];

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 6, "num_attention_heads": 12,
        "intermediate_size": 3072, "hidden_act": "gelu", "max_position_embeddings": 512, "rms_norm_eps": 1e-12,
        "tie_word_embeddings": true,
    });
    let Config { mut dims, own: Own {}, .. } =
        Config::<Own>::read_renamed(weights.manifest(), None, defaults, RENAMED)?;
    let model = weights.at(if weights.has_any("distilbert") { "distilbert" } else { "" });
    let embeddings = bert::embeddings(&model, &mut dims, None, PositionIds::Places)?;
    let layers = dims.layers_named(&model.at("transformer"), "layer")?.map(|layer| block(&layer, &dims));
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    let (classifier, dense) = (weights.at("classifier"), weights.at("pre_classifier"));
    let head = RelevanceHead::load(&classifier, (&dense, HeadActivation::Other(Activation::Relu)), &dims)?;
    bert::skip_heads(weights, &model);
    weights.skip(|name| name.starts_with("vocab_") || name.starts_with("pre_classifier."));
    Ok(Box::new(Encoder::new(weights, &dims, embeddings, layers, None, head)))
}

fn block(layer: &Weights<'_>, dims: &Dimensions) -> LoadResult<PostNorm<PlainMlp>> {
    let names = ["q_lin", "k_lin", "v_lin", "out_lin"];
    let norm =
        |name: &str| LayerNorm::load(&layer.at(name), dims.hidden_size, dims.rms_norm_eps, true, false);
    let attend = AttentionParams::both_ways(dims.scale());
    Ok(PostNorm {
        self_attn: Attention::load_named(
            &layer.at("attention"),
            names,
            dims.heads(),
            [true, true],
            None,
            attend,
        )?,
        attention_norm: norm("sa_layer_norm")?,
        mlp: PlainMlp::load(&layer.at("ffn"), ["lin1", "lin2"], dims, true)?,
        output_norm: norm("output_layer_norm")?,
    })
}
