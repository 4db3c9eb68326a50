//! Nemotron-H and Nemotron 3: layers that are one thing each, Mamba 2, attention without positions, a feed-forward part without gates, or
//! a mixture of such experts, which may work in a narrower space.

use inference_core::{Error, ModelManifest, Result as LoadResult};
use mlx_rs::{Array, error::Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    config::{Config, parse},
    deepseek_v3::GroupedExperts,
};
use crate::nn::{
    self, Activation, Architecture, Attention, AttentionParams, Block, Decoder, Dimensions, ExpertSizes,
    Experts, ForwardPass, LayerState, Linear, Mamba2, Mixer, Norm, PlainMlp, Recorded, Recording, RmsNorm,
    Routing, SsmNorm, SsmSizes, TimeStepLimit, Weights, mix,
};

#[derive(Debug, Deserialize)]
struct Own {
    mlp_bias: bool,
    mamba_num_heads: usize,
    mamba_head_dim: usize,
    mamba_hidden_act: Activation,
    ssm_state_size: usize,
    n_groups: usize,
    conv_kernel: usize,
    use_bias: bool,
    use_conv_bias: bool,
    /// The least time step; there is no greatest.
    time_step_min: f32,
    moe_shared_expert_intermediate_size: usize,
    #[serde(default)]
    moe_latent_size: Option<usize>,
}

/// What a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum LayerKind {
    #[serde(rename = "linear_attention", alias = "mamba")]
    Mamba,
    #[serde(rename = "full_attention", alias = "attention")]
    Attention,
    #[serde(rename = "mlp")]
    FeedForward,
    #[serde(rename = "moe")]
    Experts,
}

impl LayerKind {
    /// The layers' kinds: a list, or a letter for each.
    fn all(manifest: &ModelManifest) -> LoadResult<Vec<Self>> {
        const PATTERN: &str = "hybrid_override_pattern";
        let config = manifest.config();
        let given = |key: &str| config.get(key).filter(|value| !value.is_null());
        for key in ["layers_block_type", "layer_types"] {
            if let Some(kinds) = given(key) {
                return parse(manifest, Some(key), kinds);
            }
        }
        let Some(pattern) = given(PATTERN) else {
            return Ok(vec![Self::Mamba, Self::Experts, Self::Attention, Self::FeedForward]);
        };
        let invalid = |reason: String| Error::invalid_key(manifest.config_path(), PATTERN, reason);
        let kind = |letter: char| match letter {
            'M' => Ok(Self::Mamba),
            '*' => Ok(Self::Attention),
            '-' => Ok(Self::FeedForward),
            'E' => Ok(Self::Experts),
            other => Err(invalid(format!("{other:?}, expected one of M, *, - and E"))),
        };
        pattern.as_str().ok_or_else(|| invalid("is no text".to_owned()))?.chars().map(kind).collect()
    }
}

impl Own {
    fn ssm(&self, manifest: &ModelManifest, dims: &Dimensions) -> LoadResult<SsmSizes> {
        let sizes = SsmSizes {
            hidden_size: dims.hidden_size,
            heads: self.mamba_num_heads,
            head_dim: self.mamba_head_dim,
            groups: self.n_groups,
            state: self.ssm_state_size,
            kernel: self.conv_kernel,
            conv_bias: self.use_conv_bias,
            activation: self.mamba_hidden_act,
            proj_bias: [self.use_bias; 2],
            time_step_limit: TimeStepLimit([self.time_step_min, f32::INFINITY]),
            norm: SsmNorm::AfterGate,
            multipliers: None,
            eps: dims.rms_norm_eps,
        };
        let keys = ["mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel"];
        sizes.check(manifest, keys)?;
        for (key, size) in [
            ("moe_shared_expert_intermediate_size", self.moe_shared_expert_intermediate_size),
            ("moe_latent_size", self.moe_latent_size.unwrap_or(1)),
        ] {
            if size == 0 || size > 1 << 24 {
                let reason = format!("{size}, expected a number from 1 to {}", 1 << 24);
                return Err(Error::invalid_key(manifest.config_path(), key, reason));
            }
        }
        Ok(sizes)
    }
}

