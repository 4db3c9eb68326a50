//! From load options to a model and its scheduler, on the MLX thread.

use inference_core::{
    Error, KvBits, LoadOptions, ModelManifest, Result,
    backend::{AdapterManifest, EmbeddingConfig, MemoryControl as _, MemoryLimits},
};
use mlx_rs::{Array, with_stream};

use super::{
    budget::{Budget, free_memory},
    cuda::DisableCudaGraphs,
    scheduler::{EngineConfig, Scheduler},
};
use crate::{
    load,
    mlx::{Device, Memory, QuantizationMode, QuantizationScheme, fused, memory},
    nn::{self, ModelConfig},
};

/// Requests decoded at once where the caller sets no limit.
const DEFAULT_MAX_BATCH: usize = 32;

/// Prompt tokens computed at once where the caller sets none.
const DEFAULT_PREFILL_CHUNK: usize = 1024;

/// The same on a GPU, whose products are faster the more rows they have.
const GPU_PREFILL_CHUNK: usize = 2048;

/// Bytes of keys and values kept of ended texts where the caller sets no budget.
const DEFAULT_PREFIX_CACHE: u64 = 512 << 20;

/// An extension of [`LoadOptions`]: MLX's own operations compute everything, as they do on a GPU. On the CPU they take the place of
/// this crate's kernels, which are many times as fast.
#[derive(Debug, Clone, Copy)]
pub struct DisableCpuKernels;

/// A model that is to be loaded.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) device: Device,
    pub(super) manifest: ModelManifest,
    pub(super) options: LoadOptions,
}

/// What is known of a model once it is loaded.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: ModelConfig,
    /// How it keeps keys and values.
    pub(crate) layout: String,
    /// What its folder says about embeddings.
    pub(crate) embedding: EmbeddingConfig,
    /// What computes its decode steps.
    pub(crate) decode_steps: String,
}

/// Loads a model. `observe` is called as weights come in and while they are awaited; the load ends once it returns `false`.
///
/// # Errors
/// [`Error::OutOfMemory`] before anything is read, [`Error::Cancelled`], and whatever is wrong with the folder or the options.
pub(super) fn load_model(
    load: Load,
    observe: &mut dyn FnMut(load::Progress) -> bool,
) -> Result<(Scheduler, Loaded)> {
    let Load { device, manifest, options } = load;
    let (limit, before) = (memory::limit(), set_limits(device, &options)?);
    let loaded = load_within_limits(device, manifest, &options, observe);
    if loaded.is_err() {
        // The limits were this model's. MLX refuses none that it has given.
        let _ = Memory.set_limits(before);
        memory::restore_limit(limit);
    }
    loaded
}

fn load_within_limits(
    device: Device,
    manifest: ModelManifest,
    options: &LoadOptions,
    observe: &mut dyn FnMut(load::Progress) -> bool,
) -> Result<(Scheduler, Loaded)> {
    if device == Device::Cpu {
        memory::heap::keep();
        if options.extensions.get::<DisableCpuKernels>().is_none() {
            nn::start_kernels().map_err(|error| Error::backend(device.id(), "start its kernels", error))?;
        }
    }
    if let Some(context_length) = options.context_length.filter(|tokens| *tokens > MOST_POSITIONS) {
        let reason = format!("{context_length}, expected at most {MOST_POSITIONS}");
        return Err(Error::invalid_option("context_length", reason));
    }
    if let Some(free) = free_memory(device) {
        // The least that is of use: the weights and one request, of the context that was asked for.
        manifest.estimate(options.context_length.unwrap_or(1), 1, options.kv_bits)?.check(free)?;
    }
    let adapter =
        options.adapter.as_ref().map(|folder| AdapterManifest::read(folder, &manifest)).transpose()?;
    let manifest = load::with_trained_weights(manifest, adapter.as_ref())?;
    let stream = device.stream();
    let model = with_stream(&stream, || load_weights(device, &manifest, adapter.as_ref(), observe))?;
    let mut config = model.config().clone();
    let context_length = context_length(&manifest, &config, options)?;
    config.context_length = context_length;
    if options.kv_bits.is_some() && config.encodes {
        let reason = "an encoder keeps no keys and values".to_owned();
        return Err(Error::invalid_option("kv_bits", reason));
    }
    let kv_scheme = options.kv_bits.map(|bits| kv_scheme(bits, config.head_dim)).transpose()?;
    let engine = EngineConfig {
        backend: device.id(),
        max_batch: options.max_batch.unwrap_or(DEFAULT_MAX_BATCH),
        prefill_chunk: options.prefill_chunk.unwrap_or(match device {
            Device::Cpu => DEFAULT_PREFILL_CHUNK,
            Device::Metal | Device::Cuda => GPU_PREFILL_CHUNK,
        }),
        prefix_cache: options.prefix_cache.unwrap_or(DEFAULT_PREFIX_CACHE),
        kv_scheme,
        context_length,
        disable_cpu_kernels: options.extensions.get::<DisableCpuKernels>().is_some(),
        disable_cuda_graphs: options.extensions.get::<DisableCudaGraphs>().is_some(),
    };
    let budget = Budget::new(&config, kv_scheme, move || free_memory(device));
    let mut scheduler = Scheduler::new(model.into(), stream, engine, budget);
    scheduler.use_cuda_graphs();
    let embedding = EmbeddingConfig::read(manifest.path())?;
    let stream = scheduler.stream.clone();
    scheduler.dense = with_stream(&stream, || load::load_dense(&embedding, &config))?;
    let layout = scheduler.new_cache().format_id();
    let decode_steps = with_stream(&stream, || decode_steps(device, &scheduler));
    Ok((scheduler, Loaded { config, layout, embedding, decode_steps }))
}

