//! A run of training, a batch at a time.

use std::{mem, rc::Rc, time::Instant};

use futures::channel::mpsc::UnboundedSender;
use inference_core::{
    Batches, Error, Result, TokenExample, TrainEnd, TrainEvent, TrainLength, TrainOptions, TrainPlan,
    TrainState,
};
use inference_text::TokenData;
use mlx_rs::{Array, error::Exception, memory::cache_memory, transforms};

use super::{
    gradient::{Batch, Pace, gradient, validation_loss},
    memory::{Largest, estimate},
    optimizer::{Stepper, clip, norm},
    saved,
    trained::Trained,
};
use crate::{arch::Architecture, engine::memory as engine_memory};

/// Bytes that MLX's allocator may keep for the next batch, whose buffers are of other sizes.
const CACHE_BYTES: usize = 1 << 30;

/// A run of training, as the caller hands it over.
#[derive(Debug)]
pub(crate) struct TrainRequest {
    /// Examples to learn from, at least one, and to validate on; all fit the model.
    pub(crate) data: TokenData,
    pub(crate) options: TrainOptions,
    /// Who is told. A run that nobody listens to is cancelled.
    pub(crate) events: UnboundedSender<Result<TrainEvent>>,
    /// Bytes of the model's weights.
    pub(crate) weight_bytes: u64,
    /// Bytes that the device can still give, where that is known.
    pub(crate) free_bytes: Option<u64>,
}

/// A run of training under way.
#[derive(Debug)]
pub(crate) struct TrainJob {
    request: TrainRequest,
    run: Option<Run>,
}

#[derive(Debug)]
struct Run {
    trained: Trained,
    stepper: Stepper,
    batches: Batches,
    /// Steps of the whole run.
    steps: usize,
    /// Steps that are done.
    step: usize,
    /// The last step that is on the disk, of this run or the one that it goes on with.
    saved: Option<usize>,
    /// Tokens learnt in them.
    tokens: u64,
    fingerprint: String,
    under_way: Option<Step>,
    validation: Option<Validation>,
    began: Instant,
    peak: u64,
}

/// A step under way.
#[derive(Debug)]
struct Step {
    /// Batches that are done.
    batches: usize,
    /// Tokens of all its batches.
    tokens: usize,
    loss: f32,
    gradients: Vec<Array>,
    seconds: f64,
}

/// A validation under way.
#[derive(Debug)]
struct Validation {
    /// What is left, the last first.
    batches: Vec<Vec<usize>>,
    loss: f64,
    tokens: usize,
}

impl TrainJob {
    pub(crate) fn new(request: TrainRequest) -> Self {
        Self { request, run: None }
    }

    /// Computes one batch; whether that was the end of the run.
    ///
    /// # Errors
    /// What ends the run: an option that makes no sense for the model, a checkpoint that cannot be read or written, MLX's own.
    pub(crate) fn advance(&mut self, model: &Rc<dyn Architecture>, backend: &str) -> Result<bool> {
        let Self { request, run } = self;
        let Some(run) = run else {
            let (fresh, plan) = Run::prepare(model, request, backend)?;
            self.run = Some(fresh);
            self.request.tell(TrainEvent::Started(plan));
            return Ok(false);
        };
        if request.options.cancel.is_cancelled() || request.events.is_closed() {
            run.end(&**model, request, TrainEnd::Cancelled)?;
            return Ok(true);
        }
        let failed = |error: Exception| Error::backend(backend, "train", error);
        if run.validation.is_some() {
            run.validate(model, request).map_err(failed)?;
        } else if run.step < run.steps {
            run.learn(model, request).map_err(failed)?;
            if run.under_way.is_none() {
                run.after_step(&**model, request)?;
            }
        }
        if run.step == run.steps && run.validation.is_none() {
            run.end(&**model, request, TrainEnd::Completed)?;
            return Ok(true);
        }
        if cache_memory().is_ok_and(|bytes| bytes > CACHE_BYTES) {
            // The cache only saves time: a failure to clear it changes nothing.
            let _ = mlx_rs::memory::clear_cache();
        }
        Ok(false)
    }

    /// Ends the run, with what ended it where that was a failure.
    pub(crate) fn end(self, result: Result<()>) {
        if let Err(error) = result {
            // A caller that has gone needs no answer.
            let _ = self.request.events.unbounded_send(Err(error));
        }
    }
}

