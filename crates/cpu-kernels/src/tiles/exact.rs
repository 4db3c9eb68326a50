//! Rows of bf16 and elements that bf16 holds exactly, before they are scaled: the sums of a group are scaled instead.

use std::{arch::x86_64::*, marker::PhantomData};

use half::bf16;

use super::{DEPTH, EDGE, Groups, Limbs, Packing, Panel, Tile, ZERO};
use crate::{
    Floats, Matrices, QuantMode, Quantization, Weights,
    gemv::{self, elements},
    pairs::{BLOCK, LARGEST, Pairs, arrange, sum_groups},
    simd::avx512::Avx512,
    storage::Storage,
};

/// Tiles of a block of elements.
const TILES: usize = BLOCK / DEPTH;

/// Elements as [`Pairs`] unpack them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exact<P> {
    /// Elements of a group, where they have a scale.
    group_size: Option<usize>,
    pairs: PhantomData<P>,
}

impl<P: Pairs> Exact<P> {
    /// For matrices like `w`, where no block of elements belongs to several groups.
    pub(crate) fn new(w: &Matrices<'_>) -> Option<Self> {
        let group_size = match w.weights {
            Weights::Dense(_) => None,
            Weights::Quantized {
                quantization: Quantization { mode: QuantMode::Affine, group_size, .. },
                ..
            } => Some(group_size),
            Weights::Quantized { .. } => return None,
        };
        let whole = group_size.is_none_or(|size| size.is_multiple_of(BLOCK));
        whole.then_some(Self { group_size, pairs: PhantomData })
    }
}

impl<P: Pairs> Packing for Exact<P> {
    fn limbs(self) -> Limbs {
        Limbs { x: 1, w: 1, order: 1 }
    }

    fn steps(self, inputs: usize) -> usize {
        inputs.div_ceil(BLOCK) * TILES
    }

    fn groups(self, inputs: usize) -> usize {
        self.group_size.map_or(0, |size| inputs / size)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn pack(
        self,
        x: Floats<'_>,
        inputs: usize,
        rows: &[usize],
        tiles: &mut [Tile],
        sums: &mut [[f32; EDGE]],
    ) {
        let Floats::Bf16(x) = x else { return };
        let mut arranged = vec![bf16::ZERO; self.steps(inputs) * DEPTH];
        let mut groups = vec![0.0; sums.len()];
        for (index, row) in rows.iter().enumerate() {
            let x = &x[row * inputs..][..inputs];
            // SAFETY: the machine has the instructions.
            unsafe { arrange::<P>(x, &mut arranged) };
            for (tile, numbers) in tiles.iter_mut().zip(arranged.chunks_exact(DEPTH)) {
                // SAFETY: a row of a tile is 32 numbers, as the part is.
                unsafe {
                    let numbers = _mm512_loadu_si512(numbers.as_ptr().cast());
                    _mm512_store_si512(tile.0[index * DEPTH..][..DEPTH].as_mut_ptr().cast(), numbers);
                }
            }
            if let Some(size) = self.group_size {
                // SAFETY: the machine has the instructions.
                unsafe { sum_groups(x, size, &mut groups) };
                sums.iter_mut().zip(&groups).for_each(|(sums, group)| sums[index] = *group);
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn unpack(self, w: &Matrices<'_>, first: usize, count: usize) -> Panel {
        let steps = self.steps(w.inputs);
        let mut tiles = vec![ZERO; count.div_ceil(EDGE) * steps];
        let row_bytes = w.inputs * P::Storage::BITS / 8;
        let bytes = elements(&w.weights);
        for output in 0..count {
            let row = &bytes[(first + output) * row_bytes..][..row_bytes];
            let tiles = &mut tiles[output / EDGE * steps..][..steps];
            for (from, tiles) in row.chunks(P::BYTES).zip(tiles.chunks_exact_mut(TILES)) {
                let mut rest = [0; LARGEST];
                let from = if from.len() == P::BYTES {
                    from
                } else {
                    rest[..from.len()].copy_from_slice(from);
                    &rest
                };
                // SAFETY: the block is whole, and a row of a tile is 32 numbers.
                unsafe {
                    for (tile, numbers) in tiles.iter_mut().zip(P::values(from.as_ptr())) {
                        let to = tile.0[output % EDGE * DEPTH..][..DEPTH].as_mut_ptr();
                        _mm512_store_si512(to.cast(), numbers);
                    }
                }
            }
        }
        let groups = self.group_size.map(|size| {
            let width = count.next_multiple_of(2 * EDGE);
            let number = w.inputs / size;
            let (mut scales, mut biases) = (vec![0.0; number * width], vec![0.0; number * width]);
            let groups = gemv::Groups::read::<P::Storage, Avx512>(w, first, count);
            for output in 0..count {
                let row = groups.scales(output).iter().zip(groups.biases(output)).enumerate();
                for (group, (scale, bias)) in row.take(number) {
                    scales[group * width + output] = *scale;
                    biases[group * width + output] = bias - P::EXCESS * scale;
                }
            }
            Groups { steps: size / DEPTH, scales, biases, width }
        });
        Panel { tiles, groups }
    }
}
