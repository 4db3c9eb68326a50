//! What is checked and planned before the first step of a run.

use std::{rc::Rc, time::Instant};

use inference_core::{
    Error, Result,
    backend::{Batches, Printable, TrainState},
    train::{TrainLength, TrainOptions, TrainPlan},
};
use mlx_rs::{Array, error::Exception};

use super::{
    checkpoint,
    gradient::LossAndGrad,
    memory::{LargestBatch, estimate},
    optimizer::Optimizer,
    output::OutputLock,
    run::{Run, TrainRequest},
    trainable::TrainableParams,
};
use crate::{mlx::memory as mlx_memory, nn::Architecture};

/// The run that `request` asks for, before its first step or as its last checkpoint left it, and its plan.
///
/// # Errors
/// [`Error::InvalidOption`] if an option does not fit the model, or the output belongs to another run; [`Error::OutOfMemory`];
/// [`Error::InvalidModel`] if the checkpoint is damaged.
pub(super) fn prepare(
    model: &Rc<dyn Architecture>,
    request: &TrainRequest,
    backend: &str,
) -> Result<(Run, TrainPlan)> {
    let TrainRequest { data, options, .. } = request;
    let lengths: Vec<_> = data.train.iter().map(|example| example.tokens.len()).collect();
    let batches = Batches::new(&lengths, options.batch_size, options.batch_tokens, options.seed);
    let steps = steps(options, &batches)?;
    let (trainable, mut values) = TrainableParams::new(&**model, &options.method, options.seed)?;
    let trainable = Rc::new(trainable);
    let loss_and_grad = LossAndGrad::new(model.clone(), trainable.clone(), options.gradient_checkpointing);
    let failed = |error: Exception| Error::backend(backend, "prepare the training", error);
    let mut optimizer = Optimizer::new(&options.optimizer, options.max_grad_norm, &values).map_err(failed)?;
    let fingerprint = TrainState::fingerprint(&data.train);
    let lock = OutputLock::take(&options.output)?;
    let state = resume(options, &fingerprint, &trainable, &mut values, &mut optimizer)?;
    let (step, tokens) = state.map_or((0, 0), |state| (state.step.min(steps), state.tokens));

    let mut plan = plan(&**model, request, &values);
    (plan.steps, plan.resumed_at) = (steps, step);
    let largest = largest_batch(&batches, &lengths);
    plan.memory = estimate(&**model, &values, &optimizer, request.weight_bytes, largest, options);
    check_memory(&plan, request, largest)?;
    if options.close_model {
        trainable.release_base(&**model).map_err(failed)?;
    }
    let mut run = Run {
        trainable,
        values,
        loss_and_grad,
        optimizer,
        batches,
        steps,
        step,
        saved: (step > 0).then_some(step),
        tokens,
        fingerprint,
        accumulating: None,
        in_flight: None,
        since: Instant::now(),
        validation: None,
        began: Instant::now(),
        peak: 0,
        diverged: None,
        _lock: lock,
    };
    if step == 0 {
        run.begin_validation(request);
    }
    mlx_memory::take_peak();
    Ok((run, plan))
}

/// Steps of the whole run.
fn steps(options: &TrainOptions, batches: &Batches) -> Result<usize> {
    match options.length {
        TrainLength::Steps(steps) => Ok(steps),
        TrainLength::Epochs(epochs) => {
            Ok(epochs.saturating_mul(batches.per_epoch()).div_ceil(options.gradient_accumulation_steps))
        }
        other => {
            let reason = format!("this backend does not know {other:?}");
            Err(Error::invalid_option("length", reason))
        }
    }
}

/// Restores the last checkpoint in the output, if the run resumes one. Refuses an output that belongs to another run.
fn resume(
    options: &TrainOptions,
    fingerprint: &str,
    trainable: &TrainableParams,
    values: &mut [Array],
    optimizer: &mut Optimizer,
) -> Result<Option<TrainState>> {
    match TrainState::latest(&options.output)? {
        Some((folder, state)) if options.resume => {
            state.check(options, fingerprint)?;
            checkpoint::restore(&folder, trainable, values, optimizer)?;
            Ok(Some(state))
        }
        Some((folder, _)) => {
            let folder = Printable(&folder.to_string_lossy()).to_string();
            let reason = format!("{folder} belongs to an earlier run: resume it, or name another output");
            Err(Error::invalid_option("output", reason))
        }
        None => Ok(None),
    }
}

/// The batch with the most tokens, padding included.
fn largest_batch(batches: &Batches, lengths: &[usize]) -> LargestBatch {
    let padded = batches.in_order().into_iter().map(|batch| {
        let length = batch.iter().map(|example| lengths[*example]).max().unwrap_or_default();
        LargestBatch { examples: batch.len(), length }
    });
    padded
        .max_by_key(|batch| batch.examples * batch.length)
        .unwrap_or(LargestBatch { examples: 0, length: 0 })
}

fn plan(model: &dyn Architecture, request: &TrainRequest, values: &[Array]) -> TrainPlan {
    let TrainRequest { data, options, .. } = request;
    let mut plan = TrainPlan::new(options.method.name());
    plan.trainable_parameters = values.iter().map(|value| value.size() as u64).sum();
    let adapters = options.method.adapter().map_or(0, |_| plan.trainable_parameters);
    plan.total_parameters = model.config().parameters + adapters;
    plan.examples = data.train.len();
    plan.validation_examples = data.validation.len();
    plan.truncated_examples = data.truncated;
    plan.tokens_per_epoch = data.train.iter().map(|example| example.learnt_tokens() as u64).sum();
    plan
}

fn check_memory(plan: &TrainPlan, request: &TrainRequest, largest: LargestBatch) -> Result<()> {
    let needed = plan.memory.total().saturating_sub(request.weight_bytes);
    match request.free_bytes.filter(|free| *free < needed) {
        None => Ok(()),
        Some(available) => {
            let LargestBatch { examples, length } = largest;
            let what = format!("training with a batch of {examples} examples of {length} tokens");
            Err(Error::out_of_memory(what, needed, available))
        }
    }
}
