//! Vectors of `f32` and `u32`: the operations, and an implementation for each instruction set.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
mod math;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
mod portable;
mod traits;

pub(crate) use math::{exp, tanh};
pub(crate) use portable::Portable;
pub(crate) use traits::{Kernel, Simd};
