//! The state of a training run, and its work: batches, steps, validations, checkpoints.

use std::{mem, rc::Rc, slice, time::Instant};

use futures::channel::mpsc::UnboundedSender;
use inference_core::{
    Error, Result,
    backend::{Batches, TrainState},
    train::{TokenExample, TrainEnd, TrainEvent, TrainOptions},
};
use inference_text::TokenData;
use mlx_rs::{Array, error::Exception, transforms};

use super::{
    checkpoint,
    gradient::{LossAndGrad, validation_loss},
    optimizer::Optimizer,
    output::OutputLock,
    trainable::TrainableParams,
};
use crate::{
    mlx::{exception, memory as mlx_memory},
    nn::Architecture,
};

/// A training run, as requested.
#[derive(Debug)]
pub(crate) struct TrainRequest {
    /// Training examples, at least one, and validation examples; all fit the model.
    pub(crate) data: TokenData,
    pub(crate) options: TrainOptions,
    /// Receives the events. Dropping the receiver cancels the run.
    pub(crate) events: UnboundedSender<Result<TrainEvent>>,
    /// Bytes of the model's weights.
    pub(crate) weight_bytes: u64,
    /// Free memory of the device in bytes, if known.
    pub(crate) free_bytes: Option<u64>,
}

/// The state of a run.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) trainable: Rc<TrainableParams>,
    /// The trainable values after all steps that were started.
    pub(super) values: Vec<Array>,
    pub(super) loss_and_grad: LossAndGrad,
    pub(super) optimizer: Optimizer,
    pub(super) batches: Batches,
    /// Steps of the whole run.
    pub(super) steps: usize,
    /// Steps that are done or submitted.
    pub(super) step: usize,
    /// The last step that is on disk, of this run or of the one that it resumes.
    pub(super) saved: Option<usize>,
    /// Targets of all steps so far.
    pub(super) tokens: u64,
    /// Of the examples: see [`TrainState::fingerprint`].
    pub(super) fingerprint: String,
    pub(super) accumulating: Option<AccumulatingStep>,
    /// The batch that the device computes while the graph of the next one is built.
    pub(super) in_flight: Option<InFlightBatch>,
    /// When the last step ended, or the first began.
    pub(super) since: Instant,
    pub(super) validation: Option<Validation>,
    pub(super) began: Instant,
    /// The highest memory use so far, in bytes.
    pub(super) peak: u64,
    /// Which loss is not finite, once one is.
    pub(super) diverged: Option<String>,
    /// Keeps other runs from the output.
    pub(super) _lock: OutputLock,
}

/// A step some of whose batches are computed.
#[derive(Debug)]
pub(super) struct AccumulatingStep {
    /// Targets of all its batches.
    tokens: usize,
    /// The batches' parts in the step's loss, so far.
    losses: Vec<Array>,
    /// The sum of the batches' gradients, so far.
    gradients: Vec<Array>,
}

/// A batch that was submitted to the device.
#[derive(Debug)]
pub(super) struct InFlightBatch {
    /// Everything that it computes.
    arrays: Vec<Array>,
    /// The parts in the step's loss of this batch and those before it.
    losses: Vec<Array>,
    /// The report of the step, if this is its last batch.
    report: Option<StepReport>,
}

/// What is reported of a step besides its loss.
#[derive(Debug)]
struct StepReport {
    step: usize,
    tokens: usize,
    rate: f32,
    norm: Option<Array>,
}

/// A validation in progress.
#[derive(Debug)]
pub(super) struct Validation {
    /// The batches that are left, in reverse order.
    batches: Vec<Vec<usize>>,
    loss: f64,
    tokens: usize,
}

impl TrainRequest {
    /// Sends an event to whoever asked for the run.
    pub(super) fn tell(&self, event: TrainEvent) {
        // A closed channel is noticed before the next batch.
        let _ = self.events.unbounded_send(Ok(event));
    }
}

