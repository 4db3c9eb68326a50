//! How gradients become steps: optimisers and the schedule of their rate.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How gradients become steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Optimizer {
    /// Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101).
    AdamW {
        /// The decay of the running means of the gradient and of its square.
        betas: [f32; 2],
        /// Added to the root of the squares' mean.
        eps: f32,
        /// The share of a weight, times the rate, that a step takes off.
        weight_decay: f32,
        /// Whether the means, which begin at zero, are corrected for it, as the paper and torch have it; MLX does not.
        bias_correction: bool,
    },
    /// Stochastic gradient descent.
    Sgd {
        /// The share of the last step that is added to the next.
        momentum: f32,
        /// The share of a weight that is added to its gradient.
        weight_decay: f32,
    },
    /// Adafactor at the given rate, with factored second moments and without a first (Shazeer & Stern 2018, arXiv 1804.04235).
    Adafactor,
}

/// How the learning rate changes after warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Schedule {
    /// It stays.
    #[default]
    Constant,
    /// It falls to nothing along half a cosine.
    Cosine,
    /// It falls to nothing in a straight line.
    Linear,
}

impl Optimizer {
    /// AdamW with betas 0.9 and 0.999, eps 1e-8, weight decay 0.01 and bias correction: torch's defaults.
    #[must_use]
    pub fn adamw() -> Self {
        Self::AdamW { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01, bias_correction: true }
    }

    /// SGD without momentum or decay.
    #[must_use]
    pub fn sgd() -> Self {
        Self::Sgd { momentum: 0.0, weight_decay: 0.0 }
    }

    /// `adamw`, `sgd` or `adafactor`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::AdamW { .. } => "adamw",
            Self::Sgd { .. } => "sgd",
            Self::Adafactor => "adafactor",
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        let share =
            |option, value: f32| check(option, value, "from 0 to less than 1", |v| (0.0..1.0).contains(&v));
        let decay = |value: f32| check("weight_decay", value, "0 or more", |v| v >= 0.0);
        match *self {
            Self::AdamW { betas: [first, second], eps, weight_decay, .. } => {
                share("betas", first)?;
                share("betas", second)?;
                check("eps", eps, "more than 0", |v| v > 0.0)?;
                decay(weight_decay)
            }
            Self::Sgd { momentum, weight_decay } => {
                share("momentum", momentum)?;
                decay(weight_decay)
            }
            Self::Adafactor => Ok(()),
        }
    }
}

impl Schedule {
    /// The share of the peak rate at `step`, from 1, of `steps`: it rises in a straight line over the first `warmup` steps, and
    /// then follows the schedule. The last step still learns.
    #[must_use]
    pub fn share(self, step: usize, steps: usize, warmup: usize) -> f64 {
        if step <= warmup {
            return step as f64 / warmup as f64;
        }
        let done = (step - 1 - warmup) as f64 / steps.saturating_sub(warmup).max(1) as f64;
        match self {
            Self::Constant => 1.0,
            Self::Cosine => 0.5 + 0.5 * (std::f64::consts::PI * done.min(1.0)).cos(),
            Self::Linear => (1.0 - done).max(0.0),
        }
    }
}

pub(super) fn check(
    option: &'static str,
    value: f32,
    expected: &str,
    ok: impl Fn(f32) -> bool,
) -> Result<()> {
    if value.is_finite() && ok(value) {
        return Ok(());
    }
    Err(Error::invalid_option(option, format!("{value}, expected {expected}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_warms_up_and_falls() {
        let shares =
            |schedule: Schedule| (1..=6).map(move |step| schedule.share(step, 6, 2)).collect::<Vec<_>>();
        assert_eq!(shares(Schedule::Constant), [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(shares(Schedule::Linear), [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]);
        let cosine = shares(Schedule::Cosine);
        assert_eq!(cosine[2], 1.0);
        assert!((cosine[4] - 0.5).abs() < 1e-12 && cosine[5] > 0.1, "{cosine:?}");
        assert_eq!(Schedule::Linear.share(1, 1, 0), 1.0);
    }
}
