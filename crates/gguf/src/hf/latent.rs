//! Latent attention: its sizes, and the experts of the models that have it.

use serde_json::{Map, Value, json};

use super::config::Fields;
use crate::{Error, Result};

/// Adds the sizes of DeepSeek V3, of Kimi K2 and of GLM 4.7 Flash to config.json.
///
/// # Errors
/// [`Error::Invalid`] names the key that is missing or makes no sense.
pub(super) fn add(fields: &Fields<'_>, config: &mut Map<String, Value>) -> Result<()> {
    let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
    // Files of the first kind have the widths of whole heads in the place of those of what is kept.
    let whole = |key: &str| fields.count(&format!("{key}_mla"))?.map_or_else(|| fields.needed(key), Ok);
    let (keys, rotated) = (whole("attention.key_length")?, fields.needed("rope.dimension_count")?);
    let Some(plain) = keys.checked_sub(rotated) else {
        let reason = format!("is {rotated}, expected at most the {keys} of a head");
        return Err(Error::at(fields.key("rope.dimension_count"), reason));
    };
    put("q_lora_rank", fields.count("attention.q_lora_rank")?.map_or(Value::Null, Value::from));
    put("kv_lora_rank", json!(fields.needed("attention.kv_lora_rank")?));
    put("qk_nope_head_dim", json!(plain));
    put("qk_rope_head_dim", json!(rotated));
    put("v_head_dim", json!(whole("attention.value_length")?));
    put("num_key_value_heads", json!(fields.heads));
    put("attention_bias", json!(!fields.layers_with("attn_kv_a_mqa.bias").is_empty()));
    if fields.experts.is_none() {
        // One that no layer has.
        for key in ["n_routed_experts", "num_experts_per_tok", "n_group", "topk_group"] {
            put(key, json!(1));
        }
        put("first_k_dense_replace", json!(fields.layers));
    } else if fields.layers_with("exp_probs_b.bias").is_empty() {
        let reason = "has no corrections of experts' scores (exp_probs_b): DeepSeek V2 is not supported";
        return Err(Error::at(fields.key("expert_count"), reason));
    }
    Ok(())
}
