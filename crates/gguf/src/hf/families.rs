//! The families that are known.

use super::names::{
    APERTUS, BACKBONE, BLOCK_SPARSE, FALCON_H1, GEMMA3N, GEMMA4, GEMMA4_WHOLE, GRANITE_HYBRID, LATENT, LFM2,
    Names, SANDWICH, SHARED_EXPERT, SHARED_EXPERTS,
};

/// What llama.cpp's converter does to the models of one architecture.
#[derive(Debug)]
pub(super) struct Family {
    /// `general.architecture`.
    pub(super) architecture: &'static str,
    /// `model_type` of config.json.
    pub(super) model_type: &'static str,
    /// Whether the rows of queries and keys were put side by side in pairs.
    pub(super) paired: bool,
    /// What was added to the weights of norms.
    pub(super) norm_added: f32,
    /// What the file and config.json call the epsilon of norms.
    pub(super) epsilon: [&'static str; 2],
    /// Names of tensors that differ from those of most families.
    pub(super) names: Names,
    /// The same, whole names of a layer's tensors.
    pub(super) whole: Names,
    /// Where layers are.
    pub(super) layers: &'static str,
    /// Where a layer has its Mamba 2 block, in families that have such layers.
    pub(super) state_space: Option<&'static str>,
    /// How files have gated delta nets, where most layers have one in the place of attention.
    pub(super) delta_nets: Option<DeltaNets>,
    /// The name of what corrects the scores of experts.
    pub(super) correction: &'static str,
    /// Whether activations leave the range of half precision.
    pub(super) needs_wide_activations: bool,
}

/// The order of the heads of values in gated delta nets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeltaNets {
    /// As transformers has them: those that share a head of keys are side by side.
    Grouped,
    /// The first one of each head of keys, then the next of each.
    Tiled,
}

const PLAIN: Family = Family {
    architecture: "llama",
    model_type: "llama",
    paired: false,
    norm_added: 0.0,
    epsilon: [RMS_NORM, "rms_norm_eps"],
    names: &[],
    whole: &[],
    layers: "model.layers",
    state_space: None,
    delta_nets: None,
    correction: "",
    needs_wide_activations: false,
};

/// The key of families whose norms are of mean and variance.
const LAYER_NORM: &str = "attention.layer_norm_epsilon";

/// The key of the others.
const RMS_NORM: &str = "attention.layer_norm_rms_epsilon";

const NEMOTRON_H: Family = Family {
    architecture: "nemotron_h",
    model_type: "nemotron_h",
    epsilon: [RMS_NORM, "layer_norm_epsilon"],
    names: BACKBONE,
    layers: "backbone.layers",
    state_space: Some("mixer"),
    correction: "mixer.gate.e_score_correction_bias",
    ..PLAIN
};

