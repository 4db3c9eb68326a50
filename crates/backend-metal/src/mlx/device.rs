//! MLX's devices on this machine, and streams.

use std::ffi::CStr;

use inference_core::backend::Availability;
use mlx_rs::{
    Stream,
    error::{Exception, Result},
};

/// A kind of device. Each is a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Device {
    /// The GPU of Apple silicon.
    Metal,
    /// An NVIDIA GPU.
    Cuda,
    /// The CPU.
    Cpu,
}

impl Device {
    /// The backend's id.
    pub(crate) const fn id(self) -> &'static str {
        match self {
            Self::Metal => "metal",
            Self::Cuda => "cuda",
            Self::Cpu => "cpu",
        }
    }

    /// Whether the linked MLX has this device here.
    pub(crate) fn probe(self) -> Availability {
        let reason = match self {
            Self::Cpu => return Availability::Available(cpu_name()),
            Self::Metal if !cfg!(target_os = "macos") => "Metal exists only on Apple silicon under macOS",
            Self::Cuda if cfg!(target_os = "macos") => "macOS has no CUDA",
            Self::Metal | Self::Cuda if gpu_is_available() => return Availability::Available(gpu_name()),
            Self::Metal => "MLX finds no Metal device",
            Self::Cuda if !std::path::Path::new("/proc/driver/nvidia/version").exists() => {
                "no NVIDIA driver is loaded (/proc/driver/nvidia is missing)"
            }
            Self::Cuda => {
                "the linked libmlx has no CUDA: build with MLX_WHEEL=cuda-13 (or cuda-12), or put its libmlx.so first"
            }
        };
        Availability::Unavailable(reason.to_owned())
    }

    /// Bytes that are free for a model, if known.
    pub(crate) fn free_memory(self) -> Option<u64> {
        match self {
            Self::Cpu => inference_core::backend::free_memory(),
            // Unified memory: all of the machine's, minus what MLX uses.
            Self::Metal => {
                gpu_size(c"memory_size").map(|size| size.saturating_sub(super::memory::usage().active_bytes))
            }
            // Free memory, and MLX's cache.
            Self::Cuda => gpu_size(c"free_memory").map(|free| free + super::memory::usage().cache_bytes),
        }
    }

    /// The calling thread's stream on this device. It is always the same: MLX never frees a stream, which on the CPU is a thread.
    pub(crate) fn stream(self) -> Stream {
        match self {
            Self::Metal | Self::Cuda => Stream::gpu(),
            Self::Cpu => Stream::cpu(),
        }
    }
}

/// What is not left as MLX has it, for a process.
const SETTINGS: [(&str, &str); 2] = [
    // Where its caches of CUDA graphs and plans miss often, MLX refuses the work with an error, and requests of many lengths are such work.
    ("MLX_ENABLE_CACHE_THRASHING_CHECK", "0"),
    // MLX multiplies single precision in TF32, which keeps ten bits of each factor.
    ("MLX_ENABLE_TF32", "0"),
];

/// Chooses MLX's settings for CUDA. To be called before MLX is used; what the user has set counts.
pub(crate) fn choose_settings() {
    for (name, value) in SETTINGS {
        if cfg!(target_os = "linux") && std::env::var_os(name).is_none() {
            // SAFETY: Rust's own readers and writers of the environment take turns. Libraries in C that read it at this very moment,
            // once in a process, would have to run on another thread.
            unsafe { std::env::set_var(name, value) };
        }
    }
}

/// Waits until the stream is idle.
pub(crate) fn synchronize(stream: &Stream) -> Result<()> {
    // SAFETY: the stream is alive.
    match unsafe { mlx_sys::mlx_synchronize(stream.as_ptr()) } {
        0 => Ok(()),
        _ => Err(Exception::custom("cannot wait for the stream")),
    }
}

