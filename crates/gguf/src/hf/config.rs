//! config.json from metadata.

use serde_json::{Map, Value, json};

use super::families::Family;
use crate::{Error, Metadata, Result, Tensor};

/// The values of one model, read by the architecture's own keys.
pub(super) struct Fields<'a> {
    pub(super) metadata: &'a Metadata,
    pub(super) tensors: &'a [Tensor],
    pub(super) family: &'static Family,
    pub(super) model_type: &'static str,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) hidden_size: u64,
    pub(super) layers: u64,
    pub(super) head_dim: u64,
    pub(super) experts: Option<u64>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(
        metadata: &'a Metadata,
        tensors: &'a [Tensor],
        family: &'static Family,
    ) -> Result<Self> {
        let mut fields = Self {
            metadata,
            tensors,
            family,
            model_type: family.model_type,
            heads: 0,
            kv_heads: 0,
            hidden_size: 0,
            layers: 0,
            head_dim: 0,
            experts: None,
        };
        fields.hidden_size = fields.needed("embedding_length")?;
        // The last ones predict tokens behind the next one.
        let more = fields.count("nextn_predict_layers")?.unwrap_or(0);
        fields.layers = fields.needed("block_count")?;
        fields.layers = fields.layers.saturating_sub(more).max(1);
        fields.experts = fields.count("expert_count")?.filter(|count| *count > 0);
        if family.architecture == "mamba2" {
            // There is no attention.
            return Ok(fields);
        }
        let heads = fields.same_in_layers("attention.head_count")?;
        let heads = heads.ok_or_else(|| fields.missing("attention.head_count"))?;
        let kv_heads = match family.architecture {
            // They differ between layers.
            "gemma4" => heads,
            _ => fields.same_in_layers("attention.head_count_kv")?.unwrap_or(heads),
        };
        (fields.heads, fields.kv_heads) = (size(heads), size(kv_heads));
        if family.architecture == "deepseek2" {
            // Of which positions are made.
            fields.head_dim = fields.needed("rope.dimension_count")?;
            return Ok(fields);
        }
        fields.head_dim = match fields.count("attention.key_length")? {
            Some(width) => width,
            None => fields.hidden_size.checked_div(heads).unwrap_or(0),
        };
        let value = fields.count("attention.value_length")?.unwrap_or(fields.head_dim);
        if value != fields.head_dim {
            let reason = format!("is {value}, expected {} as of keys", fields.head_dim);
            return Err(Error::at(fields.key("attention.value_length"), reason));
        }
        // Mixtral goes by the name of Llama.
        if fields.experts.is_some() && family.architecture == "llama" {
            fields.model_type = "mixtral";
        }
        Ok(fields)
    }

    /// config.json, but for what it says of rope.
    pub(super) fn config(&self) -> Result<Map<String, Value>> {
        let mut config = self.shared()?;
        match self.family.architecture {
            "granite" | "granitehybrid" => {
                self.set(&mut config, "embedding_multiplier", "embedding_scale")?;
                self.set(&mut config, "attention_multiplier", "attention.scale")?;
                self.set(&mut config, "residual_multiplier", "residual_scale")?;
                self.set(&mut config, "logits_scaling", "logit_scale")?;
            }
            "phi3" | "phimoe" | "gpt-oss" => {
                self.window(&mut config)?;
                if self.tensor("output.bias").is_some() {
                    config.insert("lm_head_bias".to_owned(), json!(true));
                }
            }
            "minicpm" => self.minicpm(&mut config)?,
            "lfm2" | "lfm2moe" => self.lfm2(&mut config)?,
            _ => self.others(&mut config)?,
        }
        self.experts(&mut config)?;
        Ok(config)
    }

    /// What all families have.
    fn shared(&self) -> Result<Map<String, Value>> {
        let mut config = Map::new();
        let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
        put("model_type", json!(self.model_type));
        put("hidden_size", json!(self.hidden_size));
        put("num_hidden_layers", json!(self.layers));
        put("max_position_embeddings", json!(self.needed("context_length")?));
        let [epsilon, name] = self.family.epsilon;
        put(name, single(self.number(epsilon)?.ok_or_else(|| self.missing(epsilon))?));
        put("vocab_size", json!(self.rows("token_embd.weight")?));
        put("tie_word_embeddings", json!(self.tensor("output.weight").is_none()));
        if self.heads > 0 {
            put("num_attention_heads", json!(self.heads));
            put("num_key_value_heads", json!(self.kv_heads));
            put("head_dim", json!(self.head_dim));
            put("intermediate_size", self.feed_forward()?);
            put("attention_bias", json!(!self.layers_with("attn_q.bias").is_empty()));
            if !self.layers_with("ffn_up.bias").is_empty() {
                put("mlp_bias", json!(true));
            }
        }
        Ok(config)
    }

    /// The width of the feed-forward part, or that of each layer's in the family where they differ.
    fn feed_forward(&self) -> Result<Value> {
        const KEY: &str = "feed_forward_length";
        let listed = self.metadata.integers(&self.key(KEY)).ok().flatten();
        match (self.family.architecture, listed) {
            ("gemma3n", Some(widths)) => return Ok(json!(widths)),
            // The last layers may have twice the width.
            ("gemma4", Some(widths)) => return Ok(json!(widths.first())),
            _ => {}
        }
        let dense = self.same_in_layers(KEY)?.filter(|width| *width > 0);
        Ok(json!(dense.map_or_else(|| self.needed("expert_feed_forward_length"), Ok)?))
    }

    /// Families of which a few settings differ.
    fn others(&self, config: &mut Map<String, Value>) -> Result<()> {
        let has = |name: &str| json!(self.tensor(name).is_some());
        let put = |config: &mut Map<String, Value>, key: &str, value: Value| {
            config.insert(key.to_owned(), value);
        };
        match self.family.architecture {
            "cohere2" => {
                // The files do not say; llama.cpp takes it for granted.
                put(config, "sliding_window_pattern", json!(4));
                self.set(config, "logit_scale", "logit_scale")?;
                self.window(config)?;
            }
            "exaone4" => {
                self.window(config)?;
                self.layer_types(config, 4)?;
            }
            "ernie4_5" | "ernie4_5-moe" => put(config, "use_bias", has("blk.0.attn_q.bias")),
            "glm4moe" => put(config, "use_qk_norm", has("blk.0.attn_q_norm.weight")),
            "olmoe" => {
                self.set(config, "clip_qkv", "attention.clamp_kqv")?;
                // The files do not say; llama.cpp takes it for granted, and the published models have it so.
                put(config, "norm_topk_prob", json!(false));
            }
            "qwen2moe" => {
                put(config, "qkv_bias", has("blk.0.attn_q.bias"));
                put(config, "decoder_sparse_step", json!(1));
                put(config, "use_sliding_window", json!(false));
                let width = self.count("expert_shared_feed_forward_length")?.unwrap_or(0);
                put(config, "shared_expert_intermediate_size", json!(width));
            }
            "qwen35" | "qwen35moe" | "qwen3next" => {
                if let Some(width) = self.count("expert_shared_feed_forward_length")? {
                    put(config, "shared_expert_intermediate_size", json!(width));
                }
            }
            "seed_oss" => put(config, "attention_out_bias", has("blk.0.attn_output.bias")),
            "stablelm" => {
                put(config, "use_qkv_bias", has("blk.0.attn_q.bias"));
                let parallel = self.metadata.flag(&self.key("use_parallel_residual"))?;
                put(config, "use_parallel_residual", json!(parallel.unwrap_or(false)));
            }
            "starcoder2" => {
                put(config, "use_bias", has("blk.0.attn_q.bias"));
                // The files have no window, and llama.cpp none for them.
                put(config, "sliding_window", Value::Null);
            }
            _ => {}
        }
        Ok(())
    }

    fn minicpm(&self, config: &mut Map<String, Value>) -> Result<()> {
        let (width, depth) = (self.hidden_size as f64, (self.layers as f64).sqrt());
        // The first files had none of these keys, and were all of one model.
        let embedding = self.number("embedding_scale")?.unwrap_or(12.0);
        let residual = self.number("residual_scale")?.unwrap_or(1.4 / depth);
        let logits = self.number("logit_scale")?.unwrap_or(width / 256.0);
        for (key, value) in
            [("scale_emb", embedding), ("scale_depth", residual * depth), ("dim_model_base", width / logits)]
        {
            config.insert(key.to_owned(), single(value));
        }
        Ok(())
    }

    fn lfm2(&self, config: &mut Map<String, Value>) -> Result<()> {
        if let Some(window) = self.count("attention.sliding_window")?.filter(|window| *window > 0) {
            let reason = format!("is {window}, which is not supported in this family");
            return Err(Error::at(self.key("attention.sliding_window"), reason));
        }
        let convolutions = self.layers_with("shortconv.conv.weight");
        // As many layers as there are tensors for at most.
        let layers = 0..self.layers.min(self.tensors.len() as u64);
        let convolves = |layer: u64| convolutions.binary_search(&layer).is_ok();
        let kind = |layer: u64| if convolves(layer) { "conv" } else { "full_attention" };
        let biases = self.layers_with("shortconv.conv.bias");
        let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
        put("layer_types", layers.map(|layer| json!(kind(layer))).collect());
        put("conv_L_cache", json!(self.needed("shortconv.l_cache")?));
        put("conv_bias", json!(!biases.is_empty()));
        // The file has the width itself.
        put("block_auto_adjust_ff_dim", json!(false));
        Ok(())
    }

    /// Which layers have a window: a flag for each, or all but one of so many.
    pub(super) fn layer_types(&self, config: &mut Map<String, Value>, pattern: u64) -> Result<()> {
        let key = self.key("attention.sliding_window_pattern");
        let flags: Vec<bool> = match self.metadata.flags(&key).ok().flatten() {
            Some(flags) => flags.to_vec(),
            None => {
                let pattern = self.count("attention.sliding_window_pattern")?.unwrap_or(pattern).max(1);
                // As many layers as there are tensors for at most.
                let layers = self.layers.min(self.tensors.len() as u64);
                (1..=layers).map(|layer| !layer.is_multiple_of(pattern)).collect()
            }
        };
        let name = |slides: &bool| json!(if *slides { "sliding_attention" } else { "full_attention" });
        config.insert("layer_types".to_owned(), flags.iter().map(name).collect());
        Ok(())
    }

    fn experts(&self, config: &mut Map<String, Value>) -> Result<()> {
        let Some(experts) = self.experts else { return Ok(()) };
        let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
        let used = self.needed("expert_used_count")?;
        put("num_experts_per_tok", json!(used));
        let width = self.count("expert_feed_forward_length")?;
        match self.family.architecture {
            "qwen3moe" | "qwen2moe" | "qwen35moe" | "qwen3next" => {
                put("num_experts", json!(experts));
                put("moe_intermediate_size", json!(self.needed("expert_feed_forward_length")?));
                // The files do not say; llama.cpp takes it for granted, and every published model has it.
                put("norm_topk_prob", json!(self.family.architecture != "qwen2moe"));
                put("mlp_only_layers", json!(self.layers_with("ffn_gate.weight")));
            }
            "lfm2moe" => {
                put("num_experts", json!(experts));
                put("moe_intermediate_size", json!(self.needed("expert_feed_forward_length")?));
                put("num_dense_layers", json!(self.count("leading_dense_block_count")?.unwrap_or(0)));
                put("use_expert_bias", json!(!self.layers_with("exp_probs_b.bias").is_empty()));
                // The files do not say; llama.cpp takes it for granted, and the published model has it so.
                put("norm_topk_prob", json!(true));
                put("routed_scaling_factor", single(self.number("expert_weights_scale")?.unwrap_or(1.0)));
            }
            "ernie4_5-moe" => {
                let sparse = self.layers_with("ffn_gate_inp.weight");
                put("moe_num_experts", json!(experts));
                put("moe_k", json!(used));
                put("moe_intermediate_size", json!(self.needed("expert_feed_forward_length")?));
                put("moe_num_shared_experts", json!(self.count("expert_shared_count")?.unwrap_or(0)));
                put("moe_layer_start_index", json!(sparse.first()));
                put("moe_layer_end_index", json!(sparse.last()));
                put("moe_layer_interval", json!(self.count("interleave_moe_layer_step")?.unwrap_or(1)));
            }
            "gemma4" => {
                put("enable_moe_block", json!(true));
                put("num_experts", json!(experts));
                put("top_k_experts", json!(used));
                put("moe_intermediate_size", json!(self.needed("expert_feed_forward_length")?));
            }
            "glm4moe" | "deepseek2" | "nemotron_h_moe" => {
                put("n_routed_experts", json!(experts));
                put("moe_intermediate_size", json!(self.needed("expert_feed_forward_length")?));
                put("n_shared_experts", json!(self.count("expert_shared_count")?.unwrap_or(0)));
                put("first_k_dense_replace", json!(self.count("leading_dense_block_count")?.unwrap_or(0)));
                put("n_group", json!(self.count("expert_group_count")?.unwrap_or(1).max(1)));
                put("topk_group", json!(self.count("expert_group_used_count")?.unwrap_or(1).max(1)));
                let norm = self.metadata.flag(&self.key("expert_weights_norm"))?;
                // Its converter says so where it is.
                put("norm_topk_prob", json!(norm.unwrap_or(self.family.architecture != "deepseek2")));
                put("routed_scaling_factor", single(self.number("expert_weights_scale")?.unwrap_or(1.0)));
            }
            other => {
                put(if other == "olmoe" { "num_experts" } else { "num_local_experts" }, json!(experts));
                if let Some(width) = width {
                    put("intermediate_size", json!(width));
                }
            }
        }
        Ok(())
    }

    /// The layers that have this tensor, in order.
    pub(super) fn layers_with(&self, part: &str) -> Vec<u64> {
        let layer = |tensor: &Tensor| {
            let (layer, found) = tensor.name.strip_prefix("blk.")?.split_once('.')?;
            layer.parse::<u64>().ok().filter(|layer| found == part && *layer < self.layers)
        };
        let mut layers: Vec<u64> = self.tensors.iter().filter_map(layer).collect();
        layers.sort_unstable();
        layers
    }

    /// Whether nothing is computed with a tensor: it is of a layer that predicts tokens behind the next one, or the file has what it
    /// says in two others.
    pub(super) fn is_unused(&self, tensor: &Tensor) -> bool {
        if let Some(layer) = tensor.name.strip_suffix(".attn_kv_b.weight") {
            return self.tensor(&format!("{layer}.attn_k_b.weight")).is_some();
        }
        let layer = || tensor.name.strip_prefix("blk.")?.split_once('.')?.0.parse::<u64>().ok();
        let more = self.count("nextn_predict_layers").ok().flatten().unwrap_or(0);
        layer().is_some_and(|layer| layer >= self.layers && layer < self.layers.saturating_add(more))
    }

    /// The window of attention, where it is one.
    pub(super) fn window(&self, config: &mut Map<String, Value>) -> Result<()> {
        let window = self.count("attention.sliding_window")?.filter(|window| *window > 0);
        config.insert("sliding_window".to_owned(), window.map_or(Value::Null, Value::from));
        Ok(())
    }

    /// Sets a key of config.json to the number of a key of the file, where it has one.
    pub(super) fn set(&self, config: &mut Map<String, Value>, name: &str, key: &str) -> Result<()> {
        if let Some(number) = self.number(key)? {
            config.insert(name.to_owned(), single(number));
        }
        Ok(())
    }

    pub(super) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.family.architecture)
    }

    pub(super) fn count(&self, name: &str) -> Result<Option<u64>> {
        self.metadata.unsigned(&self.key(name))
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<f64>> {
        self.metadata.number(&self.key(name))
    }

    pub(super) fn needed(&self, name: &str) -> Result<u64> {
        let found = self.count(name)?.filter(|count| *count > 0 && *count <= i32::MAX as u64);
        found.ok_or_else(|| self.missing(name))
    }

    pub(super) fn tensor(&self, name: &str) -> Option<&'a Tensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// The rows of a matrix.
    pub(super) fn rows(&self, name: &str) -> Result<usize> {
        let matrix = self.tensor(name).filter(|tensor| tensor.shape.len() == 2);
        matrix.map(|tensor| tensor.shape[0]).ok_or_else(|| Error::at(name, "is missing, or no matrix"))
    }

    fn missing(&self, name: &str) -> Error {
        Error::at(self.key(name), "is missing or no size, expected a whole number from 1")
    }

    /// A number that may be listed for each layer, but has to be the same in all that have what it counts.
    fn same_in_layers(&self, name: &str) -> Result<Option<u64>> {
        let key = self.key(name);
        let Ok(Some(listed)) = self.metadata.integers(&key) else { return self.count(name) };
        let mut counts = listed.iter().filter(|count| **count != 0);
        match counts.next() {
            Some(first) if counts.all(|count| count == first) => Ok(u64::try_from(*first).ok()),
            Some(_) => Err(Error::at(key, "differs between layers, which is not supported")),
            None => Ok(None),
        }
    }
}

/// A number that the file has in single precision, as the shortest decimal that means it: 1e-6 and not 9.99999997475243e-7.
pub(super) fn single(number: f64) -> Value {
    let short: f64 = (number as f32).to_string().parse().unwrap_or(number);
    json!(short)
}

fn size(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
