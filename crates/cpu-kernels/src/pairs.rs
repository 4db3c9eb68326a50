//! Products of a few rows of bf16 with many rows of a matrix whose elements bf16 holds exactly, before they are scaled: pairs
//! of them are multiplied at once. Integers of 4 bits become the highest digits of a number whose exponent is fixed, which
//! takes one instruction; what that adds to each element is taken back with the bias.

use std::{arch::x86_64::*, marker::PhantomData};

use half::bf16;

use crate::{
    Matrices, Mode, Scheme, Weights,
    gemv::{AHEAD, Groups, elements},
    simd::{Simd as _, avx512::Avx512},
    storage::{Dense, Fp4, Storage, Whole},
    unpack::FP4,
};

/// Elements that are unpacked at once: two vectors.
pub(crate) const BLOCK: usize = 64;
/// Bytes of the largest block.
pub(crate) const LARGEST: usize = 2 * BLOCK;
/// Rows whose scales are widened at once.
const AT_ONCE: usize = 8;

/// How the elements of a block become two vectors of bf16.
pub(crate) trait Pairs: Copy + Send + Sync + 'static {
    /// The storage of the same matrices.
    type Storage: Storage;
    /// Bytes of a block.
    const BYTES: usize = BLOCK * Self::Storage::BITS / 8;
    /// Whether groups of elements have a scale.
    const SCALED: bool = Self::Storage::SCALED;
    /// What each element is too large by.
    const EXCESS: f32 = 0.0;
    /// Which element of a block is where. Where groups have a scale, a lane holds four neighbours, pairs in each vector.
    const ORDER: [u16; BLOCK];

    /// # Safety
    /// The machine has the instructions, and the block is whole.
    unsafe fn values(from: *const u8) -> [__m512i; 2];
}

/// Integers of 4 bits, two in a byte.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nibble;
/// Floats of 4 bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Float;
/// Integers of 8 bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Byte;
/// bf16 itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Brain;

/// A lane's pair in the first vector and the one in the second, of its four elements.
const fn order(pairs: [[u16; 2]; 2]) -> [u16; BLOCK] {
    let mut order = [0; BLOCK];
    let mut at = 0;
    while at < BLOCK {
        order[at] = (at % 32 / 2 * 4) as u16 + pairs[at / 32][at % 2];
        at += 1;
    }
    order
}

/// The halves of bytes, widened to words: the lower ones, then the higher ones.
const HALVES: [u16; BLOCK] = order([[0, 2], [1, 3]]);

#[allow(clippy::undocumented_unsafe_blocks, reason = "the trait's contract is that of what it calls")]
impl Pairs for Nibble {
    type Storage = Whole<4>;
    const EXCESS: f32 = 16.0;
    const ORDER: [u16; BLOCK] = HALVES;

    #[inline(always)]
    unsafe fn values(from: *const u8) -> [__m512i; 2] {
        unsafe {
            let words = _mm512_cvtepu8_epi16(_mm256_loadu_si256(from.cast()));
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
impl Pairs for Float {
    type Storage = Fp4;
    const ORDER: [u16; BLOCK] = HALVES;

    #[inline(always)]
    unsafe fn values(from: *const u8) -> [__m512i; 2] {
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
            let words = _mm512_cvtepu8_epi16(_mm256_loadu_si256(from.cast()));
            let table = _mm512_loadu_si512(TABLE.as_ptr().cast());
            let high = _mm512_srli_epi16::<4>(words);
            [_mm512_permutexvar_epi16(words, table), _mm512_permutexvar_epi16(high, table)]
        }
    }
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "the trait's contract is that of what it calls")]
impl Pairs for Byte {
    type Storage = Whole<8>;
    const ORDER: [u16; BLOCK] = order([[0, 1], [2, 3]]);

