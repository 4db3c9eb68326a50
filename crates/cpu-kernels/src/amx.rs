//! Products of many rows of `x` on tile registers, which multiply 16 × 32 by 32 × 16 numbers of type bf16 at once and sum in
//! single precision. Numbers that have more digits are taken apart into several of that type, "limbs", the larger first;
//! products of limbs too small to matter are left out.

use std::{
    arch::{asm, x86_64::*},
    sync::OnceLock,
};

use crate::{
    Floats, Matrices, Mode, Weights,
    element::widen,
    gemm::Unpacker,
    operand::with_slice,
    simd::avx512::Avx512,
    storage::{Storage, arrange, arranged_len},
};

/// Rows of a tile.
pub(crate) const EDGE: usize = 16;
/// Numbers in a row of a tile.
const DEPTH: usize = 32;

/// A tile of limbs, as it lies in memory.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Tile([u16; EDGE * DEPTH]);

const ZERO: Tile = Tile([0; EDGE * DEPTH]);

/// Whether this machine has the tiles and Linux lets this process use them.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        let has = cfg!(target_os = "linux")
            && crate::simd::avx512::is_available()
            && is_x86_feature_detected!("avx512bf16")
            && __cpuid_count(7, 0).edx >> 22 & 0b101 == 0b101;
        has && permitted()
    })
}

/// Asks Linux for the tiles' state.
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: the call reads no memory of ours; the kernel overwrites rcx and r11.
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

/// How numbers are taken apart for a product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limbs {
    x: usize,
    w: usize,
    /// Products of limb i with limb j are made where i + j is less.
    order: usize,
}

impl Limbs {
    /// `precise` says that the products are wanted in single precision; halves of that are kept to 16 bits before they are
    /// rounded to 8 or 11.
    pub(crate) fn new(x: &Floats<'_>, w: &Weights<'_>, precise: bool) -> Self {
        let digits = |floats: &Floats<'_>| match floats {
            Floats::Bf16(_) => 1,
            Floats::F16(_) => 2,
            Floats::F32(_) => 3,
        };
        let order = if precise { 3 } else { 2 };
        let w = match w {
            Weights::Dense(floats) => digits(floats),
            Weights::Packed { scheme, .. } if scheme.mode == Mode::Affine => 3,
            // A few bits, times a power of two or four bits.
            Weights::Packed { .. } => 1,
        };
        Self { x: digits(x).min(order), w: w.min(order), order }
    }
}

/// Rows of `x`, ready to be multiplied: for each 16 of them, each 32 elements and each limb a tile, in which pairs of elements
/// are rows.
pub(crate) struct PackedRows {
    tiles: Vec<Tile>,
    limbs: usize,
    /// Tiles that all elements of a row take.
    steps: usize,
}

impl PackedRows {
    /// Room for `rows` rows, in blocks of 16.
    pub(crate) fn new<T: Storage>(rows: usize, inputs: usize, limbs: Limbs) -> Self {
        let steps = steps::<T>(inputs);
        Self { tiles: vec![ZERO; rows.div_ceil(EDGE) * steps * limbs.x], limbs: limbs.x, steps }
    }

    /// The tiles of each block of 16 rows.
    pub(crate) fn blocks_mut(&mut self) -> &mut [Tile] {
        &mut self.tiles
    }

    /// Tiles of a block.
    pub(crate) fn block_len(&self) -> usize {
        self.steps * self.limbs
    }

    fn block(&self, index: usize) -> *const u8 {
        self.tiles[index * self.block_len()..][..self.block_len()].as_ptr().cast()
    }
}

/// Numbers of a row in tiles, zeros behind its end included, over 32.
fn steps<T: Storage>(inputs: usize) -> usize {
    arranged_len::<T, Avx512>(inputs).div_ceil(DEPTH)
}

/// Packs up to 16 rows of `x`, `inputs` wide, into the tiles of their block.
///
/// # Safety
/// The machine has the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn pack_rows<T: Storage>(
    x: Floats<'_>,
    inputs: usize,
    rows: &[usize],
    limbs: Limbs,
    tiles: &mut [Tile],
) {
    let width = arranged_len::<T, Avx512>(inputs);
    let (steps, limbs) = (steps::<T>(inputs), limbs.x);
    let mut row = vec![0.0; width];
    let mut arranged = vec![0.0; steps * DEPTH];
    for (index, from) in rows.iter().enumerate() {
        with_slice!(x, Floats, x => widen::<_, Avx512>(&x[from * inputs..][..inputs], &mut row[..inputs]));
        arrange::<T, Avx512>(&row, &mut arranged[..width]);
        for step in 0..steps {
            // SAFETY: the step lies within the row; the machine has the instructions.
            let limbs_of_step = unsafe { split(arranged.as_ptr().add(step * DEPTH)) };
            for (limb, numbers) in limbs_of_step.iter().enumerate().take(limbs) {
                let tile = &mut tiles[step * limbs + limb];
                // Row by row now, turned below.
                // SAFETY: a row of the tile is 32 numbers.
                unsafe { _mm512_store_si512(tile.0.as_mut_ptr().add(index * DEPTH).cast(), *numbers) };
            }
        }
    }
    for tile in tiles {
        // SAFETY: a tile is 16 rows of 16 words; the machine has the instructions.
        unsafe {
            let rows = std::array::from_fn(|i| _mm512_load_si512(tile.0.as_ptr().add(i * DEPTH).cast()));
            for (i, row) in transpose(rows).into_iter().enumerate() {
                _mm512_store_si512(tile.0.as_mut_ptr().add(i * DEPTH).cast(), row);
            }
        }
    }
}

