//! Training: MLX differentiates the same blocks that generate.
//!
//! - `trained`: which tensors a run trains; they are put in place while a gradient is built, and the model is as it was after.
//! - `gradient`: the loss of a batch and its gradient.
//! - `function`: what is the same in every step, compiled where that helps.
//! - `optimizer`: how gradients change weights.
//! - `run`: a run from its first validation to its last checkpoint, a batch at a time between the requests of others.
//! - `saved`: what of it is on the disk.

mod function;
mod gradient;
mod memory;
mod optimizer;
mod run;
mod saved;
mod trained;

pub(crate) use self::run::{TrainJob, TrainRequest};
#[cfg(test)]
pub(crate) use self::{gradient::Learner, optimizer::Stepper, trained::Trained};
