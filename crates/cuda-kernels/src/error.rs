//! What can go wrong.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine has no CUDA driver.
    #[error("no CUDA driver: libcuda was not found")]
    NoDriver,
    /// The driver lacks calls that this crate makes.
    #[error("the CUDA driver supports CUDA {}.{}, expected 12.8 or later", .found / 1000, .found % 1000 / 10)]
    OldDriver {
        /// The version as CUDA counts, 1000 · major + 10 · minor.
        found: i32,
    },
    /// The driver knows no such GPU.
    #[error("no GPU {ordinal}: the CUDA driver finds {count}")]
    NoDevice {
        /// The number that was asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The GPU lacks instructions that the kernels use.
    #[error("{name} has compute capability {}.{}, expected 9.0 or later", .capability.0, .capability.1)]
    OldDevice {
        /// The GPU.
        name: String,
        /// Its compute capability.
        capability: (u32, u32),
    },
    /// A kernel is not in the cache, and the machine has no compiler for it.
    #[error("no compiler for kernel {kernel}: libnvrtc was not found")]
    NoCompiler {
        /// The kernel.
        kernel: String,
    },
    /// The compiler refused a kernel.
    #[error("NVRTC failed on kernel {kernel}: {log}")]
    Compile {
        /// The kernel.
        kernel: String,
        /// What the compiler said.
        log: String,
    },
    /// The executor that the kernels were compiled for is gone.
    #[error("the compilation was stopped")]
    Stopped,
    /// A call of the driver failed.
    #[error("{call} failed: {name} ({text})")]
    Driver {
        /// The call.
        call: &'static str,
        /// The error's name in CUDA.
        name: String,
        /// Its meaning.
        text: String,
    },
    /// The description of a decoder or of a call makes no sense.
    #[error("{what} is {found}, expected {expected}")]
    Invalid {
        /// What is wrong.
        what: String,
        /// Its value.
        found: String,
        /// What would be right.
        expected: String,
    },
}

impl Error {
    #[expect(clippy::needless_pass_by_value, reason = "callers make what was found on the spot")]
    pub(crate) fn invalid<F: ToString>(
        what: impl Into<String>,
        found: F,
        expected: impl Into<String>,
    ) -> Self {
        Self::Invalid { what: what.into(), found: found.to_string(), expected: expected.into() }
    }
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;