/// The version of MLX that is linked.
pub(crate) fn mlx_version() -> String {
    // SAFETY: the string is made, filled, read and freed here; a failed call leaves it empty.
    unsafe {
        let mut version = mlx_sys::mlx_string_new();
        mlx_sys::mlx_version(&raw mut version);
        let data = mlx_sys::mlx_string_data(version);
        let text =
            if data.is_null() { String::new() } else { CStr::from_ptr(data).to_string_lossy().into_owned() };
        mlx_sys::mlx_string_free(version);
        text
    }
}

/// Whether the stream in scope, or MLX's default, is on the CPU.
pub(crate) fn on_cpu() -> bool {
    let stream = Stream::thread_local_or_default();
    let mut kind = mlx_sys::mlx_device_type__MLX_GPU;
    // SAFETY: the device is made, filled, read and freed here; a failed call leaves `kind` as it is.
    unsafe {
        let mut device = mlx_sys::mlx_device_new();
        if mlx_sys::mlx_stream_get_device(&raw mut device, stream.as_ref().as_ptr()) == 0 {
            mlx_sys::mlx_device_get_type(&raw mut kind, device);
        }
        mlx_sys::mlx_device_free(device);
    }
    kind == mlx_sys::mlx_device_type__MLX_CPU
}

/// Whether the stream in scope is on CUDA.
pub(crate) fn on_cuda() -> bool {
    cfg!(target_os = "linux") && !on_cpu()
}

fn gpu_is_available() -> bool {
    let gpu = RawGpu::new();
    let mut available = false;
    // SAFETY: the device is alive, and the result is written only on success.
    let status = unsafe { mlx_sys::mlx_device_is_available(&raw mut available, gpu.0) };
    status == 0 && available
}

fn gpu_name() -> String {
    let gpu = RawGpu::new();
    // SAFETY: the info object is made, filled, read and freed here; its string lives as long as it does.
    unsafe {
        let mut info = mlx_sys::mlx_device_info_new();
        let mut name = std::ptr::null();
        let found = mlx_sys::mlx_device_info_get(&raw mut info, gpu.0) == 0
            && mlx_sys::mlx_device_info_get_string(&raw mut name, info, c"device_name".as_ptr()) == 0
            && !name.is_null();
        let text = if found { CStr::from_ptr(name).to_string_lossy().into_owned() } else { "GPU".to_owned() };
        mlx_sys::mlx_device_info_free(info);
        text
    }
}

fn gpu_size(key: &CStr) -> Option<u64> {
    let gpu = RawGpu::new();
    // SAFETY: the info object is made, filled, read and freed here; the size is written only on success.
    unsafe {
        let mut info = mlx_sys::mlx_device_info_new();
        let mut size = 0;
        let found = mlx_sys::mlx_device_info_get(&raw mut info, gpu.0) == 0
            && mlx_sys::mlx_device_info_get_size(&raw mut size, info, key.as_ptr()) == 0;
        mlx_sys::mlx_device_info_free(info);
        found.then_some(size as u64)
    }
}

fn cpu_name() -> String {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    format!("CPU, {threads} threads")
}

struct RawGpu(mlx_sys::mlx_device);

impl RawGpu {
    fn new() -> Self {
        // SAFETY: naming a device touches no hardware.
        Self(unsafe { mlx_sys::mlx_device_new_type(mlx_sys::mlx_device_type__MLX_GPU, 0) })
    }
}

impl Drop for RawGpu {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once.
        unsafe { mlx_sys::mlx_device_free(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_always_there_and_the_rest_says_why_not() {
        assert!(matches!(Device::Cpu.probe(), Availability::Available(_)));
        for device in [Device::Metal, Device::Cuda] {
            match device.probe() {
                Availability::Available(name) => assert!(!name.is_empty()),
                Availability::Unavailable(reason) => assert!(!reason.is_empty()),
            }
        }
        assert!(
            cfg!(not(target_os = "linux")) || Device::Cpu.free_memory().is_some_and(|bytes| bytes > 1 << 20)
        );
        assert!(mlx_version().starts_with("0."), "{}", mlx_version());
    }
}
