//! Mixtures of experts: a router picks a few feed-forward blocks for each token.

use cuda_kernels::{ExpertsSpec, FeedForwardSpec, SharedExpertSpec, Stack};
use inference_core::{Error, Result as LoadResult};
use mlx_rs::{
    Array,
    error::{Exception, Result},
    ops,
};

use super::{
    activation::{Activation, Gating},
    adapter::{AdapterSlots, SlotKind},
    block::FeedForward,
    cpu::{self, Inner, Recorded, RecordedExperts, Recording, Unrecorded, Value},
    cuda::{SpecBuilder, Unsupported},
    linear::Linear,
    matrix::{Matrix, alike},
    mlp::GatedMlp,
    parameter::{Weight, WeightTransform},
    routing::Routing,
    weights::Weights,
};
use crate::mlx::gather_rows;

/// From this many picks on, they are sorted by expert, so that each expert's weights are read once.
const SORTED_FROM: usize = 64;

/// A router and its experts.
#[derive(Debug)]
pub(crate) struct Moe {
    /// `[.., hidden]` → a score for each expert.
    pub(crate) router: Linear,
    /// How experts are picked by their scores.
    pub(crate) routing: Routing,
    /// The experts.
    pub(crate) experts: Experts,
    /// What every token goes through besides.
    pub(crate) shared: Option<SharedExpert>,
}

/// An expert that every token goes through.
#[derive(Debug)]
pub(crate) struct SharedExpert {
    /// The expert.
    pub(crate) mlp: GatedMlp,
    /// `[.., hidden]` → one score, whose sigmoid the output is multiplied by.
    pub(crate) gate: Option<Linear>,
}

/// What picked experts give, `[.., top_k, size]`, times their weights, `[.., top_k]`, summed → `[.., size]`.
pub(crate) fn mix(outputs: &Array, weights: &Array) -> Result<Array> {
    match cpu::mix(outputs, weights) {
        Some(mixed) => mixed,
        None => outputs.multiply(weights.as_dtype(outputs.dtype())?.expand_dims(-1)?)?.sum_axis(-2, false),
    }
}

impl FeedForward for Moe {
    fn forward(&self, x: &Array) -> Result<Array> {
        let [picks, weights] = self.routing.pick(&self.router.forward(x)?)?;
        let outputs = self.experts.forward(x, &picks)?;
        let mixed = mix(&outputs, &weights)?;
        let Some(SharedExpert { mlp, gate }) = &self.shared else { return Ok(mixed) };
        let shared = mlp.forward(x)?;
        match gate {
            Some(gate) => mixed.add(shared.multiply(ops::sigmoid(gate.forward(x)?)?)?),
            None => mixed.add(shared),
        }
    }

    fn record(&self, x: Value, recording: &mut Recording<'_, '_>) -> Recorded {
        let scores = recording.linear(x, &self.router)?;
        let mixed = self.experts.record(x, scores, &self.routing, recording)?;
        let Some(SharedExpert { mlp, gate }) = &self.shared else { return Ok(mixed) };
        let mut shared = mlp.record(x, recording)?;
        if let Some(gate) = gate {
            let score = recording.linear(x, gate)?;
            shared = recording.scale_by_score(shared, score)?;
        }
        recording.add(mixed, shared, None)
    }

    fn describe(&self, builder: &mut SpecBuilder) -> std::result::Result<FeedForwardSpec, Unsupported> {
        let Self { router, routing, experts, shared } = self;
        let router = builder.linear(router)?;
        let routing = routing.describe(builder)?;
        let (gate_up, down) = experts.describe(builder)?;
        let gating = builder.gating(experts.gating)?;
        let shared = shared.as_ref().map(|SharedExpert { mlp, gate }| {
            let gate = gate.as_ref().map(|gate| builder.linear(gate)).transpose()?;
            Ok(SharedExpertSpec { mlp: mlp.describe(builder)?, gate })
        });
        let shared = shared.transpose()?;
        Ok(FeedForwardSpec::Experts(Box::new(ExpertsSpec { router, routing, gate_up, down, gating, shared })))
    }
}

