//! Feed-forward blocks: one for all tokens, or mixtures of experts.

use super::weight::Weight;
use crate::{DevicePtr, Error, Result};

/// Experts that a layer may have, and experts of a token.
const MOST: [usize; 2] = [512, 32];

/// What stands between gate and up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x · σ(x)
    Silu = 0,
    /// x · Φ(x), with tanh in place of the error function.
    GeluTanh = 1,
    /// x · Φ(x)
    Gelu = 2,
}

/// down(act(gate(x)) · up(x))
#[derive(Debug, Clone)]
pub struct MlpSpec {
    /// Gate and up, stored alike.
    pub gate_up: [Weight; 2],
    /// Down.
    pub down: Weight,
    /// The activation.
    pub activation: Activation,
}

/// The feed-forward block of a layer.
#[derive(Debug, Clone)]
pub enum FeedForwardSpec {
    /// One for all tokens.
    Dense(MlpSpec),
    /// Experts.
    Experts(Box<ExpertsSpec>),
}

/// A mixture of experts: the sum of what a few of them give, weighted.
#[derive(Debug, Clone)]
pub struct ExpertsSpec {
    /// `[experts, hidden]`: a score for each.
    pub router: Weight,
    /// How experts are picked by their scores.
    pub routing: RoutingSpec,
    /// Gates and ups, stored alike.
    pub gate_up: [Stack; 2],
    /// Downs.
    pub down: Stack,
    /// What stands between gate and up.
    pub gating: Gating,
    /// What every token goes through besides.
    pub shared: Option<SharedExpertSpec>,
}

/// How experts are picked, and weighted.
#[derive(Debug, Clone, Copy)]
pub struct RoutingSpec {
    /// What is made of scores.
    pub scoring: Scoring,
    /// What is added to that for the choice, not for the weights: `[experts]` in single precision; or null.
    pub bias: DevicePtr,
    /// Experts for each token.
    pub top_k: usize,
    /// Where weights are made to sum to one, what is added to their sum before they are divided by it.
    pub normalize: Option<f32>,
    /// What weights are multiplied by.
    pub scale: f32,
}

/// What is made of a router's scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    /// Probabilities of all experts.
    Softmax = 0,
    /// Each expert's own probability.
    Sigmoid = 1,
}

/// Gated linear units of experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Gating {
    /// act(gate) · up
    Glu(Activation),
    /// gate · σ(alpha · gate) · (up + 1), with up cut to ±limit and the gate to at most limit.
    Clamped {
        /// The factor inside the sigmoid.
        alpha: f32,
        /// The limit.
        limit: f32,
    },
}

/// Matrices of one shape in one array of rows.
#[derive(Debug, Clone, Copy)]
pub struct Stack {
    /// The first: its address, its shape, and biases of outputs.
    pub first: Weight,
    /// Rows from one matrix to the next.
    pub stride: usize,
    /// Rows from one row of a matrix to the next: two, where gates and ups take turns.
    pub step: usize,
}

/// An expert that every token goes through.
#[derive(Debug, Clone)]
pub struct SharedExpertSpec {
    /// The expert.
    pub mlp: MlpSpec,
    /// `[1, hidden]`: a score, whose sigmoid its output is multiplied by.
    pub gate: Option<Weight>,
}

impl FeedForwardSpec {
    /// Its matrices, and how many of each a token is multiplied with.
    pub(super) fn weights(&self) -> Vec<(&Weight, usize)> {
        match self {
            Self::Dense(mlp) => mlp.weights().map(|weight| (weight, 1)).into(),
            Self::Experts(experts) => {
                let ExpertsSpec { router, routing, gate_up: [gate, up], down, shared, .. } = &**experts;
                let mut weights = vec![(router, 1)];
                weights.extend([gate, up, down].map(|stack| (&stack.first, routing.top_k)));
                if let Some(SharedExpertSpec { mlp, gate }) = shared {
                    weights.extend(mlp.weights().into_iter().chain(gate).map(|weight| (weight, 1)));
                }
                weights
            }
        }
    }

    /// Checks the block of a layer with residuals of this width. `name` says where a part is.
    pub(super) fn check(&self, hidden: usize, name: &impl Fn(&str) -> String) -> Result<()> {
        match self {
            Self::Dense(mlp) => mlp.check(hidden, name),
            Self::Experts(experts) => experts.check(hidden, name),
        }
    }

