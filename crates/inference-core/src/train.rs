//! Training, free of any engine: what a caller asks of a [`Trainable`] model and what it is told.

use std::{fmt::Debug, path::PathBuf};

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{Message, Result};

/// A model that can be fine-tuned where it stands.
#[async_trait]
pub trait Trainable: Debug + Send + Sync {
    /// Trains on the examples and reports as it goes; ends after the last step, or when cancelled, with what was reached
    /// saved.
    ///
    /// # Errors
    /// An option makes no sense, an example does not fit, or the training needs more memory than there is.
    async fn train(
        &self,
        data: TrainingData,
        options: TrainOptions,
    ) -> Result<BoxStream<'static, Result<TrainEvent>>>;
}

/// What to learn from.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct TrainingData {
    /// Examples to learn from.
    pub train: Vec<Example>,
    /// Examples held out for validation.
    pub validation: Vec<Example>,
}

impl TrainingData {
    /// Examples to learn from and, perhaps none, to validate on.
    #[must_use]
    pub fn new(train: Vec<Example>, validation: Vec<Example>) -> Self {
        Self { train, validation }
    }
}

/// One example.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Example {
    /// A text, every token of which is learnt.
    Text(String),
    /// An answer to learn after a prompt that is given.
    Completion {
        /// What is given.
        prompt: String,
        /// What is learnt.
        completion: String,
    },
    /// A conversation whose last message is learnt.
    Chat(Vec<Message>),
}

/// How to train.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Method {
    /// Low-rank adapters beside frozen weights (Hu et al. 2021).
    Lora {
        /// The adapters' inner dimension.
        rank: usize,
        /// The factor on their output.
        scale: f32,
    },
    /// Every weight.
    Full,
}

/// Options of a training run.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TrainOptions {
    /// What is trained.
    pub method: Method,
    /// Optimiser steps.
    pub steps: usize,
    /// Examples in a step.
    pub batch_size: usize,
    /// The optimiser's learning rate.
    pub learning_rate: f32,
    /// Recomputes activations in the backward pass instead of keeping them.
    pub checkpoint: bool,
    /// Makes the run reproducible.
    pub seed: u64,
    /// Where adapters and checkpoints go.
    pub output: PathBuf,
    /// Cancels the run, which saves what it has.
    pub cancel: CancellationToken,
}

impl TrainOptions {
    /// LoRA of rank 8, 1,000 steps of 4 examples at 1e-4, written to `output`.
    pub fn new(output: impl Into<PathBuf>) -> Self {
        Self {
            method: Method::Lora { rank: 8, scale: 20.0 },
            steps: 1000,
            batch_size: 4,
            learning_rate: 1e-4,
            checkpoint: false,
            seed: 0,
            output: output.into(),
            cancel: CancellationToken::new(),
        }
    }
}

/// What a training run reports.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TrainEvent {
    /// An optimiser step was done.
    Step {
        /// Its number, from 1.
        step: usize,
        /// The mean loss over its tokens, in nats.
        loss: f32,
        /// Tokens learnt per second.
        tokens_per_second: f64,
    },
    /// The validation examples were scored.
    Validation {
        /// After this step.
        step: usize,
        /// The mean loss over their tokens, in nats.
        loss: f32,
    },
    /// A checkpoint was written.
    Saved {
        /// After this step.
        step: usize,
        /// Its folder.
        path: PathBuf,
    },
}