/// Feed-forward blocks of equal sizes.
#[derive(Debug)]
pub(crate) struct Experts {
    gate_up_proj: GateUp,
    gate_up_slots: AdapterSlots,
    /// `[experts, hidden, intermediate]`
    down_proj: Matrix,
    down_slots: AdapterSlots,
    /// Those of gate and up, `[experts, 2 · intermediate]` or `[experts, intermediate]` each, and of down, `[experts, hidden]`.
    biases: Vec<Weight>,
    gating: Gating,
}

/// Where the gates and what they let through come from.
#[derive(Debug)]
enum GateUp {
    /// From one matrix, gates first.
    Joined(Matrix),
    /// From one matrix, taking turns.
    Interleaved(Matrix),
    /// From one matrix each.
    Separate(Matrix, Matrix),
    /// There are no gates.
    Ungated(Matrix, Activation),
}

/// The sizes of a mixture of experts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExpertSizes {
    /// Experts.
    pub(crate) experts: usize,
    /// The width of the residual stream.
    pub(crate) hidden_size: usize,
    /// The width of one expert.
    pub(crate) intermediate_size: usize,
}

impl Experts {
    /// The experts below `weights`: one by one under `experts`, with these names for gate, up and down, stacked there with gate
    /// and up in one, as transformers 5 holds them, or stacked under `switch_mlp`, as mlx_lm writes them.
    pub(crate) fn load(
        weights: &Weights<'_>,
        names: [&str; 3],
        sizes: ExpertSizes,
        gating: Gating,
    ) -> LoadResult<Self> {
        let ExpertSizes { experts, hidden_size, intermediate_size } = sizes;
        if weights.has_any("switch_mlp") {
            return Self::load_stacked(&weights.at("switch_mlp"), sizes, gating, false);
        }
        let all = weights.at("experts");
        if all.has("gate_up_proj") {
            let both = intermediate_size.saturating_mul(2);
            let gate_up = Matrix::load_bare(&all, "gate_up_proj", experts, both, hidden_size)?;
            let down_proj = Matrix::load_bare(&all, "down_proj", experts, hidden_size, intermediate_size)?;
            let gate_up = GateUp::Joined(gate_up);
            return Ok(Self::new(&weights.at("switch_mlp"), sizes, gate_up, down_proj, Vec::new(), gating));
        }
        Self::check_count(weights, experts)?;
        let parts = |name: &str| (0..experts).map(|i| all.index(i).at(name)).collect::<Vec<_>>();
        let [gates, ups, downs] = names.map(parts);
        let pairs: Vec<_> = gates.iter().zip(&ups).flat_map(|(gate, up)| [gate, up]).collect();
        let [gates, downs] = [gates.iter().collect::<Vec<_>>(), downs.iter().collect()];
        let stack = |parts: &[&Weights<'_>], outputs, inputs| {
            Matrix::load_joined(parts, Some(experts), &vec![outputs; parts.len()], inputs)
        };
        let gate_up_proj = if alike(&pairs)? {
            GateUp::Joined(stack(&pairs, intermediate_size, hidden_size)?)
        } else {
            let ups: Vec<_> = ups.iter().collect();
            GateUp::Separate(
                stack(&gates, intermediate_size, hidden_size)?,
                stack(&ups, intermediate_size, hidden_size)?,
            )
        };
        let down_proj = stack(&downs, hidden_size, intermediate_size)?;
        Ok(Self::new(&weights.at("switch_mlp"), sizes, gate_up_proj, down_proj, Vec::new(), gating))
    }

    /// The experts of two stacks below `weights`, gate and up in one and down, or stacked under `switch_mlp`.
    pub(crate) fn load_fused(
        weights: &Weights<'_>,
        [gate_up, down]: [&str; 2],
        sizes: ExpertSizes,
        gating: Gating,
    ) -> LoadResult<Self> {
        let ExpertSizes { experts, hidden_size, intermediate_size } = sizes;
        if !weights.has_any(gate_up) {
            return Self::load(weights, ["gate_proj", "up_proj", "down_proj"], sizes, gating);
        }
        let both = intermediate_size.saturating_mul(2);
        let gate_up = Matrix::load_stack(&weights.at(gate_up), experts, both, hidden_size)?;
        let down = Matrix::load_stack(&weights.at(down), experts, hidden_size, intermediate_size)?;
        let gate_up = GateUp::Joined(gate_up);
        Ok(Self::new(&weights.at("switch_mlp"), sizes, gate_up, down, Vec::new(), gating))
    }

