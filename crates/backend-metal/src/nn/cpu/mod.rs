//! Operations of a model that `cpu-kernels` computes. Each function builds one operation of MLX's graph. It returns `None` if MLX
//! must compute it: in another [`ExecMode`](super::exec::ExecMode), or because the kernels lack a type, a shape or a gradient.

mod attention;
mod in_place;
mod kernel;
mod operand;
mod product;
mod recording;
mod recurrence;
mod routing;
mod vectors;

pub(super) use attention::{QkNormRope, RotaryTable, attention, attention_packed, gate_heads, qk_norm_rope};
pub(crate) use cpu_kernels::Draw;
pub(super) use in_place::{KvSlot, attend_in_place};
pub(crate) use kernel::start_kernels;
pub(super) use product::{Operand, gather_matmul, matmul, matmul_differentiable};
pub(super) use recording::{
    Inner, Part, RecordedAttention, RecordedExperts, RecordedRecurrence, RecordedRule,
};
pub(crate) use recording::{Recorded, Recording, Unrecorded, Value};
pub(super) use recurrence::{
    ConvWeights, GateNorm, HeadSizes, RecurrentLayer, Rule, causal_conv, recurrent_layer,
};
pub(super) use routing::{Picking, mix, route};
pub(super) use vectors::{
    Halves, NormWeight, activate, add_rms_norm, argmax, ban, draw, glu, layer_norm, rms_norm,
};
