//! What a run will need, before its first step.

use inference_core::TrainMemory;
use mlx_rs::Array;

use super::optimizer::Stepper;
use crate::{
    arch::Architecture,
    nn::{SiteKind, layer_of},
};

/// What the largest batch of a run holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Largest {
    /// Its examples.
    pub(super) examples: usize,
    /// The longest of them, in tokens.
    pub(super) length: usize,
}

/// The bytes that a run will need, of which the model's weights, `weights`, are there already.
///
/// Activations are those that the backward pass reads: what goes into and comes out of each linear layer, the residual stream
/// and norms, and the scores of attention, which MLX's own attention on the CPU holds in full. With checkpointing they are those of
/// one block, and one residual stream for each.
pub(super) fn estimate(
    model: &dyn Architecture,
    values: &[Array],
    stepper: &Stepper,
    weights: u64,
    batch: Largest,
    checkpoint: bool,
) -> TrainMemory {
    let config = model.config();
    let tokens = (batch.examples * batch.length) as u64;
    let float = if config.dtype == "f32" { 4 } else { 2 };
    let sites = model.inventory().sites();
    let of_a_block = |layer: usize| -> u64 {
        let of_layer = sites.iter().filter(|site| layer_of(site.name()) == Some(layer));
        let widths = of_layer.map(|site| match site.kind() {
            // A token visits few of them.
            SiteKind::Experts(_) => 2 * (site.inputs() + site.outputs()) as u64,
            _ => (site.inputs() + site.outputs()) as u64,
        });
        let streams = 6 * config.hidden_size as u64;
        let queries =
            sites.iter().find(|site| site.name().ends_with("q_proj") || site.name().ends_with("qkv_proj"));
        let heads = queries.map_or(config.kv_heads, |site| site.outputs() / config.head_dim.max(1)) as u64;
        let scores = 2 * heads * batch.length as u64;
        (widths.sum::<u64>() + streams + scores) * tokens * float
    };
    let streams = config.layers as u64 * config.hidden_size as u64 * tokens * float;
    let blocks = (0..config.layers).map(of_a_block);
    let blocks = if checkpoint { streams + blocks.max().unwrap_or(0) } else { streams + blocks.sum::<u64>() };
    // Logits, their gradient and their exponentials, in float32.
    let logits = 3 * 4 * config.vocab_size as u64 * tokens;
    let bytes: u64 = values.iter().map(|value| value.nbytes() as u64).sum();
    let mut memory = TrainMemory::default();
    memory.weights = weights + bytes;
    memory.gradients = bytes;
    memory.optimizer = stepper.bytes();
    memory.activations = blocks + logits;
    memory
}
