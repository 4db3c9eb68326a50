//! Feed-forward blocks: one for all tokens, or mixtures of experts.

use super::{Activation, DecoderSpec, MlpSpec, Weight};
use crate::{DevicePtr, Error, Result};

/// Experts that a layer may have, and experts of a token.
const MOST: [usize; 2] = [512, 32];

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

impl DecoderSpec {
    /// Checks the feed-forward block of a layer.
    pub(super) fn check_feed_forward(
        &self,
        block: &FeedForwardSpec,
        name: &impl Fn(&str) -> String,
    ) -> Result<()> {
        match block {
            FeedForwardSpec::Dense(mlp) => self.check_mlp(mlp, name),
            FeedForwardSpec::Experts(experts) => self.check_experts(experts, name),
        }
    }

    fn check_mlp(&self, mlp: &MlpSpec, name: &impl Fn(&str) -> String) -> Result<()> {
        let MlpSpec { gate_up: [gate, up], down, .. } = mlp;
        gate.check(&name("gate"), down.columns, self.hidden)?;
        up.check(&name("up"), down.columns, self.hidden)?;
        check_alike([gate, up], name)?;
        down.check(&name("down"), self.hidden, down.columns)
    }

    fn check_experts(&self, experts: &ExpertsSpec, name: &impl Fn(&str) -> String) -> Result<()> {
        let ExpertsSpec { router, routing, gate_up: [gate, up], down, shared, .. } = experts;
        let (count, width) = (router.rows, down.first.columns);
        router.check(&name("the router"), count, self.hidden)?;
        let [most, most_picked] = MOST;
        if count > most || !(1..=count.min(most_picked)).contains(&routing.top_k) {
            let expected = format!("1 to {most_picked} of at most {most}");
            return Err(Error::invalid(
                name("the number of experts"),
                format!("{} of {count}", routing.top_k),
                expected,
            ));
        }
        gate.check(&name("gates of experts"), width, self.hidden)?;
        up.check(&name("ups of experts"), width, self.hidden)?;
        down.check(&name("downs of experts"), self.hidden, width)?;
        check_alike([&gate.first, &up.first], name)?;
        if (gate.stride, gate.step) != (up.stride, up.step) {
            let found = format!("{} and {} rows, by {} and {}", gate.stride, up.stride, gate.step, up.step);
            return Err(Error::invalid(name("where gates and ups lie"), found, "the same"));
        }
        let Some(SharedExpertSpec { mlp, gate }) = shared else { return Ok(()) };
        self.check_mlp(mlp, &|part| name(&format!("the shared expert's {part}")))?;
        let Some(gate) = gate else { return Ok(()) };
        gate.check(&name("the shared expert's own gate"), 1, self.hidden)?;
        if !mlp.down.bias.is_null() {
            let part = name("the shared expert's down");
            return Err(Error::invalid(part, "a bias behind a gate", "none"));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AttentionSpec, Half, LayerSpec, Layout, NormWeight};

    const FOUR: Layout = Layout::Affine { bits: 4, group: 64 };
    const NULL: DevicePtr = DevicePtr::NULL;

    fn weight(layout: Layout, rows: usize, columns: usize) -> Weight {
        let scales = if layout == Layout::Dense { NULL } else { DevicePtr(512) };
        Weight { layout, rows, columns, data: DevicePtr(256), scales, biases: scales, bias: NULL }
    }

    /// A mixture of 16 experts of 192, four of which a token has.
    fn mixture() -> ExpertsSpec {
        let both = weight(FOUR, 16 * 2 * 192, 256);
        let routing =
            RoutingSpec { scoring: Scoring::Softmax, bias: NULL, top_k: 4, normalize: Some(0.0), scale: 1.0 };
        ExpertsSpec {
            router: weight(Layout::Dense, 16, 256),
            routing,
            gate_up: [both.slice(0, 192), both.slice(192, 192)].map(|first| Stack {
                first,
                stride: 384,
                step: 1,
            }),
            down: Stack { first: weight(FOUR, 256, 192), stride: 256, step: 1 },
            gating: Gating::Glu(Activation::Silu),
            shared: None,
        }
    }

    fn shared(gate: Option<Weight>) -> SharedExpertSpec {
        let gate_up = [weight(FOUR, 320, 256); 2];
        let mlp = MlpSpec { gate_up, down: weight(FOUR, 256, 320), activation: Activation::Silu };
        SharedExpertSpec { mlp, gate }
    }

    fn decoder(experts: ExpertsSpec) -> DecoderSpec {
        let norm = NormWeight { data: DevicePtr(256), single: false, offset: 0.0 };
        let dense = |rows, columns| weight(Layout::Dense, rows, columns);
        let attention = AttentionSpec {
            qkv: [dense(256, 256), dense(128, 256), dense(128, 256)],
            output: dense(256, 256),
            qk_norm: None,
            rope: None,
            window: None,
            scale: 1.0,
            cap: None,
            sinks: NULL,
        };
        let mlp = FeedForwardSpec::Experts(Box::new(experts));
        DecoderSpec {
            half: Half::Bf16,
            hidden: 256,
            heads: 4,
            kv_heads: 2,
            head_dim: 64,
            eps: 1e-6,
            embedding: dense(1000, 256),
            embedding_scale: 1.0,
            layers: vec![LayerSpec { input_norm: norm, attention, mlp_norm: norm, mlp, post_norms: None }],
            ropes: Vec::new(),
            norm,
            head: dense(1000, 256),
            logit_scale: 1.0,
            logit_cap: None,
        }
    }

    #[test]
    fn a_token_reads_its_own_experts_and_the_shared_one() {
        let plain = decoder(mixture());
        plain.check().unwrap();
        assert_eq!((plain.gated(), plain.experts()), ([4 * 192, 0], [16, 4]));
        let with_shared = ExpertsSpec { shared: Some(shared(Some(weight(FOUR, 1, 256)))), ..mixture() };
        let with_shared = decoder(with_shared);
        with_shared.check().unwrap();
        assert_eq!(with_shared.gated(), [4 * 192, 320]);
        let attention = 2 * (256 + 128 + 128 + 256) * 256;
        let others = attention + 2 * (16 + 1000) * 256;
        assert_eq!(plain.weight_bytes(), others + 4 * 3 * 192 * 256 / 2);
        assert_eq!(with_shared.weight_bytes(), plain.weight_bytes() + (3 * 320 + 1) * 256 / 2);
    }

    #[test]
    fn gates_and_ups_may_take_turns() {
        let both = weight(FOUR, 16 * 2 * 192, 256);
        let stack = |first| Stack { first: both.slice(first, 192), stride: 384, step: 2 };
        decoder(ExpertsSpec { gate_up: [stack(0), stack(1)], ..mixture() }).check().unwrap();
    }

    #[test]
    fn mixtures_that_the_kernels_do_not_know_are_refused_by_name() {
        let Stack { first, .. } = mixture().down;
        let [gate, up] = mixture().gate_up;
        let mut many = mixture();
        many.routing.top_k = 17;
        let mut biased = shared(Some(weight(FOUR, 1, 256)));
        biased.mlp.down.bias = DevicePtr(1024);
        let refused = [
            (many, "the number of experts of layer 0 is 17 of 16"),
            (ExpertsSpec { router: weight(Layout::Dense, 600, 256), ..mixture() }, "4 of 600"),
            (ExpertsSpec { router: weight(Layout::Dense, 16, 128), ..mixture() }, "the router of layer 0"),
            (
                ExpertsSpec { gate_up: [gate, Stack { stride: 192, ..up }], ..mixture() },
                "where gates and ups lie of layer 0",
            ),
            (
                ExpertsSpec { gate_up: [gate, Stack { stride: 191, ..up }], ..mixture() },
                "ups of experts of layer 0",
            ),
            (
                ExpertsSpec { down: Stack { first, stride: 256, step: 0 }, ..mixture() },
                "downs of experts of layer 0",
            ),
            (ExpertsSpec { shared: Some(biased), ..mixture() }, "the shared expert's down of layer 0"),
            (
                ExpertsSpec { shared: Some(shared(Some(weight(FOUR, 2, 256)))), ..mixture() },
                "the shared expert's own gate of layer 0",
            ),
        ];
        for (spec, reason) in refused {
            let found = decoder(spec).check().unwrap_err().to_string();
            assert!(found.contains(reason), "{found:?}, expected {reason:?}");
        }
    }
}