    #[inline(always)]
    unsafe fn values(from: *const u8) -> [__m512i; 2] {
        unsafe {
            let words = _mm512_loadu_si512(from.cast());
            let byte = _mm512_set1_epi32(0xff);
            // The upper halves of the numbers are all of them.
            let number = |code| _mm512_castps_si512(_mm512_cvtepi32_ps(code));
            let pair = |low, high| _mm512_or_si512(_mm512_srli_epi32::<16>(number(low)), number(high));
            [
                pair(_mm512_and_si512(words, byte), _mm512_and_si512(_mm512_srli_epi32::<8>(words), byte)),
                pair(_mm512_and_si512(_mm512_srli_epi32::<16>(words), byte), _mm512_srli_epi32::<24>(words)),
            ]
        }
    }
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "the trait's contract is that of what it calls")]
impl Pairs for Brain {
    type Storage = Dense<bf16>;
    const ORDER: [u16; BLOCK] = {
        let mut order = [0; BLOCK];
        let mut at = 0;
        while at < BLOCK {
            order[at] = at as u16;
            at += 1;
        }
        order
    };

    #[inline(always)]
    unsafe fn values(from: *const u8) -> [__m512i; 2] {
        unsafe { [_mm512_loadu_si512(from.cast()), _mm512_loadu_si512(from.add(64).cast())] }
    }
}

/// Runs `$body` with the type `$pairs` bound to how such weights are unpacked here, where they are.
macro_rules! with_pairs {
    ($weights:expr, $pairs:ident => $body:expr) => {{
        use $crate::{Floats, Mode, Scheme, Weights, pairs};
        match $weights {
            Weights::Packed { scheme: Scheme { mode: Mode::Affine, bits: 4, .. }, .. } => {
                type $pairs = pairs::Nibble;
                Some($body)
            }
            Weights::Packed { scheme: Scheme { mode: Mode::Affine, bits: 8, .. }, .. } => {
                type $pairs = pairs::Byte;
                Some($body)
            }
            Weights::Packed { scheme: Scheme { mode: Mode::Mxfp4 | Mode::Nvfp4, .. }, .. } => {
                type $pairs = pairs::Float;
                Some($body)
            }
            Weights::Dense(Floats::Bf16(_)) => {
                type $pairs = pairs::Brain;
                Some($body)
            }
            _ => None,
        }
    }};
}
pub(crate) use with_pairs;

/// Rows of `x` in the order in which their elements meet those of a matrix.
pub(crate) struct PairedRows {
    /// Row by row, in whole blocks, with zeros behind the end.
    elements: Vec<bf16>,
    width: usize,
    /// Of each group of elements, for the biases; row by row, with zeros behind.
    sums: Vec<f32>,
    sums_width: usize,
}

impl PairedRows {
    /// Of rows `x`, for matrices like `w`.
    ///
    /// # Safety
    /// The machine has the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(crate) unsafe fn new<P: Pairs>(x: &[bf16], w: &Matrices<'_>) -> Self {
        let inputs = w.inputs;
        let rows = x.len().checked_div(inputs).unwrap_or(0);
        let width = inputs.next_multiple_of(BLOCK);
        let group_size = match w.weights {
            Weights::Packed { scheme: Scheme { mode: Mode::Affine, group_size, .. }, .. } => group_size,
            _ => usize::MAX,
        };
        let groups = inputs / group_size;
        let sums_width = groups.next_multiple_of(16);
        let (mut elements, mut sums) = (vec![bf16::ZERO; rows * width], vec![0.0; rows * sums_width]);
        for row in 0..rows {
            let x = &x[row * inputs..][..inputs];
            // SAFETY: the machine has the instructions.
            unsafe {
                arrange::<P>(x, &mut elements[row * width..][..width]);
                sum_groups(x, group_size, &mut sums[row * sums_width..][..groups]);
            }
        }
        Self { elements, width, sums, sums_width }
    }
}

/// A row of `x` in the order of `P`, in whole blocks, with zeros behind the end.
///
/// # Safety
/// The machine has the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn arrange<P: Pairs>(x: &[bf16], out: &mut [bf16]) {
    for (to, from) in out.chunks_exact_mut(BLOCK).zip(x.chunks(BLOCK)) {
        let mut padded = [bf16::ZERO; BLOCK];
        let from = if from.len() == BLOCK {
            from
        } else {
            padded[..from.len()].copy_from_slice(from);
            &padded
        };
        // SAFETY: both are two vectors long, and so is the order.
        unsafe {
            let halves = [0, 32].map(|at| _mm512_loadu_si512(from.as_ptr().add(at).cast()));
            for at in [0, 32] {
                let order = _mm512_loadu_si512(P::ORDER.as_ptr().add(at).cast());
                let part = _mm512_permutex2var_epi16(halves[0], order, halves[1]);
                _mm512_storeu_si512(to.as_mut_ptr().add(at).cast(), part);
            }
        }
    }
}