    /// The experts of two stacks at `weights` whose columns come before their rows, gate and up in one. There is no place for an
    /// adapter in them.
    pub(crate) fn load_transposed(
        weights: &Weights<'_>,
        sizes: ExpertSizes,
        gating: Gating,
    ) -> LoadResult<Self> {
        let ExpertSizes { experts, hidden_size, intermediate_size } = sizes;
        let load = |name: &str, inputs: usize, outputs: usize| {
            let shape = [vec![experts, inputs, outputs]];
            Weight::load(&[weights], None, name, &shape, WeightTransform::Stored).map(Matrix::Dense)
        };
        Ok(Self {
            gate_up_proj: GateUp::Joined(load(
                "gate_up_proj",
                hidden_size,
                intermediate_size.saturating_mul(2),
            )?),
            gate_up_slots: AdapterSlots::default(),
            down_proj: load("down_proj", intermediate_size, hidden_size)?,
            down_slots: AdapterSlots::default(),
            biases: Vec::new(),
            gating,
        })
    }

    /// The experts at `weights`, stacked: `gate_proj`, `up_proj` and `down_proj`, with biases or without.
    pub(crate) fn load_stacked(
        weights: &Weights<'_>,
        sizes: ExpertSizes,
        gating: Gating,
        bias: bool,
    ) -> LoadResult<Self> {
        let ExpertSizes { experts, hidden_size, intermediate_size } = sizes;
        let load = |name, outputs, inputs| Matrix::load_stack(&weights.at(name), experts, outputs, inputs);
        let biases =
            [("gate_proj", intermediate_size), ("up_proj", intermediate_size), ("down_proj", hidden_size)];
        let biases = biases.iter().filter(|_| bias);
        let biases = biases.map(|(name, size)| weights.at(name).take("bias", &[experts, *size]));
        let biases = biases.collect::<LoadResult<_>>()?;
        let gate_up_proj = GateUp::Separate(
            load("gate_proj", intermediate_size, hidden_size)?,
            load("up_proj", intermediate_size, hidden_size)?,
        );
        let down_proj = load("down_proj", hidden_size, intermediate_size)?;
        Ok(Self::new(weights, sizes, gate_up_proj, down_proj, biases, gating))
    }

    /// The experts below `weights` without gates: `up_proj` and `down_proj`, one by one under `experts` or stacked, also as mlx_lm
    /// writes them, under `switch_mlp` as `fc1` and `fc2`. There is no place for an adapter in them.
    pub(crate) fn load_ungated(
        weights: &Weights<'_>,
        sizes: ExpertSizes,
        activation: Activation,
    ) -> LoadResult<Self> {
        let ExpertSizes { experts, hidden_size, intermediate_size } = sizes;
        let (converted, all) = (weights.at("switch_mlp"), weights.at("experts"));
        let load = |bare: &str, fc: &str, outputs: usize, inputs: usize| {
            if converted.has_any("") {
                let name = if converted.has_any(fc) { fc } else { bare };
                return Matrix::load_stack(&converted.at(name), experts, outputs, inputs);
            }
            if all.has(bare) {
                return Matrix::load_bare(&all, bare, experts, outputs, inputs);
            }
            Self::check_count(weights, experts)?;
            let parts: Vec<_> = (0..experts).map(|i| all.index(i).at(bare)).collect();
            Matrix::load_joined(
                &parts.iter().collect::<Vec<_>>(),
                Some(experts),
                &vec![outputs; experts],
                inputs,
            )
        };
        let up = load("up_proj", "fc1", intermediate_size, hidden_size)?;
        Ok(Self {
            gate_up_proj: GateUp::Ungated(up, activation),
            gate_up_slots: AdapterSlots::default(),
            down_proj: load("down_proj", "fc2", hidden_size, intermediate_size)?,
            down_slots: AdapterSlots::default(),
            biases: Vec::new(),
            gating: Gating::Glu(activation),
        })
    }

