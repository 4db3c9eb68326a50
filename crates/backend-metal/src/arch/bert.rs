//! BERT and its relatives with the same blocks: RoBERTa and XLM-RoBERTa, whose positions begin elsewhere.

use inference_core::{Error, ModelManifest, Result as LoadResult};
use serde::Deserialize;
use serde_json::{Value, json};

use super::config::Config;
use crate::nn::{
    Architecture, Attention, AttentionParams, Dimensions, Encoder, HeadActivation, LayerNorm, PlainMlp,
    PositionIds, PostNorm, RelevanceHead, TextEmbeddings, Weights,
};

#[derive(Debug, Deserialize)]
struct Own {
    #[serde(default)]
    type_vocab_size: Option<usize>,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    #[serde(default)]
    pad_token_id: Option<u32>,
}

/// What config.json leaves out.
fn defaults() -> Value {
    json!({
        "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "hidden_act": "gelu", "max_position_embeddings": 512, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "tie_word_embeddings": true, "pad_token_id": 1, "rms_norm_eps": 1e-12,
    })
}

/// Names of config.json, and those that all families have here.
const RENAMED: &[(&str, &str)] = &[("layer_norm_eps", "rms_norm_eps")];

/// Binds a checkpoint of BERT.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let Config { mut dims, own, .. } =
        Config::<Own>::read_renamed(weights.manifest(), None, defaults(), RENAMED)?;
    let model = own.check(weights, "bert")?;
    let embeddings = embeddings(&model, &mut dims, own.type_vocab_size, PositionIds::Places)?;
    let layers = layers(&model, &dims)?;
    let (classifier, pooler) = (weights.at("classifier"), model.at("pooler.dense"));
    let head = RelevanceHead::load(&classifier, (&pooler, HeadActivation::Tanh), &dims)?;
    skip_heads(weights, &model);
    Ok(Box::new(Encoder::new(weights, &dims, embeddings, layers, None, head)))
}

/// Binds a checkpoint of RoBERTa or XLM-RoBERTa.
pub(super) fn load_roberta(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let Config { mut dims, own, .. } =
        Config::<Own>::read_renamed(weights.manifest(), None, defaults(), RENAMED)?;
    let model = own.check(weights, "roberta")?;
    let ids = PositionIds::Beyond { padding: own.pad_token_id.unwrap_or(1) };
    let embeddings = embeddings(&model, &mut dims, own.type_vocab_size, ids)?;
    let layers = layers(&model, &dims)?;
    let classifier = weights.at("classifier");
    let dense = (&classifier.at("dense"), HeadActivation::Tanh);
    let head = RelevanceHead::load(&classifier.at("out_proj"), dense, &dims)?;
    skip_heads(weights, &model);
    Ok(Box::new(Encoder::new(weights, &dims, embeddings, layers, None, head)))
}

impl Own {
    /// The model's scope, once it is sure that it is an encoder with learned positions.
    fn check<'a>(&self, weights: &Weights<'a>, scope: &str) -> LoadResult<Weights<'a>> {
        let invalid = |key: &str, reason: String| {
            Err(Error::invalid_key(weights.manifest().config_path(), key, reason))
        };
        if self.is_decoder {
            return invalid("is_decoder", "is true, expected an encoder".to_owned());
        }
        match self.position_embedding_type.as_deref() {
            None | Some("absolute") => Ok(weights.at(if weights.has_any(scope) { scope } else { "" })),
            Some(other) => invalid("position_embedding_type", format!("is {other:?}, expected \"absolute\"")),
        }
    }
}

/// The embeddings at `model`. Sets the longest text in place of the rows of the position embeddings.
pub(super) fn embeddings(
    model: &Weights<'_>,
    dims: &mut Dimensions,
    types: Option<usize>,
    ids: PositionIds,
) -> LoadResult<TextEmbeddings> {
    let types = types.filter(|types| *types > 0);
    let embeddings = TextEmbeddings::load(&model.at("embeddings"), dims, types, ids)?;
    dims.max_position_embeddings = longest(model.manifest(), dims, ids)?;
    Ok(embeddings)
}

fn longest(manifest: &ModelManifest, dims: &Dimensions, ids: PositionIds) -> LoadResult<usize> {
    let rows = dims.max_position_embeddings;
    let longest = ids.longest(rows);
    if longest == 0 {
        let reason = format!("{rows}, which leaves no position for a token");
        return Err(Error::invalid_key(manifest.config_path(), "max_position_embeddings", reason));
    }
    Ok(longest)
}

fn layers(model: &Weights<'_>, dims: &Dimensions) -> LoadResult<Vec<PostNorm<PlainMlp>>> {
    let names = ["self.query", "self.key", "self.value", "output.dense"];
    let layer =
        |layer: Weights<'_>| block(&layer, &layer.at("attention"), names, "attention.output.LayerNorm", dims);
    dims.layers_named(&model.at("encoder"), "layer")?.map(layer).collect()
}

/// A block of BERT: the names of the attention's projections and of the norm behind it vary.
pub(super) fn block(
    layer: &Weights<'_>,
    attention: &Weights<'_>,
    names: [&str; 4],
    attention_norm: &str,
    dims: &Dimensions,
) -> LoadResult<PostNorm<PlainMlp>> {
    block_with(layer, attention, names, attention_norm, dims, AttentionParams::both_ways(dims.scale()))
}

/// The same with other attention.
pub(super) fn block_with(
    layer: &Weights<'_>,
    attention: &Weights<'_>,
    names: [&str; 4],
    attention_norm: &str,
    dims: &Dimensions,
    attend: AttentionParams,
) -> LoadResult<PostNorm<PlainMlp>> {
    let norm =
        |name: &str| LayerNorm::load(&layer.at(name), dims.hidden_size, dims.rms_norm_eps, true, false);
    Ok(PostNorm {
        self_attn: Attention::load_named(attention, names, dims.heads(), [true, true], None, attend)?,
        attention_norm: norm(attention_norm)?,
        mlp: PlainMlp::load(layer, ["intermediate.dense", "output.dense"], dims, true)?,
        output_norm: norm("output.LayerNorm")?,
    })
}

/// Skips what serves other tasks: the pooler where no classifier needs it, classifiers of several labels, heads that predict words.
pub(super) fn skip_heads(weights: &Weights<'_>, model: &Weights<'_>) {
    let unneeded = ["pooler.", "embeddings.position_ids"].map(|name| model.name(name));
    let heads = ["classifier.", "cls.", "lm_head.", "qa_outputs."];
    weights.skip(|name| {
        unneeded.iter().any(|part| name.starts_with(part)) || heads.iter().any(|head| name.starts_with(head))
    });
}
