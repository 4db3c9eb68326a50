//! `inference info`: what a model's folder says about itself, read from config and tensor headers alone; with `--load`, what its
//! engine says of it as well.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use inference::{
    TextModel,
    manifest::{Dtype, ModelManifest, SidePart},
    metrics::MemoryUsage,
    registry::Registry,
};
use inference_core::backend::{BackendInfo, ModelFiles};
use serde::Serialize;
use serde_json::Value;

use crate::{
    interrupt::Scope,
    model,
    options::LoadArgs,
    render::{self, Out},
};

/// Show what a model is: architecture, size, quantisation, context; no weights are read, unless it is loaded
#[derive(Debug, clap::Args)]
#[command(
    // Without --load they would have no effect.
    mut_group("LoadArgs", |group| group.requires("load")),
    after_help = "Examples:
  inference info ~/models/Qwen3-0.6B
  inference info ~/models/Qwen3-0.6B --load --backend cpu"
)]
pub(crate) struct Args {
    /// The model's folder or GGUF file
    path: PathBuf,

    /// Load the model, and show which engine runs it, how that computes decode steps, and the memory in use
    #[arg(long)]
    load: bool,

    #[command(flatten)]
    options: LoadArgs,

    /// Print a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// What is shown, and the names it has in JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Facts {
    pub(crate) path: PathBuf,
    pub(crate) architecture: String,
    /// Weights before quantisation.
    pub(crate) parameters: u64,
    pub(crate) weight_bytes: u64,
    files: usize,
    tensors: usize,
    /// Bytes of tensors by element type.
    dtypes: BTreeMap<String, u64>,
    pub(crate) quantization: Option<inference::manifest::Quantization>,
    /// Bytes of the parts that text from text does without.
    side_parts: BTreeMap<SidePart, u64>,
    layers: Option<u64>,
    hidden_size: Option<u64>,
    vocab_size: Option<u64>,
    pub(crate) context_length: Option<usize>,
    tokenizer: bool,
    chat_template: bool,
    /// Why the tensors are not shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    unread: Option<String>,
}

/// What is known once the model is loaded.
#[derive(Debug, Serialize)]
struct Loaded {
    backend: BackendInfo,
    decode_steps: Option<String>,
    memory: MemoryUsage,
}

/// All that is shown.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    facts: Facts,
    #[serde(skip_serializing_if = "Option::is_none")]
    loaded: Option<Loaded>,
}

pub(crate) async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let path = model::find(&args.path)?;
    let facts = Facts::of(&ModelManifest::read(&path)?)?;
    let loaded = match args.load {
        true => {
            let scope = Scope::enter();
            let model = model::load(&path, &args.options, scope.token(), args.json).await?;
            Some(model::using(model, async |model| Loaded::of(model)).await?)
        }
        false => None,
    };
    let mut out = Out::new();
    if args.json {
        out.json(&Report { facts, loaded })?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = facts.rows().into_iter().chain(loaded.iter().flat_map(Loaded::rows));
    out.table(&render::facts(rows))?;
    if loaded.is_none() {
        out.line("\n--load shows which engine runs it, and how")?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Loaded {
    fn of(model: &dyn TextModel) -> anyhow::Result<Self> {
        let info = model.info();
        Ok(Self {
            backend: Registry::linked().open(&info.backend)?.info().clone(),
            decode_steps: info.decode_steps.clone(),
            memory: model.stats().memory,
        })
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let mut rows = model::engine_rows(&self.backend, self.decode_steps.as_deref());
        // An engine that cannot tell says 0.
        let memory = Some(self.memory.active_bytes).filter(|bytes| *bytes > 0);
        rows.extend(memory.map(|bytes| ("memory in use", render::bytes(bytes))));
        rows
    }
}

impl Facts {
    pub(crate) fn of(manifest: &ModelManifest) -> inference::Result<Self> {
        // Multimodal checkpoints keep the language model's keys one level down.
        let config = manifest.config();
        let number = |key: &str| {
            [config.get("text_config"), Some(config)].into_iter().flatten().find_map(|c| c.get(key)?.as_u64())
        };
        let files = ModelFiles::open(manifest.path())?;
        let mut dtypes = BTreeMap::new();
        for tensor in manifest.tensors().values() {
            *dtypes.entry(dtype_name(tensor.dtype)).or_default() += tensor.bytes();
        }
        Ok(Self {
            path: manifest.path().to_owned(),
            architecture: manifest.model_type().to_owned(),
            parameters: manifest.parameters(),
            weight_bytes: manifest.weight_bytes(),
            files: manifest.files().len(),
            tensors: manifest.tensors().len(),
            dtypes,
            quantization: manifest.quantization().copied(),
            side_parts: manifest.side_parts(),
            layers: number("num_hidden_layers"),
            hidden_size: number("hidden_size"),
            vocab_size: number("vocab_size"),
            context_length: manifest.context_length()?,
            tokenizer: files.has("tokenizer.json"),
            chat_template: has_chat_template(&files),
            unread: manifest.unread().map(str::to_owned),
        })
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
        let parts =
            self.side_parts.iter().map(|(part, size)| format!("{} {}", part.name(), render::bytes(*size)));
        let parts: Vec<_> = parts.collect();
        let parts =
            if parts.is_empty() { "none".to_owned() } else { format!("{}: not used", parts.join(", ")) };
        let present = |present| if present { "yes" } else { "missing" }.to_owned();
        let mut rows = vec![
            ("path", render::path(&self.path)),
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
            ("side parts", parts),
            ("layers", number(self.layers)),
            ("hidden size", number(self.hidden_size)),
            ("vocabulary", number(self.vocab_size)),
            ("context", number(self.context_length.map(|n| n as u64))),
            ("tokenizer", present(self.tokenizer)),
            ("chat template", present(self.chat_template)),
        ];
        rows.extend(self.unread.clone().map(|reason| ("weights not read", reason)));
        rows
    }
}

fn has_chat_template(files: &ModelFiles) -> bool {
    if files.has("chat_template.jinja") {
        return true;
    }
    // A broken tokenizer_config.json is reported when the model is loaded.
    let config: Option<Value> = files.read_json("tokenizer_config.json", 16 << 20).ok();
    config.is_some_and(|config| config.get("chat_template").is_some_and(|template| !template.is_null()))
}

/// The name that safetensors files use.
fn dtype_name(dtype: Dtype) -> String {
    serde_json::to_value(dtype)
        .ok()
        .and_then(|name| name.as_str().map(str::to_owned))
        .unwrap_or_else(|| format!("{dtype:?}"))
}
