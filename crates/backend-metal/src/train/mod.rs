//! Training: MLX differentiates the same blocks that generate text.
//!
//! - `trainable`: which tensors a run trains. They are attached to the model while a graph is built, and detached afterwards.
//! - `gradient`: the loss of a batch and its gradient.
//! - `head_loss`: the output layer and its loss, in pieces.
//! - `compiled_fn`: the parts of a step that stay the same, compiled where that helps.
//! - `optimizer`: how gradients change weights.
//! - `output`: the lock on the output folder.
//! - `prepare`: the checks and the plan before the first step.
//! - `run`: a run's state and work, from its first validation to its last checkpoint.
//! - `job`: a run as the scheduler sees it, one batch at a time between other requests.
//! - `checkpoint`: adapters and checkpoints on disk.

mod checkpoint;
mod compiled_fn;
mod gradient;
mod head_loss;
mod job;
mod memory;
mod optimizer;
mod output;
mod prepare;
mod run;
mod trainable;

#[cfg(test)]
pub(crate) use self::{
    gradient::LossAndGrad, head_loss::HeadLoss, optimizer::Optimizer, trainable::TrainableParams,
};
pub(crate) use self::{job::TrainJob, run::TrainRequest};
