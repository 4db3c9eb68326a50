//! The blocks that architectures are built of. Shapes: B rows, T new tokens, S tokens seen, D the width of the residual
//! stream. What belongs to a checkpoint is loaded by `load` functions, which read tensors by the names that it gives them;
//! what builds graphs is called `forward`.

mod adapter;
mod attention;
mod beginning;
mod block;
mod cache;
mod closure;
mod custom;
mod decoder;
mod linear;
mod mlp;
mod moe;
mod native;
mod norm;
pub(crate) mod ops;
mod parameter;
mod pass;
mod recompute;
mod rope;
mod weights;

pub(crate) use adapter::{Adapter, Site, SiteKind};
pub(crate) use attention::{Attention, Heads, QkNorm};
pub(crate) use beginning::Beginning;
pub(crate) use block::{Block, FeedForward, PreNorm};
pub(crate) use cache::{KvCache, Rotation, Rows};
pub(crate) use closure::take_failure;
pub(crate) use custom::tracing;
pub(crate) use decoder::Decoder;
pub(crate) use linear::{Linear, Matrix};
pub(crate) use mlp::{Activation, GatedMlp, Gating};
pub(crate) use moe::{ExpertSizes, Experts, Moe};
pub(crate) use norm::RmsNorm;
pub(crate) use parameter::{Form, Inventory, Leaf, Parameter, Swapped, layer_of};
pub(crate) use pass::{Attend, Pass};
pub(crate) use recompute::recomputed;
pub(crate) use rope::{Rope, RopeShape};
pub(crate) use weights::{FLOATS, Source, Weights, scheme};
