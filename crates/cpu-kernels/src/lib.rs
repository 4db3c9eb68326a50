//! The products, attention and norms that a language model spends its time in, on the CPU.
//!
//! Operands are plain memory: slices of `f32`, `f16` or `bf16`, row by row, and matrices as MLX quantises them. Sums are
//! taken in single precision and rounded once. Work is shared by one set of threads for the whole process, as many as it may
//! run at once; the variable `INFERENCE_NUM_THREADS` sets another number. Instruction sets are chosen at run time, see
//! [`Isa`].
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

mod attention;
mod attention_back;
mod back;
mod element;
mod error;
mod gemm;
mod gemv;
mod isa;
mod kept;
mod operand;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod pool;
mod product;
mod simd;
mod storage;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod unpack;
mod vectors;

pub use attention::{AttentionParams, Heads, KvCache, Queries};
pub use attention_back::AttentionBackward;
pub use error::{Error, Result};
pub use isa::Isa;
pub use kept::{KvView, QuantizedHeads};
pub use operand::{Floats, FloatsMut, Matrices, QuantMode, Quantization, Scales, Weights};
pub use vectors::{Glu, GluInput, RmsNorm, RotaryTable};

use pool::Pool;

/// The kernels, with the instructions they use and the threads that share the work.
#[derive(Clone, Copy)]
pub struct Kernels {
    isa: Isa,
    pool: &'static Pool,
}

impl Kernels {
    /// The fastest that this machine runs.
    ///
    /// # Errors
    /// [`Error::Threads`]
    pub fn new() -> Result<Self> {
        Ok(Self { isa: Isa::best(), pool: Pool::global()? })
    }

    /// Kernels of an instruction set, where this machine has it.
    ///
    /// # Errors
    /// [`Error::Threads`]
    pub fn with_isa(isa: Isa) -> Result<Option<Self>> {
        let pool = Pool::global()?;
        Ok(isa.is_available().then_some(Self { isa, pool }))
    }

    /// The instructions in use.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The threads that share a kernel's work.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernels").field("isa", &self.isa).field("threads", &self.threads()).finish()
    }
}
