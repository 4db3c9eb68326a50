//! The families that are known, and what their tensors are called.

use super::layout::Change;
use crate::{Error, Metadata, Result};

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
    /// Names of a layer's tensors that differ from [`LAYER`].
    names: &'static [(&'static str, &'static str)],
    /// How files have gated delta nets, where most layers have one in the place of attention.
    pub(super) delta_nets: Option<DeltaNets>,
    /// The name of what corrects the scores of experts.
    correction: &'static str,
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
    epsilon: ["attention.layer_norm_rms_epsilon", "rms_norm_eps"],
    names: &[],
    delta_nets: None,
    correction: "",
    needs_wide_activations: false,
};

const SHARED_EXPERTS: &[(&str, &str)] = &[
    ("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_experts.up_proj"),
    ("ffn_down_shexp", "mlp.shared_experts.down_proj"),
];

const SHARED_EXPERT: &[(&str, &str)] = &[
    ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
];

const LFM2: &[(&str, &str)] = &[
    ("token_embd_norm", "model.embedding_norm"),
    ("output_norm", "model.embedding_norm"),
    ("attn_norm", "operator_norm"),
    ("attn_output", "self_attn.out_proj"),
    ("attn_q_norm", "self_attn.q_layernorm"),
    ("attn_k_norm", "self_attn.k_layernorm"),
    ("shortconv.conv", "conv.conv"),
    ("shortconv.in_proj", "conv.in_proj"),
    ("shortconv.out_proj", "conv.out_proj"),
    ("ffn_norm", "ffn_norm"),
    ("ffn_gate", "feed_forward.w1"),
    ("ffn_up", "feed_forward.w3"),
    ("ffn_down", "feed_forward.w2"),
    ("ffn_gate_inp", "feed_forward.gate"),
    ("ffn_gate_exps", "feed_forward.switch_mlp.gate_proj"),
    ("ffn_up_exps", "feed_forward.switch_mlp.up_proj"),
    ("ffn_down_exps", "feed_forward.switch_mlp.down_proj"),
];

const BLOCK_SPARSE: &[(&str, &str)] = &[
    ("ffn_gate_inp", "block_sparse_moe.gate"),
    ("ffn_gate_exps", "block_sparse_moe.switch_mlp.gate_proj"),
    ("ffn_up_exps", "block_sparse_moe.switch_mlp.up_proj"),
    ("ffn_down_exps", "block_sparse_moe.switch_mlp.down_proj"),
];

const SANDWICH: &[(&str, &str)] = &[("ffn_norm", "pre_feedforward_layernorm")];

/// The key of families whose norms are of mean and variance.
const LAYER_NORM: &str = "attention.layer_norm_epsilon";

/// One line for each architecture. What its config needs beyond the sizes that all have is in `config.rs`.
const FAMILIES: &[Family] = &[
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
        names: &[
            ("attn_sinks", "self_attn.sinks"),
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
];

/// The tensors of a layer.
const LAYER: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_exps", "mlp.switch_mlp.gate_proj"),
    ("ffn_up_exps", "mlp.switch_mlp.up_proj"),
    ("ffn_down_exps", "mlp.switch_mlp.down_proj"),
];

/// The tensors of a gated delta net.
const DELTA_NET: &[(&str, &str)] = &[
    ("attn_qkv", "linear_attn.in_proj_qkv"),
    ("attn_gate", "linear_attn.in_proj_z"),
    ("ssm_in", "linear_attn.in_proj_qkvz"),
    ("ssm_ba", "linear_attn.in_proj_ba"),
    ("ssm_beta", "linear_attn.in_proj_b"),
    ("ssm_alpha", "linear_attn.in_proj_a"),
    ("ssm_conv1d", "linear_attn.conv1d"),
    ("ssm_a", "linear_attn.A_log"),
    ("ssm_dt", "linear_attn.dt_bias"),
    ("ssm_norm", "linear_attn.norm"),
    ("ssm_out", "linear_attn.out_proj"),
];

