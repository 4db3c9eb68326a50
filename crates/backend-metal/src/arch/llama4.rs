//! Llama 4: attention within chunks on layers with positions, to all on those without, and mixtures of experts whose inputs are scaled.

use std::rc::Rc;

use inference_core::{Error, ModelManifest, Result as LoadResult};
use mlx_rs::{Array, error::Result};
use serde::Deserialize;
use serde_json::json;

use super::config::{Config, positive, text_section, top_k, tower};
use crate::{
    mlx::slice,
    nn::{
        Architecture, Attention, AttentionParams, Decoder, Dimensions, ExpertSizes, Experts, FeedForward,
        GatedMlp, Gating, Linear, PreNorm, QkNorm, QueryScale, Rope, Routing, Weights,
    },
};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    intermediate_size_mlp: usize,
    num_local_experts: usize,
    num_experts_per_tok: usize,
    #[serde(default)]
    moe_layers: Option<Vec<usize>>,
    interleave_moe_layer_step: usize,
    use_qk_norm: bool,
    /// For each layer whether it has positions: 1 is yes.
    #[serde(default)]
    no_rope_layers: Vec<usize>,
    no_rope_layer_interval: usize,
    #[serde(default)]
    attention_chunk_size: Option<usize>,
    #[serde(default)]
    layer_types: Option<Vec<LayerType>>,
    attn_temperature_tuning: bool,
    floor_scale: f32,
    attn_scale: f32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum LayerType {
    ChunkedAttention,
    FullAttention,
}

impl Own {
    /// Checks what the dimensions do not.
    fn check(&self, manifest: &ModelManifest, dims: &Dimensions) -> LoadResult<()> {
        const LARGEST: usize = 1 << 24;
        let invalid =
            |key: &str, reason: String| Err(Error::invalid_key(manifest.config_path(), key, reason));
        let sizes = [
            ("intermediate_size_mlp", self.intermediate_size_mlp),
            ("interleave_moe_layer_step", self.interleave_moe_layer_step),
            ("no_rope_layer_interval", self.no_rope_layer_interval),
        ];
        for (key, size) in sizes {
            if size == 0 || size > LARGEST {
                return invalid(key, format!("{size}, expected a number from 1 to {LARGEST}"));
            }
        }
        if self.attention_chunk_size.is_some_and(|size| size == 0 || size > i32::MAX as usize) {
            return invalid("attention_chunk_size", "expected a positive number".to_owned());
        }
        top_k(manifest, self.num_experts_per_tok, self.num_local_experts)?;
        let layers = dims.num_hidden_layers;
        if !self.no_rope_layers.is_empty() && self.no_rope_layers.len() < layers {
            let found = self.no_rope_layers.len();
            return invalid("no_rope_layers", format!("{found} entries for {layers} layers"));
        }
        match &self.layer_types {
            Some(types) if types.len() != layers => {
                invalid("layer_types", format!("{} entries for {layers} layers", types.len()))
            }
            Some(types)
                if types.contains(&LayerType::ChunkedAttention) && self.attention_chunk_size.is_none() =>
            {
                invalid(
                    "attention_chunk_size",
                    "is missing, and layer_types has chunked_attention".to_owned(),
                )
            }
            _ => Ok(()),
        }
    }

    fn has_positions(&self, layer: usize) -> bool {
        match self.no_rope_layers.get(layer) {
            Some(has) => *has != 0,
            None => !(layer + 1).is_multiple_of(self.no_rope_layer_interval),
        }
    }

    /// The chunks of a layer.
    fn chunk(&self, layer: usize) -> Option<usize> {
        let is_chunked = match &self.layer_types {
            Some(types) => types[layer] == LayerType::ChunkedAttention,
            None => self.has_positions(layer),
        };
        self.attention_chunk_size.filter(|_| is_chunked)
    }

    fn is_sparse(&self, layer: usize) -> bool {
        match &self.moe_layers {
            Some(layers) => layers.contains(&layer),
            None => (layer + 1).is_multiple_of(self.interleave_moe_layer_step),
        }
    }

