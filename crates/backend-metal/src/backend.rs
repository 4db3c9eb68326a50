//! The three devices of MLX as backends.

use std::{
    any::TypeId,
    sync::{Arc, OnceLock},
};

use async_trait::async_trait;
use inference_core::{
    Error, Feature, LoadOptions, ModelManifest, Result, TextModel,
    backend::{
        Availability, Backend, BackendDescriptor, BackendInfo, Capabilities, MemoryControl, Support,
        register_backend,
    },
};

use crate::{
    arch,
    engine::{DisableCpuKernels, DisableCudaGraphs},
    mlx::{self, Device, Memory},
    model::MlxModel,
};

/// MLX on Apple's GPUs, for a [`Registry`](inference_core::Registry) of one's own; linking this crate registers it.
pub const METAL: BackendDescriptor =
    BackendDescriptor::new("metal", 100, || probe(Device::Metal), || open(Device::Metal));

/// MLX on NVIDIA's GPUs.
pub const CUDA: BackendDescriptor =
    BackendDescriptor::new("cuda", 90, || probe(Device::Cuda), || open(Device::Cuda));

/// MLX on the CPU.
pub const CPU: BackendDescriptor =
    BackendDescriptor::new("cpu", 20, || probe(Device::Cpu), || open(Device::Cpu));

register_backend!(METAL);
register_backend!(CUDA);
register_backend!(CPU);

/// MLX on one kind of device.
#[derive(Debug)]
pub struct MlxBackend {
    info: BackendInfo,
    device: Device,
    memory: Memory,
}

/// What these backends can do. Named one by one: a feature that the contract gains is not one that is here.
const CAPABILITIES: Capabilities = Capabilities::from_features(&[
    Feature::Generate,
    Feature::Chat,
    Feature::ChatTemplateOptions,
    Feature::Classify,
    Feature::Logits,
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
    Feature::Stop,
    Feature::MinTokens,
    Feature::LogitsProcessor,
    Feature::Constraint,
    Feature::ThinkingBudget,
    Feature::Adapter,
    Feature::ContextLength,
    Feature::MemoryLimit,
    Feature::CacheLimit,
    Feature::MaxBatch,
    Feature::PrefillChunk,
    Feature::PrefixCache,
    Feature::KvBits,
    Feature::ContextOverflow,
    Feature::Session,
    Feature::Train,
    Feature::Tokenize,
    Feature::Embed,
    Feature::Rerank,
]);

/// Whether the device is there, asked of MLX once in a process.
fn probe(device: Device) -> Availability {
    static KNOWN: [OnceLock<Availability>; 3] = [const { OnceLock::new() }; 3];
    let known = match device {
        Device::Metal => &KNOWN[0],
        Device::Cuda => &KNOWN[1],
        Device::Cpu => &KNOWN[2],
    };
    known.get_or_init(|| device.probe()).clone()
}

fn open(device: Device) -> Result<Arc<dyn Backend>> {
    match probe(device) {
        Availability::Available(name) => {
            let info = BackendInfo::new(device.id(), format!("MLX {}", mlx::mlx_version()), name);
            Ok(Arc::new(MlxBackend { info, device, memory: Memory }))
        }
        Availability::Unavailable(reason) => Err(Error::unavailable(device.id(), reason)),
    }
}

#[async_trait]
impl Backend for MlxBackend {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn extensions(&self) -> &'static [TypeId] {
        const { &[TypeId::of::<DisableCpuKernels>(), TypeId::of::<DisableCudaGraphs>()] }
    }

    fn supports(&self, model: &ModelManifest) -> Support {
        if let Some(reason) = model.unread() {
            return Support::No(reason.to_owned());
        }
        if let Some(method) = model.quant_method()
            && !model.quantization().is_some_and(|quantization| quantization.mode.is_mlx())
        {
            let reason = format!(
                "quant_method is {method:?}, which MLX cannot read; use weights that are not quantised, or MLX's \
                 quantisation of them"
            );
            return Support::No(reason);
        }
        match arch::lookup(model.model_type()) {
            Ok(_) => Support::Yes,
            Err(reason) => Support::No(reason),
        }
    }

    async fn load(&self, model: ModelManifest, options: LoadOptions) -> Result<Arc<dyn TextModel>> {
        Ok(Arc::new(MlxModel::load(self.device, model, options).await?))
    }

    fn memory(&self) -> Option<&dyn MemoryControl> {
        Some(&self.memory)
    }
}
