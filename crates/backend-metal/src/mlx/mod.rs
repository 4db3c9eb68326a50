//! Everything that touches MLX's C interface: each call of `mlx_sys` and all code for MLX that is `unsafe` is in here.
//!
//! - `array`: operations that mlx-rs does not offer in safe form, and the memory of arrays.
//! - `quantized`: quantised matrices; `fast`: MLX's fused operations.
//! - `primitive`: operations of our own in MLX's graph, which run on the CPU; `cuda_kernel` and `fused`: those that run on CUDA.
//! - `vjp`: functions in Rust that MLX calls and differentiates; `checkpointing`: gradients that are computed again.
//! - `device`, `memory`: devices and streams, the allocator.
//! - `reader`: tensors of files in MLX's memory.

mod array;
mod checkpointing;
mod cuda_kernel;
mod device;
mod exit;
pub(crate) mod fast;
pub(crate) mod fused;
pub(crate) mod memory;
pub(crate) mod primitive;
mod quantized;
mod reader;
#[cfg(test)]
pub(crate) mod stand_in;
mod vjp;

pub use self::reader::Progress;
pub(crate) use self::{
    array::{
        cross_entropy, device_address, every, exception, filled, gather_rows, random_bits, scalar, slice,
        slice_update, with_bytes,
    },
    checkpointing::{differentiated, loss_with_gradients, recomputed},
    device::{Device, choose_settings, mlx_version, on_cpu, on_cuda, synchronize},
    exit::at_exit,
    memory::Memory,
    quantized::{
        MXFP4, QuantizationMode, QuantizationScheme, QuantizedMatrix, dequantize, gather_qmm, quantize,
        quantized_matmul,
    },
    reader::{Reader, Tensors, mlx_dtype},
    vjp::{after, take_failure},
};
