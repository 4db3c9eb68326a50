//! The three devices of MLX as backends.

use std::sync::Arc;

use async_trait::async_trait;
use inference_core::{
    Error, LoadOptions, ModelManifest, Result, TextModel,
    backend::{
        Availability, Backend, BackendDescriptor, BackendInfo, Capabilities, MemoryControl, Support,
        register_backend,
    },
};

use crate::{
    arch,
    mlx::{self, Device, Memory},
    model::MlxModel,
};

register_backend!(BackendDescriptor::new("metal", 100, || Device::Metal.probe(), || open(Device::Metal)));
register_backend!(BackendDescriptor::new("cuda", 90, || Device::Cuda.probe(), || open(Device::Cuda)));
register_backend!(BackendDescriptor::new("cpu", 20, || Device::Cpu.probe(), || open(Device::Cpu)));

/// MLX on one kind of device.
#[derive(Debug)]
pub struct MlxBackend {
    info: BackendInfo,
    device: Device,
    memory: Memory,
}

const CAPABILITIES: Capabilities = Capabilities::all();

fn open(device: Device) -> Result<Arc<dyn Backend>> {
    match device.probe() {
        Availability::Available(name) => {
            let info = BackendInfo::new(device.id(), format!("MLX {}", mlx::mlx_version()), name);
            Ok(Arc::new(MlxBackend { info, device, memory: Memory }))
        }
        Availability::Unavailable(reason) => {
            Err(Error::Unavailable { backend: device.id().to_owned(), reason })
        }
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

    fn supports(&self, model: &ModelManifest) -> Support {
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
