//! MLX's C API, for mlx-rs: upstream's mlx-sys 0.7.0 with another way of linking.
//!
//! Upstream compiles MLX, which takes Xcode or CMake, and generates its bindings, which takes libclang. This crate links the
//! wheel that MLX publishes, for Metal, CUDA or the CPU, and its bindings are committed. See the README for how.

#[allow(
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    unused_qualifications,
    clippy::all,
    reason = "generated: the names and texts are C's"
)]
#[rustfmt::skip]
mod bindings;
mod half;
#[cfg(not(target_vendor = "apple"))]
mod mach;

pub use bindings::*;
pub use half::*;
