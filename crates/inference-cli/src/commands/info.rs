//! `inference info`: what a model's folder says about itself, read from config and tensor headers alone.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use inference::{Dtype, ModelManifest, TensorInfo};
use serde::Serialize;
use serde_json::Value;

use crate::{
    model,
    render::{self, Out},
};

/// Show what a model is: architecture, size, quantisation, context; no weights are read
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  inference info ~/models/Qwen3-0.6B")]
pub(crate) struct Args {
    /// The model's folder
    path: PathBuf,

    /// Print a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// What is shown, and the names it has in JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Facts {
    path: PathBuf,
    architecture: String,
    /// Weights before quantisation.
    parameters: u64,
    weight_bytes: u64,
    files: usize,
    tensors: usize,
    /// Bytes of tensors by element type.
    dtypes: BTreeMap<String, u64>,
    quantization: Option<inference::Quantization>,
    layers: Option<u64>,
    hidden_size: Option<u64>,
    vocab_size: Option<u64>,
    context_length: Option<u64>,
    tokenizer: bool,
    chat_template: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    model::check_folder(&args.path)?;
    let facts = Facts::of(&ModelManifest::read(&args.path)?);
    let mut out = Out::new();
    if args.json {
        out.json(&facts)?;
    } else {
        out.table(&render::facts(facts.rows()))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Facts {
    pub(crate) fn of(manifest: &ModelManifest) -> Self {
        // Multimodal checkpoints keep the language model's keys one level down.
        let config = manifest.config();
        let number = |key: &str| {
            [config.get("text_config"), Some(config)].into_iter().flatten().find_map(|c| c.get(key)?.as_u64())
        };
        let mut dtypes = BTreeMap::new();
        for tensor in manifest.tensors().values() {
            *dtypes.entry(dtype_name(tensor.dtype)).or_default() += tensor.range.end - tensor.range.start;
        }
        Self {
            path: manifest.path().to_owned(),
            architecture: manifest.model_type().to_owned(),
            parameters: parameters(manifest),
            weight_bytes: manifest.weight_bytes(),
            files: manifest.files().len(),
            tensors: manifest.tensors().len(),
            dtypes,
            quantization: manifest.quantization().cloned(),
            layers: number("num_hidden_layers"),
            hidden_size: number("hidden_size"),
            vocab_size: number("vocab_size"),
            context_length: number("max_position_embeddings"),
            tokenizer: manifest.path().join("tokenizer.json").is_file(),
            chat_template: has_chat_template(manifest),
        }
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let number =
            |value: Option<u64>| value.map_or_else(|| "not in config.json".to_owned(), |n| n.to_string());
        let dtypes: Vec<_> =
            self.dtypes.iter().map(|(name, size)| format!("{name} {}", render::bytes(*size))).collect();
        let quantization = self.quantization.as_ref().map_or_else(
            || "none".to_owned(),
            |q| format!("{} bits in groups of {}, {}", q.bits, q.group_size, q.mode),
        );
        let present = |present| if present { "yes" } else { "missing" }.to_owned();
        vec![
            ("path", self.path.display().to_string()),
            ("architecture", self.architecture.clone()),
            ("parameters", render::count(self.parameters)),
            (
                "weights",
                format!(
                    "{} in {}, {}",
                    render::bytes(self.weight_bytes),
                    render::things(self.tensors, "tensor"),
                    render::things(self.files, "file")
                ),
            ),
            ("element types", dtypes.join(", ")),
            ("quantisation", quantization),
            ("layers", number(self.layers)),
            ("hidden size", number(self.hidden_size)),
            ("vocabulary", number(self.vocab_size)),
            ("context", number(self.context_length)),
            ("tokenizer", present(self.tokenizer)),
            ("chat template", present(self.chat_template)),
        ]
    }
}

/// Weights before quantisation: a packed tensor stands for as many as its bits hold, its scales and biases for none.
fn parameters(manifest: &ModelManifest) -> u64 {
    let elements = |tensor: &TensorInfo| tensor.shape.iter().map(|n| *n as u64).product::<u64>();
    let tensors = manifest.tensors();
    let count = |(name, tensor): (&String, &TensorInfo)| {
        let quantised = |module: &str| tensors.contains_key(&format!("{module}.scales"));
        match name.rsplit_once('.') {
            Some((module, "scales" | "biases")) if quantised(module) => 0,
            Some((module, "weight")) if quantised(module) && tensor.dtype == Dtype::U32 => {
                elements(tensor) * 32 / bits(manifest, module)
            }
            _ => elements(tensor),
        }
    };
    tensors.iter().map(count).sum()
}

/// The bits of a module's weights: its own where config.json has an entry for it, the default otherwise.
fn bits(manifest: &ModelManifest, module: &str) -> u64 {
    let own = ["quantization", "quantization_config"]
        .iter()
        .find_map(|key| manifest.config().get(key)?.get(module)?.get("bits")?.as_u64());
    own.or_else(|| manifest.quantization().map(|q| u64::from(q.bits))).unwrap_or(4).max(1)
}

fn has_chat_template(manifest: &ModelManifest) -> bool {
    if manifest.path().join("chat_template.jinja").is_file() {
        return true;
    }
    // A broken tokenizer_config.json is told by whoever loads the model.
    let config: Option<Value> =
        inference::read_json(&manifest.path().join("tokenizer_config.json"), 16 << 20).ok();
    config.is_some_and(|config| config.get("chat_template").is_some_and(|template| !template.is_null()))
}

/// The name that safetensors files use.
fn dtype_name(dtype: Dtype) -> String {
    serde_json::to_value(dtype)
        .ok()
        .and_then(|name| name.as_str().map(str::to_owned))
        .unwrap_or_else(|| format!("{dtype:?}"))
}
