//! Gemma 4: wider heads on the layers that see all, keys and values that later layers share, an input of its own for each layer, and
//! mixtures of experts beside the feed-forward part in some sizes.

use std::rc::Rc;

use inference_core::{Error, ModelManifest, Result as LoadResult};
use mlx_rs::{
    Array,
    error::{Exception, Result},
};
use serde::Deserialize;
use serde_json::json;

use super::config::{Config, LayerType, Layers, positive, text_section, top_k, tower};
use crate::{
    mlx::scalar,
    nn::{
        Architecture, AttentionParams, Block, Decoder, Dimensions, ExpertSizes, Experts, ForwardPass,
        GatedMlp, Gating, LayerInputs, LayerState, Linear, RmsNorm, Rope, RopeShape, Routing, Weight,
        Weights,
    },
};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    attention_k_eq_v: bool,
    num_kv_shared_layers: usize,
    use_double_wide_mlp: bool,
    global_head_dim: usize,
    #[serde(default)]
    num_global_key_value_heads: Option<usize>,
    hidden_size_per_layer_input: usize,
    vocab_size_per_layer_input: usize,
    enable_moe_block: bool,
    #[serde(default)]
    num_experts: Option<usize>,
    #[serde(default)]
    top_k_experts: Option<usize>,
    #[serde(default)]
    moe_intermediate_size: Option<usize>,
    #[serde(default)]
    final_logit_softcapping: Option<f32>,
    #[serde(default)]
    use_bidirectional_attention: Option<String>,
    #[serde(flatten)]
    layers: Layers,
}

impl Own {
    /// Checks what the dimensions do not.
    fn check(&self, manifest: &ModelManifest, dims: &Dimensions) -> LoadResult<()> {
        const LARGEST: usize = 1 << 24;
        let invalid =
            |key: &str, reason: String| Err(Error::invalid_key(manifest.config_path(), key, reason));
        if self.use_bidirectional_attention.as_deref() == Some("all") {
            let reason = "all: an encoder, which generates no text".to_owned();
            return invalid("use_bidirectional_attention", reason);
        }
        let heads = self.num_global_key_value_heads.unwrap_or(1);
        let sizes = [
            ("global_head_dim", self.global_head_dim),
            ("num_global_key_value_heads", heads),
            ("hidden_size_per_layer_input", self.hidden_size_per_layer_input.max(1)),
            ("vocab_size_per_layer_input", self.vocab_size_per_layer_input),
        ];
        for (key, size) in sizes {
            if size == 0 || size > LARGEST {
                return invalid(key, format!("{size}, expected a number from 1 to {LARGEST}"));
            }
        }
        if !self.global_head_dim.is_multiple_of(2) {
            return invalid("global_head_dim", format!("{}, expected an even number", self.global_head_dim));
        }
        if !dims.num_attention_heads.is_multiple_of(heads) {
            let reason = format!("{heads} do not divide num_attention_heads {}", dims.num_attention_heads);
            return invalid("num_global_key_value_heads", reason);
        }
        if self.num_kv_shared_layers >= dims.num_hidden_layers {
            let reason = format!("{}, expected fewer than layers", self.num_kv_shared_layers);
            return invalid("num_kv_shared_layers", reason);
        }
        if self.hidden_size_per_layer_input > 0 && self.vocab_size_per_layer_input < dims.vocab_size {
            let reason = format!("{}, expected at least vocab_size", self.vocab_size_per_layer_input);
            return invalid("vocab_size_per_layer_input", reason);
        }
        Ok(())
    }
}

/// Where a layer's keys and values come from.
#[derive(Debug)]
enum KeysValues {
    /// Its own projections; without one of values, those are the keys before their norm. Whether later layers share them.
    Own { k_proj: Linear, v_proj: Option<Linear>, k_norm: RmsNorm, is_shared: bool },
    /// Those of an earlier layer.
    Shared(usize),
}

/// Attention of which queries, keys and values are normalised.
#[derive(Debug)]
pub(super) struct Attention {
    q_proj: Linear,
    q_norm: RmsNorm,
    keys_values: KeysValues,
    o_proj: Linear,
    rope: Rc<Rope>,
    params: AttentionParams,
    eps: f32,
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
}

/// What differs between the attention of layers.
pub(super) struct AttentionPlan<'a> {
    pub(super) head_dim: usize,
    pub(super) kv_heads: usize,
    /// Whether there is no projection of values.
    pub(super) keys_are_values: bool,
    pub(super) bias: bool,
    /// The layer whose keys and values are shared by this one, if they are not its own.
    pub(super) source: Option<usize>,
    /// Whether later layers share its own.
    pub(super) is_shared: bool,
    pub(super) window: Option<usize>,
    pub(super) rope: &'a Rc<Rope>,
}

