//! The model before it has learnt anything: its folder with a tokenizer, random weights and everything else.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, anyhow, ensure};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use tokenizers::{
    AddedToken, Tokenizer,
    decoders::byte_level::ByteLevel as Decoder,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainer},
    },
    pre_tokenizers::{
        PreTokenizerWrapper,
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use super::random::Random;

pub(super) const END_OF_TEXT: &str = "<|endoftext|>";
pub(super) const START: &str = "<|im_start|>";
pub(super) const END: &str = "<|im_end|>";

/// The longest conversation, in tokens.
pub(super) const CONTEXT: usize = 1024;

const VOCABULARY: usize = 2048;
const HIDDEN: usize = 256;
const INNER: usize = 768;
const LAYERS: usize = 4;
const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const HEAD: usize = 64;

const TEMPLATE: &str = "{%- for message in messages -%}\n\
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}\n\
{%- endfor -%}\n\
{%- if add_generation_prompt -%}\n\
{{- '<|im_start|>assistant\\n' -}}\n\
{%- endif -%}\n";

/// A byte-level BPE over `texts`. Digits stand alone, one token each; so do `words`, one token each.
pub(super) fn train_tokenizer(
    texts: impl Iterator<Item = String> + Send,
    words: &[&str],
) -> Result<Tokenizer> {
    let failed = |error: tokenizers::Error| anyhow!("cannot train the tokenizer: {error}");
    let mut tokenizer = Tokenizer::new(BPE::default());
    let digits = Split::new(
        SplitPattern::Regex("[0-9]".to_owned()),
        tokenizers::SplitDelimiterBehavior::Isolated,
        false,
    );
    let parts = vec![
        PreTokenizerWrapper::Split(digits.map_err(failed)?),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
    ];
    tokenizer.with_pre_tokenizer(Some(Sequence::new(parts)));
    tokenizer.with_decoder(Some(Decoder::default()));
    let special = [END_OF_TEXT, START, END].map(|token| AddedToken::from(token, true));
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .vocab_size(VOCABULARY)
        .special_tokens(special.to_vec())
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build()
        .into();
    let often = words.iter().cycle().take(2000 * words.len()).map(|word| (*word).to_owned());
    let often: Vec<String> = often.collect();
    tokenizer.train(&mut trainer, texts.chain(often)).map_err(failed)?;
    for word in words {
        let tokens = tokenizer.encode(*word, false).map_err(failed)?.len();
        ensure!(tokens == 1, "{word:?} has {tokens} tokens, expected one: it is a label or a role");
    }
    Ok(tokenizer)
}

/// Writes a tokenizer's file.
pub(super) fn write_tokenizer(tokenizer: &Tokenizer, path: &Path) -> Result<()> {
    tokenizer.save(path, true).map_err(|error| anyhow!("{}: {error}", path.display()))
}

/// Reads a tokenizer's file.
pub(super) fn read_tokenizer(path: &Path) -> Result<Tokenizer> {
    Tokenizer::from_file(path).map_err(|error| anyhow!("{}: {error}", path.display()))
}

/// Writes the model's folder.
pub(super) fn write(folder: &Path, tokenizer: &Tokenizer, seed: u64) -> Result<()> {
    fs::create_dir_all(folder)?;
    let (pad, end) = (id(tokenizer, END_OF_TEXT)?, id(tokenizer, END)?);
    write_tokenizer(tokenizer, &folder.join("tokenizer.json"))?;
    fs::write(folder.join("chat_template.jinja"), TEMPLATE)?;
    let json = |name: &str, value: &Value| fs::write(folder.join(name), format!("{value:#}\n"));
    json(
        "config.json",
        &json!({
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_act": "silu",
            "attention_bias": false,
            "attention_dropout": 0.0,
            "tie_word_embeddings": true,
            "rope_scaling": null,
            "use_sliding_window": false,
            "sliding_window": null,
            "initializer_range": 0.02,
            "use_cache": true,
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": INNER,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD,
            "max_position_embeddings": CONTEXT,
            "rope_theta": 10000.0,
            "rms_norm_eps": 1e-6,
            "torch_dtype": "float32",
            "eos_token_id": end,
            "pad_token_id": pad,
        }),
    )?;
    let generation =
        json!({"eos_token_id": [end, pad], "pad_token_id": pad, "do_sample": false, "max_new_tokens": 64});
    json("generation_config.json", &generation)?;
    json(
        "tokenizer_config.json",
        &json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": CONTEXT,
            "clean_up_tokenization_spaces": false,
            "add_bos_token": false,
            "bos_token": null,
            "eos_token": END,
            "pad_token": END_OF_TEXT,
            "unk_token": null,
            "added_tokens_decoder": added_tokens(tokenizer)?,
        }),
    )?;
    write_weights(&folder.join("model.safetensors"), seed)
}

/// The special tokens as tokenizer_config.json lists them.
fn added_tokens(tokenizer: &Tokenizer) -> Result<serde_json::Map<String, Value>> {
    let entries = [END_OF_TEXT, START, END].into_iter().map(|token| {
        let entry = json!({
            "content": token, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true,
        });
        Ok((id(tokenizer, token)?.to_string(), entry))
    });
    entries.collect()
}

fn id(tokenizer: &Tokenizer, token: &str) -> Result<u32> {
    tokenizer.token_to_id(token).with_context(|| format!("no token {token}"))
}

/// Random weights: of deviation 0.02, but what writes into the residual stream starts smaller, so that depth adds no variance.
fn write_weights(path: &Path, seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    let mut weights: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    let mut matrix = |name: String, shape: [usize; 2], deviation: f64| {
        let numbers =
            (0..shape[0] * shape[1]).flat_map(|_| ((random.normal() * deviation) as f32).to_le_bytes());
        weights.insert(name, (shape.to_vec(), numbers.collect()));
    };
    let small = 0.02 / (2.0 * LAYERS as f64).sqrt();
    matrix("model.embed_tokens.weight".to_owned(), [VOCABULARY, HIDDEN], 0.02);
    for layer in 0..LAYERS {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        matrix(name("self_attn.q_proj"), [HEADS * HEAD, HIDDEN], 0.02);
        matrix(name("self_attn.k_proj"), [KV_HEADS * HEAD, HIDDEN], 0.02);
        matrix(name("self_attn.v_proj"), [KV_HEADS * HEAD, HIDDEN], 0.02);
        matrix(name("self_attn.o_proj"), [HIDDEN, HEADS * HEAD], small);
        matrix(name("mlp.gate_proj"), [INNER, HIDDEN], 0.02);
        matrix(name("mlp.up_proj"), [INNER, HIDDEN], 0.02);
        matrix(name("mlp.down_proj"), [HIDDEN, INNER], small);
    }
    let mut gain = |name: String, width: usize| {
        weights.insert(name, (vec![width], 1_f32.to_le_bytes().repeat(width)));
    };
    gain("model.norm.weight".to_owned(), HIDDEN);
    for layer in 0..LAYERS {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        gain(name("input_layernorm"), HIDDEN);
        gain(name("post_attention_layernorm"), HIDDEN);
        gain(name("self_attn.q_norm"), HEAD);
        gain(name("self_attn.k_norm"), HEAD);
    }
    let views = weights
        .iter()
        .map(|(name, (shape, bytes))| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)));
    let metadata = [("format".to_owned(), "mlx".to_owned())].into();
    safetensors::serialize_to_file(views.collect::<Result<Vec<_>>>()?, Some(metadata), path)?;
    Ok(())
}
