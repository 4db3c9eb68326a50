//! Feed-forward blocks, dense and of experts.

use cuda_kernels::{
    Activation, Buffer, Device, DevicePtr, ExpertsSpec, FeedForwardSpec, Gating, Layout, MlpSpec, Result,
    RoutingSpec, Scoring, SharedExpertSpec, Stack, Weight,
};
use rand::{RngExt as _, rngs::StdRng};

use crate::{decoder::Shape, matrix::Matrix};

const SCALE: f32 = 1.25;
const EPSILON: f32 = 1e-20;
const ALPHA: f32 = 1.702;
const LIMIT: f32 = 0.75;
/// Scores that are closer may be told apart otherwise where inputs are rounded.
const CLOSE: f64 = 0.02;

/// The shape of a mixture of experts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Experts {
    pub(crate) count: usize,
    pub(crate) top_k: usize,
    pub(crate) scoring: Scoring,
    /// Whether the choice has a bias.
    pub(crate) biased: bool,
    pub(crate) normalize: bool,
    pub(crate) stored: Stored,
    /// Whether gates are those of gpt-oss.
    pub(crate) clamped: bool,
    pub(crate) shared: Option<Shared>,
}

/// How gates and ups lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    Separate,
    Joined,
    Interleaved,
}

/// A shared expert.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shared {
    pub(crate) width: usize,
    pub(crate) gate: Option<Layout>,
}

impl Default for Experts {
    fn default() -> Self {
        Self {
            count: 16,
            top_k: 4,
            scoring: Scoring::Softmax,
            biased: false,
            normalize: true,
            stored: Stored::Joined,
            clamped: false,
            shared: None,
        }
    }
}

/// A block in both places.
pub(crate) enum FeedForward {
    Dense(Box<Mlp>),
    Experts(Box<Mixture>),
}

pub(crate) struct Mlp {
    gate_up: [Matrix; 2],
    down: Matrix,
}

pub(crate) struct Mixture {
    shape: Experts,
    router: Matrix,
    bias: Option<(Vec<f64>, Buffer)>,
    /// Rows of all experts; without those of ups, where gates have them.
    gates: Matrix,
    ups: Option<Matrix>,
    downs: Matrix,
    shared: Option<(Mlp, Option<Matrix>)>,
}

impl Mlp {
    fn random(device: &Device, rng: &mut StdRng, shape: &Shape, width: usize, bias: bool) -> Result<Self> {
        let Shape { half, hidden, layouts, .. } = *shape;
        let mut matrix = |size| Matrix::random(device, rng, half, layouts[1], size, bias);
        let gate_up = [matrix([width, hidden])?, matrix([width, hidden])?];
        Ok(Self { gate_up, down: matrix([hidden, width])? })
    }

    fn spec(&self, shape: &Shape) -> MlpSpec {
        MlpSpec {
            gate_up: self.gate_up.each_ref().map(|matrix| matrix.weight),
            down: self.down.weight,
            activation: shape.activation,
        }
    }

    /// What is between up and down.
    fn gated(&self, shape: &Shape, h: &[f64]) -> Vec<f64> {
        let [gate, up] = self.gate_up.each_ref().map(|matrix| matrix.multiply(h));
        gate.iter().zip(&up).map(|(&gate, up)| activate(shape.activation, gate) * up).collect()
    }
}