impl TrainRequest {
    fn tell(&self, event: TrainEvent) {
        // Whether anybody listens is looked at before the next batch.
        let _ = self.events.unbounded_send(Ok(event));
    }
}

impl Run {
    fn prepare(
        model: &Rc<dyn Architecture>,
        request: &TrainRequest,
        backend: &str,
    ) -> Result<(Self, TrainPlan)> {
        let TrainRequest { data, options, .. } = request;
        let lengths: Vec<_> = data.train.iter().map(|example| example.tokens.len()).collect();
        let batches = Batches::new(&lengths, options.batch_size, options.batch_tokens, options.seed);
        let steps = match options.length {
            TrainLength::Steps(steps) => steps,
            TrainLength::Epochs(epochs) => {
                epochs.saturating_mul(batches.per_epoch()).div_ceil(options.accumulate)
            }
            other => {
                let reason = format!("{other:?} is unknown to this backend");
                return Err(Error::InvalidOption { option: "length", reason });
            }
        };
        let mut trained = Trained::new(&**model, &options.method, options.seed)?;
        let failed = |error: Exception| Error::backend(backend, "prepare the training", error);
        let mut stepper = Stepper::new(&options.optimizer, &trained.values).map_err(failed)?;
        let fingerprint = TrainState::fingerprint(&data.train);
        let latest = TrainState::latest(&options.output)?;
        let (mut step, mut tokens) = (0, 0);
        match latest {
            Some((folder, state)) if options.resume => {
                state.check(options, &fingerprint)?;
                saved::restore(&folder, &mut trained, &mut stepper)?;
                (step, tokens) = (state.step.min(steps), state.tokens);
            }
            Some((folder, _)) => {
                let reason = format!("{} is a run's: resume it, or choose another", folder.display());
                return Err(Error::InvalidOption { option: "output", reason });
            }
            None => {}
        }
        let padded = batches.in_order().into_iter().map(|batch| {
            let length = batch.iter().map(|example| lengths[*example]).max().unwrap_or_default();
            Largest { examples: batch.len(), length }
        });
        let largest = padded
            .max_by_key(|batch| batch.examples * batch.length)
            .unwrap_or(Largest { examples: 0, length: 0 });
        let mut plan = TrainPlan::new(options.method.name());
        plan.memory =
            estimate(&**model, &trained, &stepper, request.weight_bytes, largest, options.checkpoint);
        let needed = plan.memory.total().saturating_sub(request.weight_bytes);
        if let Some(available) = request.free_bytes.filter(|free| *free < needed) {
            let what =
                format!("the training of {} examples of {} tokens at once", largest.examples, largest.length);
            return Err(Error::OutOfMemory { what, needed, available });
        }
        let adapters = options.method.adapter().map_or(0, |_| trained.parameters());
        plan.trainable_parameters = trained.parameters();
        plan.total_parameters = model.config().parameters + adapters;
        plan.steps = steps;
        plan.resumed_at = step;
        plan.examples = data.train.len();
        plan.validation_examples = data.validation.len();
        plan.truncated_examples = data.truncated;
        plan.tokens_per_epoch = data.train.iter().map(|example| example.learnt_tokens() as u64).sum();
        let mut run = Self {
            trained,
            stepper,
            batches,
            steps,
            step,
            saved: (step > 0).then_some(step),
            tokens,
            fingerprint,
            under_way: None,
            validation: None,
            began: Instant::now(),
            peak: 0,
        };
        if step == 0 {
            run.begin_validation(request);
        }
        engine_memory::take_peak();
        Ok((run, plan))
    }

