//! Products of tiles by the tile registers of AMX (`TDPBF16PS`), which multiply 16 × 32 by 32 × 16 bf16 numbers at once and sum in
//! single precision.

use std::arch::asm;

use super::tile::TileSums;

/// The configuration of the tile registers: 16 rows of 64 bytes for each of the eight.
#[repr(C, align(64))]
struct Config([u8; 64]);

static CONFIG: Config = {
    let mut config = [0; 64];
    config[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        config[16 + 2 * tile] = 64;
        config[48 + tile] = 16;
        tile += 1;
    }
    Config(config)
};

/// Adds the products of two tiles of the matrix with two of `x`, for each pair of offsets.
///
/// # Safety
/// The machine has AMX, and the process may use its tiles. Tiles begin at all offsets.
#[inline(always)]
pub(super) unsafe fn multiply(sums: &mut TileSums, w: [*const u8; 2], x: [*const u8; 2], pairs: &[[u32; 2]]) {
    if pairs.is_empty() {
        return;
    }
    // SAFETY: the caller's; tile registers are released at the end.
    unsafe {
        asm!(
            "ldtilecfg [{at}]",
            "tileloadd tmm0, [{sums} + {stride}*2]",
            "tileloadd tmm1, [{sums} + {stride}*2 + 64]",
            "tileloadd tmm2, [{sums} + {stride}*2 + 2048]",
            "tileloadd tmm3, [{sums} + {stride}*2 + 2112]",
            "2:",
            "mov {of_w:e}, [{pairs}]",
            "mov {of_x:e}, [{pairs} + 4]",
            "lea {at}, [{w0} + {of_w}]",
            "tileloadd tmm4, [{at} + {stride}*1]",
            "lea {at}, [{x0} + {of_x}]",
            "tileloadd tmm6, [{at} + {stride}*1]",
            "lea {at}, [{x1} + {of_x}]",
            "tileloadd tmm7, [{at} + {stride}*1]",
            "lea {at}, [{w1} + {of_w}]",
            "tileloadd tmm5, [{at} + {stride}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {pairs}, 8",
            "cmp {pairs}, {end}",
            "jne 2b",
            "tilestored [{sums} + {stride}*2], tmm0",
            "tilestored [{sums} + {stride}*2 + 64], tmm1",
            "tilestored [{sums} + {stride}*2 + 2048], tmm2",
            "tilestored [{sums} + {stride}*2 + 2112], tmm3",
            "tilerelease",
            at = inout(reg) CONFIG.0.as_ptr() => _,
            sums = in(reg) sums.0.as_mut_ptr(),
            stride = in(reg) 64_usize,
            w0 = in(reg) w[0],
            w1 = in(reg) w[1],
            x0 = in(reg) x[0],
            x1 = in(reg) x[1],
            pairs = inout(reg) pairs.as_ptr() => _,
            end = in(reg) pairs.as_ptr_range().end,
            of_w = out(reg) _,
            of_x = out(reg) _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