impl FeedForward {
    pub(crate) fn random(
        device: &Device,
        rng: &mut StdRng,
        shape: &Shape,
        experts: Option<Experts>,
    ) -> Result<Self> {
        let Shape { half, hidden, intermediate, layouts, bias, .. } = *shape;
        let Some(experts) = experts else {
            return Ok(Self::Dense(Box::new(Mlp::random(device, rng, shape, intermediate, bias)?)));
        };
        let shared = experts.shared.map(|Shared { width, gate }| {
            // A gate is before the bias.
            let mlp = Mlp::random(device, rng, shape, width, bias && gate.is_none())?;
            let gate = gate.map(|layout| Matrix::random(device, rng, half, layout, [1, hidden], bias));
            Ok((mlp, gate.transpose()?))
        });
        let shared = shared.transpose()?;
        let choice = experts.biased.then(|| {
            let values: Vec<f32> = (0..experts.count).map(|_| rng.random_range(-0.3..0.3)).collect();
            let buffer = Buffer::of(device, &values)?;
            Ok((values.into_iter().map(f64::from).collect(), buffer))
        });
        let choice = choice.transpose()?;
        let mut matrix = |layout, size| Matrix::random(device, rng, half, layout, size, bias);
        let count = experts.count;
        let separate = experts.stored == Stored::Separate;
        let rows = count * intermediate;
        Ok(Self::Experts(Box::new(Mixture {
            shape: experts,
            router: matrix(layouts[0], [count, hidden])?,
            bias: choice,
            gates: matrix(layouts[1], [if separate { rows } else { 2 * rows }, hidden])?,
            ups: if separate { Some(matrix(layouts[1], [rows, hidden])?) } else { None },
            downs: matrix(layouts[1], [count * hidden, intermediate])?,
            shared,
        })))
    }

    pub(crate) fn spec(&self, shape: &Shape) -> FeedForwardSpec {
        match self {
            Self::Dense(mlp) => FeedForwardSpec::Dense(mlp.spec(shape)),
            Self::Experts(mixture) => FeedForwardSpec::Experts(Box::new(mixture.spec(shape))),
        }
    }

    /// What it adds; `None` where rounding may decide which experts are picked. The input is as products normalise it, and as the choice of
    /// experts does for them.
    pub(crate) fn apply(
        &self,
        shape: &Shape,
        h: [&[f64]; 2],
        round: &impl Fn(Vec<f64>) -> Vec<f64>,
    ) -> Option<Vec<f64>> {
        match self {
            Self::Dense(mlp) => Some(mlp.down.multiply(&round(mlp.gated(shape, h[0])))),
            Self::Experts(mixture) => mixture.apply(shape, h, round),
        }
    }
}

impl Mixture {
    /// Rows of an expert's gates and ups, and of gates from one expert to the next and from one output to the next.
    fn rows(&self, shape: &Shape, expert: usize) -> [Vec<usize>; 2] {
        let width = shape.intermediate;
        let rows = |first: usize, step: usize| (0..width).map(|i| first + step * i).collect();
        match self.shape.stored {
            Stored::Separate => [rows(expert * width, 1), rows(expert * width, 1)],
            Stored::Joined => [rows(expert * 2 * width, 1), rows((expert * 2 + 1) * width, 1)],
            Stored::Interleaved => [rows(expert * 2 * width, 2), rows(expert * 2 * width + 1, 2)],
        }
    }

    fn spec(&self, shape: &Shape) -> ExpertsSpec {
        let Shape { intermediate: width, hidden, activation, .. } = *shape;
        let (gates, ups) = (self.gates.weight, self.ups.as_ref().map_or(self.gates.weight, |ups| ups.weight));
        let [first_up, stride, step] = match self.shape.stored {
            Stored::Separate => [0, width, 1],
            Stored::Joined => [width, 2 * width, 1],
            Stored::Interleaved => [1, 2 * width, 2],
        };
        let stack = |all: Weight, first: usize| Stack { first: all.slice(first, width), stride, step };
        ExpertsSpec {
            router: self.router.weight,
            routing: RoutingSpec {
                scoring: self.shape.scoring,
                bias: self.bias.as_ref().map_or(DevicePtr::NULL, |(_, buffer)| buffer.ptr()),
                top_k: self.shape.top_k,
                normalize: self.shape.normalize.then_some(EPSILON),
                scale: SCALE,
            },
            gate_up: [stack(gates, 0), stack(ups, first_up)],
            down: Stack { first: self.downs.weight.slice(0, hidden), stride: hidden, step: 1 },
            gating: if self.shape.clamped {
                Gating::Clamped { alpha: ALPHA, limit: LIMIT }
            } else {
                Gating::Glu(activation)
            },
            shared: self.shared.as_ref().map(|(mlp, gate)| SharedExpertSpec {
                mlp: mlp.spec(shape),
                gate: gate.as_ref().map(|gate| gate.weight),
            }),
        }
    }

