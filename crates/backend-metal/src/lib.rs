//! The MLX engine: Metal on Apple silicon, CUDA and CPU on Linux, through `mlx-rs`.
//!
//! Linking this crate registers the backends `metal` (priority 100), `cuda` (90) and `cpu` (20); each says whether this
//! machine has its device. They share one MLX thread per process, because MLX keeps streams and compiled code per thread:
//! every model lives there, handles outside hold a channel, and no array crosses over.
//!
//! - `engine/`: the thread, its scheduler and the sampler. Requests are rows that join and leave a batch.
//! - `arch/`: one file for each family of models.
//! - `nn/`: the blocks that the families share; `nn/cpu`: what our own kernels compute of them.
//! - `mlx/`: every call of MLX's C interface.
//! - `load/`: weights from disk to a model, and back.
//! - `train/`: gradients, optimisers and the runs that use them.

mod arch;
mod backend;
mod embedding;
mod engine;
mod load;
mod mlx;
mod model;
mod nn;
mod session;
mod shared_model;
mod train;

pub use backend::{CPU, CUDA, METAL, MlxBackend};
pub use engine::{DisableCpuKernels, DisableCudaGraphs};
pub use load::{ConvertOptions, FuseOptions, Progress, convert, fuse};