/// The sums of whole groups of a row of `x`, as many as there is room for. Groups are made of vectors.
///
/// # Safety
/// The machine has the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn sum_groups(x: &[bf16], group_size: usize, sums: &mut [f32]) {
    let one = _mm512_set1_epi16(0x3f80);
    for (sum, group) in sums.iter_mut().zip(x.chunks_exact(group_size)) {
        let mut total = _mm512_setzero_ps();
        for part in group.chunks_exact(32) {
            // SAFETY: the part is a vector.
            total = unsafe { dot(total, one, part.as_ptr()) };
        }
        *sum = _mm512_reduce_add_ps(total);
    }
}

/// The products of up to eight rows of `x` with rows of a matrix.
pub(crate) struct PairGemv<'a, P> {
    pub(crate) w: &'a Matrices<'a>,
    /// The first row, counted through all matrices.
    pub(crate) first: usize,
    pub(crate) x: &'a PairedRows,
    /// Which rows of `x`.
    pub(crate) rows: &'a [usize],
    /// `[rows, outputs]`, of as many rows of the matrix as there is room for.
    pub(crate) out: &'a mut [f32],
    pub(crate) pairs: PhantomData<P>,
}

impl<P: Pairs> PairGemv<'_, P> {
    /// # Safety
    /// The machine has the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(crate) unsafe fn run(self) {
        let group_size = match &self.w.weights {
            Weights::Packed { scheme, .. } => scheme.group_size,
            Weights::Dense(_) => BLOCK,
        };
        match group_size / BLOCK {
            0 => self.groups::<0>(group_size),
            1 => self.groups::<1>(group_size),
            _ => self.groups::<2>(group_size),
        }
    }

    /// `SPAN` blocks are of one group, or 0 where a block is of several.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn groups<const SPAN: usize>(self, group_size: usize) {
        match self.rows.len() {
            0 => {}
            1 => self.outputs::<1, SPAN>(group_size),
            2 => self.outputs::<2, SPAN>(group_size),
            3..=4 => self.outputs::<4, SPAN>(group_size),
            _ => self.outputs::<8, SPAN>(group_size),
        }
    }

    /// One row of the matrix after the other, as they lie in memory, which is read fastest so: each with `M` rows of `x`, the
    /// last of them more than once where there are fewer.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn outputs<const M: usize, const SPAN: usize>(self, group_size: usize) {
        let count = self.out.len() / self.rows.len();
        let row_bytes = self.w.inputs * P::Storage::BITS / 8;
        let bytes = elements(&self.w.weights);
        let row = |m: usize| self.rows[m.min(self.rows.len() - 1)];
        let x: [&[bf16]; M] =
            std::array::from_fn(|m| &self.x.elements[row(m) * self.x.width..][..self.x.width]);
        let sums: [&[f32]; M] =
            std::array::from_fn(|m| &self.x.sums[row(m) * self.x.sums_width..][..self.x.sums_width]);
        let mut groups = Groups::new::<P::Storage, Avx512>(self.w, AT_ONCE);
        // A lane sums four elements.
        let lanes: [i32; 16] = std::array::from_fn(|lane| (lane * 4 / group_size) as i32);
        // SAFETY: all sixteen are there.
        let lanes = unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) };
        for output in 0..count {
            if output.is_multiple_of(AT_ONCE) {
                groups.fill::<Avx512>(self.w, self.first + output, AT_ONCE.min(count - output));
            }
            groups.fetch::<Avx512>(self.w, self.first + output + AT_ONCE);
            let scales = groups.scales(output % AT_ONCE);
            let from = &bytes[(self.first + output) * row_bytes..][..row_bytes];
            let mut step = Step::<M, SPAN> {
                x: x.map(<[_]>::as_ptr),
                scales: scales.as_ptr(),
                lanes,
                // It is a power of two.
                group_bits: group_size.trailing_zeros(),
                totals: [[_mm512_setzero_ps(); 2]; M],
            };
            if groups.biased {
                let biases = groups.biases(output % AT_ONCE);
                for (m, sums) in sums.iter().enumerate() {
                    for (index, sums) in sums.chunks_exact(16).enumerate() {
                        // SAFETY: groups have padding to whole vectors.
                        unsafe {
                            let scales = _mm512_loadu_ps(scales.as_ptr().add(16 * index));
                            let biases = _mm512_loadu_ps(biases.as_ptr().add(16 * index));
                            let biases = _mm512_fnmadd_ps(scales, _mm512_set1_ps(P::EXCESS), biases);
                            let sums = _mm512_loadu_ps(sums.as_ptr());
                            step.totals[m][0] = _mm512_fmadd_ps(biases, sums, step.totals[m][0]);
                        }
                    }
                }
            }
            let whole = row_bytes / P::BYTES;
            // SAFETY: blocks up to this number are whole and within the row; rows of x have as many, and groups padding behind
            // the last. A fetch may be of any address.
            unsafe {
                let block = |index: usize| from.as_ptr().wrapping_add(index * P::BYTES);
                for index in (0..whole & !1).step_by(2) {
                    for line in (0..2 * P::BYTES).step_by(64) {
                        Avx512::prefetch(block(index).wrapping_add(AHEAD + line));
                    }
                    step.add::<P>(index, block(index), 0);
                    step.add::<P>(index + 1, block(index + 1), 1);
                }
                if !whole.is_multiple_of(2) {
                    step.add::<P>(whole - 1, block(whole - 1), 0);
                }
                if !row_bytes.is_multiple_of(P::BYTES) {
                    // What remains is copied to where zeros follow it.
                    let mut rest = [0_u8; LARGEST];
                    rest[..row_bytes % P::BYTES].copy_from_slice(&from[whole * P::BYTES..]);
                    step.add::<P>(whole, rest.as_ptr(), 0);
                }
            }
            for (m, [even, odd]) in step.totals.into_iter().enumerate().take(self.rows.len()) {
                self.out[m * count + output] = _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
            }
        }
    }
}

