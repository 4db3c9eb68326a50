//! Decode steps that `cuda-kernels` computes: a step is one CUDA graph, replayed on a stream beside MLX's.
//!
//! [`SpecBuilder`] describes a model by the addresses of its weights, [`CudaDecoder`] runs its steps on the keys and values that
//! [`KvCache`](super::KvCache)s lend. [`fused`] is for the steps and prompts that MLX computes.

mod decoder;
pub(super) mod fused;
#[cfg(test)]
mod host;
mod spec;

pub(crate) use cuda_kernels::{Pending, Sampling};

#[cfg(test)]
pub(crate) use self::host::logits as logits_of_description;
pub(crate) use self::{
    decoder::CudaDecoder,
    spec::{Description, SpecBuilder, Unsupported},
};
