//! A run of training, a batch at a time.

use std::{mem, rc::Rc, slice, time::Instant};

use futures::channel::mpsc::UnboundedSender;
use inference_core::{
    Error, Result,
    backend::{Batches, TrainState},
    train::{TokenExample, TrainEnd, TrainEvent, TrainLength, TrainOptions, TrainPlan},
};
use inference_text::TokenData;
use mlx_rs::{Array, error::Exception, memory::cache_memory, transforms};

use super::{
    gradient::{Learner, validation_loss},
    memory::{Largest, estimate},
    optimizer::Stepper,
    saved,
    trained::Trained,
};
use crate::{
    mlx::{memory as mlx_memory, on_cpu},
    nn::Architecture,
};

/// Bytes that MLX's allocator may keep for the next batch. On a GPU, where memory is slow to get and to give back, much of what is
/// `free`; elsewhere batches are not rounded to few sizes, and what is kept seldom fits.
fn cache_bytes(free: Option<u64>) -> usize {
    const LEAST: usize = 1 << 30;
    let share = free.filter(|_| !on_cpu()).map_or(0, |free| usize::try_from(free / 4).unwrap_or(LEAST));
    share.max(LEAST)
}

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
    trained: Rc<Trained>,
    /// Of what is trained, as it is after all steps that were begun.
    values: Vec<Array>,
    learner: Learner,
    stepper: Stepper,
    batches: Batches,
    /// Steps of the whole run.
    steps: usize,
    /// Steps that are done or submitted.
    step: usize,
    /// The last step that is on the disk, of this run or the one that it goes on with.
    saved: Option<usize>,
    /// Tokens learnt in them.
    tokens: u64,
    fingerprint: String,
    under_way: Option<Step>,
    /// What the device computes, while the graph of the next batch is built.
    submitted: Option<Submitted>,
    /// When the step under way began, or the one before ended.
    since: Instant,
    validation: Option<Validation>,
    began: Instant,
    peak: u64,
}

/// A step under way.
#[derive(Debug)]
struct Step {
    /// Tokens of all its batches.
    tokens: usize,
    /// The parts in its loss of the batches so far.
    losses: Vec<Array>,
    gradients: Vec<Array>,
}

/// A batch that the device was given.
#[derive(Debug)]
struct Submitted {
    /// All that it computes.
    arrays: Vec<Array>,
    /// The parts in the loss of the batches of its step, of which it is the last.
    losses: Vec<Array>,
    /// Where it ended the step: what is told of that.
    step: Option<Done>,
}

