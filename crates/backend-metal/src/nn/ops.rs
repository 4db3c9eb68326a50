//! Operations that the CPU's kernels or MLX compute, by the execution mode.

use mlx_rs::{Array, error::Result, ops};

use super::cpu::{self, Draw};

/// The index of the largest element of the last axis, u32: `[.., n]` → `[..]`.
pub(crate) fn argmax(x: &Array) -> Result<Array> {
    cpu::argmax(x).unwrap_or_else(|| ops::indexing::argmax_axis(x, -1, false))
}

/// The index of the largest element of each row, u32, and a number that is finite where the row has no NaN and its largest element
/// is finite, f32: `[B, n]` → `[B]`, `[B]`.
pub(crate) fn argmax_with_score(x: &Array) -> Result<(Array, Array)> {
    let Some(ids) = cpu::argmax(x) else {
        let ids = ops::indexing::argmax_axis(x, -1, false)?;
        return Ok((ids, ops::logsumexp_axis(x, -1, false)?.as_type::<f32>()?));
    };
    // Our kernel takes NaN for the largest.
    let ids = ids?;
    let score = x.take_along_axis(ids.reshape(&[-1, 1])?, -1)?.reshape(&[-1])?;
    Ok((ids, score.as_type::<f32>()?))
}

/// Logits `[B, V]` without the tokens that rows may not have, which are −∞: for each row a bit for each token, 32 a word, the lowest first,
/// or all.
pub(crate) fn ban(logits: &Array, allowed: &[Option<Vec<u32>>]) -> Result<Array> {
    if let Some(banned) = cpu::ban(logits, allowed) {
        return banned;
    }
    let width = logits.dim(-1) as usize;
    let mut all = Vec::with_capacity(allowed.len() * width);
    for words in allowed {
        let end = all.len() + width;
        match words {
            Some(words) => words.iter().for_each(|word| push_bits(*word, &mut all)),
            None => all.resize(end, true),
        }
        // The last word may go on behind the vocabulary, and logits behind the mask.
        all.resize(end, false);
    }
    let all = Array::from_slice(&all, logits.shape());
    ops::select(&all, logits, &Array::from_f32(f32::NEG_INFINITY).as_dtype(logits.dtype())?)
}

/// Pushes the bits of a word of a mask, the lowest first. Most words allow all of their tokens or none.
fn push_bits(word: u32, allowed: &mut Vec<bool>) {
    match word {
        0 => allowed.extend_from_slice(&[false; 32]),
        u32::MAX => allowed.extend_from_slice(&[true; 32]),
        _ => allowed.extend((0..32).map(|bit| word >> bit & 1 == 1)),
    }
}

/// Draws a token of each row of logits, u32, with its log-probability, f32: `[B, V]` → `[B]`, `[B]`. `None` where the CPU's kernels do not
/// compute.
pub(crate) fn draw(logits: &Array, draws: Vec<Draw>) -> Option<Result<[Array; 2]>> {
    cpu::draw(logits, draws)
}

/// `x · w`, `[.., in]`, `[in, out]` → `[.., out]`, with gradients by both.
pub(super) fn matmul(x: &Array, w: &Array) -> Result<Array> {
    cpu::matmul_differentiable(x, w).unwrap_or_else(|| x.matmul(w))
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Device, with_device};

    use super::{super::exec::ExecMode, *};

    #[test]
    fn banned_tokens_have_no_logit_in_any_mode() {
        with_device(Device::cpu(), || {
            let logits = Array::from_slice(&[1.0_f32; 3 * 40], &[3, 40]);
            let allowed = [Some(vec![u32::MAX, 0b101]), None, Some(vec![0b1000])];
            for mode in [ExecMode::CpuKernels, ExecMode::Mlx] {
                let banned = mode.scope(|| ban(&logits, &allowed)).unwrap().to_vec_exact::<f32>().unwrap();
                let left = |row: usize| (0..40).filter(|id| banned[row * 40 + id] == 1.0).collect::<Vec<_>>();
                assert_eq!(left(0), (0..33).chain([34]).collect::<Vec<_>>());
                assert_eq!((left(1).len(), left(2)), (40, vec![3]));
                assert_eq!(logits.to_vec_exact::<f32>().unwrap(), [1.0; 120], "the logits stay");
            }
        });
    }
}