impl Attention {
    /// The block at `weights`.
    pub(super) fn load(
        weights: &Weights<'_>,
        dims: &Dimensions,
        plan: &AttentionPlan<'_>,
    ) -> LoadResult<Self> {
        let &AttentionPlan { head_dim, kv_heads, keys_are_values, bias, source, is_shared, window, rope } =
            plan;
        let (hidden, heads) = (dims.hidden_size, dims.num_attention_heads);
        let norm = |name| RmsNorm::load(&weights.at(name), head_dim, dims.rms_norm_eps, false);
        let linear = |name, heads: usize| Linear::load(&weights.at(name), heads * head_dim, hidden, bias);
        let keys_values = if let Some(source) = source {
            // Some publishers store what is not used.
            let unused = ["k_proj.", "v_proj.", "k_norm.", "v_norm."].map(|name| weights.name(name));
            weights.skip(|name| unused.iter().any(|unused| name.starts_with(unused)));
            KeysValues::Shared(source)
        } else {
            KeysValues::Own {
                k_proj: linear("k_proj", kv_heads)?,
                v_proj: (!keys_are_values).then(|| linear("v_proj", kv_heads)).transpose()?,
                k_norm: norm("k_norm")?,
                is_shared,
            }
        };
        Ok(Self {
            q_proj: linear("q_proj", heads)?,
            q_norm: norm("q_norm")?,
            keys_values,
            o_proj: Linear::load(&weights.at("o_proj"), hidden, heads * head_dim, bias)?,
            rope: rope.clone(),
            params: AttentionParams { window, ..AttentionParams::full(1.0) },
            eps: dims.rms_norm_eps,
            heads: heads as i32,
            kv_heads: kv_heads as i32,
            head_dim: head_dim as i32,
        })
    }

    pub(super) fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        let split = |x: Array, heads: i32| x.reshape(&[x.dim(0), x.dim(1), heads, self.head_dim]);
        let place = |x: &Array, pass: &ForwardPass<'_>| {
            self.rope.forward(&x.swap_axes(1, 2)?, pass.offsets(), pass.lengths())
        };
        let queries = self.q_norm.forward(&split(self.q_proj.forward(x)?, self.heads)?)?;
        let queries = place(&queries, pass)?;
        let output = match &self.keys_values {
            KeysValues::Shared(source) => pass.attend_shared(*source, &queries, &self.params)?,
            KeysValues::Own { k_proj, v_proj, k_norm, is_shared } => {
                let keys = split(k_proj.forward(x)?, self.kv_heads)?;
                let values = match v_proj {
                    Some(v_proj) => split(v_proj.forward(x)?, self.kv_heads)?,
                    None => keys.clone(),
                };
                let keys = place(&k_norm.forward(&keys)?, pass)?;
                let values = RmsNorm::without_weight(&values, self.eps)?.swap_axes(1, 2)?;
                let all = [&queries, &keys, &values];
                if *is_shared {
                    pass.attend_and_share(layer, all, &self.params)?
                } else {
                    pass.attend(layer, all, &self.params)?
                }
            }
        };
        self.o_proj.forward(&output)
    }

    pub(super) fn state(&self) -> LayerState {
        match self.keys_values {
            KeysValues::Own { .. } => {
                LayerState::attention(self.params.window, 2 * (self.kv_heads * self.head_dim) as usize)
            }
            KeysValues::Shared(_) => LayerState::default(),
        }
    }
}

/// A mixture of experts beside the feed-forward part.
#[derive(Debug)]
struct Mixture {
    /// Factors of the normalised inputs of the router.
    scale: Weight,
    proj: Linear,
    per_expert_scale: Weight,
    routing: Routing,
    experts: Experts,
    /// After the feed-forward part; before and after the experts.
    norms: [RmsNorm; 3],
    eps: f32,
}

