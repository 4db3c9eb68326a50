//! Which instructions kernels use.

use crate::simd::{self, Simd};

/// Instruction sets that kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// What every machine has.
    Portable,
    /// What every 64-bit ARM has.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The same, and its products of bf16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// The same, and AMX for products of many rows.
    #[cfg(target_arch = "x86_64")]
    Amx,
}

impl Isa {
    /// All that this architecture may have, the slowest first.
    pub const ALL: &[Self] = &[
        Self::Portable,
        #[cfg(target_arch = "aarch64")]
        Self::Neon,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512Bf16,
        #[cfg(target_arch = "x86_64")]
        Self::Amx,
    ];

    /// The fastest that this machine has.
    #[must_use]
    pub fn best() -> Self {
        Self::ALL.iter().copied().rfind(|isa| isa.is_available()).unwrap_or(Self::Portable)
    }

    /// Whether this machine has it.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => simd::neon::is_available(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => simd::avx2::is_available(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => simd::avx512::is_available(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Self::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Self::Avx512Bf16.is_available() && crate::tiles::is_available(),
        }
    }

    /// Runs a kernel with these instructions, which this machine must have.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        debug_assert!(self.is_available());
        match self {
            Self::Portable => kernel.run::<simd::Portable>(),
            #[cfg(target_arch = "aarch64")]
            // SAFETY: the machine has them: `Kernels` are made of available sets only.
            Self::Neon => unsafe { simd::neon::run(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::Avx2 => unsafe { simd::avx2::run(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::Avx512 | Self::Avx512Bf16 | Self::Amx => unsafe { simd::avx512::run(kernel) },
        }
    }
}

/// A computation written once for all instruction sets, with its operands. `run` and all it calls are `inline(always)`: only
/// so do they become part of the function that has the instructions.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self) -> Self::Output;
}
