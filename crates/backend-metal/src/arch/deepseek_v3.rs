//! DeepSeek V3, R1 and Kimi K2, and GLM 4.7 Flash, which is built alike: latent attention, and mixtures of experts that are picked from
//! the best groups.

use std::rc::Rc;

use inference_core::{Error, ModelManifest, Result as LoadResult};
use serde::Deserialize;
use serde_json::{Value, json};

use super::config::{Config, parse, positive, query_scale, top_k, tower};
use crate::nn::{
    Architecture, Decoder, Dimensions, ExpertSizes, Experts, FeedForward, GatedMlp, Gating, LatentAttention,
    LatentSizes, Linear, Moe, PreNorm, Rope, Routing, Scoring, SharedExpert, Weights,
};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    rope_interleave: bool,
}

/// Mixtures of experts with sigmoid scores and shared experts, on layers after the first few.
#[derive(Debug, Deserialize)]
pub(super) struct GroupedExperts {
    moe_intermediate_size: usize,
    /// None, or 0: there are no shared experts.
    #[serde(default)]
    n_shared_experts: Option<usize>,
    #[serde(alias = "num_local_experts", alias = "num_experts")]
    n_routed_experts: usize,
    routed_scaling_factor: f32,
    n_group: usize,
    topk_group: usize,
    num_experts_per_tok: usize,
    first_k_dense_replace: usize,
    #[serde(default = "one")]
    moe_layer_freq: usize,
    #[serde(default)]
    mlp_layer_types: Option<Vec<MlpType>>,
    norm_topk_prob: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum MlpType {
    Dense,
    Sparse,
}

fn one() -> usize {
    1
}

impl GroupedExperts {
    /// Checks that the sizes make sense.
    pub(super) fn check(&self, manifest: &ModelManifest, dims: &Dimensions) -> LoadResult<()> {
        const LARGEST: usize = 1 << 20;
        let invalid =
            |key: &str, reason: String| Err(Error::invalid_key(manifest.config_path(), key, reason));
        top_k(manifest, self.num_experts_per_tok, self.n_routed_experts)?;
        positive(manifest, "routed_scaling_factor", self.routed_scaling_factor)?;
        let shared = self.n_shared_experts.unwrap_or(0).max(1);
        let sizes = [
            ("moe_intermediate_size", self.moe_intermediate_size),
            ("n_shared_experts", shared),
            ("moe_layer_freq", self.moe_layer_freq),
            ("n_group", self.n_group),
        ];
        for (key, size) in sizes {
            if size == 0 || size > LARGEST {
                return invalid(key, format!("{size}, expected a number from 1 to {LARGEST}"));
            }
        }
        if !self.n_routed_experts.is_multiple_of(self.n_group) {
            return invalid(
                "n_group",
                format!("{} do not divide {} experts", self.n_group, self.n_routed_experts),
            );
        }
        if self.topk_group == 0 || self.topk_group > self.n_group {
            return invalid("topk_group", format!("{}, expected from 1 to n_group", self.topk_group));
        }
        if self.num_experts_per_tok > self.topk_group * (self.n_routed_experts / self.n_group) {
            return invalid("topk_group", format!("{} groups have too few experts", self.topk_group));
        }
        match &self.mlp_layer_types {
            Some(types) if types.len() != dims.num_hidden_layers => {
                let layers = dims.num_hidden_layers;
                invalid("mlp_layer_types", format!("{} entries for {layers} layers", types.len()))
            }
            _ => Ok(()),
        }
    }

    fn is_sparse(&self, layer: usize) -> bool {
        match &self.mlp_layer_types {
            Some(types) => types[layer] == MlpType::Sparse,
            None => layer >= self.first_k_dense_replace && layer.is_multiple_of(self.moe_layer_freq),
        }
    }

    /// The sizes of the experts.
    pub(super) fn sizes(&self, dims: &Dimensions) -> ExpertSizes {
        ExpertSizes {
            experts: self.n_routed_experts,
            hidden_size: dims.hidden_size,
            intermediate_size: self.moe_intermediate_size,
        }
    }