    /// One batch of a step and, after the last, the step.
    fn learn(&mut self, model: &Rc<dyn Architecture>, request: &TrainRequest) -> mlx_rs::error::Result<()> {
        let TrainRequest { data, options, .. } = request;
        let began = Instant::now();
        let first = self.step * options.accumulate;
        let pick = |batches: &mut Batches, n: usize| -> Vec<&TokenExample> {
            batches.get(n).iter().map(|example| &data.train[*example]).collect()
        };
        let mut step = match self.under_way.take() {
            Some(step) => step,
            None => {
                let batches = first..first + options.accumulate;
                let examples = batches.flat_map(|n| pick(&mut self.batches, n));
                let tokens = examples.map(TokenExample::learnt_tokens).sum();
                Step { batches: 0, tokens, loss: 0.0, gradients: Vec::new(), seconds: 0.0 }
            }
        };
        let number = first + step.batches;
        let batch = Batch::new(&pick(&mut self.batches, number));
        let pace = Pace { number: number as u64, tokens: step.tokens, recompute: options.checkpoint };
        let (loss, gradients) = gradient(model, &self.trained, &batch, pace)?;
        let sum = |before: Vec<Array>| -> mlx_rs::error::Result<Vec<Array>> {
            before.iter().zip(&gradients).map(|(before, new)| before.add(new)).collect()
        };
        step.gradients = match mem::take(&mut step.gradients) {
            before if before.is_empty() => gradients,
            before => sum(before)?,
        };
        step.batches += 1;
        if step.batches < options.accumulate {
            transforms::eval(step.gradients.iter().chain([&loss]))?;
            step.loss += loss.try_item_exact::<f32>().map_err(convert)?;
            step.seconds += began.elapsed().as_secs_f64();
            self.under_way = Some(step);
            return Ok(());
        }
        let norm = norm(&step.gradients)?;
        if let Some(limit) = options.clip {
            clip(&mut step.gradients, &norm, limit)?;
        }
        let rate = options.rate(self.step + 1, self.steps);
        self.stepper.step(&mut self.trained.values, &step.gradients, rate, self.step + 1)?;
        // What the gradients hold goes as the weights take them in.
        drop(mem::take(&mut step.gradients));
        let state = self.stepper.state.iter().flatten();
        transforms::eval(self.trained.values.iter().chain(state).chain([&loss, &norm]))?;
        step.loss += loss.try_item_exact::<f32>().map_err(convert)?;
        step.seconds += began.elapsed().as_secs_f64();
        self.step += 1;
        self.tokens += step.tokens as u64;
        self.peak = self.peak.max(engine_memory::take_peak());
        request.tell(TrainEvent::Step {
            step: self.step,
            loss: step.loss,
            learning_rate: rate,
            tokens: step.tokens,
            tokens_per_second: step.tokens as f64 / step.seconds.max(f64::MIN_POSITIVE),
            gradient_norm: norm.try_item_exact::<f32>().map_err(convert)?,
            peak_memory: Some(self.peak),
        });
        Ok(())
    }

    /// What is due after a step: a checkpoint, a validation.
    fn after_step(&mut self, model: &dyn Architecture, request: &TrainRequest) -> Result<()> {
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

    fn begin_validation(&mut self, request: &TrainRequest) {
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

    /// One batch of a validation.
    fn validate(
        &mut self,
        model: &Rc<dyn Architecture>,
        request: &TrainRequest,
    ) -> mlx_rs::error::Result<()> {
        let Some(validation) = &mut self.validation else { return Ok(()) };
        if let Some(batch) = validation.batches.pop() {
            let examples = &request.data.validation;
            let batch = Batch::new(&batch.iter().map(|example| &examples[*example]).collect::<Vec<_>>());
            let loss = validation_loss(model, &self.trained, &batch)?;
            validation.loss += f64::from(loss.try_item_exact::<f32>().map_err(convert)?);
            validation.tokens += batch.learnt;
        }
        if validation.batches.is_empty() {
            let loss = (validation.loss / validation.tokens.max(1) as f64) as f32;
            request.tell(TrainEvent::Validation { step: self.step, loss, tokens: validation.tokens });
            self.validation = None;
        }
        Ok(())
    }

    fn save(&mut self, model: &dyn Architecture, request: &TrainRequest) -> Result<()> {
        let options = &request.options;
        let state = TrainState::new(self.step, self.tokens, options, &self.fingerprint)?;
        let path = saved::save(model, &self.trained, &self.stepper, options, &state)?;
        self.saved = Some(self.step);
        request.tell(TrainEvent::Saved { step: self.step, path });
        Ok(())
    }

    /// Saves what is not saved yet, and says that the run is over.
    fn end(&mut self, model: &dyn Architecture, request: &TrainRequest, reason: TrainEnd) -> Result<()> {
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

fn convert(error: impl std::fmt::Display) -> Exception {
    Exception::custom(error.to_string())
}
