//! Families with Mamba 2 blocks: their sizes, and which layers are what.

use serde_json::{Map, Value, json};

use super::config::Fields;
use crate::{Error, Result};

/// The sizes of a Mamba 2 block.
struct Sizes {
    heads: u64,
    head_dim: u64,
    groups: u64,
    state: u64,
    kernel: u64,
    inner: u64,
}

impl Sizes {
    fn read(fields: &Fields<'_>) -> Result<Self> {
        let (inner, heads) = (fields.needed("ssm.inner_size")?, fields.needed("ssm.time_step_rank")?);
        if !inner.is_multiple_of(heads) {
            let reason = format!("is {inner}, expected a multiple of the {heads} heads");
            return Err(Error::at(fields.key("ssm.inner_size"), reason));
        }
        Ok(Self {
            heads,
            head_dim: inner / heads,
            groups: fields.needed("ssm.group_count")?,
            state: fields.needed("ssm.state_size")?,
            kernel: fields.needed("ssm.conv_kernel")?,
            inner,
        })
    }

    /// How many times as wide as the model the block is.
    fn expand(&self, fields: &Fields<'_>) -> Result<u64> {
        if self.inner.is_multiple_of(fields.hidden_size) {
            return Ok(self.inner / fields.hidden_size);
        }
        let reason = format!("is {}, expected a multiple of the width {}", self.inner, fields.hidden_size);
        Err(Error::at(fields.key("ssm.inner_size"), reason))
    }
}

/// Adds the sizes to config.json, by the names that the family has for them.
///
/// # Errors
/// [`Error::Invalid`] names the key that is missing or makes no sense.
pub(super) fn add(fields: &Fields<'_>, config: &mut Map<String, Value>) -> Result<()> {
    let sizes = Sizes::read(fields)?;
    let names = match fields.model_type {
        "mamba2" => {
            ["num_heads", "head_dim", "n_groups", "state_size", "conv_kernel", "use_conv_bias", "use_bias"]
        }
        "nemotron_h" => [
            "mamba_num_heads",
            "mamba_head_dim",
            "n_groups",
            "ssm_state_size",
            "conv_kernel",
            "use_conv_bias",
            "use_bias",
        ],
        _ => [
            "mamba_n_heads",
            "mamba_d_head",
            "mamba_n_groups",
            "mamba_d_state",
            "mamba_d_conv",
            "mamba_conv_bias",
            "mamba_proj_bias",
        ],
    };
    let has = |part: &str| json!(!fields.layers_with(part).is_empty());
    let Sizes { heads, head_dim, groups, state, kernel, inner } = sizes;
    let values = [heads, head_dim, groups, state, kernel].map(|size| json!(size));
    let biases = [has("ssm_conv1d.bias"), has("ssm_in.bias")];
    config.extend(names.into_iter().map(str::to_owned).zip(values.into_iter().chain(biases)));
    let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
    match fields.model_type {
        "mamba2" => drop(put("expand", json!(sizes.expand(fields)?))),
        "falcon_h1" => {
            put("mamba_d_ssm", json!(inner));
            put("mamba_rms_norm", has("ssm_norm.weight"));
            // llama.cpp takes it for granted, and the published models have it so.
            put("mamba_norm_before_gate", json!(false));
            put("projectors_bias", has("ssm_out.bias"));
        }
        "nemotron_h" => nemotron_h(fields, config)?,
        _ => {
            put("mamba_expand", json!(sizes.expand(fields)?));
            granite(fields, config)?;
        }
    }
    Ok(())
}

/// What each layer is: the first of these that it has a tensor of.
fn kinds(fields: &Fields<'_>, parts: &[(&str, &'static str)]) -> Result<Value> {
    let known: Vec<_> = parts.iter().map(|(part, kind)| (fields.layers_with(part), *kind)).collect();
    // As many layers as there are tensors for at most.
    let layers = 0..fields.layers.min(fields.tensors.len() as u64);
    let kind = |layer: u64| {
        let found = known.iter().find(|(layers, _)| layers.binary_search(&layer).is_ok());
        let missing = || Error::at(format!("blk.{layer}"), "has no part that a layer of this family can be");
        found.map(|(_, kind)| json!(kind)).ok_or_else(missing)
    };
    layers.map(kind).collect()
}

fn nemotron_h(fields: &Fields<'_>, config: &mut Map<String, Value>) -> Result<()> {
    let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
    let parts = [
        ("ssm_in.weight", "mamba"),
        ("attn_q.weight", "attention"),
        ("ffn_gate_inp.weight", "moe"),
        ("ffn_up.weight", "mlp"),
    ];
    put("layers_block_type", kinds(fields, &parts)?);
    put("mlp_hidden_act", json!("relu2"));
    if !fields.layers_with("ffn_up_shexp.bias").is_empty() {
        put("mlp_bias", json!(true));
    }
    if let Some(width) = fields.count("expert_shared_feed_forward_length")? {
        put("moe_shared_expert_intermediate_size", json!(width));
    }
    if let Some(width) = fields.count("moe_latent_size")? {
        put("moe_latent_size", json!(width));
    }
    Ok(())
}

fn granite(fields: &Fields<'_>, config: &mut Map<String, Value>) -> Result<()> {
    let turns = fields.metadata.flag(&fields.key("rope.scaling.finetuned"))?.unwrap_or(false);
    let width = match fields.experts {
        Some(_) => fields.needed("expert_shared_feed_forward_length")?,
        None => fields.needed("feed_forward_length")?,
    };
    let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
    put("layer_types", kinds(fields, &[("ssm_in.weight", "mamba"), ("attn_q.weight", "attention")])?);
    put("position_embedding_type", json!(if turns { "rope" } else { "nope" }));
    put("shared_intermediate_size", json!(width));
    if fields.experts.is_none() {
        put("num_local_experts", json!(0));
        put("num_experts_per_tok", json!(0));
    }
    Ok(())
}
