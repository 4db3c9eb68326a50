//! The backend, as programs and the registry see it.

use std::{any::TypeId, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use inference_core::{
    Error, Feature, LoadOptions, ModelManifest, Result, TextModel,
    backend::{
        Availability, Backend, BackendDescriptor, BackendInfo, Capabilities, Support, register_backend,
    },
};

use crate::{
    ID,
    interpreter::{self, Interpreter},
    model::MlxLmModel,
    options::MlxLmOptions,
};

/// The backend's entry for a registry, which linking this crate makes.
pub const DESCRIPTOR: BackendDescriptor = BackendDescriptor::new(ID, 10, probe, open);

register_backend!(DESCRIPTOR);

/// What this backend can do. Named one by one: a feature that the contract gains is not one that is here.
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
    Feature::Constraint,
    Feature::Adapter,
    Feature::ContextLength,
    Feature::MemoryLimit,
    Feature::CacheLimit,
    Feature::MaxBatch,
    Feature::PrefillChunk,
    Feature::Tokenize,
]);

/// Python's mlx_lm, one child process for each model.
#[derive(Debug)]
pub struct MlxLmBackend {
    info: BackendInfo,
    python: PathBuf,
    /// `None` where the interpreter was named and not asked.
    interpreter: Option<Arc<Interpreter>>,
}

impl MlxLmBackend {
    /// The backend with the interpreter that is found on this machine.
    ///
    /// # Errors
    /// [`Error::Unavailable`] lists the interpreters that were tried, and says how to install mlx_lm.
    pub fn find() -> Result<Self> {
        let unavailable = |reason| Error::unavailable(ID, reason);
        let interpreter = interpreter::find().map_err(unavailable)?;
        let version = format!("mlx_lm {} (MLX {})", interpreter.mlx_lm, interpreter.mlx);
        let info = BackendInfo::new(ID, version, device(&interpreter));
        Ok(Self { info, python: interpreter.path.clone(), interpreter: Some(interpreter) })
    }

    /// The backend with this interpreter, which is not asked what it has before a model is loaded.
    pub fn with_python(path: impl Into<PathBuf>) -> Self {
        let python = path.into();
        let info = BackendInfo::new(ID, "mlx_lm", python.display().to_string());
        Self { info, python, interpreter: None }
    }
}

#[async_trait]
impl Backend for MlxLmBackend {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn extensions(&self) -> &'static [TypeId] {
        const { &[TypeId::of::<MlxLmOptions>()] }
    }

    fn supports(&self, model: &ModelManifest) -> Support {
        if let Some(reason) = model.no_safetensors() {
            return Support::No(reason.to_owned());
        }
        if model.tensors().values().any(|tensor| tensor.source.is_some()) {
            let reason = "its matrices are packed in a way that is not MLX's: `inference convert --keep` writes them anew";
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
        match &self.interpreter {
            Some(interpreter) if !interpreter.knows(model.model_type()) => {
                let (version, model_type) = (&interpreter.mlx_lm, model.model_type());
                Support::No(format!("mlx_lm {version} has no model_type {model_type:?}"))
            }
            Some(_) | None => Support::Yes,
        }
    }

    async fn load(&self, model: ModelManifest, options: LoadOptions) -> Result<Arc<dyn TextModel>> {
        Ok(Arc::new(MlxLmModel::load(&self.python, model, options).await?))
    }
}

fn probe() -> Availability {
    match interpreter::find() {
        Ok(interpreter) => Availability::Available(device(&interpreter)),
        Err(reason) => Availability::Unavailable(reason),
    }
}

fn open() -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(MlxLmBackend::find()?))
}

fn device(interpreter: &Interpreter) -> String {
    format!("Python {} at {}", interpreter.python, interpreter.path.display())
}
