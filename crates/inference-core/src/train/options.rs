//! Options of a training run.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{LossOn, Method, Optimizer, Schedule, Truncation, optimizer::check};
use crate::{Error, Result};

/// Options of a training run.
///
/// A *batch* is what is computed at once; a *step* is one change of the weights, after [`gradient_accumulation_steps`](Self::gradient_accumulation_steps)
/// batches.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct TrainOptions {
    /// What is trained.
    pub method: Method,
    /// How gradients become steps.
    pub optimizer: Optimizer,
    /// The highest learning rate.
    pub learning_rate: f32,
    /// How the rate changes after warm-up.
    pub schedule: Schedule,
    /// Steps over which the rate rises to its highest.
    pub warmup: usize,
    /// The largest norm of all gradients together; longer ones are shortened to it. Unset: no limit.
    pub max_grad_norm: Option<f32>,
    /// When the run ends.
    pub length: TrainLength,
    /// Examples in a batch.
    pub batch_size: usize,
    /// The most tokens in a batch, padding included; unset: as many as its examples have.
    pub batch_tokens: Option<usize>,
    /// Batches in a step. The loss is the mean over all their tokens: two batches of four are as one of eight.
    pub gradient_accumulation_steps: usize,
    /// Recomputes the activations of a block in the backward pass in place of keeping them.
    pub gradient_checkpointing: bool,
    /// The most tokens of an example.
    pub max_length: usize,
    /// What becomes of examples with more.
    pub truncation: Truncation,
    /// Which tokens of an example are learnt.
    pub loss_on: LossOn,
    /// Steps between validations; one is also made before the first and after the last step.
    pub evaluate_every: usize,
    /// The most batches of a validation; unset: all there are.
    pub validation_batches: Option<usize>,
    /// Steps between checkpoints; the last step is always saved.
    pub save_every: usize,
    /// Fixes initial adapters, order of batches and dropout: a run is the same to the bit on one device.
    pub seed: u64,
    /// Goes on from the last checkpoint in `output`, which must be of the same run.
    #[serde(skip)]
    pub resume: bool,
    /// Closes the model for everything else, for good, once the run is prepared: weights that are trained are then held once. Otherwise
    /// the model goes on answering with those that it was loaded with, beside the run's.
    #[serde(skip)]
    pub close_model: bool,
    /// The folder for adapters and checkpoints.
    #[serde(skip)]
    pub output: PathBuf,
    /// Ends the run after the step under way, with what was reached saved.
    #[serde(skip)]
    pub cancel: CancellationToken,
}

/// When a run of training ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TrainLength {
    /// After this many steps.
    Steps(usize),
    /// When every example was learnt so often.
    Epochs(usize),
}

impl TrainOptions {
    /// LoRA by AdamW at a constant 1e-4: 1,000 steps of one batch of 4 examples, of at most 2,048 tokens each, to `output`.
    pub fn new(output: impl Into<PathBuf>) -> Self {
        Self {
            method: Method::lora(),
            optimizer: Optimizer::adamw(),
            learning_rate: 1e-4,
            schedule: Schedule::Constant,
            warmup: 0,
            max_grad_norm: None,
            length: TrainLength::Steps(1000),
            batch_size: 4,
            batch_tokens: None,
            gradient_accumulation_steps: 1,
            gradient_checkpointing: false,
            max_length: 2048,
            truncation: Truncation::Truncate,
            loss_on: LossOn::Answer,
            evaluate_every: 200,
            validation_batches: None,
            save_every: 100,
            seed: 0,
            resume: false,
            close_model: false,
            output: output.into(),
            cancel: CancellationToken::new(),
        }
    }

    /// Sets what is trained.
    #[must_use]
    pub fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    /// Sets how gradients become steps.
    #[must_use]
    pub fn optimizer(mut self, optimizer: Optimizer) -> Self {
        self.optimizer = optimizer;
        self
    }

    /// Sets the highest learning rate.
    #[must_use]
    pub fn learning_rate(mut self, rate: f32) -> Self {
        self.learning_rate = rate;
        self
    }

