//! What a run of training tells.

use std::path::PathBuf;

use serde::Serialize;

/// What a run of training tells.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum TrainEvent {
    /// Everything is checked and in place; the first step comes next.
    Started(TrainPlan),
    /// A step was done.
    Step {
        /// Its number, from 1.
        step: usize,
        /// The mean loss over its learnt tokens, in nats, before the weights changed.
        loss: f32,
        /// The rate at which they changed.
        learning_rate: f32,
        /// Tokens learnt in it.
        tokens: usize,
        /// Tokens learnt per second.
        tokens_per_second: f64,
        /// The norm of all gradients together, before it was clipped; only where it is.
        gradient_norm: Option<f32>,
        /// The most bytes in use since the run began, where the engine can tell.
        peak_memory: Option<u64>,
    },
    /// The validation examples were scored.
    Validation {
        /// After this step; 0 is before the first.
        step: usize,
        /// The mean loss over their learnt tokens, in nats.
        loss: f32,
        /// Those tokens.
        tokens: usize,
    },
    /// A checkpoint was written.
    Saved {
        /// After this step.
        step: usize,
        /// Its folder.
        path: PathBuf,
    },
    /// The run is over and what was learnt is saved.
    Finished {
        /// The last step.
        step: usize,
        /// Why it ended.
        reason: TrainEnd,
        /// The folder with the adapters.
        path: PathBuf,
        /// Tokens learnt, in this run and those that it resumed.
        tokens: u64,
        /// Wall-clock time of this run, in seconds.
        seconds: f64,
    },
}

/// Why a run of training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TrainEnd {
    /// All steps were done.
    Completed,
    /// It was cancelled; it can be resumed.
    Cancelled,
}

/// What a run of training is about to do.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TrainPlan {
    /// `lora`, `dora` or `full`.
    pub method: &'static str,
    /// Numbers that are trained.
    pub trainable_parameters: u64,
    /// Weights of the model before quantisation, and of its adapters.
    pub total_parameters: u64,
    /// Steps of the whole run.
    pub steps: usize,
    /// The step that the run goes on after; 0 where it is new.
    pub resumed_at: usize,
    /// Examples to learn from.
    pub examples: usize,
    /// Examples to validate on.
    pub validation_examples: usize,
    /// Examples that were cut at `max_length`, of both.
    pub truncated_examples: usize,
    /// Tokens learnt in an epoch.
    pub tokens_per_epoch: u64,
    /// What it will need.
    pub memory: TrainMemory,
}

impl TrainPlan {
    /// A plan with nothing in it but its method; engines fill in the rest.
    #[must_use]
    pub fn new(method: &'static str) -> Self {
        Self {
            method,
            trainable_parameters: 0,
            total_parameters: 0,
            steps: 0,
            resumed_at: 0,
            examples: 0,
            validation_examples: 0,
            truncated_examples: 0,
            tokens_per_epoch: 0,
            memory: TrainMemory::default(),
        }
    }
}

/// The bytes that a run of training will need, estimated before its first step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TrainMemory {
    /// The model's weights and the adapters.
    pub weights: u64,
    /// The gradients.
    pub gradients: u64,
    /// The optimiser's state.
    pub optimizer: u64,
    /// What the forward pass of the largest batch keeps for the backward pass.
    pub activations: u64,
}

impl TrainMemory {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        [self.weights, self.gradients, self.optimizer, self.activations]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}
