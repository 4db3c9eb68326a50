//! Products of a few rows of bf16 with many rows of a matrix of 4 bits: pairs of elements are made bf16 and multiplied at
//! once. Where 4 bits stand for an integer they become the highest digits of a number whose exponent is fixed, which takes
//! one instruction; what that adds to each element is taken back with the bias.

use std::{arch::x86_64::*, marker::PhantomData};

use half::bf16;

use crate::{
    Matrices, Mode, Scheme, Weights,
    gemv::{Groups, elements},
    simd::avx512::Avx512,
    storage::{Fp4, Storage, Whole},
    unpack::FP4,
};

/// Bytes of a row that are unpacked at once: two vectors of 32 elements.
const BLOCK: usize = 32;
/// Bytes ahead of those in use that are fetched.
const AHEAD: usize = 2 << 10;

/// How a block's bytes become two vectors of bf16, one of low halves of bytes and one of high halves.
pub(crate) trait Nibbles: Copy + Send + Sync + 'static {
    /// What each element is too large by.
    const EXCESS: f32;
    /// The storage of the same matrices.
    type Storage: Storage;

    /// # Safety
    /// The machine has the instructions; the lower byte of each word is in use.
    unsafe fn values(words: __m512i) -> [__m512i; 2];
}

/// Integers of 4 bits, two in a byte.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nibble;
/// Floats of 4 bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Float;

#[allow(clippy::undocumented_unsafe_blocks, reason = "the trait's contract is that of what it calls")]
impl Nibbles for Nibble {
    const EXCESS: f32 = 16.0;
    type Storage = Whole<4>;

    #[inline(always)]
    unsafe fn values(words: __m512i) -> [__m512i; 2] {
        unsafe {
            // Which bits of a word digits are: the others are those of the exponent.
            let mask = _mm512_set1_epi16(0x78);
            // 16 in bf16: its digit at the fourth highest place is worth 8.
            let sixteen = _mm512_set1_epi16(0x4180);
            let with = |digits| _mm512_ternarylogic_epi32::<0xf8>(sixteen, digits, mask);
            [with(_mm512_slli_epi16::<3>(words)), with(_mm512_srli_epi16::<1>(words))]
        }
    }
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "the trait's contract is that of what it calls")]
impl Nibbles for Float {
    const EXCESS: f32 = 0.0;
    type Storage = Fp4;

    #[inline(always)]
    unsafe fn values(words: __m512i) -> [__m512i; 2] {
        // Twice over: the lowest five bits are looked up.
        const TABLE: [u16; 32] = {
            let mut table = [0; 32];
            let mut i = 0;
            while i < 32 {
                table[i] = (FP4[i % 16].to_bits() >> 16) as u16;
                i += 1;
            }
            table
        };
        unsafe {
            let table = _mm512_loadu_si512(TABLE.as_ptr().cast());
            let high = _mm512_srli_epi16::<4>(words);
            [_mm512_permutexvar_epi16(words, table), _mm512_permutexvar_epi16(high, table)]
        }
    }
}

/// Runs `$body` with the type `$nibbles` bound to how such weights are unpacked here, where they are.
macro_rules! with_nibbles {
    ($weights:expr, $nibbles:ident => $body:expr) => {{
        use $crate::{Mode, Scheme, Weights, nibbles};
        match $weights {
            Weights::Packed { scheme: Scheme { mode: Mode::Affine, bits: 4, .. }, .. } => {
                type $nibbles = nibbles::Nibble;
                Some($body)
            }
            Weights::Packed { scheme: Scheme { mode: Mode::Mxfp4 | Mode::Nvfp4, .. }, .. } => {
                type $nibbles = nibbles::Float;
                Some($body)
            }
            _ => None,
        }
    }};
}
pub(crate) use with_nibbles;

/// Rows of `x` in the order in which their elements meet those of a matrix.
pub(crate) struct Halves {
    /// For each block of a row the elements that meet low halves, then those that meet high ones; zeros behind the end.
    elements: Vec<bf16>,
    width: usize,
    /// Of each group of elements, for the biases; row by row, with zeros behind.
    sums: Vec<f32>,
    sums_width: usize,
}

impl Halves {
    pub(crate) fn new(x: &[bf16], w: &Matrices<'_>) -> Self {
        let Weights::Packed { scheme: Scheme { mode, group_size, .. }, .. } = w.weights else {
            return Self { elements: Vec::new(), width: 0, sums: Vec::new(), sums_width: 0 };
        };
        let inputs = w.inputs;
        let rows = x.len().checked_div(inputs).unwrap_or(0);
        let width = inputs.next_multiple_of(2 * BLOCK);
        let groups = if mode == Mode::Affine { inputs / group_size } else { 0 };
        let sums_width = groups.next_multiple_of(16);
        let (mut elements, mut sums) = (vec![bf16::ZERO; rows * width], vec![0.0; rows * sums_width]);
        for row in 0..rows {
            let x = &x[row * inputs..][..inputs];
            let blocks = elements[row * width..][..width].chunks_exact_mut(2 * BLOCK);
            for (block, x) in blocks.zip(x.chunks(2 * BLOCK)) {
                let (low, high) = block.split_at_mut(BLOCK);
                for ((low, high), pair) in low.iter_mut().zip(high).zip(x.chunks_exact(2)) {
                    (*low, *high) = (pair[0], pair[1]);
                }
            }
            for (sum, group) in sums[row * sums_width..][..groups].iter_mut().zip(x.chunks_exact(group_size))
            {
                // Side by side, which the compiler turns into vectors.
                let mut lanes = [0.0; 16];
                for part in group.chunks_exact(16) {
                    for (lane, x) in lanes.iter_mut().zip(part) {
                        *lane += f32::from_bits(u32::from(x.to_bits()) << 16);
                    }
                }
                *sum = lanes.iter().sum();
            }
        }
        Self { elements, width, sums, sums_width }
    }
}