/// Products of a block of a row of a matrix with `M` rows of `x`.
struct Step<const M: usize, const SPAN: usize> {
    x: [*const bf16; M],
    scales: *const f32,
    /// The group of each lane, counted from that of the first.
    lanes: __m512i,
    /// Elements of a group are this power of two.
    group_bits: u32,
    /// Two for each row of `x`, so that a sum does not wait for the one before it.
    totals: [[__m512; 2]; M],
}

impl<const M: usize, const SPAN: usize> Step<M, SPAN> {
    /// Adds those of block `index` to the totals of this parity.
    ///
    /// # Safety
    /// The machine has the instructions; the block is whole, rows of `x` have as many, and groups padding behind the last.
    #[inline(always)]
    unsafe fn add<P: Pairs>(&mut self, index: usize, from: *const u8, parity: usize) {
        // SAFETY: the caller's.
        unsafe {
            let values = P::values(from);
            let scale = match SPAN {
                _ if !P::SCALED => _mm512_setzero_ps(),
                0 => {
                    let group = self.scales.add((index * BLOCK) >> self.group_bits);
                    _mm512_permutexvar_ps(self.lanes, _mm512_loadu_ps(group))
                }
                _ => _mm512_set1_ps(*self.scales.add(index / SPAN)),
            };
            for m in 0..M {
                let x = self.x[m].add(index * BLOCK);
                let totals = &mut self.totals[m];
                if P::SCALED {
                    let sum = dot(dot(_mm512_setzero_ps(), values[0], x), values[1], x.add(32));
                    totals[parity] = _mm512_fmadd_ps(sum, scale, totals[parity]);
                } else {
                    *totals = [dot(totals[0], values[0], x), dot(totals[1], values[1], x.add(32))];
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
pub(crate) unsafe fn dot(sum: __m512, w: __m512i, x: *const bf16) -> __m512 {
    // SAFETY: the caller's; both types are 512 bits.
    unsafe {
        let x: __m512bh = std::mem::transmute(_mm512_loadu_si512(x.cast()));
        _mm512_dpbf16_ps(sum, std::mem::transmute::<__m512i, __m512bh>(w), x)
    }
}
