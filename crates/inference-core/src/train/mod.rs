//! Training, free of any engine: what is learnt, how, and what is told on the way.

pub(crate) mod batches;
pub(crate) mod checkpoint;
mod data;
mod event;
mod example;
mod method;
mod optimizer;
mod options;
mod stream;

use std::fmt::Debug;

use async_trait::async_trait;

pub use self::{
    event::{TrainEnd, TrainEvent, TrainMemory, TrainPlan},
    example::{Example, ExampleKind, ExampleSource, LossOn, TokenExample, TrainingData, Truncation},
    method::{AdapterDtype, AdapterOptions, FullOptions, Method},
    optimizer::{Optimizer, Schedule},
    options::{TrainLength, TrainOptions},
    stream::TrainStream,
};
use crate::Result;

/// A model that can be fine-tuned.
#[async_trait]
pub trait Trainable: Debug + Send + Sync {
    /// Trains on the examples and reports as it goes; ends after the last step, or when cancelled, with what was reached
    /// saved in [`TrainOptions::output`].
    ///
    /// All examples are tokenised, and every one checked, before the first step. The model itself stays as it was loaded: load
    /// the output as its [`adapter`](crate::LoadOptions::adapter) to use what was learnt.
    ///
    /// # Errors
    /// An option makes no sense for this model, an example does not fit, or the training needs more memory than there is.
    async fn train(&self, data: TrainingData, options: TrainOptions) -> Result<TrainStream>;
}
