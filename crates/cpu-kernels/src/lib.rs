//! CPU kernels for language models: matrix products, attention, recurrent layers, norms, rotary embeddings and activations.
//!
//! Operands are plain memory in row-major order: slices of `f32`, `f16` or `bf16`, and matrices as MLX quantises them. Sums are
//! in single precision, and rounded once. All kernels share one thread pool. It has as many threads as the process may run at
//! once, or as many as the environment variable `INFERENCE_NUM_THREADS` says.
//!
//! ```
//! use cpu_kernels::{Floats, FloatsMut, Kernels, Matrices, Weights};
//!
//! let x = [1.0, 2.0, 3.0];
//! let weights = Weights::Dense(Floats::F32(&[1.0, 0.0, 0.0, 1.0, 1.0, 1.0]));
//! let w = Matrices { count: 1, outputs: 2, inputs: 3, weights };
//! let mut out = [0.0; 2];
//! Kernels::new()?.matmul(Floats::F32(&x), &w, None, FloatsMut::F32(&mut out))?;
//! assert_eq!(out, [1.0, 6.0]);
//! # Ok::<_, cpu_kernels::Error>(())
//! ```
//!
//! # Which kernel computes a matrix product
//!
//! [`Isa`] is chosen at run time. [`Kernels::matmul`] and [`Kernels::gather_matmul`] then choose a kernel for all rows of `x` that
//! are multiplied with one matrix, by the number of rows and by the types. `MatmulKernel::choose` in `matmul_kernel.rs` is this
//! table, and its tests assert it.
//!
//! | Instruction set | `x` | Matrix | Rows | Kernel | File |
//! |---|---|---|---|---|---|
//! | portable, NEON, AVX2, AVX-512 | any | any | 1–8 | `Gemv` | `gemv.rs` |
//! | | | | 9 or more | `Gemm` | `gemm.rs` |
//! | AVX-512 bf16 | bf16 | bf16; 4-bit and 8-bit integers; MXFP4, NVFP4 | 1–4 | `Bf16Gemv` | `bf16_dot/gemv.rs` |
//! | | | | 5–16 | `Bf16InterleavedGemv`, 8 rows at a time | `bf16_dot/interleaved.rs` |
//! | | | bf16; 4-bit and 8-bit integers in groups of 64 or 128 | 17 or more | `Bf16TileGemm` | `tiles/`, `tiles/bf16_exact.rs` |
//! | | | MXFP4, NVFP4 | 17 or more | `SplitTileGemm` | `tiles/`, `tiles/bf16_split.rs` |
//! | | | 4-bit and 8-bit integers in groups of 32 | 17 or more | `Gemm` | `gemm.rs` |
//! | | | MXFP8 | 1–8 | `Gemv` | `gemv.rs` |
//! | | | | 9 or more | `SplitTileGemm` | `tiles/`, `tiles/bf16_split.rs` |
//! | | | f32, f16; other integers | as AVX-512 | | |
//! | | f32, f16 | any | as AVX-512 | | |
//! | AMX | bf16 | bf16; 4-bit and 8-bit integers; MXFP4, NVFP4 | 1–4 | `Bf16Gemv` | `bf16_dot/gemv.rs` |
//! | | | | 5–8 | `Bf16InterleavedGemv` | `bf16_dot/interleaved.rs` |
//! | | | others | 1–8 | `Gemv` | `gemv.rs` |
//! | | f32, f16 | any | 1–8 | `Gemv` | `gemv.rs` |
//! | | any | any | 9 or more | `SplitTileGemm` | `tiles/`, `tiles/bf16_split.rs`, `tiles/amx.rs` |
//!
//! - `Gemv` and `Gemm` compute in `f32` vectors. A GEMV unpacks the matrix in registers, and reads it once. A GEMM unpacks panels of
//!   it to the second-level cache, and multiplies each with all rows.
//! - Kernels with `Bf16` in their name multiply pairs of bf16 (`VDPBF16PS`). The elements of these matrices are exact in bf16 before
//!   they are scaled, so the kernels scale the sums of groups.
//! - `SplitTileGemm` splits numbers with more digits than bf16 into two or three parts (BF16x2, BF16x3). AMX multiplies its tiles
//!   (`TDPBF16PS`), and without AMX `VDPBF16PS` does.
//! - The last pass of `Bf16InterleavedGemv` uses `Bf16Gemv` if it has four rows or fewer.

mod activation;
mod ahead;
mod argmax;
mod attention;
#[cfg(target_arch = "x86_64")]
mod bf16_dot;
mod cpu_features;
mod draw;
mod element;
mod error;
mod gemm;
mod gemv;
mod glu;
mod isa;
mod kernels;
mod kv;
mod layer_norm;
mod matmul;
mod matmul_grad;
mod matmul_kernel;
mod matmul_output;
mod minifloat;
mod norm;
mod operand;
mod pool;
mod quantization;
mod recurrent;
mod rope;
mod routing;
mod scales;
mod scratch;
mod shared_slice;
mod simd;
mod storage;
#[cfg(target_arch = "x86_64")]
mod tiles;

pub use activation::ElementActivation;
pub use attention::{AttentionBackward, AttentionParams, PackedTexts};
pub use draw::{Draw, ban};
pub use error::{Error, Result};
pub use glu::{Glu, GluInput};
pub use isa::Isa;
pub use kernels::Kernels;
pub use kv::{Heads, KvCache, KvView, QuantizedHeads, Queries};
pub use layer_norm::LayerNorm;
pub use norm::RmsNorm;
pub use operand::{Floats, FloatsMut, Matrices, Scales, Weights};
pub use quantization::{QuantMode, Quantization};
pub use recurrent::{CausalConv, GatedNorm, LinearAttention, RecurrentLayer, Rule, Sequences};
pub use rope::RotaryTable;
pub use routing::Routing;