    /// Sets how the rate changes after `warmup` steps over which it rises.
    #[must_use]
    pub fn schedule(mut self, schedule: Schedule, warmup: usize) -> Self {
        self.schedule = schedule;
        self.warmup = warmup;
        self
    }

    /// Shortens gradients to this norm.
    #[must_use]
    pub fn max_grad_norm(mut self, norm: f32) -> Self {
        self.max_grad_norm = Some(norm);
        self
    }

    /// Ends after this many steps.
    #[must_use]
    pub fn steps(mut self, steps: usize) -> Self {
        self.length = TrainLength::Steps(steps);
        self
    }

    /// Ends when every example was learnt so often.
    #[must_use]
    pub fn epochs(mut self, epochs: usize) -> Self {
        self.length = TrainLength::Epochs(epochs);
        self
    }

    /// Sets the examples in a batch.
    #[must_use]
    pub fn batch_size(mut self, examples: usize) -> Self {
        self.batch_size = examples;
        self
    }

    /// Limits the tokens in a batch, padding included.
    #[must_use]
    pub fn batch_tokens(mut self, tokens: usize) -> Self {
        self.batch_tokens = Some(tokens);
        self
    }

    /// Takes an optimiser step after this many batches.
    #[must_use]
    pub fn gradient_accumulation_steps(mut self, batches: usize) -> Self {
        self.gradient_accumulation_steps = batches;
        self
    }

    /// Recomputes activations in the backward pass in place of keeping them.
    #[must_use]
    pub fn gradient_checkpointing(mut self, yes: bool) -> Self {
        self.gradient_checkpointing = yes;
        self
    }

    /// Closes the model for everything else, so that weights that are trained need not be held twice.
    #[must_use]
    pub fn close_model(mut self, yes: bool) -> Self {
        self.close_model = yes;
        self
    }

    /// Limits the tokens of an example, and says what becomes of longer ones.
    #[must_use]
    pub fn max_length(mut self, tokens: usize, longer: Truncation) -> Self {
        self.max_length = tokens;
        self.truncation = longer;
        self
    }

    /// Sets which tokens of an example are learnt.
    #[must_use]
    pub fn loss_on(mut self, tokens: LossOn) -> Self {
        self.loss_on = tokens;
        self
    }

    /// Validates each time this many steps are done, on at most `batches` batches; unset: on all.
    #[must_use]
    pub fn evaluate_every(mut self, steps: usize, batches: Option<usize>) -> Self {
        self.evaluate_every = steps;
        self.validation_batches = batches;
        self
    }

    /// Saves each time this many steps are done.
    #[must_use]
    pub fn save_every(mut self, steps: usize) -> Self {
        self.save_every = steps;
        self
    }

    /// Fixes initial adapters, order of batches and dropout.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Goes on from the last checkpoint in the output folder.
    #[must_use]
    pub fn resume(mut self, yes: bool) -> Self {
        self.resume = yes;
        self
    }

    /// Ends the run, saved, when this token is cancelled.
    #[must_use]
    pub fn cancel(mut self, token: CancellationToken) -> Self {
        self.cancel = token;
        self
    }

    /// The learning rate of `step`, from 1, of `steps`.
    #[must_use]
    pub fn rate(&self, step: usize, steps: usize) -> f32 {
        (f64::from(self.learning_rate) * self.schedule.share(step, steps, self.warmup)) as f32
    }

