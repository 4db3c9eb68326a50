//! The gated MLP.

use cuda_kernels::MlpSpec;
use inference_core::Result as LoadResult;
use mlx_rs::{
    Array,
    error::Result,
    ops::{maximum, minimum, sigmoid},
};

use super::{
    activation::{Activation, Gating},
    cpu::{self, Halves, Recorded, Recording, Value},
    cuda::{SpecBuilder, Unsupported, fused},
    dimensions::Dimensions,
    exec::ExecMode,
    linear::{Linear, Projections},
    weights::Weights,
};
use crate::mlx::{every, recomputed, scalar, slice};

impl Gating {
    /// Combines gate and up from one array, `[.., 2 · size]`: gates first, or `interleaved`.
    pub(crate) fn apply_joined(self, joined: &Array, interleaved: bool) -> Result<Array> {
        let halves = if interleaved { Halves::Interleaved(joined) } else { Halves::Joined(joined) };
        if let Some(gated) = cpu::glu(halves, self) {
            return gated;
        }
        if let Some(gated) = fused::glu(joined, self, interleaved) {
            return gated;
        }
        if !interleaved {
            let middle = joined.dim(-1) / 2;
            let [gate, up] = [
                slice(joined, joined.ndim() - 1, 0, middle)?,
                slice(joined, joined.ndim() - 1, middle, 2 * middle)?,
            ];
            return self.apply(&gate, &up);
        }
        let half = |index| every(joined, joined.ndim() - 1, index, 2);
        self.apply(&half(0)?, &half(1)?)
    }

    /// Combines gate and up, `[.., size]` each.
    pub(crate) fn apply(self, gate: &Array, up: &Array) -> Result<Array> {
        if let Some(gated) = cpu::glu(Halves::Apart(gate, up), self) {
            return gated;
        }
        if ExecMode::current() == ExecMode::MlxDifferentiable {
            // Sizes of intermediates add up over layers, and on a GPU they are cheap to compute.
            return recomputed(&[gate.clone(), up.clone()], move |x| self.combine(&x[0], &x[1]));
        }
        self.combine(gate, up)
    }

    fn combine(self, gate: &Array, up: &Array) -> Result<Array> {
        match self {
            Self::Glu(activation) => activation.apply(gate)?.multiply(up),
            Self::Clamped { alpha, limit } => {
                let number = |value| scalar(value, gate.dtype());
                let gate = minimum(gate, number(limit)?)?;
                let up = maximum(minimum(up, number(limit)?)?, number(-limit)?)?;
                let gated = gate.multiply(sigmoid(gate.multiply(number(alpha)?)?)?)?;
                gated.multiply(up.add(number(1.0)?)?)
            }
        }
    }
}

/// down(act(up(x)))
#[derive(Debug, Clone)]
pub(crate) struct PlainMlp {
    up_proj: Linear,
    down_proj: Linear,
    activation: Activation,
}

impl PlainMlp {
    /// The MLP at `weights`, whose projections have these names.
    pub(crate) fn load(
        weights: &Weights<'_>,
        [up, down]: [&str; 2],
        dims: &Dimensions,
        bias: bool,
    ) -> LoadResult<Self> {
        let (hidden, intermediate) = (dims.hidden_size, dims.intermediate_size);
        Ok(Self {
            up_proj: Linear::load(&weights.at(up), intermediate, hidden, bias)?,
            down_proj: Linear::load(&weights.at(down), hidden, intermediate, bias)?,
            activation: dims.hidden_act,
        })
    }

    /// `[B, T, hidden]` → the same
    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        let up = self.up_proj.forward(x)?;
        let activated = match cpu::activate(&up, self.activation) {
            Some(activated) => activated?,
            None => self.activation.apply(&up)?,
        };
        self.down_proj.forward(&activated)
    }

    /// The same in a recording, where that can be.
    pub(crate) fn record(&self, x: Value, recording: &mut Recording<'_, '_>) -> Recorded {
        let up = recording.linear(x, &self.up_proj)?;
        let activated = recording.activate(up, self.activation)?;
        recording.linear(activated, &self.down_proj)
    }
}

