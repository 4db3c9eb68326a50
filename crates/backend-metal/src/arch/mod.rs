//! Model architectures: one file a family, one table of them all.

mod apertus;
mod bert;
mod cohere2;
mod config;
mod deepseek_v3;
mod distilbert;
mod ernie4_5;
mod ernie4_5_moe;
mod exaone4;
mod falcon_h1;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma3n;
mod gemma4;
mod glm4;
mod glm4_moe;
mod gpt_oss;
mod granite;
mod granitemoehybrid;
mod hunyuan_v1_dense;
mod lfm2;
mod llama;
mod llama4;
mod mamba2;
mod minicpm;
mod minimax_m2;
mod mistral;
mod mistral4;
mod mixtral;
mod modernbert;
mod mpnet;
mod nemotron;
mod nemotron_h;
mod nomic_bert;
mod olmo2;
mod olmo3;
mod olmoe;
mod phi3;
mod phimoe;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_5;
mod qwen3_moe;
mod seed_oss;
mod smollm3;
mod stablelm;
mod starcoder2;
#[cfg(test)]
mod tests;

use inference_core::{
    Result as LoadResult, SidePart,
    SidePart::{Audio, MultiTokenPrediction as Mtp, Vision},
};

use crate::nn::{Architecture, Weights};

/// A family of models.
#[derive(Debug)]
pub(crate) struct Family {
    /// What people call it.
    pub(crate) name: &'static str,
    /// The `model_type`s of config.json that it knows.
    pub(crate) model_types: &'static [&'static str],
    /// Binds a checkpoint.
    pub(crate) load: fn(&Weights<'_>) -> LoadResult<Box<dyn Architecture>>,
    /// Parts of checkpoints that it does without.
    pub(crate) skips: &'static [SidePart],
}