impl Mixture {
    fn load(layer: &Weights<'_>, dims: &Dimensions, own: &Own) -> LoadResult<Self> {
        let missing = |key: &str| Error::invalid_key(layer.manifest().config_path(), key, "is missing");
        let experts = own.num_experts.ok_or_else(|| missing("num_experts"))?;
        let picked = own.top_k_experts.ok_or_else(|| missing("top_k_experts"))?;
        let size = own.moe_intermediate_size.ok_or_else(|| missing("moe_intermediate_size"))?;
        let picked = top_k(layer.manifest(), picked, experts)?;
        let sizes = ExpertSizes { experts, hidden_size: dims.hidden_size, intermediate_size: size };
        let router = layer.at("router");
        let gating = Gating::Glu(dims.hidden_act);
        let converted = layer.at("experts.switch_glu");
        let norm = |name| dims.norm(&layer.at(name));
        Ok(Self {
            scale: router.take("scale", &[dims.hidden_size])?,
            proj: Linear::load(&router.at("proj"), experts, dims.hidden_size, false)?,
            per_expert_scale: router.take("per_expert_scale", &[experts])?,
            routing: Routing::softmax(picked, true),
            experts: if converted.has_any("gate_proj") {
                Experts::load_stacked(&converted, sizes, gating, false)?
            } else {
                Experts::load(layer, ["gate_proj", "up_proj", "down_proj"], sizes, gating)?
            },
            norms: [
                norm("post_feedforward_layernorm_1")?,
                norm("pre_feedforward_layernorm_2")?,
                norm("post_feedforward_layernorm_2")?,
            ],
            eps: dims.rms_norm_eps,
        })
    }

    /// The residual stream, and what the feed-forward part made of it → both mixed.
    fn forward(&self, x: &Array, fed: &Array) -> Result<Array> {
        let root = scalar((x.dim(-1) as f32).sqrt().recip(), x.dtype())?;
        let scores = RmsNorm::without_weight(x, self.eps)?.multiply(self.scale.get()?)?.multiply(root)?;
        let [picks, weights] = self.routing.pick(&self.proj.forward(&scores)?)?;
        let scales = self.per_expert_scale.get()?.take_axis(&picks, 0)?;
        let weights = weights.as_dtype(x.dtype())?.multiply(scales)?.expand_dims(-1)?;
        let outputs = self.experts.forward(&self.norms[1].forward(x)?, &picks)?;
        let mixed = outputs.multiply(weights)?.sum_axis(-2, false)?;
        self.norms[0].forward(fed)?.add(self.norms[2].forward(&mixed)?)
    }
}

/// What a layer makes of the input that is its own.
#[derive(Debug)]
struct OwnInput {
    per_layer_input_gate: Linear,
    per_layer_projection: Linear,
    post_per_layer_input_norm: RmsNorm,
    gating: Gating,
}

/// A block of Gemma 4.
#[derive(Debug)]
struct Gemma4Block {
    self_attn: Attention,
    mlp: GatedMlp,
    mixture: Option<Mixture>,
    own_input: Option<OwnInput>,
    /// Before and after attention, before and after the feed-forward part.
    norms: [RmsNorm; 4],
    layer_scalar: Weight,
}

impl Block for Gemma4Block {
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        let [before, after, before_mlp, after_mlp] = &self.norms;
        let mixed = self.self_attn.forward(&before.forward(x)?, pass, layer)?;
        let x = after.add(x, &mixed)?;
        let mut fed = self.mlp.forward(&before_mlp.forward(&x)?)?;
        if let Some(mixture) = &self.mixture {
            fed = mixture.forward(&x, &fed)?;
        }
        let mut x = after_mlp.add(&x, &fed)?;
        if let Some(own) = &self.own_input {
            let input =
                pass.layer_input(layer)?.ok_or_else(|| Exception::custom("a layer without its input"))?;
            let gate = own.per_layer_input_gate.forward(&x)?;
            let gated = own.gating.apply(&gate, &input)?;
            x = own.post_per_layer_input_norm.add(&x, &own.per_layer_projection.forward(&gated)?)?;
        }
        x.multiply(self.layer_scalar.get()?)
    }

    fn state(&self) -> LayerState {
        self.self_attn.state()
    }
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": false, "tie_word_embeddings": true, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 30, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262_144, "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6, "sliding_window": 512, "global_head_dim": 512, "attention_k_eq_v": false,
        "num_kv_shared_layers": 0, "use_double_wide_mlp": false, "enable_moe_block": false,
        "hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": 262_144,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
        },
    });
    let manifest = weights.manifest();
    let Config { dims, own, value } = Config::<Own>::read(manifest, text_section(manifest), defaults)?;
    own.check(manifest, &dims)?;
    let [root, model] = tower(weights);
    let rope = |name, head_dim| {
        let shape = RopeShape { head_dim, max_positions: dims.max_position_embeddings };
        Rope::load(weights, &value, Some(name), shape, 10_000.0).map(Rc::new)
    };
    let full = rope("full_attention", own.global_head_dim)?;
    let sliding = rope("sliding_attention", dims.head_dim())?;
    let scopes: Vec<_> = dims.layers(&model)?.collect();
    let mut types: Vec<_> = (own.layers.clone())
        .types(manifest, &dims, |i| {
            if (i + 1) % 6 == 0 { LayerType::FullAttention } else { LayerType::SlidingAttention }
        })?
        .collect();
    // The last one sees all, whatever the config says.
    if let Some(last) = types.last_mut() {
        *last = LayerType::FullAttention;
    }
    let mut layers = Vec::with_capacity(scopes.len());
    for (i, layer) in scopes.iter().enumerate() {
        let rope = if types[i] == LayerType::FullAttention { &full } else { &sliding };
        layers.push(load_block(layer, &dims, &own, &types, i, rope)?);
    }
    let inputs = (own.hidden_size_per_layer_input > 0).then(|| {
        LayerInputs::load(&model, &dims, [own.vocab_size_per_layer_input, own.hidden_size_per_layer_input])
    });
    let decoder = Decoder::load(&root, &model, &dims, layers, &[&full, &sliding])?;
    let cap = own.final_logit_softcapping;
    Ok(Box::new(Decoder {
        embed_scale: Some((dims.hidden_size as f32).sqrt()),
        logit_cap: cap.map(|cap| positive(manifest, "final_logit_softcapping", cap)).transpose()?,
        layer_inputs: inputs.transpose()?,
        ..decoder
    }))
}