/// The products of up to eight rows of `x` with rows of a matrix.
pub(crate) struct NibbleGemv<'a, N> {
    pub(crate) w: &'a Matrices<'a>,
    /// The first row, counted through all matrices.
    pub(crate) first: usize,
    pub(crate) x: &'a Halves,
    /// Which rows of `x`.
    pub(crate) rows: &'a [usize],
    /// `[rows, outputs]`, of as many rows of the matrix as there is room for.
    pub(crate) out: &'a mut [f32],
    pub(crate) nibbles: PhantomData<N>,
}

impl<N: Nibbles> NibbleGemv<'_, N> {
    /// # Safety
    /// The machine has the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(crate) unsafe fn run(self) {
        match self.rows.len() {
            0 => {}
            1 => self.outputs::<4, 1>(),
            2..=4 => self.outputs::<4, 4>(),
            _ => self.outputs::<2, 8>(),
        }
    }

    /// `R` rows of the matrix at a time, with `M` rows of `x`, the last of them more than once where there are fewer.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn outputs<const R: usize, const M: usize>(self) {
        let Weights::Packed { scheme, .. } = &self.w.weights else { return };
        let count = self.out.len() / self.rows.len();
        let row_bytes = self.w.inputs / 2;
        let bytes = elements(&self.w.weights);
        let row = |m: usize| self.rows[m.min(self.rows.len() - 1)];
        let x: [&[bf16]; M] =
            std::array::from_fn(|m| &self.x.elements[row(m) * self.x.width..][..self.x.width]);
        let sums: [&[f32]; M] =
            std::array::from_fn(|m| &self.x.sums[row(m) * self.x.sums_width..][..self.x.sums_width]);
        let mut groups = Groups::new::<N::Storage, Avx512>(self.w, R);
        // A lane sums pairs of elements of both vectors.
        let lanes: [i32; 16] = std::array::from_fn(|lane| (lane * 2 * BLOCK / 16 / scheme.group_size) as i32);
        // SAFETY: all sixteen are there.
        let lanes = unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) };
        for first in (0..count).step_by(R) {
            let output = |r: usize| self.first + (first + r).min(count - 1);
            let rows: [&[u8]; R] = std::array::from_fn(|r| &bytes[output(r) * row_bytes..][..row_bytes]);
            groups.read::<Avx512, R>(&self.w.weights, std::array::from_fn(output));
            let mut totals = [[_mm512_setzero_ps(); M]; R];
            for (index, start) in (0..row_bytes).step_by(BLOCK).enumerate() {
                // The last block may be half of one, in whole words of four bytes.
                let mask = ((1_u64 << ((row_bytes - start).min(BLOCK) / 4)) - 1) as u8;
                let group = index * 2 * BLOCK / scheme.group_size;
                // SAFETY: the mask keeps reads within the row; rows of x have two vectors for each block, and groups padding
                // behind the last; a fetch may be of any address.
                unsafe {
                    for r in 0..R {
                        let from = rows[r].as_ptr().add(start);
                        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD).cast());
                        let words = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi32(mask, from.cast()));
                        let [low, high] = N::values(words);
                        let scale = _mm512_permutexvar_ps(
                            lanes,
                            _mm512_loadu_ps(groups.scales(r).as_ptr().add(group)),
                        );
                        for m in 0..M {
                            let x = x[m].as_ptr().add(2 * index * BLOCK);
                            let part = dot(_mm512_setzero_ps(), low, x);
                            let part = dot(part, high, x.add(BLOCK));
                            totals[r][m] = _mm512_fmadd_ps(part, scale, totals[r][m]);
                        }
                    }
                }
            }
            for (r, totals) in totals.iter_mut().enumerate() {
                for (m, total) in totals.iter_mut().enumerate() {
                    if groups.biased {
                        for (index, sums) in sums[m].chunks_exact(16).enumerate() {
                            // SAFETY: groups have padding to whole vectors.
                            unsafe {
                                let sums = _mm512_loadu_ps(sums.as_ptr());
                                let scales = _mm512_loadu_ps(groups.scales(r).as_ptr().add(16 * index));
                                let biases = _mm512_loadu_ps(groups.biases(r).as_ptr().add(16 * index));
                                let biases = _mm512_fnmadd_ps(scales, _mm512_set1_ps(N::EXCESS), biases);
                                *total = _mm512_fmadd_ps(biases, sums, *total);
                            }
                        }
                    }
                    if first + r < count && m < self.rows.len() {
                        self.out[m * count + first + r] = _mm512_reduce_add_ps(*total);
                    }
                }
            }
        }
    }
}

/// Adds to each lane the products of a pair.
///
/// # Safety
/// The machine has the instructions, and 32 elements are there.
#[inline(always)]
unsafe fn dot(sum: __m512, w: __m512i, x: *const bf16) -> __m512 {
    // SAFETY: the caller's; both types are 512 bits.
    unsafe {
        let x: __m512bh = std::mem::transmute(_mm512_loadu_si512(x.cast()));
        _mm512_dpbf16_ps(sum, std::mem::transmute::<__m512i, __m512bh>(w), x)
    }
}