// ANCHOR: table
/// Every family.
pub(crate) const ARCHITECTURES: &[Family] = &[
    Family { name: "Apertus", model_types: &["apertus"], load: apertus::load, skips: &[] },
    Family { name: "BERT", model_types: &["bert"], load: bert::load, skips: &[] },
    Family { name: "Command R7B, A", model_types: &["cohere2"], load: cohere2::load, skips: &[] },
    Family {
        name: "DeepSeek V3, Kimi K2",
        model_types: &["deepseek_v3", "kimi_k2"],
        load: deepseek_v3::load,
        skips: &[],
    },
    Family { name: "DistilBERT", model_types: &["distilbert"], load: distilbert::load, skips: &[] },
    Family { name: "ERNIE 4.5", model_types: &["ernie4_5"], load: ernie4_5::load, skips: &[] },
    Family { name: "ERNIE 4.5 MoE", model_types: &["ernie4_5_moe"], load: ernie4_5_moe::load, skips: &[] },
    Family { name: "EXAONE 4", model_types: &["exaone4"], load: exaone4::load, skips: &[] },
    Family { name: "Falcon-H1", model_types: &["falcon_h1"], load: falcon_h1::load, skips: &[] },
    Family { name: "Gemma", model_types: &["gemma"], load: gemma::load, skips: &[] },
    Family { name: "Gemma 2", model_types: &["gemma2"], load: gemma2::load, skips: &[] },
    Family { name: "Gemma 3", model_types: &["gemma3", "gemma3_text"], load: gemma3::load, skips: &[Vision] },
    Family {
        name: "Gemma 3n",
        model_types: &["gemma3n", "gemma3n_text"],
        load: gemma3n::load,
        skips: &[Vision, Audio],
    },
    Family {
        name: "Gemma 4",
        model_types: &["gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"],
        load: gemma4::load,
        skips: &[Vision, Audio],
    },
    Family { name: "GLM 4", model_types: &["glm4"], load: glm4::load, skips: &[] },
    Family { name: "GLM 4.5 to 4.7", model_types: &["glm4_moe"], load: glm4_moe::load, skips: &[] },
    Family {
        name: "GLM 4.7 Flash",
        model_types: &["glm4_moe_lite"],
        load: deepseek_v3::load_glm,
        skips: &[],
    },
    Family { name: "gpt-oss", model_types: &["gpt_oss"], load: gpt_oss::load, skips: &[] },
    Family { name: "Granite 3", model_types: &["granite"], load: granite::load, skips: &[] },
    Family {
        name: "Granite 4",
        model_types: &["granitemoehybrid"],
        load: granitemoehybrid::load,
        skips: &[],
    },
    Family { name: "Hunyuan", model_types: &["hunyuan_v1_dense"], load: hunyuan_v1_dense::load, skips: &[] },
    Family { name: "LFM 2", model_types: &["lfm2"], load: lfm2::load_dense, skips: &[] },
    Family { name: "LFM 2 MoE", model_types: &["lfm2_moe"], load: lfm2::load_moe, skips: &[] },
    Family { name: "Llama 2, 3", model_types: &["llama"], load: llama::load, skips: &[] },
    Family { name: "Llama 4", model_types: &["llama4", "llama4_text"], load: llama4::load, skips: &[Vision] },
    Family { name: "Mamba 2", model_types: &["mamba2"], load: mamba2::load, skips: &[] },
    Family { name: "MiniCPM", model_types: &["minicpm"], load: minicpm::load, skips: &[] },
    Family { name: "MiniMax M2", model_types: &["minimax_m2"], load: minimax_m2::load, skips: &[] },
    Family { name: "Ministral 3", model_types: &["ministral3"], load: mistral::load_ministral, skips: &[] },
    Family { name: "Mistral", model_types: &["mistral"], load: mistral::load, skips: &[] },
    Family {
        name: "Mistral Small 3",
        model_types: &["mistral3"],
        load: mistral::load_tower,
        skips: &[Vision],
    },
    Family { name: "Mistral Small 4", model_types: &["mistral4"], load: mistral4::load, skips: &[Vision] },
    Family { name: "Mixtral", model_types: &["mixtral"], load: mixtral::load, skips: &[] },
    Family { name: "ModernBERT", model_types: &["modernbert"], load: modernbert::load, skips: &[] },
    Family { name: "MPNet", model_types: &["mpnet"], load: mpnet::load, skips: &[] },
    Family { name: "Nemotron", model_types: &["nemotron"], load: nemotron::load, skips: &[] },
    Family {
        name: "Nemotron-H, Nemotron 3",
        model_types: &["nemotron_h"],
        load: nemotron_h::load,
        skips: &[Mtp],
    },
    Family { name: "Nomic BERT", model_types: &["nomic_bert"], load: nomic_bert::load, skips: &[] },
    Family { name: "OLMo 2", model_types: &["olmo2"], load: olmo2::load, skips: &[] },
    Family { name: "OLMo 3", model_types: &["olmo3"], load: olmo3::load, skips: &[] },
    Family { name: "OLMoE", model_types: &["olmoe"], load: olmoe::load, skips: &[] },
    Family { name: "Phi 3, 4", model_types: &["phi3"], load: phi3::load, skips: &[] },
    Family { name: "Phi 3.5 MoE", model_types: &["phimoe"], load: phimoe::load, skips: &[] },
    Family { name: "Qwen 2 MoE", model_types: &["qwen2_moe"], load: qwen2_moe::load, skips: &[] },
    Family {
        name: "Qwen 2, 2.5",
        model_types: &["qwen2", "qwen2_5_vl", "qwen2_vl"],
        load: qwen2::load,
        skips: &[Vision],
    },
    Family {
        name: "Qwen 3",
        model_types: &["qwen3", "qwen3_vl", "qwen3_vl_text"],
        load: qwen3::load,
        skips: &[Vision],
    },
    Family {
        name: "Qwen 3 MoE",
        model_types: &["qwen3_moe", "qwen3_vl_moe"],
        load: qwen3_moe::load,
        skips: &[Vision],
    },
    Family {
        name: "Qwen 3.5",
        model_types: &["qwen3_5", "qwen3_5_text"],
        load: qwen3_5::load_dense,
        skips: &[Vision, Mtp],
    },
    Family {
        name: "Qwen 3.5 MoE",
        model_types: &["qwen3_5_moe", "qwen3_5_moe_text"],
        load: qwen3_5::load_moe,
        skips: &[Vision, Mtp],
    },
    Family { name: "Qwen3-Next", model_types: &["qwen3_next"], load: qwen3_5::load_next, skips: &[Mtp] },
    Family {
        name: "RoBERTa, XLM-RoBERTa",
        model_types: &["roberta", "xlm-roberta"],
        load: bert::load_roberta,
        skips: &[],
    },
    Family { name: "Seed-OSS", model_types: &["seed_oss"], load: seed_oss::load, skips: &[] },
    Family { name: "SmolLM 3", model_types: &["smollm3"], load: smollm3::load, skips: &[] },
    Family { name: "StableLM", model_types: &["stablelm"], load: stablelm::load, skips: &[] },
    Family { name: "StarCoder 2", model_types: &["starcoder2"], load: starcoder2::load, skips: &[] },
];
// ANCHOR_END: table

/// Parts of tensors' names that transformers 5 changed, and what their publishers and mlx_lm call them.
const RENAMED: &[(&str, &str, &str)] = &[("mixtral", ".mlp.", ".block_sparse_moe.")];

/// A tensor's name as the publisher of its family gives it.
pub(crate) fn published_name(model_type: &str, name: &str) -> String {
    let renamed = RENAMED.iter().find(|(family, ..)| *family == model_type);
    renamed.map_or_else(|| name.to_owned(), |(_, new, old)| name.replace(new, old))
}

/// The family of a `model_type`, or why there is none.
pub(crate) fn lookup(model_type: &str) -> Result<&'static Family, String> {
    ARCHITECTURES.iter().find(|family| family.model_types.contains(&model_type)).ok_or_else(|| {
        let known = ARCHITECTURES.iter().map(|family| family.model_types.len()).sum::<usize>();
        format!("it has no architecture {model_type:?} among its {known}, which the README lists")
    })
}