    /// How experts are picked by sigmoid scores, with the corrections of the router at `weights`.
    pub(super) fn routing(&self, weights: &Weights<'_>) -> LoadResult<Routing> {
        let bias = weights.take_wide("e_score_correction_bias", &[self.n_routed_experts])?;
        let picked = Routing::sigmoid(self.num_experts_per_tok, self.norm_topk_prob);
        Ok(self.grouped(Routing { bias: Some(bias), ..picked }))
    }

    /// How experts are picked by their probabilities.
    fn softmax_routing(&self) -> Routing {
        let picked = Routing::softmax(self.num_experts_per_tok, self.norm_topk_prob);
        self.grouped(Routing { epsilon: 1e-20, ..picked })
    }

    fn grouped(&self, routing: Routing) -> Routing {
        let groups = (self.n_group > 1).then_some([self.n_group, self.topk_group]);
        Routing { groups, scale: self.routed_scaling_factor, ..routing }
    }

    /// The feed-forward part of a layer, at `weights`, whose experts are picked by sigmoid scores.
    pub(super) fn load(
        &self,
        weights: &Weights<'_>,
        dims: &Dimensions,
        layer: usize,
    ) -> LoadResult<Box<dyn FeedForward>> {
        self.load_with(weights, dims, layer, |gate| self.routing(gate))
    }

    fn load_with(
        &self,
        weights: &Weights<'_>,
        dims: &Dimensions,
        layer: usize,
        routing: impl FnOnce(&Weights<'_>) -> LoadResult<Routing>,
    ) -> LoadResult<Box<dyn FeedForward>> {
        if !self.is_sparse(layer) {
            return Ok(Box::new(GatedMlp::load(weights, dims, false)?));
        }
        let shared = self.n_shared_experts.filter(|shared| *shared > 0).map(|shared| {
            let size = shared * self.moe_intermediate_size;
            let mlp = GatedMlp::load_sized(&weights.at("shared_experts"), dims, size)?;
            LoadResult::Ok(SharedExpert { mlp, gate: None })
        });
        let gate = weights.at("gate");
        let names = ["gate_proj", "up_proj", "down_proj"];
        Ok(Box::new(Moe {
            router: Linear::load(&gate, self.n_routed_experts, dims.hidden_size, false)?,
            routing: routing(&gate)?,
            experts: Experts::load(weights, names, self.sizes(dims), Gating::Glu(dims.hidden_act))?,
            shared: shared.transpose()?,
        }))
    }
}

/// Binds a checkpoint of DeepSeek V3.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    load_with(
        weights,
        None,
        Scoring::Sigmoid,
        json!({
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
            "v_head_dim": 128, "moe_intermediate_size": 2048, "n_routed_experts": 256, "routed_scaling_factor": 2.5,
            "n_group": 8, "topk_group": 4, "num_experts_per_tok": 8, "first_k_dense_replace": 3,
        }),
    )
}

/// Binds a checkpoint of GLM 4.7 Flash.
pub(super) fn load_glm(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    load_with(
        weights,
        None,
        Scoring::Sigmoid,
        json!({
            "max_position_embeddings": 202_752, "rms_norm_eps": 1e-5, "q_lora_rank": 768, "qk_nope_head_dim": 192,
            "v_head_dim": 256, "moe_intermediate_size": 1536, "n_routed_experts": 64, "routed_scaling_factor": 1.8,
            "n_group": 1, "topk_group": 1, "num_experts_per_tok": 4, "first_k_dense_replace": 1,
        }),
    )
}