fn load_block(
    layer: &Weights<'_>,
    dims: &Dimensions,
    own: &Own,
    types: &[LayerType],
    i: usize,
    rope: &Rc<Rope>,
) -> LoadResult<Gemma4Block> {
    let is_reused = i >= dims.num_hidden_layers - own.num_kv_shared_layers;
    let wide = if own.use_double_wide_mlp && is_reused { 2 } else { 1 };
    let norm = |name| dims.norm(&layer.at(name));
    let width = own.hidden_size_per_layer_input;
    let own_input = (width > 0).then(|| {
        let (gate, projection) = (layer.at("per_layer_input_gate"), layer.at("per_layer_projection"));
        LoadResult::Ok(OwnInput {
            per_layer_input_gate: Linear::load(&gate, width, dims.hidden_size, false)?,
            per_layer_projection: Linear::load(&projection, dims.hidden_size, width, false)?,
            post_per_layer_input_norm: norm("post_per_layer_input_norm")?,
            gating: Gating::Glu(dims.hidden_act),
        })
    });
    Ok(Gemma4Block {
        self_attn: load_attention(&layer.at("self_attn"), dims, own, types, i, rope)?,
        mlp: GatedMlp::load_sized(&layer.at("mlp"), dims, dims.intermediate_size.saturating_mul(wide))?,
        mixture: own.enable_moe_block.then(|| Mixture::load(layer, dims, own)).transpose()?,
        own_input: own_input.transpose()?,
        norms: [
            norm("input_layernorm")?,
            norm("post_attention_layernorm")?,
            norm("pre_feedforward_layernorm")?,
            norm("post_feedforward_layernorm")?,
        ],
        layer_scalar: layer.take("layer_scalar", &[1])?,
    })
}

fn load_attention(
    weights: &Weights<'_>,
    dims: &Dimensions,
    own: &Own,
    types: &[LayerType],
    i: usize,
    rope: &Rc<Rope>,
) -> LoadResult<Attention> {
    let (sees_all, heads) = (types[i] == LayerType::FullAttention, dims.heads());
    let global = own.num_global_key_value_heads.filter(|_| sees_all && own.attention_k_eq_v);
    let (source, is_shared) = sharing(weights, types, own.num_kv_shared_layers, i)?;
    let plan = AttentionPlan {
        head_dim: if sees_all { own.global_head_dim } else { heads.head_dim },
        kv_heads: global.unwrap_or(heads.kv_heads),
        keys_are_values: own.attention_k_eq_v && sees_all,
        bias: own.attention_bias,
        source,
        is_shared,
        window: own.layers.window(types[i]),
        rope,
    };
    Attention::load(weights, dims, &plan)
}

/// The layer whose keys and values layer `i` shares, which is the last one of its type that has its own; and whether others share those
/// of layer `i`. The last `reused` layers share.
pub(super) fn sharing(
    weights: &Weights<'_>,
    types: &[LayerType],
    reused: usize,
    i: usize,
) -> LoadResult<(Option<usize>, bool)> {
    let first_reused = types.len() - reused;
    let source = types[..first_reused].iter().rposition(|other| *other == types[i]);
    if i < first_reused {
        return Ok((None, reused > 0 && source == Some(i)));
    }
    let missing = || {
        let reason = "leaves no layer whose keys and values the last ones share";
        Error::invalid_key(weights.manifest().config_path(), "num_kv_shared_layers", reason)
    };
    Ok((Some(source.ok_or_else(missing)?), false))
}