    /// Checks that the files have as many experts as the config, before anything is sized by their number.
    fn check_count(weights: &Weights<'_>, experts: usize) -> LoadResult<()> {
        let all = weights.at("experts");
        let Some(missing) = (0..experts).find(|i| !all.has_any(i)) else { return Ok(()) };
        let reason = format!("the config has {experts} experts, the files no {}", all.name(missing));
        Err(Error::invalid_key(weights.manifest().config_path(), "num_experts", reason))
    }

    /// The experts of these matrices, whose adapters lie below `weights`.
    fn new(
        weights: &Weights<'_>,
        sizes: ExpertSizes,
        gate_up_proj: GateUp,
        down_proj: Matrix,
        biases: Vec<Weight>,
        gating: Gating,
    ) -> Self {
        let ExpertSizes { experts, hidden_size, intermediate_size } = sizes;
        let slot = |name, inputs, outputs| weights.slot(name, SlotKind::Experts(experts), inputs, outputs);
        let gate_up = ["gate_proj", "up_proj"].map(|name| slot(name, hidden_size, intermediate_size));
        let down = slot("down_proj", intermediate_size, hidden_size);
        let (gate_up_slots, down_slots) =
            (AdapterSlots::new(gate_up.to_vec()), AdapterSlots::new(vec![down]));
        Self { gate_up_proj, gate_up_slots, down_proj, down_slots, biases, gating }
    }

    /// Experts whose gates and ups take turns in the rows of one matrix, and in their biases.
    /// There is no place for an adapter in them.
    pub(crate) fn interleaved(gate_up: Matrix, down: Matrix, biases: [Weight; 2], gating: Gating) -> Self {
        Self {
            gate_up_proj: GateUp::Interleaved(gate_up),
            gate_up_slots: AdapterSlots::default(),
            down_proj: down,
            down_slots: AdapterSlots::default(),
            biases: biases.into(),
            gating,
        }
    }

    /// `[B, T, hidden]` and the picks `[B, T, K]` → what each pick gives, `[B, T, K, hidden]`.
    pub(crate) fn forward(&self, x: &Array, picks: &Array) -> Result<Array> {
        let &[batch, tokens, hidden] = x.shape() else {
            return Err(Exception::custom("hidden states must be [B, T, hidden]"));
        };
        let top_k = picks.dim(-1);
        if picks.size() < SORTED_FROM {
            let outputs = self.apply(&x.reshape(&[batch, tokens, 1, 1, hidden])?, picks, false)?;
            return outputs.reshape(&[batch, tokens, top_k, hidden]);
        }
        let picks = picks.reshape(&[-1])?;
        let order = ops::argsort_axis(&picks, 0)?;
        let back = ops::argsort_axis(&order, 0)?;
        let token = order.floor_divide(Array::from_int(top_k).as_dtype(order.dtype())?)?;
        let rows = x.reshape(&[-1, 1, hidden])?.take_axis(token, 0)?;
        let outputs = self.apply(&rows, &picks.take_axis(&order, 0)?, true)?;
        outputs.take_axis(back, 0)?.reshape(&[batch, tokens, top_k, hidden])
    }

