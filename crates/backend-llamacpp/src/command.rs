//! The command that starts a llama-server.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use child_process::Launch;
use inference_core::{KvBits, Pooling};

use crate::{adapter::Adapter, config::pooling_name, options::LlamaCppOptions, server::Server};

/// Prompt tokens that are computed at once where the caller has no wish: cancelling waits for one batch.
const PREFILL_CHUNK: usize = 512;

/// The context of a slot is a multiple of this, in tokens.
const CONTEXT_STEP: usize = 256;

/// Tokens of a slot's context that the server does not give to a text.
const CONTEXT_SPARE: usize = 2;

/// The beginning of variables that are llama-server's defaults.
const DEFAULTS: &str = "LLAMA_ARG_";

/// All that a child is started with; the next one, too.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// The id of the backend.
    pub(crate) backend: &'static str,
    pub(crate) server: Arc<Server>,
    /// The first file of the model.
    pub(crate) model: PathBuf,
    pub(crate) weight_bytes: u64,
    /// Tokens of a text.
    pub(crate) context: usize,
    pub(crate) slots: usize,
    pub(crate) prefill_chunk: Option<usize>,
    pub(crate) kv_bits: Option<KvBits>,
    /// How a model for embeddings makes one vector of a text.
    pub(crate) pooling: Option<Pooling>,
    pub(crate) adapters: Vec<Adapter>,
    /// Devices by name; none: the server's choice.
    pub(crate) devices: Option<Vec<String>>,
    pub(crate) options: LlamaCppOptions,
}

impl Setup {
    /// llama.cpp's types of keys and values.
    pub(crate) fn cache_types(&self) -> (&str, &str) {
        match (&self.options.cache_types, self.kv_bits) {
            (Some((keys, values)), _) => (keys, values),
            (None, Some(KvBits::Four)) => ("q4_0", "q4_0"),
            (None, Some(KvBits::Eight)) => ("q8_0", "q8_0"),
            (None, _) => ("f16", "f16"),
        }
    }

    /// How long the load may take.
    pub(crate) fn load_timeout(&self) -> Duration {
        self.options.load_timeout
    }

    /// How to start a child that listens at this socket, keeps saved slots in this folder, and asks for this key.
    pub(crate) fn launch(&self, socket: &Path, folder: &Path, key: &str) -> Launch {
        let mut environment = self.options.environment.clone();
        // Not an argument: those are everybody's to read.
        environment.push(("LLAMA_API_KEY".into(), key.into()));
        let defaults = std::env::vars_os().map(|(name, _)| name);
        let defaults = defaults.filter(|name| name.to_string_lossy().starts_with(DEFAULTS));
        Launch {
            what: "llama-server",
            thread_name: self.backend,
            program: self.server.path.clone(),
            arguments: self.arguments(socket, folder),
            environment,
            hidden_environment: defaults.collect(),
            end_with_parent: true,
            max_line_bytes: 1 << 20,
        }
    }

    fn arguments(&self, socket: &Path, folder: &Path) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |option: &str, value: OsString| arguments.extend([option.into(), value]);
        let slot = (self.context + CONTEXT_SPARE).next_multiple_of(CONTEXT_STEP);
        // A text becomes a vector as a whole.
        let chunk = if self.pooling.is_some() { slot } else { self.prefill_chunk.unwrap_or(PREFILL_CHUNK) };
        let chunk = chunk.to_string();
        let (keys, values) = self.cache_types();
        add("--model", self.model.clone().into());
        add("--host", socket.into());
        add("--slot-save-path", folder.into());
        add("--ctx-size", slot.saturating_mul(self.slots).to_string().into());
        add("--parallel", self.slots.to_string().into());
        add("--batch-size", chunk.clone().into());
        add("--ubatch-size", chunk.into());
        add("--cache-type-k", keys.into());
        add("--cache-type-v", values.into());
        if let Some(name) = self.pooling.and_then(pooling_name) {
            add("--pooling", name.into());
        }
        if !self.adapters.is_empty() {
            add("--lora-scaled", Adapter::argument(&self.adapters).into());
        }
        if let Some(layers) = self.options.gpu_layers {
            add("--gpu-layers", layers.to_string().into());
        }
        if let Some(devices) = self.options.devices.as_ref().or(self.devices.as_ref()) {
            let names = if devices.is_empty() { "none".to_owned() } else { devices.join(",") };
            add("--device", names.into());
        }
        if let Some(threads) = self.options.threads {
            add("--threads", threads.to_string().into());
        }
        if let Some(on) = self.options.flash_attention {
            add("--flash-attn", if on { "on" } else { "off" }.into());
        }
        // Slots are given out on this side, so nothing of theirs is kept elsewhere.
        if self.server.has("--cache-ram") {
            add("--cache-ram", "0".into());
        }
        arguments.extend(self.pooling.map(|_| "--embeddings".into()));
        let plain = ["--no-kv-unified", "--slots", "--offline", "--no-mmproj"];
        arguments.extend(plain.iter().filter(|option| self.server.has(option)).map(OsString::from));
        let pages = ["--no-ui", "--no-webui"];
        arguments.extend(pages.iter().find(|option| self.server.has(option)).map(OsString::from));
        arguments.extend(self.options.arguments.iter().cloned());
        arguments
    }
}