    /// Checks the values.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] names the first that makes no sense.
    pub fn validate(&self) -> Result<()> {
        self.method.validate()?;
        self.optimizer.validate()?;
        check("learning_rate", self.learning_rate, "more than 0", |rate| rate > 0.0)?;
        if let Some(norm) = self.max_grad_norm {
            check("max_grad_norm", norm, "more than 0", |norm| norm > 0.0)?;
        }
        let (length, count) = match self.length {
            TrainLength::Steps(steps) => ("steps", steps),
            TrainLength::Epochs(epochs) => ("epochs", epochs),
        };
        let counts = [
            (length, Some(count)),
            ("batch_size", Some(self.batch_size)),
            ("batch_tokens", self.batch_tokens),
            ("gradient_accumulation_steps", Some(self.gradient_accumulation_steps)),
            ("evaluate_every", Some(self.evaluate_every)),
            ("validation_batches", self.validation_batches),
            ("save_every", Some(self.save_every)),
        ];
        let invalid = |option, reason| Err(Error::invalid_option(option, reason));
        if let Some((option, _)) = counts.into_iter().find(|(_, count)| *count == Some(0)) {
            return invalid(option, "0, expected at least 1".to_owned());
        }
        if self.max_length < 2 {
            let reason =
                format!("{}, expected at least 2: a token is learnt from those before it", self.max_length);
            return invalid("max_length", reason);
        }
        if self.batch_tokens.is_some_and(|tokens| tokens < self.max_length) {
            let reason =
                format!("less than max_length, {}: the longest example would not fit", self.max_length);
            return invalid("batch_tokens", reason);
        }
        if let TrainLength::Steps(steps) = self.length
            && self.warmup > steps
        {
            return invalid(
                "warmup",
                format!("{}, expected at most the {steps} steps of the run", self.warmup),
            );
        }
        if self.output.as_os_str().is_empty() {
            return invalid("output", "is empty, expected a folder".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::{AdapterOptions, FullOptions};

    #[test]
    fn every_value_that_makes_no_sense_is_named() {
        let options = || TrainOptions::new("out");
        let lora = |adapter| options().method(Method::Lora(adapter));
        let adapter = AdapterOptions::new;
        let wrong = [
            (lora(adapter().rank(0)), "rank"),
            (lora(adapter().rank(1 << 20)), "rank"),
            (lora(adapter().scale(f32::NAN)), "scale"),
            (lora(adapter().scale(0.0)), "scale"),
            (lora(adapter().dropout(1.0)), "dropout"),
            (lora(adapter().keys([""; 0])), "keys"),
            (lora(adapter().keys([""])), "keys"),
            (lora(adapter().layers(0)), "layers"),
            (options().method(Method::Full(FullOptions::new().dropout(-0.1))), "dropout"),
            (options().method(Method::Full(FullOptions::new().layers(0))), "layers"),
            (options().optimizer(adamw([1.0, 0.9], 1e-8, 0.0)), "betas"),
            (options().optimizer(adamw([0.9, -0.1], 1e-8, 0.0)), "betas"),
            (options().optimizer(adamw([0.9, 0.9], 0.0, 0.0)), "eps"),
            (options().optimizer(adamw([0.9, 0.9], 1e-8, -1.0)), "weight_decay"),
            (options().optimizer(Optimizer::Sgd { momentum: 1.0, weight_decay: 0.0 }), "momentum"),
            (options().learning_rate(0.0), "learning_rate"),
            (options().learning_rate(f32::INFINITY), "learning_rate"),
            (options().max_grad_norm(0.0), "max_grad_norm"),
            (options().steps(0), "steps"),
            (options().epochs(0), "epochs"),
            (options().batch_size(0), "batch_size"),
            (options().batch_tokens(100), "batch_tokens"),
            (options().gradient_accumulation_steps(0), "gradient_accumulation_steps"),
            (options().max_length(1, Truncation::Refuse), "max_length"),
            (options().evaluate_every(0, None), "evaluate_every"),
            (options().evaluate_every(1, Some(0)), "validation_batches"),
            (options().save_every(0), "save_every"),
            (options().steps(5).schedule(Schedule::Linear, 6), "warmup"),
            (TrainOptions::new(""), "output"),
        ];
        for (options, expected) in wrong {
            match options.validate() {
                Err(Error::InvalidOption { option, .. }) => assert_eq!(option, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
        options().validate().unwrap();
        lora(adapter().keys(["self_attn.q_proj"]).layers(4)).validate().unwrap();
    }

    fn adamw(betas: [f32; 2], eps: f32, weight_decay: f32) -> Optimizer {
        Optimizer::AdamW { betas, eps, weight_decay, bias_correction: true }
    }
}
