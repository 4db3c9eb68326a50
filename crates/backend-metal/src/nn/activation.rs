//! What stands between the two halves of a feed-forward block.

use mlx_rs::{
    Array,
    error::Result,
    ops::{erf, sigmoid},
};
use serde::Deserialize;

use crate::mlx::scalar;

/// What stands between the two halves of a feed-forward block, by the names that config.json uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum Activation {
    /// x · σ(x)
    #[serde(rename = "silu", alias = "swish")]
    Silu,
    /// x · Φ(x)
    #[serde(rename = "gelu")]
    Gelu,
    /// x · Φ(x), with tanh in place of the error function.
    #[serde(rename = "gelu_pytorch_tanh", alias = "gelu_new")]
    GeluTanh,
}

impl Activation {
    /// Element by element.
    pub(crate) fn apply(self, x: &Array) -> Result<Array> {
        let number = |value| scalar(value, x.dtype());
        match self {
            Self::Silu => x.multiply(sigmoid(x)?),
            Self::Gelu => {
                let phi = erf(x.multiply(number(std::f32::consts::FRAC_1_SQRT_2)?)?)?.add(number(1.0)?)?;
                x.multiply(phi)?.multiply(number(0.5)?)
            }
            // (1 + tanh(z)) / 2 is σ(2z), with fewer steps and roundings.
            Self::GeluTanh => {
                let double = 2.0 * (2.0 / std::f32::consts::PI).sqrt();
                let slope = x.multiply(x)?.multiply(number(0.044_715 * double)?)?.add(number(double)?)?;
                x.multiply(sigmoid(x.multiply(slope)?)?)
            }
        }
    }
}

/// How the two halves of a feed-forward block are combined.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Gating {
    /// act(gate) · up
    Glu(Activation),
    /// gate · σ(alpha · gate) · (up + 1), of halves held within ±limit; the gate from above only.
    Clamped {
        /// The steepness of the sigmoid.
        alpha: f32,
        /// The limit.
        limit: f32,
    },
}