/// One line for each architecture. What its config needs beyond the sizes that all have is in `config.rs` and beside it.
pub(super) const FAMILIES: &[Family] = &[
    Family { paired: true, ..PLAIN },
    Family { architecture: "qwen2", model_type: "qwen2", ..PLAIN },
    Family { architecture: "qwen3", model_type: "qwen3", ..PLAIN },
    Family { architecture: "qwen3moe", model_type: "qwen3_moe", ..PLAIN },
    Family {
        architecture: "gemma",
        model_type: "gemma",
        norm_added: 1.0,
        needs_wide_activations: true,
        ..PLAIN
    },
    Family {
        architecture: "gemma2",
        model_type: "gemma2",
        norm_added: 1.0,
        names: SANDWICH,
        needs_wide_activations: true,
        ..PLAIN
    },
    Family {
        architecture: "gemma3",
        model_type: "gemma3_text",
        norm_added: 1.0,
        names: SANDWICH,
        needs_wide_activations: true,
        ..PLAIN
    },
    Family { architecture: "phi3", model_type: "phi3", names: &[("ffn_up", "mlp.gate_up_proj")], ..PLAIN },
    Family { architecture: "granite", model_type: "granite", paired: true, ..PLAIN },
    Family { architecture: "smollm3", model_type: "smollm3", paired: true, ..PLAIN },
    Family { architecture: "olmo2", model_type: "olmo2", ..PLAIN },
    Family {
        architecture: "gpt-oss",
        model_type: "gpt_oss",
        whole: &[("attn_sinks.weight", "self_attn.sinks")],
        names: &[
            ("ffn_gate_inp", "mlp.router"),
            ("ffn_gate_exps", "mlp.experts.gate_proj"),
            ("ffn_up_exps", "mlp.experts.up_proj"),
            ("ffn_down_exps", "mlp.experts.down_proj"),
        ],
        ..PLAIN
    },
    Family {
        architecture: "cohere2",
        model_type: "cohere2",
        epsilon: [LAYER_NORM, "layer_norm_eps"],
        ..PLAIN
    },
    Family { architecture: "ernie4_5", model_type: "ernie4_5", ..PLAIN },
    Family { architecture: "exaone4", model_type: "exaone4", ..PLAIN },
    Family {
        architecture: "glm4",
        model_type: "glm4",
        names: &[
            ("post_attention_norm", "post_self_attn_layernorm"),
            ("post_ffw_norm", "post_mlp_layernorm"),
            ("ffn_up", "mlp.gate_up_proj"),
        ],
        ..PLAIN
    },
    Family {
        architecture: "hunyuan-dense",
        model_type: "hunyuan_v1_dense",
        names: &[("attn_q_norm", "self_attn.query_layernorm"), ("attn_k_norm", "self_attn.key_layernorm")],
        ..PLAIN
    },
    Family { architecture: "lfm2", model_type: "lfm2", names: LFM2, ..PLAIN },
    Family {
        architecture: "lfm2moe",
        model_type: "lfm2_moe",
        names: LFM2,
        correction: "feed_forward.expert_bias",
        ..PLAIN
    },
    Family { architecture: "minicpm", model_type: "minicpm", paired: true, ..PLAIN },
    Family {
        architecture: "minimax-m2",
        model_type: "minimax_m2",
        names: BLOCK_SPARSE,
        correction: "block_sparse_moe.e_score_correction_bias",
        ..PLAIN
    },
    Family {
        architecture: "nemotron",
        model_type: "nemotron",
        norm_added: 1.0,
        epsilon: [LAYER_NORM, "norm_eps"],
        ..PLAIN
    },
    Family { architecture: "olmoe", model_type: "olmoe", ..PLAIN },
    Family { architecture: "qwen2moe", model_type: "qwen2_moe", names: SHARED_EXPERT, ..PLAIN },
    Family { architecture: "qwen35", model_type: "qwen3_5", delta_nets: Some(DeltaNets::Tiled), ..PLAIN },
    Family {
        architecture: "qwen35moe",
        model_type: "qwen3_5_moe",
        names: SHARED_EXPERT,
        delta_nets: Some(DeltaNets::Tiled),
        ..PLAIN
    },
    Family {
        architecture: "qwen3next",
        model_type: "qwen3_next",
        names: SHARED_EXPERT,
        delta_nets: Some(DeltaNets::Grouped),
        ..PLAIN
    },
    Family {
        architecture: "ernie4_5-moe",
        model_type: "ernie4_5_moe",
        names: SHARED_EXPERTS,
        correction: "mlp.moe_statics.e_score_correction_bias",
        ..PLAIN
    },
    Family {
        architecture: "glm4moe",
        model_type: "glm4_moe",
        names: SHARED_EXPERTS,
        correction: "mlp.gate.e_score_correction_bias",
        ..PLAIN
    },
    Family { architecture: "phimoe", model_type: "phimoe", names: BLOCK_SPARSE, ..PLAIN },
    Family { architecture: "seed_oss", model_type: "seed_oss", ..PLAIN },
    Family {
        architecture: "stablelm",
        model_type: "stablelm",
        epsilon: [LAYER_NORM, "layer_norm_eps"],
        ..PLAIN
    },
    Family {
        architecture: "starcoder2",
        model_type: "starcoder2",
        epsilon: [LAYER_NORM, "norm_epsilon"],
        names: &[("ffn_up", "mlp.c_fc"), ("ffn_down", "mlp.c_proj")],
        ..PLAIN
    },
    Family { architecture: "apertus", model_type: "apertus", names: APERTUS, ..PLAIN },
    // GLM 4.7 Flash and Kimi K2 go by this name, too, and are computed alike.
    Family {
        architecture: "deepseek2",
        model_type: "deepseek_v3",
        names: LATENT,
        correction: "mlp.gate.e_score_correction_bias",
        ..PLAIN
    },
    Family {
        architecture: "falcon-h1",
        model_type: "falcon_h1",
        names: FALCON_H1,
        // One that the converter writes without an ending.
        whole: &[("ffn_norm", "pre_ff_layernorm.weight")],
        state_space: Some("mamba"),
        ..PLAIN
    },
    Family {
        architecture: "granitehybrid",
        model_type: "granitemoehybrid",
        paired: true,
        names: GRANITE_HYBRID,
        state_space: Some("mamba"),
        ..PLAIN
    },
    Family { architecture: "mamba2", model_type: "mamba2", ..NEMOTRON_H },
    NEMOTRON_H,
    Family { architecture: "nemotron_h_moe", ..NEMOTRON_H },
    Family {
        architecture: "gemma3n",
        model_type: "gemma3n_text",
        names: GEMMA3N,
        whole: &[("altup_correct_scale.weight", "altup.correct_output_scale")],
        needs_wide_activations: true,
        ..PLAIN
    },
    Family {
        architecture: "gemma4",
        model_type: "gemma4_text",
        names: GEMMA4,
        whole: GEMMA4_WHOLE,
        needs_wide_activations: true,
        ..PLAIN
    },
];
