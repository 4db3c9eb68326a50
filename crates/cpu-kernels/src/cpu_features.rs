//! Which instruction sets this machine has.

#[cfg(target_arch = "aarch64")]
pub(crate) fn neon() -> bool {
    // The kernels use half-precision conversions, which every 64-bit ARM has with NEON.
    std::arch::is_aarch64_feature_detected!("neon")
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{amx, avx2, avx512, avx512_bf16};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::{
        arch::{asm, x86_64::__cpuid_count},
        sync::OnceLock,
    };

    pub(crate) fn avx2() -> bool {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
    }

    pub(crate) fn avx512() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
    }

    pub(crate) fn avx512_bf16() -> bool {
        avx512() && is_x86_feature_detected!("avx512bf16")
    }

    /// Whether the machine has AMX tiles with bf16, and Linux lets this process use them.
    pub(crate) fn amx() -> bool {
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        *AVAILABLE.get_or_init(|| {
            let has = cfg!(target_os = "linux") && __cpuid_count(7, 0).edx >> 22 & 0b101 == 0b101;
            has && request_tile_state()
        })
    }

    /// Asks Linux for the state of the tile registers, which a process does not have by default.
    fn request_tile_state() -> bool {
        const ARCH_PRCTL: i64 = 158;
        const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
        const XFEATURE_XTILEDATA: usize = 18;
        let mut result = ARCH_PRCTL;
        // SAFETY: the system call reads no memory of this process. It overwrites rcx and r11.
        unsafe {
            asm!(
                "syscall",
                inout("rax") result,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XFEATURE_XTILEDATA,
                out("rcx") _,
                out("r11") _,
                options(nostack),
            );
        }
        result == 0
    }
}
