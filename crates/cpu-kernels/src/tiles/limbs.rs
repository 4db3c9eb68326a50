//! Numbers that have more digits than bf16, taken apart into several of that type, the larger first. Products of limbs too
//! small to matter are left out.

use std::{arch::x86_64::*, marker::PhantomData};

use super::{DEPTH, EDGE, Packing, Panel, Tile, ZERO};
use crate::{
    Floats, Matrices, QuantMode, Weights,
    element::widen,
    gemm::Unpacker,
    operand::with_slice,
    simd::avx512::Avx512,
    storage::{Storage, arrange, arranged_len},
};

/// How numbers are taken apart for a product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limbs {
    pub(super) x: usize,
    pub(super) w: usize,
    /// Products of limb i with limb j are made where i + j is less.
    pub(super) order: usize,
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
            Weights::Quantized { quantization, .. } if quantization.mode == QuantMode::Affine => 3,
            // A few bits, times a power of two or four bits.
            Weights::Quantized { .. } => 1,
        };
        Self { x: digits(x).min(order), w: w.min(order), order }
    }

    /// Whether nothing has to be taken apart.
    pub(crate) fn is_single(self) -> bool {
        self.x == 1 && self.w == 1
    }
}

/// Elements in single precision, in limbs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InLimbs<T> {
    pub(crate) limbs: Limbs,
    pub(crate) storage: PhantomData<T>,
}

impl<T: Storage> Packing for InLimbs<T> {
    fn limbs(self) -> Limbs {
        self.limbs
    }

    fn steps(self, inputs: usize) -> usize {
        arranged_len::<T, Avx512>(inputs).div_ceil(DEPTH)
    }

    fn groups(self, _: usize) -> usize {
        0
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn pack(
        self,
        x: Floats<'_>,
        inputs: usize,
        rows: &[usize],
        tiles: &mut [Tile],
        _: &mut [[f32; EDGE]],
    ) {
        let width = arranged_len::<T, Avx512>(inputs);
        let (steps, limbs) = (self.steps(inputs), self.limbs.x);
        let mut row = vec![0.0; width];
        let mut arranged = vec![0.0; steps * DEPTH];
        for (index, from) in rows.iter().enumerate() {
            with_slice!(x, Floats, x => widen::<_, Avx512>(&x[from * inputs..][..inputs], &mut row[..inputs]));
            arrange::<T, Avx512>(&row, &mut arranged[..width]);
            for (step, tiles) in tiles.chunks_exact_mut(limbs).enumerate() {
                // SAFETY: the step lies within the row; the machine has the instructions.
                unsafe { store_limbs(arranged.as_ptr().add(step * DEPTH), tiles, index) };
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn unpack(self, w: &Matrices<'_>, first: usize, count: usize) -> Panel {
        let (steps, limbs) = (self.steps(w.inputs), self.limbs.w);
        let mut tiles = vec![ZERO; count.div_ceil(EDGE) * steps * limbs];
        let unpacker = Unpacker::<T, Avx512>::new(w, first, count);
        let width = arranged_len::<T, Avx512>(w.inputs);
        let mut row = vec![0.0; steps * DEPTH];
        for output in 0..count {
            unpacker.row(output, &mut row[..width]);
            for step in 0..steps {
                let at = (output / EDGE * steps + step) * limbs;
                // SAFETY: the step lies within the row; the machine has the instructions.
                unsafe {
                    store_limbs(row.as_ptr().add(step * DEPTH), &mut tiles[at..at + limbs], output % EDGE);
                };
            }
        }
        Panel { tiles, groups: None }
    }
}

/// Writes 32 numbers into a row of tiles, one for each limb.
///
/// # Safety
/// The machine has the instructions; the numbers are there.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn store_limbs(from: *const f32, tiles: &mut [Tile], row: usize) {
    // SAFETY: the caller's; both types are 512 bits, and a row of a tile is 32 numbers.
    unsafe {
        let mut rest = [_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16))];
        for tile in tiles {
            let limb: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(rest[1], rest[0]));
            _mm512_store_si512(tile.0[row * DEPTH..][..DEPTH].as_mut_ptr().cast(), limb);
            let low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(limb));
            let high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(limb));
            let wide = |half| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(half));
            rest = [_mm512_sub_ps(rest[0], wide(low)), _mm512_sub_ps(rest[1], wide(high))];
        }
    }
}
