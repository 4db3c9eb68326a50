//! How rows draw their tokens.

use crate::{Error, Result, geometry::Limits};

/// How a token is drawn from the logits of a row: by the Gumbel-max trick (Gumbel 1954), from the tokens that the filters leave.
///
/// The filters act on log-probabilities at temperature 1. All of them leave a beginning of the tokens, the likeliest first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// SplitMix64 of this and of the step (Steele, Lea, Flood 2014) is the key of the noise, its upper half first: the bits of
    /// Threefry-2x32 with 20 rounds (Salmon et al. 2011), as JAX and MLX count them.
    pub seed: u64,
    /// The step of the next choice. The one after that has the next number, and so on.
    pub step: u64,
    /// Above 0.
    pub temperature: f32,
    /// Leaves the likeliest tokens until their probabilities add up to this.
    pub top_p: Option<f32>,
    /// Leaves tokens that are at least this fraction as likely as the likeliest.
    pub min_p: Option<f32>,
    /// Leaves so many tokens.
    pub top_k: Option<usize>,
}

/// Bytes of shared memory before the logits, as the source says.
const BEFORE_LOGITS: usize = 18_136;

/// Blocks of a cluster: as many as every GPU can have, or more where one block's part of the logits is too large.
const CLUSTERS: [usize; 2] = [8, 16];

impl Sampling {
    /// The likeliest token, as [`Self::words`].
    pub(crate) const GREEDY: [u32; 8] = [0; 8];

    /// `Draw`
    pub(crate) fn words(&self) -> Result<[u32; 8]> {
        if self.temperature.is_nan() || self.temperature <= 0.0 {
            return Err(Error::invalid("a temperature", self.temperature, "above 0"));
        }
        let halves = |word: u64| [word as u32, (word >> 32) as u32];
        let ([a, b], [c, d]) = (halves(self.seed), halves(self.step));
        let min_p = self.min_p.map_or(f32::NEG_INFINITY, f32::ln);
        let top_k = self.top_k.and_then(|count| u32::try_from(count.max(1)).ok()).unwrap_or(u32::MAX);
        let top_p = self.top_p.unwrap_or(1.0);
        Ok([a, b, c, d, self.temperature.to_bits(), top_p.to_bits(), min_p.to_bits(), top_k])
    }
}

/// The launch of `draw`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DrawSize {
    pub(crate) cluster: usize,
    /// Pairs of logits of a block.
    pub(crate) per: usize,
    pub(crate) shared: usize,
}

impl DrawSize {
    /// How a vocabulary is shared by a cluster.
    pub(crate) fn new(vocabulary: usize, limits: Limits) -> Result<Self> {
        let sizes = CLUSTERS.map(|cluster| {
            let per = vocabulary.div_ceil(2).div_ceil(cluster);
            Self { cluster, per, shared: BEFORE_LOGITS + 8 * per }
        });
        sizes.into_iter().find(|size| size.shared <= limits.shared).ok_or_else(|| {
            let most = 2 * CLUSTERS[1] * (limits.shared.saturating_sub(BEFORE_LOGITS) / 8);
            Error::invalid("the vocabulary", vocabulary, format!("at most {most} tokens, to draw from"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_holds_all_logits() {
        let limits = Limits { multiprocessors: 132, shared: 227 << 10 };
        for vocabulary in [1, 2, 3, 32_000, 151_936, 262_144, 262_145, 850_000] {
            let DrawSize { cluster, per, shared } = DrawSize::new(vocabulary, limits).unwrap();
            assert!(2 * cluster * per >= vocabulary && shared <= limits.shared, "{vocabulary}");
            assert_eq!(cluster, if vocabulary < 400_000 { 8 } else { 16 });
        }
        assert!(DrawSize::new(1_000_000, limits).is_err());
    }

    #[test]
    fn what_is_not_asked_for_leaves_all() {
        let sampling =
            Sampling { seed: 1 << 32 | 2, step: 3, temperature: 1.0, top_p: None, min_p: None, top_k: None };
        let one = 1.0_f32.to_bits();
        let all = [2, 1, 3, 0, one, one, f32::NEG_INFINITY.to_bits(), u32::MAX];
        assert_eq!(sampling.words().unwrap(), all);
        let few = Sampling { top_p: Some(0.5), min_p: Some(1.0), top_k: Some(0), ..sampling };
        assert_eq!(few.words().unwrap()[5..], [0.5_f32.to_bits(), 0.0_f32.to_bits(), 1]);
        for temperature in [0.0, -1.0, f32::NAN] {
            assert!(Sampling { temperature, ..sampling }.words().is_err());
        }
    }
}
