//! The instruction sets, and which of them this machine has.

use crate::{
    cpu_features,
    simd::{self, Kernel},
};

/// Instruction sets that kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust, for every machine.
    Portable,
    /// NEON, which every 64-bit ARM has.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 with the dot products of bf16 (`VDPBF16PS`).
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// The same, and AMX tiles (`TDPBF16PS`) for matrix products of many rows.
    #[cfg(target_arch = "x86_64")]
    Amx,
}

impl Isa {
    /// All instruction sets of this architecture, the slowest first.
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
            Self::Neon => cpu_features::neon(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => cpu_features::avx2(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => cpu_features::avx512(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => cpu_features::avx512_bf16(),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => cpu_features::avx512_bf16() && cpu_features::amx(),
        }
    }

    /// Runs a kernel with these instructions.
    ///
    /// # Safety of kernels
    ///
    /// Vector instructions are undefined behaviour on a machine without them. Kernels may use them for this reason, which the
    /// comments at their `unsafe` blocks call "see `Isa::run`":
    ///
    /// - `Kernels` holds an available `Isa` only: `Kernels::new` takes the best, and `Kernels::with_isa` refuses the others.
    /// - Only this function calls `Kernel::run::<S>`, with the `S` of that `Isa`. So in `run`, and in the functions generic over
    ///   `S` that it calls, the machine has the instructions of `S`.
    /// - `run` and those functions are `inline(always)`. They become part of a function with the right `target_feature`, without
    ///   which each instruction is a function call. For the same reason kernels loop by hand where `std::array::from_fn`
    ///   or `map` would call a closure. A test searches a program for such functions.
    /// - Functions that use AVX-512 bf16 or AMX directly (`bf16_dot`, `tiles`) are called only for the `MatmulKernel` that
    ///   `MatmulKernel::choose` returns for an `Isa` with these instructions.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        debug_assert!(self.is_available());
        match self {
            Self::Portable => kernel.run::<simd::Portable>(),
            #[cfg(target_arch = "aarch64")]
            // SAFETY: the machine has the instructions, see above.
            Self::Neon => unsafe { simd::neon::run(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the machine has the instructions, see above.
            Self::Avx2 => unsafe { simd::avx2::run(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the machine has the instructions, see above.
            Self::Avx512 | Self::Avx512Bf16 | Self::Amx => unsafe { simd::avx512::run(kernel) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Simd, exp, tanh};

    struct CheckMath;

    impl Kernel for CheckMath {
        type Output = ();

        fn run<S: Simd>(self) {
            let each = |f: unsafe fn(S::F) -> S::F, x: f32| {
                let mut lanes = vec![0.0; S::LANES];
                // SAFETY: see `Isa::run`; there are `LANES` elements.
                unsafe { S::store(lanes.as_mut_ptr(), f(S::splat(x))) };
                assert!(lanes.iter().all(|lane| lane.to_bits() == lanes[0].to_bits()));
                f64::from(lanes[0])
            };
            for i in -8700..=8800 {
                let x = i as f32 / 100.0;
                let (found, expected) = (each(exp::<S>, x), f64::from(x).exp());
                assert!((found - expected).abs() <= 3e-7 * expected, "e^{x}: {found} for {expected}");
                let (found, expected) = (each(tanh::<S>, x), f64::from(x).tanh());
                assert!((found - expected).abs() <= 3e-7, "tanh {x}: {found} for {expected}");
            }
            assert!(each(exp::<S>, f32::NEG_INFINITY) < 2e-38);
        }
    }

    #[test]
    fn exp_and_tanh_are_exact_to_a_few_units() {
        for isa in Isa::ALL.iter().filter(|isa| isa.is_available()) {
            isa.run(CheckMath);
        }
    }
}