/// Unpacks `count` rows of a matrix from row `first` on, counted through all matrices: for each 16 rows, each 32 elements and
/// each limb a tile.
///
/// # Safety
/// The machine has the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn unpack<T: Storage>(
    w: &Matrices<'_>,
    first: usize,
    count: usize,
    limbs: Limbs,
) -> Vec<Tile> {
    let (steps, limbs) = (steps::<T>(w.inputs), limbs.w);
    let mut panel = vec![ZERO; count.div_ceil(EDGE) * steps * limbs];
    let mut unpacker = Unpacker::<T, Avx512>::new(w);
    let width = arranged_len::<T, Avx512>(w.inputs);
    let mut row = vec![0.0; steps * DEPTH];
    for output in 0..count {
        unpacker.row(first + output, &mut row[..width]);
        for step in 0..steps {
            let at = (output / EDGE * steps + step) * limbs;
            // SAFETY: the step lies within the row, and a row of a tile is 32 numbers.
            unsafe {
                let numbers = split(row.as_ptr().add(step * DEPTH));
                for (tile, numbers) in panel[at..at + limbs].iter_mut().zip(numbers) {
                    _mm512_store_si512(tile.0.as_mut_ptr().add(output % EDGE * DEPTH).cast(), numbers);
                }
            }
        }
    }
    panel
}

/// The products of many rows of `x` with a part of a matrix.
pub(crate) struct TileGemm<'a> {
    /// What [`unpack`] made of the part.
    pub(crate) panel: &'a [Tile],
    /// Rows of the part.
    pub(crate) count: usize,
    pub(crate) x: &'a PackedRows,
    /// The first block of 16 rows of `x`.
    pub(crate) block: usize,
    /// Rows of `x`.
    pub(crate) rows: usize,
    pub(crate) limbs: Limbs,
}

impl TileGemm<'_> {
    /// Hands `[up to 32, count]` products at a time, with the number of the first row, to `emit`.
    ///
    /// # Safety
    /// The machine has the instructions, and the tiles may be used.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(crate) unsafe fn each(&self, emit: &mut dyn FnMut(usize, &mut [f32])) {
        let Limbs { x: x_limbs, w: w_limbs, order } = self.limbs;
        let steps = self.x.steps;
        let blocks = self.count.div_ceil(EDGE);
        let block = |index: usize| -> *const u8 {
            let index = index.min(blocks - 1);
            self.panel[index * steps * w_limbs..][..steps * w_limbs].as_ptr().cast()
        };
        // The part of two blocks of `x` that is multiplied with the whole panel should stay in the first cache.
        let part = 16 / x_limbs;
        let pairs =
            (0..x_limbs).flat_map(|i| (0..w_limbs).map(move |j| (i, j))).filter(|(i, j)| i + j < order);
        let pairs: Vec<_> = pairs.collect();
        let offset = |tile: usize| (tile * size_of::<Tile>()) as u32;
        let plan: Vec<[u32; 2]> = (0..part.min(steps))
            .flat_map(|step| pairs.iter().map(move |(i, j)| [step * w_limbs + j, step * x_limbs + i]))
            .map(|pair| pair.map(offset))
            .collect();
        let mut sums = vec![Sums([0.0; 4 * EDGE * EDGE]); blocks.div_ceil(2)];
        let mut products = vec![0.0; 2 * EDGE * self.count];
        for first in (0..self.rows).step_by(2 * EDGE) {
            sums.fill(Sums([0.0; 4 * EDGE * EDGE]));
            let last = self.rows.div_ceil(EDGE) - 1;
            let x = [0, 1].map(|i| self.x.block(self.block + (first / EDGE + i).min(last)));
            for step in (0..steps).step_by(part) {
                let plan = &plan[..part.min(steps - step) * pairs.len()];
                for (index, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: all offsets of the plan lie within blocks of tiles; the caller's.
                    unsafe {
                        let w = [0, 1].map(|i| block(2 * index + i).add(step * w_limbs * size_of::<Tile>()));
                        let x = x.map(|x| x.add(step * x_limbs * size_of::<Tile>()));
                        multiply(&mut sums.0, w, x, plan);
                    }
                }
            }
            let rows = (self.rows - first).min(2 * EDGE);
            for (index, sums) in sums.iter().enumerate() {
                // SAFETY: the machine has the instructions.
                unsafe { self.turn(&sums.0, index * 2 * EDGE, rows, &mut products) };
            }
            emit(first, &mut products[..rows * self.count]);
        }
    }

    /// Writes sums, one row for each row of the matrix, as products, one row for each of `rows` rows of `x`.
    ///
    /// # Safety
    /// The machine has the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn turn(&self, sums: &[f32; 4 * EDGE * EDGE], output: usize, rows: usize, products: &mut [f32]) {
        for (down, right) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let output = output + down * EDGE;
            if output >= self.count || right * EDGE >= rows {
                continue;
            }
            // SAFETY: the tile is 16 rows of 16, of 32 in a row; writes are masked to the products there are.
            unsafe {
                let from = sums.as_ptr().add(down * 2 * EDGE * EDGE + right * EDGE);
                let tile = std::array::from_fn(|i| _mm512_loadu_si512(from.add(i * 2 * EDGE).cast()));
                let mask = (1_u32 << (self.count - output).min(EDGE)) - 1;
                for (i, row) in transpose(tile).into_iter().enumerate().take(rows - right * EDGE) {
                    let to = products[(right * EDGE + i) * self.count + output..].as_mut_ptr();
                    _mm512_mask_storeu_epi32(to.cast(), mask as u16, row);
                }
            }
        }
    }
}