    /// How queries without positions grow along the text.
    fn query_scale(&self, manifest: &ModelManifest, layer: usize) -> LoadResult<Option<QueryScale>> {
        if !self.attn_temperature_tuning || self.has_positions(layer) {
            return Ok(None);
        }
        let original = positive(manifest, "floor_scale", self.floor_scale)?;
        if original.fract() != 0.0 || original > 1e9 {
            let reason = format!("{original}, expected a whole number");
            return Err(Error::invalid_key(manifest.config_path(), "floor_scale", reason));
        }
        Ok(Some(QueryScale { beta: self.attn_scale, original: original as usize, shift: 1 }))
    }
}

/// A mixture of experts beside one that every token goes through. Not what experts give is weighted, but what they get.
#[derive(Debug)]
struct Mixture {
    router: Linear,
    routing: Routing,
    experts: Experts,
    shared: GatedMlp,
}

impl Mixture {
    fn load(weights: &Weights<'_>, dims: &Dimensions, own: &Own) -> LoadResult<Self> {
        let experts = own.num_local_experts;
        let (hidden_size, intermediate_size) = (dims.hidden_size, dims.intermediate_size);
        let sizes = ExpertSizes { experts, hidden_size, intermediate_size };
        let (all, gating) = (weights.at("experts"), Gating::Glu(dims.hidden_act));
        Ok(Self {
            router: Linear::load(&weights.at("router"), experts, hidden_size, false)?,
            routing: Routing::sigmoid(own.num_experts_per_tok, false),
            experts: if all.has("gate_up_proj") {
                Experts::load_transposed(&all, sizes, gating)?
            } else {
                Experts::load_stacked(&all, sizes, gating, false)?
            },
            shared: GatedMlp::load(&weights.at("shared_expert"), dims, false)?,
        })
    }
}

impl FeedForward for Mixture {
    fn forward(&self, x: &Array) -> Result<Array> {
        let [picks, weights] = self.routing.pick(&self.router.forward(x)?)?;
        let weights = weights.as_dtype(x.dtype())?;
        let mut sum = self.shared.forward(x)?;
        for place in 0..picks.dim(-1) {
            let [pick, weight] = [&picks, &weights].map(|all| slice(all, 2, place, place + 1));
            let (pick, weight) = (pick?, weight?);
            sum = sum.add(self.experts.forward(&x.multiply(weight)?, &pick)?.squeeze_axes(&[2])?)?;
        }
        Ok(sum)
    }
}

/// Binds a checkpoint, or the language tower of a multimodal one.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": false, "tie_word_embeddings": false, "hidden_act": "silu", "head_dim": 128,
        "hidden_size": 5120, "intermediate_size": 8192, "intermediate_size_mlp": 16384, "num_hidden_layers": 48,
        "num_attention_heads": 40, "num_key_value_heads": 8, "vocab_size": 202_048,
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "num_local_experts": 16, "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1, "use_qk_norm": true, "no_rope_layer_interval": 4,
        "attention_chunk_size": 8192, "attn_temperature_tuning": true, "floor_scale": 8192.0, "attn_scale": 0.1,
    });
    let manifest = weights.manifest();
    let Config { dims, own, value } = Config::<Own>::read(manifest, text_section(manifest), defaults)?;
    own.check(manifest, &dims)?;
    let [root, model] = tower(weights);
    let rope = Rc::new(Rope::load(weights, &value, None, dims.rope(), 500_000.0)?.interleaved());
    let layers = dims.layers(&model)?.enumerate().map(|(i, layer)| {
        let params = AttentionParams { chunk: own.chunk(i), ..AttentionParams::full(dims.scale()) };
        let (attention, bias) = (layer.at("self_attn"), [own.attention_bias; 2]);
        let positions = own.has_positions(i).then(|| rope.clone());
        let normalises = own.use_qk_norm && positions.is_some();
        let mut self_attn = Attention::load(&attention, dims.heads(), bias, positions, params)?
            .with_query_scale(own.query_scale(manifest, i)?);
        if normalises {
            self_attn = self_attn.with_norm(QkNorm::Unweighted(dims.rms_norm_eps));
        }
        let part = layer.at("feed_forward");
        let mlp: Box<dyn FeedForward> = if own.is_sparse(i) {
            Box::new(Mixture::load(&part, &dims, &own)?)
        } else {
            Box::new(GatedMlp::load_sized(&part, &dims, own.intermediate_size_mlp)?)
        };
        PreNorm::load(&layer, &dims, self_attn, mlp)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    Ok(Box::new(Decoder::load(&root, &model, &dims, layers, &[&rope])?))
}
