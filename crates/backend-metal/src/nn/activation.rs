//! Activations and gated linear units.

use mlx_rs::{
    Array,
    error::Result,
    ops::{erf, maximum, sigmoid},
};
use serde::Deserialize;

use crate::mlx::scalar;

/// Activations, by their names in config.json.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum Activation {
    /// x · σ(x)
    #[serde(rename = "silu", alias = "swish")]
    Silu,
    /// x · Φ(x)
    #[serde(rename = "gelu")]
    Gelu,
    /// x · Φ(x), with tanh instead of the error function.
    #[serde(rename = "gelu_pytorch_tanh", alias = "gelu_new")]
    GeluTanh,
    /// max(x, 0)
    #[serde(rename = "relu")]
    Relu,
    /// max(x, 0)²
    #[serde(rename = "relu2")]
    Relu2,
}

impl Activation {
    /// Applies it to each element.
    pub(crate) fn apply(self, x: &Array) -> Result<Array> {
        let number = |value| scalar(value, x.dtype());
        match self {
            Self::Relu => maximum(x, number(0.0)?),
            Self::Silu => x.multiply(sigmoid(x)?),
            Self::Gelu => {
                let phi = erf(x.multiply(number(std::f32::consts::FRAC_1_SQRT_2)?)?)?.add(number(1.0)?)?;
                x.multiply(phi)?.multiply(number(0.5)?)
            }
            Self::Relu2 => {
                let positive = maximum(x, number(0.0)?)?;
                positive.multiply(&positive)
            }
            // (1 + tanh(z)) / 2 = σ(2z), which needs fewer operations.
            Self::GeluTanh => {
                let double = 2.0 * (2.0 / std::f32::consts::PI).sqrt();
                let slope = x.multiply(x)?.multiply(number(0.044_715 * double)?)?.add(number(double)?)?;
                x.multiply(sigmoid(x.multiply(slope)?)?)
            }
        }
    }
}

/// Gated linear units: how the gate and up projections are combined.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Gating {
    /// act(gate) · up
    Glu(Activation),
    /// gpt-oss: gate · σ(alpha · gate) · (up + 1), with up clamped to ±limit and the gate to at most limit.
    Clamped {
        /// Factor inside the sigmoid.
        alpha: f32,
        /// The limit.
        limit: f32,
    },
}
