//! A backend that keeps the whole contract, or breaks exactly one clause of it: the one whose name is in [`BREAKS`].
//!
//! Its model guesses the next of 40 syllables by the last two, from logits that are a hash. It samples with the reference.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

mod choose;
mod embedding;
mod faults;
mod language;
mod model;
mod session;
mod shape;
mod train;

use std::{
    path::Path,
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use inference_conformance::Subject;
use inference_core::{
    CancellationToken, Error, Feature, LoadOptions, MemoryUsage, Message, ModelManifest, Result, TextModel,
    backend::{
        Availability, Backend, BackendDescriptor, BackendInfo, Capabilities, MemoryControl, MemoryLimits,
        Support,
    },
};
use tempfile::TempDir;

/// The clause that the engine breaks; empty: none. Read when a backend is opened.
pub(crate) static BREAKS: RwLock<String> = RwLock::new(String::new());

pub(crate) const DESCRIPTOR: BackendDescriptor = BackendDescriptor::new(
    "syllables",
    5,
    || {
        if *BREAKS.read().unwrap() == "loading::a_probe_is_cheap" {
            std::thread::park_timeout(Duration::from_millis(150));
        }
        Availability::Available("this test".into())
    },
    || Ok(Arc::new(Engine::new(BREAKS.read().unwrap().clone()))),
);

static ACTIVE_BYTES: AtomicU64 = AtomicU64::new(0);

/// A folder with a model, and the engine as a subject of the kit.
pub(crate) fn subject() -> (TempDir, Subject) {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let messages = vec![Message::user("say"), Message::assistant("bo"), Message::user("more")];
    let rendering = language::render(&messages);
    let subject = Subject::new(DESCRIPTOR, folder.path()).rendering(messages, rendering);
    (folder, subject)
}

fn write_model(folder: &Path) {
    let header = br#"{"salt":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend_from_slice(header);
    weights.extend_from_slice(&[7; 4]);
    std::fs::write(folder.join("config.json"), r#"{"model_type":"syllables","vocab_size":40}"#).unwrap();
    std::fs::write(folder.join("model.safetensors"), weights).unwrap();
    std::fs::write(folder.join("tokenizer.json"), r#"{"model":"syllables"}"#).unwrap();
}

/// Which clause is broken, if any.
#[derive(Debug, Clone)]
pub(crate) struct Fault(Arc<str>);

impl Fault {
    /// Whether it is this one: its path without the theme.
    pub(crate) fn is(&self, clause: &str) -> bool {
        self.0.split_once("::").is_some_and(|(_, name)| name == clause)
    }
}

#[derive(Debug)]
struct Engine {
    info: BackendInfo,
    fault: Fault,
    asked: AtomicBool,
    supported: AtomicBool,
}

impl Engine {
    fn new(breaks: String) -> Self {
        let fault = Fault(breaks.into());
        let id = if fault.is("the_descriptor_and_the_backend_agree") { "other" } else { "syllables" };
        let info = BackendInfo::new(id, "1", "this test");
        Self { info, fault, asked: AtomicBool::new(false), supported: AtomicBool::new(false) }
    }
}

#[async_trait]
impl Backend for Engine {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn capabilities(&self) -> Capabilities {
        let again = self.asked.swap(true, Ordering::Relaxed);
        if self.fault.is("capabilities_stay_what_they_are") && again {
            return Capabilities::from_features(Feature::ALL).without(Feature::TopK);
        }
        // Honest to those who ask before a load, and not to the load.
        if self.fault.is("what_is_lacking_is_refused") && !self.supported.load(Ordering::Relaxed) {
            return Capabilities::from_features(Feature::ALL).without(Feature::TopK);
        }
        Capabilities::from_features(Feature::ALL)
    }

    fn supports(&self, model: &ModelManifest) -> Support {
        let again = self.supported.swap(true, Ordering::Relaxed);
        if self.fault.is("a_supported_model_is_selected") && again {
            return Support::No("once is enough".into());
        }
        match model.model_type() {
            "syllables" => Support::Yes,
            _ if self.fault.is("an_unknown_architecture_is_refused") => Support::Yes,
            other => Support::No(format!("model_type is {other:?}, expected \"syllables\"")),
        }
    }

    async fn load(&self, model: ModelManifest, options: LoadOptions) -> Result<Arc<dyn TextModel>> {
        if self.fault.is("a_cancelled_load_says_so") {
            options.cancel.cancelled().await;
            return Err(Error::stopped("syllables", "it was told to"));
        }
        if let Some(adapter) = &options.adapter
            && !self.fault.is("a_missing_adapter_is_an_error")
        {
            std::fs::metadata(adapter).map_err(|source| Error::io("read", adapter, source))?;
        }
        self.check(&model)?;
        if options.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        ACTIVE_BYTES.fetch_add(64 << 20, Ordering::Relaxed);
        Ok(Arc::new(model::Model::new(&model, &options, self.fault.clone())))
    }

    fn memory(&self) -> Option<&dyn MemoryControl> {
        Some(self)
    }
}

impl Engine {
    fn check(&self, model: &ModelManifest) -> Result<()> {
        let file = &model.files()[0];
        let Some(tensor) = model.tensors().get("salt") else {
            if self.fault.is("a_missing_tensor_is_named") {
                return Ok(());
            }
            return Err(Error::invalid_key(file, "salt", "is missing, expected four bytes"));
        };
        let length = std::fs::metadata(file).map_err(|source| Error::io("read", file, source))?.len();
        if length < tensor.range.end && !self.fault.is("weights_that_end_after_all_are_named") {
            return Err(Error::invalid_file(file, "ends before the tensor \"salt\""));
        }
        let tokenizer = model.path().join("tokenizer.json");
        let read: Result<serde_json::Map<String, serde_json::Value>> =
            inference_core::backend::read_json(&tokenizer, 1 << 20);
        if !self.fault.is("a_broken_tokenizer_is_named") {
            read?;
        }
        let size = &model.config()["vocab_size"];
        if size != 40 && !self.fault.is("absurd_sizes_are_refused") {
            return Err(Error::invalid_key(
                model.config_path(),
                "vocab_size",
                format!("{size}, expected 40"),
            ));
        }
        Ok(())
    }
}

impl MemoryControl for Engine {
    fn usage(&self) -> Result<MemoryUsage> {
        let mut usage = MemoryUsage::default();
        usage.active_bytes = ACTIVE_BYTES.load(Ordering::Relaxed);
        Ok(usage)
    }

    fn set_limits(&self, _: MemoryLimits) -> Result<MemoryLimits> {
        Ok(MemoryLimits::new())
    }

    fn clear_cache(&self) -> Result<()> {
        Ok(())
    }

    fn reset_peak(&self) -> Result<()> {
        Ok(())
    }
}

/// One shutdown for all models, for the engine that closes more than it was asked to.
pub(crate) fn shared_shutdown() -> CancellationToken {
    static SHARED: std::sync::OnceLock<CancellationToken> = std::sync::OnceLock::new();
    SHARED.get_or_init(CancellationToken::new).clone()
}