/// Binds a checkpoint of this or a like family: the section of config.json that describes it, what is made of the router's scores, and
/// the family's defaults.
pub(super) fn load_with(
    weights: &Weights<'_>,
    section: Option<&str>,
    scoring: Scoring,
    family: Value,
) -> LoadResult<Box<dyn Architecture>> {
    let mut defaults = json!({
        "attention_bias": false, "tie_word_embeddings": false, "hidden_act": "silu", "kv_lora_rank": 512,
        "head_dim": 64, "qk_rope_head_dim": 64, "rope_interleave": true, "n_shared_experts": 1, "norm_topk_prob": true,
    });
    if let (Value::Object(all), Value::Object(family)) = (&mut defaults, family) {
        all.extend(family);
    }
    let manifest = weights.manifest();
    let renamed = [("qk_rope_head_dim", "head_dim")];
    let Config { dims, own, value } =
        Config::<Own>::read_edited(manifest, section, defaults, &renamed, |config| {
            // It is that of rotated elements in heads, and of these alone are positions made.
            if let Some(Value::Object(rope)) = config.get_mut("rope_parameters") {
                rope.remove("partial_rotary_factor");
            }
            Ok(())
        })?;
    let sizes: LatentSizes = parse(manifest, section, &value)?;
    sizes.check(manifest)?;
    let moe: GroupedExperts = parse(manifest, section, &value)?;
    moe.check(manifest, &dims)?;
    let [root, model] = tower(weights);
    let query_scale = query_scale(weights, &value)?;
    let rope = Rope::load(weights, &value, None, dims.rope(), 10_000.0)?;
    let rope = Rc::new(if own.rope_interleave { rope.interleaved() } else { rope });
    let scale = (sizes.head_dim() as f32).sqrt().recip() * yarn_factor(&value);
    let layers = dims.layers(&model)?.enumerate().map(|(i, layer)| {
        let attention = layer.at("self_attn");
        // Its norms have the epsilon of transformers' class, whatever the config says.
        let mixer =
            LatentAttention::load(&attention, &dims, sizes, own.attention_bias, 1e-6, rope.clone(), scale)?
                .with_query_scale(query_scale);
        let mlp = moe.load_with(&layer.at("mlp"), &dims, i, |gate| match scoring {
            Scoring::Sigmoid => moe.routing(gate),
            Scoring::Softmax => Ok(moe.softmax_routing()),
        })?;
        PreNorm::load(&layer, &dims, mixer, mlp)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    skip_mtp_layers(weights, &dims);
    let mut decoder = Decoder::load(&root, &model, &dims, layers, &[&rope])?;
    // What is quantised in a cache are the short vectors and the rotated keys.
    decoder.config.head_dim = greatest_divisor(sizes.kv_lora_rank, sizes.qk_rope_head_dim);
    Ok(Box::new(decoder))
}

/// Layers behind the last one predict tokens after the next.
pub(super) fn skip_mtp_layers(weights: &Weights<'_>, dims: &Dimensions) {
    let extra = weights.manifest().config().get("num_nextn_predict_layers");
    let extra = extra.and_then(Value::as_u64).unwrap_or(0).min(16) as usize;
    let prefixes: Vec<_> =
        (0..extra).map(|i| format!("model.layers.{}.", dims.num_hidden_layers.saturating_add(i))).collect();
    weights.skip(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)));
}

/// What YaRN multiplies the scale of scores by.
fn yarn_factor(config: &Value) -> f32 {
    let sections = ["rope_parameters", "rope_scaling"].iter().filter_map(|key| config.get(*key));
    let number =
        |section: &Value, key: &str| section.get(key).and_then(Value::as_f64).filter(|n| n.is_finite());
    for section in sections {
        let kind = section.get("rope_type").or_else(|| section.get("type")).and_then(Value::as_str);
        if let (Some(factor), Some(all)) = (number(section, "factor"), number(section, "mscale_all_dim"))
            && kind.is_some_and(|kind| kind != "default")
            && all != 0.0
            && factor > 1.0
        {
            return (0.1 * all * factor.ln() + 1.0).powi(2) as f32;
        }
    }
    1.0
}

fn greatest_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_divisor(b, a % b) }
}