/// Tensors whose names have no ending.
const BARE: [&str; 3] = ["self_attn.sinks", "linear_attn.A_log", "linear_attn.dt_bias"];

/// The tensors outside of layers.
const ROOT: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// What becomes of a tensor.
pub(super) enum Target {
    /// It is one of the model's.
    Tensor {
        name: String,
        /// Whether its rows are paired by heads: 0 of queries, 1 of keys.
        paired: Option<usize>,
        change: Change,
    },
    /// config.json has what it says, or it can be computed.
    Ignored,
}

impl Family {
    /// The family of a file.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the architecture that is not known.
    pub(super) fn of(metadata: &Metadata) -> Result<&'static Self> {
        const KEY: &str = "general.architecture";
        let Some(name) = metadata.text(KEY)? else {
            return Err(Error::at(KEY, "is missing, expected the architecture's name"));
        };
        FAMILIES.iter().find(|family| family.architecture == name).ok_or_else(|| {
            let known: Vec<_> = FAMILIES.iter().map(|family| family.architecture).collect();
            let known = known.join(", ");
            Error::at(KEY, format!("is {name:?}, which cannot be read from GGUF, only {known} can"))
        })
    }

    /// What becomes of the tensor of this name; `None` where it is not known.
    pub(super) fn target(&self, name: &str) -> Option<Target> {
        let (stem, end) = match name.rsplit_once('.')? {
            (stem, end @ ("weight" | "bias")) => (stem, end),
            (_, "ssm_a") => (name, ""),
            _ => return None,
        };
        if matches!(stem, "rope_freqs" | "rope_factors_long" | "rope_factors_short") {
            return Some(Target::Ignored);
        }
        let Some(rest) = stem.strip_prefix("blk.") else {
            let known = self.names.iter().chain(ROOT).find(|known| known.0 == stem)?.1;
            return Some(self.tensor(format!("{known}.{end}"), stem, end));
        };
        let (layer, part) = rest.split_once('.')?;
        let layer: u32 = layer.parse().ok()?;
        let prefix = format!("model.layers.{layer}");
        if part == "exp_probs_b" && !self.correction.is_empty() {
            return Some(self.tensor(format!("{prefix}.{}", self.correction), part, end));
        }
        if part == "attn_rot_embd" {
            return Some(Target::Ignored);
        }
        let delta_net = if self.delta_nets.is_some() { DELTA_NET } else { &[] };
        if let Some((_, known)) =
            self.names.iter().chain(delta_net).chain(LAYER).find(|known| known.0 == part)
        {
            let name = if BARE.contains(known) { (*known).to_owned() } else { format!("{known}.{end}") };
            return Some(self.tensor(format!("{prefix}.{name}"), part, end));
        }
        // Files of the first mixtures of experts have one tensor for each expert: ffn_gate.3.
        let (part, expert) = part.split_once('.')?;
        let names = [("ffn_gate", "w1"), ("ffn_down", "w2"), ("ffn_up", "w3")];
        let known = names.iter().find(|known| known.0 == part)?.1;
        let expert: u32 = expert.parse().ok()?;
        Some(self.tensor(format!("{prefix}.mlp.experts.{expert}.{known}.{end}"), part, end))
    }

    fn tensor(&self, name: String, part: &str, end: &str) -> Target {
        let paired = ["attn_q", "attn_k"].iter().position(|paired| self.paired && *paired == part);
        let change = if part == "ssm_a" {
            Change::NegativeExponential
        } else if end == "weight" && part.ends_with("_norm") && self.norm_added != 0.0 {
            Change::Added(self.norm_added)
        } else {
            Change::Nothing
        };
        Target::Tensor { name, paired, change }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family(name: &str) -> &'static Family {
        FAMILIES.iter().find(|family| family.architecture == name).unwrap()
    }

    fn named(architecture: &str, name: &str) -> Option<(String, Option<usize>, Change)> {
        match family(architecture).target(name)? {
            Target::Tensor { name, paired, change } => Some((name, paired, change)),
            Target::Ignored => Some((String::new(), None, Change::Nothing)),
        }
    }

    #[test]
    fn tensors_get_the_names_of_transformers() {
        let layer = |part: &str| format!("model.layers.7.{part}");
        for (architecture, name, expected) in [
            ("llama", "token_embd.weight", ("model.embed_tokens.weight".to_owned(), None, Change::Nothing)),
            ("llama", "blk.7.attn_q.weight", (layer("self_attn.q_proj.weight"), Some(0), Change::Nothing)),
            ("llama", "blk.7.attn_k.bias", (layer("self_attn.k_proj.bias"), Some(1), Change::Nothing)),
            ("llama", "blk.7.ffn_up.3.weight", (layer("mlp.experts.3.w3.weight"), None, Change::Nothing)),
            ("qwen3", "blk.7.attn_q.weight", (layer("self_attn.q_proj.weight"), None, Change::Nothing)),
            (
                "gemma3",
                "blk.7.ffn_norm.weight",
                (layer("pre_feedforward_layernorm.weight"), None, Change::Added(1.0)),
            ),
            (
                "gemma3",
                "blk.7.attn_k_norm.weight",
                (layer("self_attn.k_norm.weight"), None, Change::Added(1.0)),
            ),
            ("gemma3", "output_norm.weight", ("model.norm.weight".to_owned(), None, Change::Added(1.0))),
            ("gpt-oss", "blk.7.attn_sinks.weight", (layer("self_attn.sinks"), None, Change::Nothing)),
            ("gpt-oss", "blk.7.ffn_up_exps.bias", (layer("mlp.experts.up_proj.bias"), None, Change::Nothing)),
            (
                "minimax-m2",
                "blk.7.exp_probs_b.bias",
                (layer("block_sparse_moe.e_score_correction_bias"), None, Change::Nothing),
            ),
            (
                "nemotron",
                "blk.7.ffn_norm.weight",
                (layer("post_attention_layernorm.weight"), None, Change::Added(1.0)),
            ),
            (
                "nemotron",
                "blk.7.ffn_norm.bias",
                (layer("post_attention_layernorm.bias"), None, Change::Nothing),
            ),
            (
                "qwen2moe",
                "blk.7.ffn_gate_inp_shexp.weight",
                (layer("mlp.shared_expert_gate.weight"), None, Change::Nothing),
            ),
            (
                "glm4moe",
                "blk.7.exp_probs_b.bias",
                (layer("mlp.gate.e_score_correction_bias"), None, Change::Nothing),
            ),
            ("lfm2", "blk.7.shortconv.conv.weight", (layer("conv.conv.weight"), None, Change::Nothing)),
            (
                "lfm2",
                "token_embd_norm.weight",
                ("model.embedding_norm.weight".to_owned(), None, Change::Nothing),
            ),
            ("lfm2moe", "blk.7.exp_probs_b.bias", (layer("feed_forward.expert_bias"), None, Change::Nothing)),
            ("qwen35", "blk.7.attn_norm.weight", (layer("input_layernorm.weight"), None, Change::Nothing)),
            (
                "qwen35",
                "blk.7.attn_qkv.weight",
                (layer("linear_attn.in_proj_qkv.weight"), None, Change::Nothing),
            ),
            ("qwen35", "blk.7.ssm_a", (layer("linear_attn.A_log"), None, Change::NegativeExponential)),
            ("qwen35", "blk.7.ssm_dt.bias", (layer("linear_attn.dt_bias"), None, Change::Nothing)),
            ("llama", "rope_freqs.weight", (String::new(), None, Change::Nothing)),
        ] {
            assert_eq!(named(architecture, name), Some(expected), "{architecture} {name}");
        }
        for name in [
            "blk.7.exp_probs_b.bias",
            "blk.7.ssm_a",
            "token_embd_norm.weight",
            "blk.7.shortconv.conv.weight",
            "blk.x.attn_q.weight",
            "blk.7.unknown.weight",
            "token_embd",
            "v.patch.weight",
        ] {
            assert_eq!(named("llama", name), None, "{name}");
        }
    }
}
