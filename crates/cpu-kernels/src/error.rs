//! Why a kernel did not run.

use crate::quantization::Quantization;

/// Why a kernel did not run. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The length of an operand does not match the other operands.
    #[error("{operand} has {found} elements, expected {expected}")]
    Length {
        /// Its name in the kernel's signature.
        operand: &'static str,
        /// Its length.
        found: usize,
        /// The length that the other operands require.
        expected: usize,
    },
    /// A size, an index or a combination that no kernel accepts.
    #[error("{name} is {found}, expected {expected}")]
    Invalid {
        /// The value's name.
        name: &'static str,
        /// The value.
        found: usize,
        /// What was expected.
        expected: String,
    },
    /// A quantisation that the kernels do not support.
    #[error("unsupported quantisation: {0:?}")]
    Quantization(Quantization),
    /// The environment variable `INFERENCE_NUM_THREADS` holds no valid number of threads.
    #[error(
        "the environment variable INFERENCE_NUM_THREADS is {found:?}, expected a whole number from 1 to {max}, or nothing"
    )]
    Threads {
        /// Its value.
        found: String,
        /// The largest number allowed.
        max: usize,
    },
}

/// The result of a kernel.
pub type Result<T, E = Error> = std::result::Result<T, E>;