/// down(act(gate(x)) · up(x))
#[derive(Debug, Clone)]
pub(crate) struct GatedMlp {
    gate_up_proj: Projections,
    down_proj: Linear,
    gating: Gating,
}

impl GatedMlp {
    /// The MLP at `weights`: `gate_proj` and `up_proj`, or a fused `gate_up_proj`, and `down_proj`.
    pub(crate) fn load(weights: &Weights<'_>, dims: &Dimensions, bias: bool) -> LoadResult<Self> {
        let (hidden, intermediate) = (dims.hidden_size, dims.intermediate_size);
        let names = [("gate_proj", intermediate), ("up_proj", intermediate)];
        Ok(Self {
            gate_up_proj: Projections::load(weights, "gate_up_proj", names, hidden, bias)?,
            down_proj: Linear::load(&weights.at("down_proj"), hidden, intermediate, bias)?,
            gating: Gating::Glu(dims.hidden_act),
        })
    }

    /// The same with other names of gate, up and down.
    pub(crate) fn load_named(
        weights: &Weights<'_>,
        [gate, up, down]: [&str; 3],
        dims: &Dimensions,
    ) -> LoadResult<Self> {
        let (hidden, intermediate) = (dims.hidden_size, dims.intermediate_size);
        let names = [(gate, intermediate), (up, intermediate)];
        Ok(Self {
            gate_up_proj: Projections::load(weights, "gate_up_proj", names, hidden, false)?,
            down_proj: Linear::load(&weights.at(down), hidden, intermediate, false)?,
            gating: Gating::Glu(dims.hidden_act),
        })
    }

    /// The same with gate and up in one projection: the names of that and of down.
    pub(crate) fn load_fused(
        weights: &Weights<'_>,
        [gate_up, down]: [&str; 2],
        dims: &Dimensions,
    ) -> LoadResult<Self> {
        let (hidden, intermediate) = (dims.hidden_size, dims.intermediate_size);
        let names = [("gate_proj", intermediate), ("up_proj", intermediate)];
        Ok(Self {
            gate_up_proj: Projections::load(weights, gate_up, names, hidden, false)?,
            down_proj: Linear::load(&weights.at(down), hidden, intermediate, false)?,
            gating: Gating::Glu(dims.hidden_act),
        })
    }

    /// The same of another width.
    pub(crate) fn load_sized(
        weights: &Weights<'_>,
        dims: &Dimensions,
        intermediate_size: usize,
    ) -> LoadResult<Self> {
        Self::load(weights, &Dimensions { intermediate_size, ..dims.clone() }, false)
    }

    /// What the kernels of CUDA need to know.
    pub(crate) fn describe(&self, builder: &mut SpecBuilder) -> std::result::Result<MlpSpec, Unsupported> {
        let cuda_kernels::Gating::Glu(activation) = builder.gating(self.gating)? else {
            return Err(Unsupported("a feed-forward part with clamped gates".to_owned()));
        };
        let gate_up = builder.projections(&self.gate_up_proj)?;
        Ok(MlpSpec { gate_up, down: builder.linear(&self.down_proj)?, activation })
    }

    /// `[B, T, hidden]` → the same
    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        if let Some(joined) = self.gate_up_proj.joined()
            && (ExecMode::current() == ExecMode::CpuKernels || fused::is_in_use())
        {
            return self.down_proj.forward(&self.gating.apply_joined(&joined.forward(x)?, false)?);
        }
        let [gate, up] = self.gate_up_proj.forward(x)?;
        self.down_proj.forward(&self.gating.apply(&gate, &up)?)
    }

    /// The same in a recording, where that can be.
    pub(crate) fn record(&self, x: Value, recording: &mut Recording<'_, '_>) -> Recorded {
        let halves = recording.project(x, &self.gate_up_proj)?;
        let gated = recording.glu(halves, self.gating)?;
        recording.linear(gated, &self.down_proj)
    }
}
