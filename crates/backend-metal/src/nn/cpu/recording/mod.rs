//! A pass of few tokens through all layers as one operation of MLX's graph.
//!
//! Blocks record the kernels that they would build operations of. For a decode step that saves some ten operations a layer: MLX allocates,
//! schedules and frees for each, on threads that compete with the kernels' own. What the kernels compute is the same.
//!
//! A block that cannot be recorded says why. Then the pass is built operation by operation, and so are all others if it never can be.

mod attention;
mod call;
mod parts;
mod recorder;
mod recurrent;
mod run;

pub(in crate::nn) use self::{
    attention::RecordedAttention,
    call::Part,
    parts::{Inner, RecordedExperts},
    recurrent::{RecordedRecurrence, RecordedRule},
};
pub(crate) use self::{
    call::{Recorded, Unrecorded, Value},
    recorder::Recording,
};