/// Experts without gates, beside one that every token goes through.
#[derive(Debug)]
struct Mixture {
    router: Linear,
    routing: Routing,
    /// Into the space of the experts, and out of it.
    latent: Option<[Linear; 2]>,
    experts: Experts,
    shared: PlainMlp,
}

impl Mixture {
    fn load(weights: &Weights<'_>, dims: &Dimensions, own: &Own, moe: &GroupedExperts) -> LoadResult<Self> {
        let width = own.moe_latent_size.unwrap_or(dims.hidden_size);
        let linear = |name, outputs, inputs| Linear::load(&weights.at(name), outputs, inputs, own.mlp_bias);
        let latent = own.moe_latent_size.map(|width| {
            LoadResult::Ok([
                linear("fc1_latent_proj", width, dims.hidden_size)?,
                linear("fc2_latent_proj", dims.hidden_size, width)?,
            ])
        });
        let intermediate_size = own.moe_shared_expert_intermediate_size;
        let shared = Dimensions { intermediate_size, ..dims.clone() };
        let sizes = ExpertSizes { hidden_size: width, ..moe.sizes(dims) };
        let names = ["up_proj", "down_proj"];
        Ok(Self {
            router: Linear::load(&weights.at("gate"), sizes.experts, dims.hidden_size, false)?,
            routing: moe.routing(&weights.at("gate"))?,
            latent: latent.transpose()?,
            experts: Experts::load_ungated(weights, sizes, dims.hidden_act)?,
            shared: PlainMlp::load(&weights.at("shared_experts"), names, &shared, own.mlp_bias)?,
        })
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        let [picks, weights] = self.routing.pick(&self.router.forward(x)?)?;
        let inputs = match &self.latent {
            Some([into, _]) => &into.forward(x)?,
            None => x,
        };
        let outputs = self.experts.forward(inputs, &picks)?;
        let mut mixed = mix(&outputs, &weights)?;
        if let Some([_, out]) = &self.latent {
            mixed = out.forward(&mixed)?;
        }
        mixed.add(self.shared.forward(x)?)
    }

    fn record(&self, x: nn::Value, recording: &mut Recording<'_, '_>) -> Recorded {
        let scores = recording.linear(x, &self.router)?;
        let inputs = match &self.latent {
            Some([into, _]) => recording.linear(x, into)?,
            None => x,
        };
        let mut mixed = self.experts.record(inputs, scores, &self.routing, recording)?;
        if let Some([_, out]) = &self.latent {
            mixed = recording.linear(mixed, out)?;
        }
        let shared = self.shared.record(x, recording)?;
        recording.add(mixed, shared, None)
    }
}

/// The one thing that a layer does.
#[derive(Debug)]
enum Part {
    Mamba(Box<Mamba2>),
    Attention(Box<Attention>),
    FeedForward(Box<PlainMlp>),
    Experts(Box<Mixture>),
}

/// x + part(norm(x))
#[derive(Debug)]
struct NemotronBlock {
    norm: RmsNorm,
    part: Part,
}

