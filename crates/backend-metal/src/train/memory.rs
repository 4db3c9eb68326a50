//! What a run will need, before its first step.

use inference_core::train::{Method, TrainMemory, TrainOptions};
use mlx_rs::Array;

use super::optimizer::Stepper;
use crate::{
    mlx::on_cuda,
    nn::{Architecture, SlotKind, layer_of},
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
/// Activations are what the backward pass reads, a third more than goes into and comes out of the linear layers; while it is at a
/// block, about as much again of that block, in the type of what is trained; and what the loss is computed from. With checkpointing
/// they are those of one block, and one residual stream for each. The scores of attention are none of them, but where they are
/// capped or there are sinks.
pub(super) fn estimate(
    model: &dyn Architecture,
    values: &[Array],
    stepper: &Stepper,
    weights: u64,
    batch: Largest,
    options: &TrainOptions,
) -> TrainMemory {
    let config = model.config();
    let tokens = (batch.examples * batch.length) as u64;
    let float = if config.dtype == "f32" { 4 } else { 2 };
    let trained = values.iter().map(|value| value.item_size() as u64).max().unwrap_or(float).max(float);
    let slots = model.registry().slots();
    let of_a_block = |layer: usize| -> u64 {
        let of_layer = slots.iter().filter(|slot| layer_of(slot.name()) == Some(layer));
        let widths = of_layer.map(|slot| match slot.kind() {
            // A token visits few of them.
            SlotKind::Experts(_) => 2 * (slot.inputs() + slot.outputs()) as u64,
            _ => (slot.inputs() + slot.outputs()) as u64,
        });
        widths.sum::<u64>() * tokens * 4 / 3
    };
    let blocks: Vec<_> = (0..config.layers).map(of_a_block).collect();
    let largest = blocks.iter().max().copied().unwrap_or(0);
    let kept = if options.gradient_checkpointing {
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
    memory.weights = weights + bytes;
    memory.gradients = bytes;
    memory.optimizer = stepper.bytes();
    memory.activations =
        kept * float + largest * trained * 6 / 5 + norms + loss_bytes(config.vocab_size, tokens, float);
    memory
}

/// Logits and their gradient, in their own type, and off CUDA besides in float32, with the exponentials.
fn loss_bytes(vocabulary: usize, tokens: u64, float: u64) -> u64 {
    let wide = if on_cuda() {
        0
    } else if float == 4 {
        4
    } else {
        12
    };
    // In pieces they are all there at once too: nothing makes the backward pass of one wait for another's.
    vocabulary as u64 * tokens * (2 * float + wide)
}
