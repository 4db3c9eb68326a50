//! Rows of `x`, prepared for the bf16 dot products.

use std::arch::x86_64::*;

use half::bf16;

use super::unpack::{BF16_BLOCK, Bf16Dot, dot};
use crate::{
    operand::{Matrices, Weights},
    quantization::{QuantMode, Quantization},
};

/// Rows of `x`, reordered to match the unpacked blocks of a matrix.
pub(crate) struct Bf16Rows {
    /// `[rows, width]`, in whole blocks, with zeros behind the end.
    pub(super) elements: Vec<bf16>,
    pub(super) width: usize,
    /// The sum of each group of elements, which the biases are multiplied with: `[rows, sums_width]`, with zeros behind.
    pub(super) sums: Vec<f32>,
    pub(super) sums_width: usize,
}

impl Bf16Rows {
    /// All rows of `x`, for matrices like `w`.
    ///
    /// # Safety
    /// The machine has AVX-512 bf16.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(crate) unsafe fn new<P: Bf16Dot>(x: &[bf16], w: &Matrices<'_>) -> Self {
        let inputs = w.inputs;
        let rows = x.len().checked_div(inputs).unwrap_or(0);
        let width = inputs.next_multiple_of(BF16_BLOCK);
        let group_size = match w.weights {
            Weights::Quantized {
                quantization: Quantization { mode: QuantMode::Affine, group_size, .. },
                ..
            } => group_size,
            _ => usize::MAX,
        };
        let groups = inputs / group_size;
        let sums_width = groups.next_multiple_of(16);
        let (mut elements, mut sums) = (vec![bf16::ZERO; rows * width], vec![0.0; rows * sums_width]);
        for row in 0..rows {
            let x = &x[row * inputs..][..inputs];
            // SAFETY: the caller's.
            unsafe {
                permute_bf16_row::<P>(x, &mut elements[row * width..][..width]);
                sum_groups(x, group_size, &mut sums[row * sums_width..][..groups]);
            }
        }
        Self { elements, width, sums, sums_width }
    }
}

/// Reorders a row of `x` to the order of `P`, in whole blocks, with zeros behind the end.
///
/// # Safety
/// The machine has AVX-512 bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn permute_bf16_row<P: Bf16Dot>(x: &[bf16], out: &mut [bf16]) {
    for (to, from) in out.chunks_exact_mut(BF16_BLOCK).zip(x.chunks(BF16_BLOCK)) {
        let mut padded = [bf16::ZERO; BF16_BLOCK];
        let from = if from.len() == BF16_BLOCK {
            from
        } else {
            padded[..from.len()].copy_from_slice(from);
            &padded
        };
        // SAFETY: the caller's; both blocks, and the order, are two vectors long.
        unsafe {
            let low = _mm512_loadu_si512(from.as_ptr().cast());
            let high = _mm512_loadu_si512(from.as_ptr().add(32).cast());
            for at in [0, 32] {
                let order = _mm512_loadu_si512(P::ORDER.as_ptr().add(at).cast());
                let part = _mm512_permutex2var_epi16(low, order, high);
                _mm512_storeu_si512(to.as_mut_ptr().add(at).cast(), part);
            }
        }
    }
}

/// Sums groups of a row of `x`, as many as `sums` has room for. A group consists of whole vectors.
///
/// # Safety
/// The machine has AVX-512 bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn sum_groups(x: &[bf16], group_size: usize, sums: &mut [f32]) {
    let one = _mm512_set1_epi16(0x3f80);
    for (sum, group) in sums.iter_mut().zip(x.chunks_exact(group_size)) {
        let mut total = _mm512_setzero_ps();
        for part in group.chunks_exact(32) {
            // SAFETY: the caller's; the part is a vector.
            total = unsafe { dot(total, one, part.as_ptr()) };
        }
        *sum = _mm512_reduce_add_ps(total);
    }
}