    /// Experts and their weights; `None` where rounding may decide.
    fn pick(&self, h: &[f64]) -> Option<Vec<(usize, f64)>> {
        let scores = self.router.multiply(h);
        let probabilities: Vec<f64> = match self.shape.scoring {
            Scoring::Sigmoid => scores.iter().map(|score| 1.0 / (1.0 + (-score).exp())).collect(),
            Scoring::Softmax => {
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|score| (score - top).exp()).sum();
                scores.iter().map(|score| (score - top).exp() / total).collect()
            }
        };
        let choice: Vec<f64> = match &self.bias {
            Some((bias, _)) => probabilities.iter().zip(bias).map(|(p, bias)| p + bias).collect(),
            None => scores,
        };
        let mut order: Vec<usize> = (0..choice.len()).collect();
        order.sort_by(|&a, &b| choice[b].total_cmp(&choice[a]));
        let (picks, others) = order.split_at(self.shape.top_k);
        // A probability moves less than its score.
        let close = if self.bias.is_some() { CLOSE / 4.0 } else { CLOSE };
        if others.first().is_some_and(|other| choice[picks[picks.len() - 1]] - choice[*other] < close) {
            return None;
        }
        let sum: f64 = picks.iter().map(|pick| probabilities[*pick]).sum();
        let divisor = if self.shape.normalize { sum + f64::from(EPSILON) } else { 1.0 };
        Some(picks.iter().map(|&pick| (pick, probabilities[pick] / divisor * f64::from(SCALE))).collect())
    }

    fn apply(
        &self,
        shape: &Shape,
        [of_products, h]: [&[f64]; 2],
        round: &impl Fn(Vec<f64>) -> Vec<f64>,
    ) -> Option<Vec<f64>> {
        let hidden = shape.hidden;
        let mut sum = vec![0.0; hidden];
        for (expert, weight) in self.pick(of_products)? {
            let [of_gate, of_up] = self.rows(shape, expert);
            let gate = self.gates.multiply_rows(h, of_gate);
            let up = self.ups.as_ref().unwrap_or(&self.gates).multiply_rows(h, of_up);
            let gated = gate.into_iter().zip(up).map(|(gate, up)| self.gate(shape, gate, up)).collect();
            let rows = (expert * hidden..(expert + 1) * hidden).collect();
            let y = self.downs.multiply_rows(&round(gated), rows);
            sum.iter_mut().zip(y).for_each(|(sum, y)| *sum += weight * y);
        }
        if let Some((mlp, gate)) = &self.shared {
            let mut gated = round(mlp.gated(shape, of_products));
            if let Some(gate) = gate {
                let factor = 1.0 / (1.0 + (-gate.multiply(h)[0]).exp());
                gated = round(gated.into_iter().map(|value| value * factor).collect());
            }
            let y = mlp.down.multiply(&gated);
            sum.iter_mut().zip(y).for_each(|(sum, y)| *sum += y);
        }
        Some(sum)
    }

    fn gate(&self, shape: &Shape, gate: f64, up: f64) -> f64 {
        if !self.shape.clamped {
            return activate(shape.activation, gate) * up;
        }
        let limit = f64::from(LIMIT);
        let (gate, up) = (gate.min(limit), up.clamp(-limit, limit));
        gate / (1.0 + (-f64::from(ALPHA) * gate).exp()) * (up + 1.0)
    }
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
        }
        Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
    }
}

/// The error function by its series, which converges everywhere that f64 tells it from ±1.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}