    /// The experts that are picked by these scores, weighted and summed, in a recording, where that can be.
    pub(crate) fn record(
        &self,
        x: Value,
        scores: Value,
        routing: &Routing,
        recording: &mut Recording<'_, '_>,
    ) -> Recorded {
        let matrices = match &self.gate_up_proj {
            GateUp::Joined(matrix) | GateUp::Interleaved(matrix) => vec![matrix, &self.down_proj],
            GateUp::Separate(gate, up) => vec![gate, up, &self.down_proj],
            GateUp::Ungated(up, _) => vec![up, &self.down_proj],
        };
        if !self.gate_up_slots.is_plain() || !self.down_slots.is_plain() {
            return Err(Unrecorded::Now("an adapter"));
        }
        let experts = RecordedExperts {
            matrices: matrices.into_iter().map(Matrix::operand).collect::<Result<_>>()?,
            biases: self.biases.iter().map(Weight::get).collect::<Result<_>>()?,
            interleaved: matches!(self.gate_up_proj, GateUp::Interleaved(_)),
            inner: match self.gate_up_proj {
                GateUp::Ungated(_, activation) => Inner::Ungated(activation),
                _ => Inner::Gated(self.gating),
            },
            picking: routing.picking(),
            choice_bias: routing.bias.as_ref(),
        };
        recording.experts(x, scores, &experts)
    }

    /// Where gates, ups and downs lie.
    fn describe(&self, builder: &mut SpecBuilder) -> std::result::Result<([Stack; 2], Stack), Unsupported> {
        if !self.gate_up_slots.is_plain() || !self.down_slots.is_plain() {
            return Err(Unsupported("adapters".to_owned()));
        }
        let mut stack = |matrix, bias: usize| builder.stack(matrix, self.biases.get(bias));
        let halves = |both: Stack, step: usize| {
            let width = both.first.rows / 2;
            let first_up = if step == 1 { width } else { 1 };
            [0, first_up].map(|first| Stack { first: both.first.slice(first, width), step, ..both })
        };
        let gate_up = match &self.gate_up_proj {
            GateUp::Joined(matrix) => halves(stack(matrix, 0)?, 1),
            GateUp::Interleaved(matrix) => halves(stack(matrix, 0)?, 2),
            GateUp::Separate(gate, up) => [stack(gate, 0)?, stack(up, 1)?],
            GateUp::Ungated(..) => return Err(Unsupported("experts without gates".to_owned())),
        };
        Ok((gate_up, stack(&self.down_proj, self.biases.len().max(1) - 1)?))
    }

    /// `[.., 1, hidden]` with one pick each (`[..]`, broadcast) → the same.
    fn apply(&self, x: &Array, picks: &Array, sorted: bool) -> Result<Array> {
        let with_bias = |outputs: Array, bias: Option<&Weight>| match bias {
            Some(bias) => outputs.add(gather_rows(&bias.get()?, picks)?),
            None => Ok(outputs),
        };
        let adapt = |gate_up: Array| self.gate_up_slots.adapt_gathered(x, gate_up, picks, sorted);
        let gated = match &self.gate_up_proj {
            GateUp::Joined(matrix) => {
                let joined = with_bias(adapt(matrix.gather(x, picks, sorted)?)?, self.biases.first())?;
                self.gating.apply_joined(&joined, false)?
            }
            GateUp::Interleaved(matrix) => {
                let joined = with_bias(matrix.gather(x, picks, sorted)?, self.biases.first())?;
                self.gating.apply_joined(&joined, true)?
            }
            GateUp::Ungated(up, activation) => activation.apply(&up.gather(x, picks, sorted)?)?,
            GateUp::Separate(gate, up) => {
                let (mut gate, mut up) = (gate.gather(x, picks, sorted)?, up.gather(x, picks, sorted)?);
                if !self.gate_up_slots.is_plain() {
                    let joined = adapt(ops::concatenate(&[gate, up], -1)?)?;
                    let middle = joined.dim(-1) / 2;
                    [gate, up] = pair(ops::split_at_indices(joined, &[middle], -1)?)?;
                }
                let (gate, up) = (with_bias(gate, self.biases.first())?, with_bias(up, self.biases.get(1))?);
                self.gating.apply(&gate, &up)?
            }
        };
        let down = self.down_proj.gather(&gated, picks, sorted)?;
        with_bias(self.down_slots.adapt_gathered(&gated, down, picks, sorted)?, self.biases.last())
    }
}

fn pair(parts: Vec<Array>) -> Result<[Array; 2]> {
    parts.try_into().map_err(|_| Exception::custom("a cut did not give two parts"))
}