/// How many tokens a text may have: as many as were asked for, or as the model was made for.
///
/// # Errors
/// [`Error::InvalidOption`]: an encoder has fewer positions than were asked for; [`Error::InvalidModel`].
fn context_length(manifest: &ModelManifest, config: &ModelConfig, options: &LoadOptions) -> Result<usize> {
    // Learned positions end with their last row, which is not always the number in config.json.
    let made_for = manifest.context_length()?.filter(|_| !config.encodes);
    let made_for = made_for.unwrap_or(config.context_length).min(MOST_POSITIONS);
    let context_length = options.context_length.unwrap_or(made_for);
    if context_length > made_for && config.encodes {
        let reason = format!("{context_length}, but the model has {made_for} positions");
        return Err(Error::invalid_option("context_length", reason));
    }
    if context_length > made_for {
        tracing::warn!(context_length, made_for, "the context is longer than the model was made for");
    }
    Ok(context_length)
}

/// Loads the weights and the adapter's, on the stream in scope.
fn load_weights(
    device: Device,
    manifest: &ModelManifest,
    adapter: Option<&AdapterManifest>,
    observe: &mut dyn FnMut(load::Progress) -> bool,
) -> Result<Box<dyn nn::Architecture>> {
    let model = load::load(device.id(), manifest, observe)?;
    if let Some(adapter) = adapter {
        load::attach(&*model, adapter)?;
    }
    if device == Device::Cuda {
        // What weights were read into is memory of the host, which MLX would give out as if it were the GPU's.
        let _ = memory::clear_cache();
        if !model.config().encodes {
            warm_up(&*model);
        }
    }
    Ok(model)
}

/// What computes the decode steps of a model that was loaded.
pub(super) fn decode_steps(device: Device, scheduler: &Scheduler) -> String {
    let one_by_one = |why: &str| format!("the CPU's kernels, operation by operation: {why}");
    match device {
        Device::Cpu if scheduler.config.disable_cpu_kernels => "MLX's operations".to_owned(),
        Device::Cpu if scheduler.config.kv_scheme.is_some() => one_by_one("keys and values are quantised"),
        Device::Cpu => match nn::ExecMode::CpuKernels.scope(|| scheduler.model.records()) {
            Ok(()) => "one operation of the CPU's kernels".to_owned(),
            Err(why) => one_by_one(&why.to_string()),
        },
        Device::Metal => "MLX's operations".to_owned(),
        Device::Cuda => scheduler.cuda.to_string(),
    }
}

/// Computes two tokens, so that MLX compiles the kernels that are ours now and not for the first request. Where it cannot, because
/// CUDA's headers are missing, say, it does without.
fn warm_up(model: &dyn nn::Architecture) {
    let compute = || {
        let hidden = model.hidden(&Array::from_slice(&[0_u32, 0], &[1, 2]), nn::Rows::Uncached)?;
        hidden.eval()
    };
    if let Err(error) = compute() {
        tracing::warn!("kernels for CUDA cannot be compiled, MLX's operations are used: {error}");
        fused::give_up();
    }
}

/// Positions are 32-bit whole numbers in MLX.
const MOST_POSITIONS: usize = i32::MAX as usize;

/// How keys and values of heads that are so wide are quantised.
fn kv_scheme(bits: KvBits, head_dim: usize) -> Result<QuantizationScheme> {
    let group_size = bits.group_size(head_dim).ok_or_else(|| bits.unsupported_error(head_dim))?;
    Ok(QuantizationScheme { mode: QuantizationMode::Affine, bits: bits.get(), group_size })
}

/// Sets the options' limits, and returns those that they replace.
fn set_limits(device: Device, options: &LoadOptions) -> Result<MemoryLimits> {
    let mut limits = MemoryLimits::new();
    limits.memory = options.memory_limit;
    limits.cache = options.cache_limit;
    Memory.set_limits(limits).map_err(|error| Error::backend(device.id(), "set memory limits", error))
}
