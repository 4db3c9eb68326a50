//! Options of this backend.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use inference_core::Pooling;

/// How to run the llama-server of one model. Pass it to
/// [`LoadOptions::extension`](inference_core::LoadOptions::extension).
///
/// ```
/// use backend_llamacpp::LlamaCppOptions;
/// use inference_core::LoadOptions;
///
/// let own = LlamaCppOptions::new().gpu_layers(20).threads(8).restart(false);
/// let options = LoadOptions::new().context_length(8192).max_batch(2).extension(own);
/// assert!(options.extensions.get::<LlamaCppOptions>().is_some());
/// ```
#[derive(Debug, Clone)]
pub struct LlamaCppOptions {
    pub(crate) server: Option<PathBuf>,
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) gpu_layers: Option<u32>,
    pub(crate) devices: Option<Vec<String>>,
    pub(crate) threads: Option<usize>,
    pub(crate) flash_attention: Option<bool>,
    pub(crate) cache_types: Option<(String, String)>,
    pub(crate) pooling: Option<Pooling>,
    pub(crate) lora: Vec<(PathBuf, f32)>,
    pub(crate) restart: bool,
    pub(crate) load_timeout: Duration,
    pub(crate) hang_timeout: Duration,
}

impl Default for LlamaCppOptions {
    fn default() -> Self {
        Self {
            server: None,
            environment: Vec::new(),
            arguments: Vec::new(),
            gpu_layers: None,
            devices: None,
            threads: None,
            flash_attention: None,
            cache_types: None,
            pooling: None,
            lora: Vec::new(),
            restart: true,
            load_timeout: Duration::from_secs(600),
            hang_timeout: Duration::from_secs(600),
        }
    }
}

impl LlamaCppOptions {
    /// Options with nothing set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs this llama-server instead of the one that the backend found.
    #[must_use]
    pub fn server(mut self, path: impl Into<PathBuf>) -> Self {
        self.server = Some(path.into());
        self
    }

    /// Sets an environment variable of the child, which otherwise inherits the parent's environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Adds an argument of llama-server, after the backend's own. Nothing checks it: one that changes the address, the key, the context
    /// or the slots breaks the backend.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Computes this many layers on GPUs (`--gpu-layers`). Unset: as many as fit.
    #[must_use]
    pub fn gpu_layers(mut self, layers: u32) -> Self {
        self.gpu_layers = Some(layers);
        self
    }

    /// Uses these devices by llama.cpp's names for them (`--device`), such as `ROCm0`; none of them: the CPU.
    #[must_use]
    pub fn devices<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.devices = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// Computes on this many threads of the CPU. Unset: llama.cpp's choice.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Whether attention is computed in one fused pass. Unset: where the device can.
    #[must_use]
    pub fn flash_attention(mut self, on: bool) -> Self {
        self.flash_attention = Some(on);
        self
    }

    /// Keeps keys and values in these of llama.cpp's types (`f16`, `bf16`, `q8_0`, …). They take precedence over
    /// [`LoadOptions::kv_bits`](inference_core::LoadOptions::kv_bits).
    #[must_use]
    pub fn cache_types(mut self, keys: impl Into<String>, values: impl Into<String>) -> Self {
        self.cache_types = Some((keys.into(), values.into()));
        self
    }

    /// Loads the model for embeddings, with this pooling: mean, cls or last. Unset: for embeddings where the file is of an encoder or
    /// names a pooling.
    #[must_use]
    pub fn pooling(mut self, pooling: Pooling) -> Self {
        self.pooling = Some(pooling);
        self
    }

    /// Adds the LoRA adapter in this GGUF file, its effect multiplied with `scale`: 1 for what it was trained to. Several add up.
    #[must_use]
    pub fn lora(mut self, path: impl Into<PathBuf>, scale: f32) -> Self {
        self.lora.push((path.into(), scale));
        self
    }

    /// Whether the first call after a crash starts a new child and loads the model again. On by default. When off, each call
    /// after a crash fails with [`Error::Stopped`](inference_core::Error::Stopped).
    #[must_use]
    pub fn restart(mut self, restart: bool) -> Self {
        self.restart = restart;
        self
    }

    /// Gives up a load that takes longer. The default is 10 minutes.
    #[must_use]
    pub fn load_timeout(mut self, timeout: Duration) -> Self {
        self.load_timeout = timeout;
        self
    }

    /// Kills a child that has work and sends nothing for this long. The default is 10 minutes, longer than any prefill chunk or
    /// decode step should take.
    #[must_use]
    pub fn hang_timeout(mut self, timeout: Duration) -> Self {
        self.hang_timeout = timeout;
        self
    }
}
