//! The backends, as programs and the registry see them.

use std::{any::TypeId, path::Path, sync::Arc};

use async_trait::async_trait;
use inference_core::{
    Error, Feature, LoadOptions, ModelManifest, Result, TextModel,
    backend::{
        Availability, Backend, BackendDescriptor, BackendInfo, Capabilities, Support, register_backend,
    },
};

use crate::{
    ID, ROCM_ID,
    model::{Engine, LlamaModel},
    options::LlamaCppOptions,
    rocm,
    server::{self, Server},
};

/// The entry of `llama_cpp` for a registry, which linking this crate makes.
pub const DESCRIPTOR: BackendDescriptor = BackendDescriptor::new(ID, 15, probe, open);

/// The entry of `rocm`.
pub const ROCM_DESCRIPTOR: BackendDescriptor = BackendDescriptor::new(ROCM_ID, 80, probe_rocm, open_rocm);

register_backend!(DESCRIPTOR);
register_backend!(ROCM_DESCRIPTOR);

/// What these backends can do. Named one by one: a feature that the contract gains is not one that is here.
const CAPABILITIES: Capabilities = Capabilities::from_features(&[
    Feature::Generate,
    Feature::Chat,
    Feature::ChatTemplateOptions,
    Feature::Classify,
    Feature::Sampling,
    Feature::Seed,
    Feature::TopP,
    Feature::MinP,
    Feature::TopK,
    Feature::Xtc,
    Feature::LogitBias,
    Feature::RepetitionPenalty,
    Feature::PresencePenalty,
    Feature::FrequencyPenalty,
    Feature::LogProbabilities,
    Feature::Constraint,
    Feature::Stop,
    Feature::MinTokens,
    Feature::ContextLength,
    Feature::MaxBatch,
    Feature::PrefillChunk,
    Feature::KvBits,
    Feature::Session,
    Feature::Tokenize,
    Feature::Embed,
]);

/// llama.cpp's llama-server, one child process for each model.
#[derive(Debug)]
pub struct LlamaCppBackend {
    info: BackendInfo,
    engine: Engine,
}

impl LlamaCppBackend {
    /// The backend `llama_cpp` with the llama-server that is found on this machine.
    ///
    /// # Errors
    /// [`Error::Unavailable`] says where it was looked for, and what to do.
    pub fn find() -> Result<Self> {
        server::find().map(|server| Self::of(ID, server, None)).map_err(unavailable(ID))
    }

    /// The backend `llama_cpp` with this llama-server.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: it is none, or too old.
    pub fn with_server(path: impl AsRef<Path>) -> Result<Self> {
        server::inspect(path.as_ref()).map(|server| Self::of(ID, server, None)).map_err(unavailable(ID))
    }

    /// The backend `rocm` with the llama-server that is found on this machine.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: there is no AMD GPU, or no llama-server that computes on it.
    pub fn find_rocm() -> Result<Self> {
        let (server, devices) = rocm_server().map_err(unavailable(ROCM_ID))?;
        Ok(Self::of(ROCM_ID, server, Some(devices)))
    }

    fn of(id: &'static str, server: Arc<Server>, devices: Option<Vec<String>>) -> Self {
        let used =
            |name: &str| devices.as_ref().is_none_or(|devices| devices.iter().any(|device| device == name));
        let free = server.devices.iter().filter(|device| used(&device.name)).map(|device| device.free);
        let free_on_device = free.reduce(u64::saturating_add);
        let info = BackendInfo::new(id, format!("llama.cpp {}", server.version), server.device());
        Self { info, engine: Engine { backend: id, server, devices, free_on_device } }
    }
}

#[async_trait]
impl Backend for LlamaCppBackend {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn extensions(&self) -> &'static [TypeId] {
        const { &[TypeId::of::<LlamaCppOptions>()] }
    }

    fn supports(&self, model: &ModelManifest) -> Support {
        if model.is_gguf() {
            return Support::Yes;
        }
        let found = model.no_safetensors().unwrap_or("its weights are safetensors");
        Support::No(format!(
            "{found}; llama.cpp reads GGUF, which its convert_hf_to_gguf.py makes of a published folder"
        ))
    }

    async fn load(&self, model: ModelManifest, options: LoadOptions) -> Result<Arc<dyn TextModel>> {
        Ok(Arc::new(LlamaModel::load(&self.engine, model, options).await?))
    }
}

fn unavailable(backend: &'static str) -> impl Fn(String) -> Error {
    move |reason| Error::unavailable(backend, reason)
}

fn probe() -> Availability {
    match server::find() {
        Ok(server) => Availability::Available(server.device()),
        Err(reason) => Availability::Unavailable(reason),
    }
}

fn open() -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(LlamaCppBackend::find()?))
}

/// A llama-server for the AMD GPUs of this machine, and the names of those to use.
fn rocm_server() -> Result<(Arc<Server>, Vec<String>), String> {
    // A look at files comes first: most machines have no such GPU.
    rocm::gpus()?;
    let server = server::find()?;
    let devices = rocm::devices(&server)?.into_iter().map(|device| device.name.clone()).collect();
    Ok((server, devices))
}

fn probe_rocm() -> Availability {
    match rocm_server().and_then(|(server, _)| Ok((rocm::gpus()?, server))) {
        Ok((gpus, server)) => {
            let targets: Vec<_> = gpus.into_iter().map(|gpu| gpu.target).collect();
            Availability::Available(format!("{} ({})", server.device(), targets.join(", ")))
        }
        Err(reason) => Availability::Unavailable(reason),
    }
}

fn open_rocm() -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(LlamaCppBackend::find_rocm()?))
}
