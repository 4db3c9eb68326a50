//! What a model spends its time in, computed by our own kernels on the CPU. Each function is one operation of the graph, or
//! `None` where it is MLX's to compute: on another device, while gradients are traced of what has none here, or of types that
//! the kernels lack.

mod attention;
mod in_place;
mod kernel;
mod operand;
mod product;
mod vectors;

pub(super) use attention::{Arrangement, RotaryTable, arrange, attend};
pub(super) use in_place::{KvSlot, attend_in_place};
pub(super) use product::{Operand, gather, multiply, times};
pub(super) use vectors::{Halves, add, argmax, gate, rms_norm};
