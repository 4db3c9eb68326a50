use crate::Quantization;

/// Why a kernel did not run. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operand is not as long as the others ask for.
    #[error("{operand} has {found} elements, expected {expected}")]
    Length {
        /// Its name in the kernel's signature.
        operand: &'static str,
        /// Its elements.
        found: usize,
        /// The elements that the other operands ask for.
        expected: usize,
    },
    /// A size, an index or a combination of them that no operands can have.
    #[error("{name} is {found}, expected {expected}")]
    Invalid {
        /// What it is of.
        name: &'static str,
        /// Its value.
        found: usize,
        /// What it must be.
        expected: String,
    },
    /// A storage that does not exist.
    #[error("{0:?} is no storage of quantised matrices")]
    Quantization(Quantization),
    /// The environment asks for a number of threads that is none.
    #[error("INFERENCE_NUM_THREADS is {found:?}, expected a positive number")]
    Threads {
        /// What it says.
        found: String,
    },
}

/// The result of a kernel.
pub type Result<T, E = Error> = std::result::Result<T, E>;