    /// Gated activations of a row, of experts in a row; and those of a shared expert.
    pub(super) fn gated(&self) -> [usize; 2] {
        match self {
            Self::Dense(mlp) => [mlp.down.columns, 0],
            Self::Experts(experts) => {
                let shared = experts.shared.as_ref().map_or(0, |shared| shared.mlp.down.columns);
                [experts.routing.top_k * experts.down.first.columns, shared]
            }
        }
    }

    /// Experts, and those that a token has.
    pub(super) fn experts(&self) -> [usize; 2] {
        match self {
            Self::Dense(_) => [0; 2],
            Self::Experts(experts) => [experts.router.rows, experts.routing.top_k],
        }
    }
}

impl MlpSpec {
    fn weights(&self) -> [&Weight; 3] {
        let [gate, up] = &self.gate_up;
        [gate, up, &self.down]
    }

    fn check(&self, hidden: usize, name: &impl Fn(&str) -> String) -> Result<()> {
        let Self { gate_up: [gate, up], down, .. } = self;
        gate.check(&name("gate"), down.columns, hidden)?;
        up.check(&name("up"), down.columns, hidden)?;
        check_alike([gate, up], name)?;
        down.check(&name("down"), hidden, down.columns)
    }
}

impl ExpertsSpec {
    fn check(&self, hidden: usize, name: &impl Fn(&str) -> String) -> Result<()> {
        let Self { router, routing, gate_up: [gate, up], down, shared, .. } = self;
        let (count, top_k, width) = (router.rows, routing.top_k, down.first.columns);
        router.check(&name("the router"), count, hidden)?;
        let [most, most_picked] = MOST;
        if count > most || !(1..=count.min(most_picked)).contains(&top_k) {
            let expected = format!("1 to {most_picked} of at most {most}");
            return Err(Error::invalid(
                name("the number of experts"),
                format!("{top_k} of {count}"),
                expected,
            ));
        }
        gate.check(&name("gates of experts"), width, hidden)?;
        up.check(&name("ups of experts"), width, hidden)?;
        down.check(&name("downs of experts"), hidden, width)?;
        check_alike([&gate.first, &up.first], name)?;
        if (gate.stride, gate.step) != (up.stride, up.step) {
            let found = format!("{} and {} rows, by {} and {}", gate.stride, up.stride, gate.step, up.step);
            return Err(Error::invalid(name("where gates and ups lie"), found, "the same"));
        }
        shared.as_ref().map_or(Ok(()), |shared| shared.check(hidden, name))
    }
}

impl SharedExpertSpec {
    fn check(&self, hidden: usize, name: &impl Fn(&str) -> String) -> Result<()> {
        self.mlp.check(hidden, &|part| name(&format!("the shared expert's {part}")))?;
        let Some(gate) = &self.gate else { return Ok(()) };
        gate.check(&name("the shared expert's own gate"), 1, hidden)?;
        if !self.mlp.down.bias.is_null() {
            let part = name("the shared expert's down");
            return Err(Error::invalid(part, "a bias behind a gate", "none"));
        }
        Ok(())
    }
}

impl Stack {
    fn check(&self, name: &str, rows: usize, columns: usize) -> Result<()> {
        self.first.check(name, rows, columns)?;
        if !columns.is_multiple_of(8) {
            return Err(Error::invalid(name, format!("{columns} columns"), "a multiple of 8"));
        }
        if self.step == 0 || self.stride < (rows.max(1) - 1) * self.step + 1 {
            let found = format!("steps of {} rows, {} from one to the next", self.step, self.stride);
            return Err(Error::invalid(
                name,
                found,
                format!("matrices of {rows} rows apart from each other"),
            ));
        }
        Ok(())
    }
}

fn check_alike([gate, up]: [&Weight; 2], name: &impl Fn(&str) -> String) -> Result<()> {
    if gate.layout == up.layout {
        return Ok(());
    }
    let found = format!("{:?} and {:?}", gate.layout, up.layout);
    Err(Error::invalid(name("the layouts of gate and up"), found, "the same"))
}
