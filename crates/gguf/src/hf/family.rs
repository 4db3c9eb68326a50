//! What becomes of the tensors of a family.

use super::{
    families::{FAMILIES, Family},
    layout::Change,
    names::{DELTA_NET, DELTA_NET_WHOLE, LAYER, Names, ROOT, STATE_SPACE, STATE_SPACE_WHOLE},
};
use crate::{Error, Metadata, Result};

/// What becomes of a tensor.
#[derive(Debug, PartialEq)]
pub(super) enum Target {
    /// It is one of the model's.
    Tensor {
        name: String,
        /// Whether its rows are paired by heads: 0 of queries, 1 of keys.
        paired: Option<usize>,
        change: Change,
    },
    /// A stack of matrices, which the model has one by one, numbered behind this name.
    Stack(String),
    /// Two of the model's: the first and the second half of its rows.
    Halves([String; 2]),
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
        let Some(rest) = name.strip_prefix("blk.") else {
            let (stem, end) = ended(name)?;
            if matches!(stem, "rope_freqs" | "rope_factors_long" | "rope_factors_short") {
                return Some(Target::Ignored);
            }
            let known = find(&[self.names, ROOT], stem)?;
            if stem.starts_with("altup_") {
                return Some(Target::Stack(known.to_owned()));
            }
            return Some(self.tensor(format!("{known}.{end}"), stem, end));
        };
        let (layer, part) = rest.split_once('.')?;
        let layer: u32 = layer.parse().ok()?;
        let prefix = format!("{}.{layer}", self.layers);
        if let Some(known) = self.whole(part) {
            return Some(self.tensor(format!("{prefix}.{known}"), part, ""));
        }
        let (part, end) = ended(part)?;
        match part {
            "exp_probs_b" if !self.correction.is_empty() => {
                return Some(self.tensor(format!("{prefix}.{}", self.correction), part, end));
            }
            "attn_rot_embd" => return Some(Target::Ignored),
            "ffn_gate_up_exps" => {
                let name = |part| Some(format!("{prefix}.{}.{end}", self.stem(part)?));
                return Some(Target::Halves([name("ffn_gate_exps")?, name("ffn_up_exps")?]));
            }
            _ => {}
        }
        if let Some(known) = self.stem(part) {
            return Some(self.tensor(format!("{prefix}.{known}.{end}"), part, end));
        }
        // Files of the first mixtures of experts have one tensor for each expert: ffn_gate.3.
        let (part, expert) = part.split_once('.')?;
        let known = find(&[&[("ffn_gate", "w1"), ("ffn_down", "w2"), ("ffn_up", "w3")]], part)?;
        let expert: u32 = expert.parse().ok()?;
        Some(self.tensor(format!("{prefix}.mlp.experts.{expert}.{known}.{end}"), part, end))
    }

    /// What stands for the stem of a name in a layer.
    fn stem(&self, part: &str) -> Option<String> {
        if let (Some(place), Some(known)) = (self.state_space, find(&[STATE_SPACE], part)) {
            return Some(format!("{place}.{known}"));
        }
        let delta_net = if self.delta_nets.is_some() { DELTA_NET } else { &[] };
        find(&[self.names, delta_net, LAYER], part).map(str::to_owned)
    }

    /// What stands for a whole name in a layer.
    fn whole(&self, part: &str) -> Option<String> {
        if let (Some(place), Some(known)) = (self.state_space, find(&[STATE_SPACE_WHOLE], part)) {
            return Some(format!("{place}.{known}"));
        }
        let delta_net = if self.delta_nets.is_some() { DELTA_NET_WHOLE } else { &[] };
        find(&[self.whole, delta_net], part).map(str::to_owned)
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

/// The stem and the ending of a name.
fn ended(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once('.').filter(|(_, end)| matches!(*end, "weight" | "bias"))
}

fn find(lists: &[Names], name: &str) -> Option<&'static str> {
    lists.iter().copied().flatten().find(|known| known.0 == name).map(|known| known.1)
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
            Target::Stack(name) => Some((format!("{name}.*"), None, Change::Nothing)),
            Target::Halves(names) => Some((names.join(" "), None, Change::Nothing)),
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
            (
                "apertus",
                "blk.7.ffn_norm.weight",
                (layer("feedforward_layernorm.weight"), None, Change::Nothing),
            ),
            (
                "deepseek2",
                "blk.7.attn_k_b.weight",
                (layer("self_attn.embed_q.weight"), None, Change::Nothing),
            ),
            ("falcon-h1", "blk.7.ffn_norm", (layer("pre_ff_layernorm.weight"), None, Change::Nothing)),
            ("falcon-h1", "blk.7.ssm_a", (layer("mamba.A_log"), None, Change::NegativeExponential)),
            (
                "granitehybrid",
                "blk.7.attn_k.weight",
                (layer("self_attn.k_proj.weight"), Some(1), Change::Nothing),
            ),
            (
                "mamba2",
                "blk.7.ssm_dt.bias",
                ("backbone.layers.7.mixer.dt_bias".to_owned(), None, Change::Nothing),
            ),
            (
                "nemotron_h_moe",
                "blk.7.exp_probs_b.bias",
                ("backbone.layers.7.mixer.gate.e_score_correction_bias".to_owned(), None, Change::Nothing),
            ),
            ("gemma3n", "altup_proj.weight", ("model.altup_projections.*".to_owned(), None, Change::Nothing)),
            ("gemma4", "blk.7.layer_output_scale.weight", (layer("layer_scalar"), None, Change::Nothing)),
            (
                "gemma4",
                "blk.7.ffn_gate_up_exps.weight",
                (
                    ["gate", "up"]
                        .map(|part| layer(&format!("experts.switch_glu.{part}_proj.weight")))
                        .join(" "),
                    None,
                    Change::Nothing,
                ),
            ),
        ] {
            assert_eq!(named(architecture, name), Some(expected), "{architecture} {name}");
        }
        for name in [
            "blk.7.exp_probs_b.bias",
            "blk.7.ssm_a",
            "blk.7.ssm_d",
            "blk.7.ffn_norm",
            "altup_proj.weight",
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