impl Run {
    /// Submits one batch and, after the last batch of a step, the optimiser's update. The graph is built while the device computes the
    /// previous batch. Only one batch is in flight at a time, since each needs its own memory.
    pub(super) fn learn(&mut self, request: &TrainRequest) -> mlx_rs::error::Result<()> {
        let TrainRequest { data, options, .. } = request;
        if self.in_flight.is_none() {
            self.since = Instant::now();
        }
        let first = self.step * options.gradient_accumulation_steps;
        let pick = |batches: &mut Batches, n: usize| -> Vec<&TokenExample> {
            batches.get(n).iter().map(|example| &data.train[*example]).collect()
        };
        let mut step = self.accumulating.take().unwrap_or_else(|| {
            let batches = first..first + options.gradient_accumulation_steps;
            let examples = batches.flat_map(|n| pick(&mut self.batches, n));
            let tokens = examples.map(TokenExample::learnt_tokens).sum();
            AccumulatingStep { tokens, losses: Vec::new(), gradients: Vec::new() }
        });
        let number = first + step.losses.len();
        let batch = self.loss_and_grad.batch(&pick(&mut self.batches, number));
        let (loss, gradients) =
            self.loss_and_grad.gradient(&self.values, &batch, number as u64, step.tokens)?;
        step.losses.push(loss);
        step.gradients = match mem::take(&mut step.gradients) {
            before if before.is_empty() => gradients,
            before => {
                let sums = before.iter().zip(&gradients).map(|(before, new)| before.add(new));
                sums.collect::<mlx_rs::error::Result<_>>()?
            }
        };
        if step.losses.len() < options.gradient_accumulation_steps {
            self.settle(request)?;
            let arrays = [&*step.gradients, &step.losses].concat();
            self.submit(arrays, step.losses.clone(), None)?;
            self.accumulating = Some(step);
        } else {
            let AccumulatingStep { tokens, losses, gradients } = step;
            let rate = options.rate(self.step + 1, self.steps);
            let norm = self.optimizer.step(&mut self.values, &gradients, rate, self.step + 1)?;
            // Lets MLX free each gradient once its weight is updated.
            drop(gradients);
            self.settle(request)?;
            self.step += 1;
            self.tokens += tokens as u64;
            let params = self.values.iter().zip(&self.optimizer.state);
            let mut arrays: Vec<_> =
                params.flat_map(|(value, state)| [slice::from_ref(value), state].concat()).collect();
            arrays.extend(losses.iter().chain(&norm).cloned());
            self.submit(arrays, losses, Some(StepReport { step: self.step, tokens, rate, norm }))?;
        }
        Ok(())
    }

    fn submit(
        &mut self,
        arrays: Vec<Array>,
        losses: Vec<Array>,
        report: Option<StepReport>,
    ) -> mlx_rs::error::Result<()> {
        transforms::async_eval(&arrays)?;
        self.in_flight = Some(InFlightBatch { arrays, losses, report });
        Ok(())
    }

    /// Waits for the batch in flight, and reports the step that it ended.
    pub(super) fn settle(&mut self, request: &TrainRequest) -> mlx_rs::error::Result<()> {
        let Some(InFlightBatch { arrays, losses, report }) = self.in_flight.take() else { return Ok(()) };
        transforms::eval(&arrays)?;
        // Frees their memory for the next batch.
        drop(arrays);
        let mut loss = 0.0;
        for part in losses {
            loss += part.try_item_exact::<f32>().map_err(exception)?;
        }
        let Some(StepReport { step, tokens, rate, norm }) = report else { return Ok(()) };
        if !self.is_finite(loss, || format!("step {step}")) {
            return Ok(());
        }
        let gradient_norm = norm.map(|norm| norm.try_item_exact::<f32>()).transpose().map_err(exception)?;
        let seconds = mem::replace(&mut self.since, Instant::now()).elapsed().as_secs_f64();
        self.peak = self.peak.max(mlx_memory::peak());
        request.tell(TrainEvent::Step {
            step,
            loss,
            learning_rate: rate,
            tokens,
            tokens_per_second: tokens as f64 / seconds.max(f64::MIN_POSITIVE),
            gradient_norm,
            peak_memory: Some(self.peak),
        });
        Ok(())
    }

    /// Whether a loss is a finite number. Otherwise the run has diverged: from there on it would learn nothing.
    fn is_finite(&mut self, loss: f32, of: impl FnOnce() -> String) -> bool {
        if !loss.is_finite() {
            self.diverged = Some(format!("the loss of {} is {loss}: {ADVICE}", of()));
        }
        loss.is_finite()
    }

