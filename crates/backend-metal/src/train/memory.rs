//! The memory of a run, estimated before its first step.

use inference_core::train::{Method, TrainMemory, TrainOptions};
use mlx_rs::Array;

use super::optimizer::Optimizer;
use crate::{
    mlx::on_cuda,
    nn::{Architecture, SlotKind, layer_of},
};

/// The size of the largest batch of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct LargestBatch {
    /// Number of examples.
    pub(super) examples: usize,
    /// Tokens of its longest example.
    pub(super) length: usize,
}

/// The bytes that a run needs, including `weights`, which are already in memory.
///
/// Activations are the sum of:
/// - what the backward pass reads: a third more than the inputs and outputs of the linear layers. With gradient checkpointing, one
///   block's and the residual stream of every block;
/// - what the backward pass of one block holds: about as much again, in the type of the trained values;
/// - the logits and their gradient.
///
/// Attention scores are not kept, so they are not counted.
pub(super) fn estimate(
    model: &dyn Architecture,
    values: &[Array],
    optimizer: &Optimizer,
    weights: u64,
    batch: LargestBatch,
    options: &TrainOptions,
) -> TrainMemory {
    let config = model.config();
    let tokens = (batch.examples * batch.length) as u64;
    let float = if config.dtype == "f32" { 4 } else { 2 };
    let value_size = values.iter().map(|value| value.item_size() as u64).max().unwrap_or(float).max(float);
    let slots = model.registry().slots();
    let block_elements = |layer: usize| -> u64 {
        let of_layer = slots.iter().filter(|slot| layer_of(slot.name()) == Some(layer));
        let widths = of_layer.map(|slot| match slot.kind() {
            // A token is routed to few experts: two are assumed.
            SlotKind::Experts(_) => 2 * (slot.inputs() + slot.outputs()) as u64,
            _ => (slot.inputs() + slot.outputs()) as u64,
        });
        widths.sum::<u64>() * tokens * 4 / 3
    };
    let blocks: Vec<_> = (0..config.layers).map(block_elements).collect();
    let largest = blocks.iter().max().copied().unwrap_or(0);
    let activations = if options.gradient_checkpointing {
        config.layers as u64 * config.hidden_size as u64 * tokens + largest
    } else {
        blocks.iter().sum()
    };
    let norms = if matches!(options.method, Method::Dora(_)) {
        let matrices = slots.iter().filter(|slot| layer_of(slot.name()).is_some());
        matrices.map(|slot| 4 * (slot.inputs() * slot.outputs()) as u64).sum()
    } else {
        0
    };
    let bytes: u64 = values.iter().map(|value| value.nbytes() as u64).sum();
    let mut memory = TrainMemory::default();
    // The run gets the weights that it trains from a model that is closed.
    let released = options.close_model && options.method.adapter().is_none();
    memory.weights = if released { weights } else { weights + bytes };
    memory.gradients = bytes;
    memory.optimizer = optimizer.bytes();
    memory.activations = activations * float
        + largest * value_size * 6 / 5
        + norms
        + loss_bytes(config.vocab_size, tokens, float);
    memory
}

/// Bytes of the logits and their gradient in their own type. Except on CUDA, also of float32 copies and their exponentials.
fn loss_bytes(vocabulary: usize, tokens: u64, float: u64) -> u64 {
    let wide = if on_cuda() {
        0
    } else if float == 4 {
        4
    } else {
        12
    };
    // All rows are counted, although the loss is computed in pieces: that is nearer to the peaks of most runs.
    vocabulary as u64 * tokens * (2 * float + wide)
}