impl Block for NemotronBlock {
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        let normalised = self.norm.forward(x)?;
        x.add(match &self.part {
            Part::Mamba(mamba) => mamba.forward(&normalised, pass, layer)?,
            Part::Attention(attention) => attention.forward(&normalised, pass, layer)?,
            Part::FeedForward(mlp) => mlp.forward(&normalised)?,
            Part::Experts(mixture) => mixture.forward(&normalised)?,
        })
    }

    fn record(&self, x: nn::Value, recording: &mut Recording<'_, '_>, layer: usize) -> Recorded {
        let normalised = recording.rms_norm(x, &self.norm)?;
        let output = match &self.part {
            Part::Mamba(mamba) => mamba.record(normalised, recording, layer)?,
            Part::Attention(attention) => attention.record(normalised, recording, layer)?,
            Part::FeedForward(mlp) => mlp.record(normalised, recording)?,
            Part::Experts(mixture) => mixture.record(normalised, recording)?,
        };
        recording.add(x, output, None)
    }

    fn state(&self) -> LayerState {
        match &self.part {
            Part::Mamba(mamba) => mamba.state(),
            Part::Attention(attention) => attention.state(),
            Part::FeedForward(_) | Part::Experts(_) => LayerState::default(),
        }
    }
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let manifest = weights.manifest();
    let kinds = LayerKind::all(manifest)?;
    let defaults = json!({
        "num_hidden_layers": kinds.len(), "tie_word_embeddings": false, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 4096, "hidden_act": "relu2", "rms_norm_eps": 1e-5, "mlp_bias": false,
        "mamba_num_heads": 128, "mamba_head_dim": 64, "mamba_hidden_act": "silu", "ssm_state_size": 128,
        "n_groups": 8, "conv_kernel": 4, "use_bias": false, "use_conv_bias": true, "time_step_min": 0.001,
        "n_routed_experts": 8, "n_shared_experts": 1, "moe_intermediate_size": 7688,
        "moe_shared_expert_intermediate_size": 7688, "num_experts_per_tok": 2, "routed_scaling_factor": 1.0,
        "n_group": 1, "topk_group": 1, "norm_topk_prob": true, "first_k_dense_replace": 0,
    });
    let renamed = [
        ("layer_norm_epsilon", "rms_norm_eps"),
        ("mlp_hidden_act", "hidden_act"),
        ("mamba_n_groups", "n_groups"),
        ("mamba_d_conv", "conv_kernel"),
        ("mamba_conv_bias", "use_conv_bias"),
        ("mamba_dt_min", "time_step_min"),
    ];
    let Config { dims, own, value } = Config::<Own>::read_renamed(manifest, None, defaults, &renamed)?;
    if kinds.len() != dims.num_hidden_layers {
        let reason = format!("{}, but the kinds of {} layers are given", dims.num_hidden_layers, kinds.len());
        return Err(Error::invalid_key(manifest.config_path(), "num_hidden_layers", reason));
    }
    let ssm = own.ssm(manifest, &dims)?;
    let moe = experts(manifest, &dims, &value, &kinds)?;
    let model = weights.at(if weights.has_any("backbone") { "backbone" } else { "model" });
    let layers = dims.layers(&model)?.zip(&kinds).map(|(layer, kind)| {
        let mixer = layer.at("mixer");
        let part = match (kind, &moe) {
            (LayerKind::Mamba, _) => Part::Mamba(Box::new(Mamba2::load(&mixer, ssm)?)),
            (LayerKind::Attention, _) => {
                let params = AttentionParams::full(dims.scale());
                Part::Attention(Box::new(Attention::load(&mixer, dims.heads(), [false; 2], None, params)?))
            }
            (LayerKind::Experts, Some(moe)) => {
                Part::Experts(Box::new(Mixture::load(&mixer, &dims, &own, moe)?))
            }
            (LayerKind::FeedForward | LayerKind::Experts, _) => {
                let names = ["up_proj", "down_proj"];
                Part::FeedForward(Box::new(PlainMlp::load(&mixer, names, &dims, own.mlp_bias)?))
            }
        };
        LoadResult::Ok(NemotronBlock { norm: dims.norm(&layer.at("norm"))?, part })
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    let norm = Norm::Rms(dims.norm(&model.at("norm_f"))?);
    Ok(Box::new(Decoder::load_named(weights, &model, "embeddings", &dims, layers, &[], norm)?))
}

/// The settings of experts, where there are any.
fn experts(
    manifest: &ModelManifest,
    dims: &Dimensions,
    config: &Value,
    kinds: &[LayerKind],
) -> LoadResult<Option<GroupedExperts>> {
    if !kinds.contains(&LayerKind::Experts) {
        return Ok(None);
    }
    let moe: GroupedExperts = parse(manifest, None, config)?;
    moe.check(manifest, dims)?;
    Ok(Some(moe))
}