    /// Fails if the run has diverged.
    ///
    /// # Errors
    /// [`Error::Backend`] says which loss is NaN or infinite, and what to do.
    pub(super) fn check_converging(&self, backend: &str) -> Result<()> {
        match &self.diverged {
            None => Ok(()),
            Some(reason) => Err(Error::backend(backend, "train", reason.clone())),
        }
    }

    /// Whether a checkpoint or a validation is due after the last step.
    pub(super) fn is_due(&self, request: &TrainRequest) -> bool {
        let every = |steps: usize| self.step.is_multiple_of(steps);
        let options = &request.options;
        self.step == self.steps || every(options.save_every) || every(options.evaluate_every)
    }

    /// Saves a checkpoint and starts a validation, if they are due.
    pub(super) fn after_step(&mut self, model: &dyn Architecture, request: &TrainRequest) -> Result<()> {
        let options = &request.options;
        let last = self.step == self.steps;
        if last || self.step.is_multiple_of(options.save_every) {
            self.save(model, request)?;
        }
        if last || self.step.is_multiple_of(options.evaluate_every) {
            self.begin_validation(request);
        }
        Ok(())
    }

    /// Starts a validation, if there are examples for it.
    pub(super) fn begin_validation(&mut self, request: &TrainRequest) {
        let TrainRequest { data, options, .. } = request;
        if data.validation.is_empty() {
            return;
        }
        let lengths: Vec<_> = data.validation.iter().map(|example| example.tokens.len()).collect();
        let batches = Batches::new(&lengths, options.batch_size, options.batch_tokens, options.seed);
        let mut batches = batches.in_order();
        batches.truncate(options.validation_batches.unwrap_or(usize::MAX));
        self.validation = Some(Validation { batches, loss: 0.0, tokens: 0 });
    }

    /// Computes one batch of the validation.
    pub(super) fn validate(
        &mut self,
        model: &Rc<dyn Architecture>,
        request: &TrainRequest,
    ) -> mlx_rs::error::Result<()> {
        let Some(validation) = &mut self.validation else { return Ok(()) };
        if let Some(batch) = validation.batches.pop() {
            let examples = &request.data.validation;
            let batch = self
                .loss_and_grad
                .batch(&batch.iter().map(|example| &examples[*example]).collect::<Vec<_>>());
            let loss = validation_loss(model, &self.trainable, &self.values, &batch)?;
            validation.loss += f64::from(loss.try_item_exact::<f32>().map_err(exception)?);
            validation.tokens += batch.target_count;
        }
        if validation.batches.is_empty() {
            let loss = (validation.loss / validation.tokens.max(1) as f64) as f32;
            let (step, tokens) = (self.step, validation.tokens);
            self.validation = None;
            if self.is_finite(loss, || format!("the validation after step {step}")) {
                request.tell(TrainEvent::Validation { step, loss, tokens });
            }
        }
        Ok(())
    }

    fn save(&mut self, model: &dyn Architecture, request: &TrainRequest) -> Result<()> {
        let options = &request.options;
        let failed = |error: Exception| Error::backend("mlx", "save a checkpoint", error);
        if let Some(name) = self.trainable.not_finite(&self.values).map_err(failed)? {
            let reason = format!("after step {} {name} has values that are not finite: {ADVICE}", self.step);
            return Err(Error::backend("mlx", "train", reason));
        }
        let state = TrainState::new(self.step, self.tokens, options, &self.fingerprint)?;
        let path = checkpoint::save(model, &self.trainable, &self.values, &self.optimizer, options, &state)?;
        self.saved = Some(self.step);
        request.tell(TrainEvent::Saved { step: self.step, path });
        Ok(())
    }

    /// Saves the last steps, if they are not saved yet, and reports the end of the run.
    pub(super) fn end(
        &mut self,
        model: &dyn Architecture,
        request: &TrainRequest,
        reason: TrainEnd,
    ) -> Result<()> {
        if self.saved != Some(self.step) {
            self.save(model, request)?;
        }
        request.tell(TrainEvent::Finished {
            step: self.step,
            reason,
            path: request.options.output.clone(),
            tokens: self.tokens,
            seconds: self.began.elapsed().as_secs_f64(),
        });
        Ok(())
    }
}

/// What to do about numbers that are not finite.
const ADVICE: &str =
    "lower the learning rate, limit the norm of the gradients, or check the model's weights and the data";