/// 2 × 2 tiles of sums, row by row.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Sums([f32; 4 * EDGE * EDGE]);

/// 16 rows of 64 bytes for each of the eight tiles.
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

/// Adds to sums the products of two blocks of the matrix with two of `x`, for each pair of offsets of the plan.
///
/// # Safety
/// The machine has the instructions, and the tiles may be used. Tiles begin at all offsets.
#[inline(always)]
unsafe fn multiply(
    sums: &mut [f32; 4 * EDGE * EDGE],
    w: [*const u8; 2],
    x: [*const u8; 2],
    plan: &[[u32; 2]],
) {
    if plan.is_empty() {
        return;
    }
    // SAFETY: the caller's; no tile outlives the block.
    unsafe {
        asm!(
            "ldtilecfg [{at}]",
            "tileloadd tmm0, [{sums} + {stride}*2]",
            "tileloadd tmm1, [{sums} + {stride}*2 + 64]",
            "tileloadd tmm2, [{sums} + {stride}*2 + 2048]",
            "tileloadd tmm3, [{sums} + {stride}*2 + 2112]",
            "2:",
            "mov {of_w:e}, [{plan}]",
            "mov {of_x:e}, [{plan} + 4]",
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
            "add {plan}, 8",
            "cmp {plan}, {end}",
            "jne 2b",
            "tilestored [{sums} + {stride}*2], tmm0",
            "tilestored [{sums} + {stride}*2 + 64], tmm1",
            "tilestored [{sums} + {stride}*2 + 2048], tmm2",
            "tilestored [{sums} + {stride}*2 + 2112], tmm3",
            "tilerelease",
            at = inout(reg) CONFIG.0.as_ptr() => _,
            sums = in(reg) sums.as_mut_ptr(),
            stride = in(reg) 64_usize,
            w0 = in(reg) w[0],
            w1 = in(reg) w[1],
            x0 = in(reg) x[0],
            x1 = in(reg) x[1],
            plan = inout(reg) plan.as_ptr() => _,
            end = in(reg) plan.as_ptr_range().end,
            of_w = out(reg) _,
            of_x = out(reg) _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// 32 numbers as three limbs each.
///
/// # Safety
/// The machine has the instructions; the numbers are there.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn split(from: *const f32) -> [__m512i; 3] {
    // SAFETY: the caller's.
    let mut rest = unsafe { [_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16))] };
    std::array::from_fn(|_| {
        // SAFETY: both types are 512 bits.
        let limb: __m512i = unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(rest[1], rest[0])) };
        let low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(limb));
        let high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(limb));
        let wide = |half| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(half));
        rest = [_mm512_sub_ps(rest[0], wide(low)), _mm512_sub_ps(rest[1], wide(high))];
        limb
    })
}

/// 16 rows of 16 words, turned.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    // Words within pairs of rows, pairs of words within fours, and quarters of registers across.
    let mut a = rows;
    for i in (0..16).step_by(2) {
        a[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    let mut b = a;
    for i in (0..16).step_by(4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    // Register 4 r + c now holds column c of each quarter for rows 4 r … 4 r + 3.
    let mut out = b;
    for c in 0..4 {
        let low = _mm512_shuffle_i32x4::<0x88>(b[c], b[4 + c]);
        let high = _mm512_shuffle_i32x4::<0xdd>(b[c], b[4 + c]);
        let low2 = _mm512_shuffle_i32x4::<0x88>(b[8 + c], b[12 + c]);
        let high2 = _mm512_shuffle_i32x4::<0xdd>(b[8 + c], b[12 + c]);
        out[c] = _mm512_shuffle_i32x4::<0x88>(low, low2);
        out[8 + c] = _mm512_shuffle_i32x4::<0xdd>(low, low2);
        out[4 + c] = _mm512_shuffle_i32x4::<0x88>(high, high2);
        out[12 + c] = _mm512_shuffle_i32x4::<0xdd>(high, high2);
    }
    out
}
