//! The softmax of scores that arrive in blocks (online softmax).

use std::ops::Range;

use crate::simd::{Simd, exp, tanh};

/// The state of the softmax of each query. Earlier sums are rescaled when a larger score arrives.
pub(super) struct OnlineSoftmax {
    /// The largest score of each query so far.
    max: Vec<f32>,
    /// The sum of the weights of each query so far.
    pub(super) totals: Vec<f32>,
}

impl OnlineSoftmax {
    /// For `count` queries; `sinks` are scores without values.
    pub(super) fn new(sinks: Option<Vec<f32>>, count: usize) -> Self {
        Self {
            totals: vec![if sinks.is_some() { 1.0 } else { 0.0 }; count],
            max: sinks.unwrap_or_else(|| vec![f32::NEG_INFINITY; count]),
        }
    }

    /// Turns the `seen` scores of a query into weights, and the others into zeros. Returns the factor that earlier sums must be
    /// multiplied by.
    #[inline(always)]
    pub(super) fn update<S: Simd>(
        &mut self,
        query: usize,
        scores: &mut [f32],
        seen: Range<usize>,
        softcap: Option<f32>,
    ) -> f32 {
        let (start, end) = (seen.start / S::LANES * S::LANES, seen.end.next_multiple_of(S::LANES));
        if seen.is_empty() {
            scores.fill(0.0);
            return 1.0;
        }
        assert!(end <= scores.len(), "whole vectors of scores");
        let vectors = || (start..end).step_by(S::LANES);
        let at = scores.as_mut_ptr();
        // SAFETY: see `Isa::run`; vectors lie within the scores, by the assertion.
        unsafe {
            if let Some(cap) = softcap {
                for i in vectors() {
                    let part = S::mul(S::load(at.add(i)), S::splat(1.0 / cap));
                    S::store(at.add(i), S::mul(tanh::<S>(part), S::splat(cap)));
                }
            }
            scores[start..seen.start].fill(f32::NEG_INFINITY);
            scores[seen.end..end].fill(f32::NEG_INFINITY);
            let at = scores.as_mut_ptr();
            let mut max = S::splat(self.max[query]);
            for i in vectors() {
                max = S::max(max, S::load(at.add(i)));
            }
            let max = S::reduce_max(max);
            for i in vectors() {
                S::store(at.add(i), exp::<S>(S::sub(S::load(at.add(i)), S::splat(max))));
            }
            scores[..seen.start].fill(0.0);
            scores[seen.end..].fill(0.0);
            let at = scores.as_ptr();
            let total = vectors().fold(S::splat(0.0), |total, i| S::add(total, S::load(at.add(i))));
            // Nothing was summed before the first scores, nor is anything rescaled while the largest stays. What is no number has to show.
            let before = self.max[query];
            let stays = max.is_finite() && (before == max || before == f32::NEG_INFINITY);
            let rescale = if stays { 1.0 } else { (before - max).exp() };
            self.totals[query] = self.totals[query] * rescale + S::reduce_add(total);
            self.max[query] = max;
            rescale
        }
    }
}