/// A step, but for its loss.
#[derive(Debug)]
struct Done {
    step: usize,
    tokens: usize,
    rate: f32,
    norm: Option<Array>,
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
        let failed = |error: Exception| Error::backend(backend, "train", error);
        if request.options.cancel.is_cancelled() || request.events.is_closed() {
            run.settle(request).map_err(failed)?;
            run.end(&**model, request, TrainEnd::Cancelled)?;
            return Ok(true);
        }
        if run.validation.is_some() {
            run.validate(model, request).map_err(failed)?;
        } else if run.step < run.steps {
            run.learn(request).map_err(failed)?;
            if run.under_way.is_none() && run.is_due(request) {
                run.settle(request).map_err(failed)?;
                run.after_step(&**model, request)?;
            }
        }
        if run.step == run.steps && run.validation.is_none() {
            run.end(&**model, request, TrainEnd::Completed)?;
            return Ok(true);
        }
        if cache_memory().is_ok_and(|bytes| bytes > cache_bytes(request.free_bytes)) {
            // The cache only saves time: a failure to clear it changes nothing.
            let _ = mlx_rs::memory::clear_cache();
        }
        Ok(false)
    }

    /// Counts a peak of memory that was measured, in bytes.
    pub(crate) fn peaked(&mut self, peak: u64) {
        if let Some(run) = &mut self.run {
            run.peak = run.peak.max(peak);
        }
    }

    /// Ends the run, with what ended it where that was a failure.
    pub(crate) fn end(self, result: Result<()>) {
        let Self { request, run } = self;
        drop(run);
        // What it held is of no use to others; that it stays is no failure.
        let _ = mlx_memory::clear_cache();
        if let Err(error) = result {
            // A caller that has gone needs no answer.
            let _ = request.events.unbounded_send(Err(error));
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
                epochs.saturating_mul(batches.per_epoch()).div_ceil(options.gradient_accumulation_steps)
            }
            other => {
                let reason = format!("{other:?} is unknown to this backend");
                return Err(Error::InvalidOption { option: "length", reason });
            }
        };
        let (trained, mut values) = Trained::new(&**model, &options.method, options.seed)?;
        let trained = Rc::new(trained);
        let learner = Learner::new(model.clone(), trained.clone(), options.gradient_checkpointing);
        let failed = |error: Exception| Error::backend(backend, "prepare the training", error);
        let mut stepper = Stepper::new(&options.optimizer, options.max_grad_norm, &values).map_err(failed)?;
        let fingerprint = TrainState::fingerprint(&data.train);
        let latest = TrainState::latest(&options.output)?;
        let (mut step, mut tokens) = (0, 0);
        match latest {
            Some((folder, state)) if options.resume => {
                state.check(options, &fingerprint)?;
                saved::restore(&folder, &trained, &mut values, &mut stepper)?;
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
        plan.memory = estimate(&**model, &values, &stepper, request.weight_bytes, largest, options);
        let needed = plan.memory.total().saturating_sub(request.weight_bytes);
        if let Some(available) = request.free_bytes.filter(|free| *free < needed) {
            let what =
                format!("the training of {} examples of {} tokens at once", largest.examples, largest.length);
            return Err(Error::OutOfMemory { what, needed, available });
        }
        plan.trainable_parameters = values.iter().map(|value| value.size() as u64).sum();
        let adapters = options.method.adapter().map_or(0, |_| plan.trainable_parameters);
        plan.total_parameters = model.config().parameters + adapters;
        plan.steps = steps;
        plan.resumed_at = step;
        plan.examples = data.train.len();
        plan.validation_examples = data.validation.len();
        plan.truncated_examples = data.truncated;
        plan.tokens_per_epoch = data.train.iter().map(|example| example.learnt_tokens() as u64).sum();
        let mut run = Self {
            trained,
            values,
            learner,
            stepper,
            batches,
            steps,
            step,
            saved: (step > 0).then_some(step),
            tokens,
            fingerprint,
            under_way: None,
            submitted: None,
            since: Instant::now(),
            validation: None,
            began: Instant::now(),
            peak: 0,
        };
        if step == 0 {
            run.begin_validation(request);
        }
        mlx_memory::take_peak();
        Ok((run, plan))
    }

    /// Submits one batch of a step and, after the last, the step. Its graph is built while the device computes the batch
    /// before; not more than one is submitted at a time, for each needs memory of its own.
    fn learn(&mut self, request: &TrainRequest) -> mlx_rs::error::Result<()> {
        let TrainRequest { data, options, .. } = request;
        if self.submitted.is_none() {
            self.since = Instant::now();
        }
        let first = self.step * options.gradient_accumulation_steps;
        let pick = |batches: &mut Batches, n: usize| -> Vec<&TokenExample> {
            batches.get(n).iter().map(|example| &data.train[*example]).collect()
        };
        let mut step = self.under_way.take().unwrap_or_else(|| {
            let batches = first..first + options.gradient_accumulation_steps;
            let examples = batches.flat_map(|n| pick(&mut self.batches, n));
            let tokens = examples.map(TokenExample::learnt_tokens).sum();
            Step { tokens, losses: Vec::new(), gradients: Vec::new() }
        });
        let number = first + step.losses.len();
        let batch = self.learner.batch(&pick(&mut self.batches, number));
        let (loss, gradients) = self.learner.gradient(&self.values, &batch, number as u64, step.tokens)?;
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
            self.under_way = Some(step);
        } else {
            let Step { tokens, losses, gradients } = step;
            let rate = options.rate(self.step + 1, self.steps);
            let norm = self.stepper.step(&mut self.values, &gradients, rate, self.step + 1)?;
            // What the gradients hold goes as the weights take them in.
            drop(gradients);
            self.settle(request)?;
            self.step += 1;
            self.tokens += tokens as u64;
            let params = self.values.iter().zip(&self.stepper.state);
            let mut arrays: Vec<_> =
                params.flat_map(|(value, state)| [slice::from_ref(value), state].concat()).collect();
            arrays.extend(losses.iter().chain(&norm).cloned());
            self.submit(arrays, losses, Some(Done { step: self.step, tokens, rate, norm }))?;
        }
        Ok(())
    }

    fn submit(
        &mut self,
        arrays: Vec<Array>,
        losses: Vec<Array>,
        step: Option<Done>,
    ) -> mlx_rs::error::Result<()> {
        transforms::async_eval(&arrays)?;
        self.submitted = Some(Submitted { arrays, losses, step });
        Ok(())
    }

    /// Waits for what was submitted, and tells of the step that it ended.
    fn settle(&mut self, request: &TrainRequest) -> mlx_rs::error::Result<()> {
        let Some(Submitted { arrays, losses, step }) = self.submitted.take() else { return Ok(()) };
        transforms::eval(&arrays)?;
        // The next batch may take over their memory.
        drop(arrays);
        let mut loss = 0.0;
        for part in losses {
            loss += part.try_item_exact::<f32>().map_err(convert)?;
        }
        let Some(Done { step, tokens, rate, norm }) = step else { return Ok(()) };
        let gradient_norm = norm.map(|norm| norm.try_item_exact::<f32>()).transpose().map_err(convert)?;
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

    fn is_due(&self, request: &TrainRequest) -> bool {
        let every = |steps: usize| self.step.is_multiple_of(steps);
        let options = &request.options;
        self.step == self.steps || every(options.save_every) || every(options.evaluate_every)
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
            let batch =
                self.learner.batch(&batch.iter().map(|example| &examples[*example]).collect::<Vec<_>>());
            let loss = validation_loss(model, &self.trained, &self.values, &batch)?;
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
        let path = saved::save(model, &self.trained, &self.values, &self.stepper, options, &state)?;
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
