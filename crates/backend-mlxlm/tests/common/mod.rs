//! A small model that is made on the spot, the interpreter that runs it, and children that misbehave.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use backend_mlxlm::MlxLmBackend;
use inference_core::{
    LoadOptions, ModelManifest, Result, TextModel,
    backend::{Backend as _, CheckedModel},
};
use serde_json::{Value, json};

/// The id that ends a text; ids below it are bytes.
pub(crate) const EOS: u32 = 256;

/// Ids of the model.
pub(crate) const VOCAB_SIZE: usize = 260;

/// An interpreter with the pinned mlx_lm: `INFERENCE_PYTHON`, or the environment that `cargo xtask test` makes.
pub(crate) fn python() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let made = root.join("target/mlx_lm-venv");
    let path = std::env::var_os("INFERENCE_PYTHON").map_or_else(|| made.join("bin/python"), PathBuf::from);
    assert!(
        path.exists(),
        "{} does not exist. `cargo xtask test` makes it, or:\n    python3 -m venv {made}\n    {made}/bin/pip install -r {}",
        path.display(),
        Path::new(env!("CARGO_MANIFEST_DIR")).join("python/requirements.txt").display(),
        made = made.display(),
    );
    path
}

/// Loads a model in a child, behind the contract's checks.
pub(crate) async fn load(folder: &Path, options: LoadOptions) -> Result<Arc<dyn TextModel>> {
    let backend = MlxLmBackend::with_python(python());
    let model = backend.load(ModelManifest::read(folder)?, options).await?;
    Ok(Arc::new(CheckedModel::new(model, &backend)))
}

/// A program that can be run as the interpreter.
pub(crate) fn script(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    // Written elsewhere first: a file that is open for writing in any process cannot be run.
    let draft = folder.join(format!("{name}.draft"));
    fs::write(&draft, text).unwrap();
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&draft, &path).unwrap();
    path
}

/// A random llama of two layers in float32, the same each time, with a tokenizer of bytes and a chat template.
pub(crate) fn tiny_model() -> tempfile::TempDir {
    model(&json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "vocab_size": VOCAB_SIZE, "max_position_embeddings": 4096, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "eos_token_id": EOS,
    }))
}

/// A random model with this config of a llama.
pub(crate) fn model(config: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    write_tokenizer(folder.path());
    write_weights(folder.path(), config);
    folder
}

/// One token for each byte, spelt as byte-level vocabularies spell it, and a few special ones.
fn write_tokenizer(folder: &Path) {
    let mut spare = 0x100u32;
    let spell = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => {
            spare += 1;
            char::from_u32(spare - 1).unwrap()
        }
    };
    let vocabulary: serde_json::Map<_, _> =
        (0..=255u8).map(spell).enumerate().map(|(id, c)| (c.to_string(), json!(id))).collect();
    let special = |id: u32, text: &str| {
        json!({"id": id, "content": text, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false})
    };
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [special(EOS, "<|end|>"), special(EOS + 1, "<|user|>"), special(EOS + 2, "<|assistant|>")],
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({
        "eos_token": "<|end|>",
        "chat_template": "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>",
    });
    fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
}

fn write_weights(folder: &Path, config: &Value) {
    let number = |key: &str| usize::try_from(config[key].as_u64().unwrap()).unwrap();
    let (hidden, inner, vocab) = (number("hidden_size"), number("intermediate_size"), number("vocab_size"));
    let heads = number("num_attention_heads");
    let kv = hidden / heads * number("num_key_value_heads");
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, hidden])];
    for layer in 0..number("num_hidden_layers") {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        add("input_layernorm", &[hidden]);
        add("post_attention_layernorm", &[hidden]);
        add("self_attn.q_proj", &[hidden, hidden]);
        add("self_attn.k_proj", &[kv, hidden]);
        add("self_attn.v_proj", &[kv, hidden]);
        add("self_attn.o_proj", &[hidden, hidden]);
        add("mlp.gate_proj", &[inner, hidden]);
        add("mlp.up_proj", &[inner, hidden]);
        add("mlp.down_proj", &[hidden, inner]);
    }
    tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
    if config["tie_word_embeddings"] != json!(true) {
        tensors.push(("lm_head.weight".to_owned(), vec![vocab, hidden]));
    }

    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    let mut state = 1u64;
    for (name, shape) in tensors {
        let start = data.len();
        let is_norm = shape.len() == 1;
        // Large enough that attention is peaked and the text does not repeat one token.
        let scale = 3.0 / (hidden as f32).sqrt();
        for _ in 0..shape.iter().product() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let unit = (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
            let value = if is_norm { 1.0 + 0.2 * unit } else { scale * unit };
            data.extend_from_slice(&value.to_le_bytes());
        }
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    fs::write(folder.join("model.safetensors"), file).unwrap();
}

/// Runs one of the scripts beside this file with the real interpreter; what it prints.
pub(crate) fn run_python(script: &str, arguments: &[&str]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(script);
    let output = std::process::Command::new(python()).arg(path).args(arguments).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Greedy ids and next-token logits of each prompt, by mlx_lm itself.
pub(crate) fn reference(
    model: &Path,
    adapter: Option<&Path>,
    prompts: &[Vec<u32>],
    max_tokens: usize,
) -> Vec<Reference> {
    let request = json!({"model": model, "adapter": adapter, "prompts": prompts, "max_tokens": max_tokens});
    serde_json::from_str(&run_python("reference.py", &[&request.to_string()])).unwrap()
}

/// What mlx_lm makes of one prompt.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Reference {
    pub(crate) tokens: Vec<u32>,
    pub(crate) logits: Vec<f32>,
}

/// A prompt of ids that look random.
pub(crate) fn ids(length: usize, salt: u32) -> Vec<u32> {
    let mut state = salt.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % 256
    };
    std::iter::repeat_with(next).take(length).collect()
}
