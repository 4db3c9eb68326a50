//! Fine-tuning.

use std::path::Path;

use futures::StreamExt as _;
use inference_core::{
    CancellationToken, Error, ModelManifest, TextModel,
    backend::AdapterManifest,
    train::{Example, Method, TrainEnd, TrainEvent, TrainOptions, TrainingData, Truncation},
};
use tempfile::TempDir;

use super::{alone, ended, ids, some_ids, still_right};
use crate::{
    ClauseResult, Failure, Subject,
    clause::{clauses, ensure},
};

clauses!("training":
    a_run_learns_and_says_so [Train Generate],
    what_was_learnt_is_an_adapter [Train Adapter Generate],
    a_seed_makes_a_run_reproducible [Train],
    a_cancelled_run_is_saved_and_resumed_as_if_it_had_not_been [Train],
    what_makes_no_sense_is_refused_before_the_first_step [Train],
);

/// Steps of a short run.
const STEPS: usize = 8;

/// The events come in order: a start, steps from the first to the last with falling losses, an end. The model itself answers as
/// before.
pub async fn a_run_learns_and_says_so(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let before = ids(&alone(&*model, &subject.prompt, &subject.greedy(4)?).await?);
    let output = folder()?;
    let events = run(&*model, data(&*model), options(output.path())).await?;
    let Some(TrainEvent::Started(plan)) = events.first() else {
        return Err(Failure::broken(format!("it began with {:?}", events.first())));
    };
    ensure!(plan.steps == STEPS && plan.resumed_at == 0, "a run of {STEPS} steps is planned as {plan:?}");
    ensure!(plan.examples == 2 && plan.validation_examples == 1, "of 2 and 1 examples it tells {plan:?}");
    let share = 0 < plan.trainable_parameters && plan.trainable_parameters < plan.total_parameters;
    ensure!(share, "{} of {} parameters are adapters", plan.trainable_parameters, plan.total_parameters);
    let steps = losses(&events);
    let numbers: Vec<usize> = steps.iter().map(|(step, _)| *step).collect();
    ensure!(numbers == (1..=STEPS).collect::<Vec<_>>(), "the steps are {numbers:?}");
    let (first, last) = (steps[0].1, steps[STEPS - 1].1);
    ensure!(last < first, "the loss was {first} and is {last} on the same examples");
    let validations = events.iter().filter(|event| matches!(event, TrainEvent::Validation { .. })).count();
    ensure!(
        validations >= 2,
        "{validations} validations, expected one before the first and one after the last step"
    );
    let finished =
        matches!(events.last(), Some(TrainEvent::Finished { step: STEPS, reason: TrainEnd::Completed, .. }));
    ensure!(finished, "it ended with {:?}", events.last());
    still_right(subject, &*model, &before).await
}

/// The output is an adapter of this model, of as many parameters as were told; it loads, and the model with it speaks.
pub async fn what_was_learnt_is_an_adapter(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let output = folder()?;
    let events = run(&*model, data(&*model), options(output.path())).await?;
    let manifest = AdapterManifest::read(output.path(), &ModelManifest::read(subject.folder())?)?;
    let Some(TrainEvent::Started(plan)) = events.first() else {
        return Err(Failure::broken(format!("it began with {:?}", events.first())));
    };
    let (told, written) = (plan.trainable_parameters, manifest.parameters());
    ensure!(told == written, "{told} parameters were to be trained, {written} are in the adapter");
    let adapted = subject.load(subject.base_load_options().adapter(output.path())).await?;
    let answer = ids(&alone(&*adapted, &subject.prompt, &subject.greedy(4)?).await?);
    ensure!(!answer.is_empty(), "the adapted model says nothing");
    adapted.close().await?;
    Ok(())
}

/// The same seed makes the same losses, to the bit.
pub async fn a_seed_makes_a_run_reproducible(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let mut runs = Vec::new();
    for seed in [3, 3, 4] {
        let output = folder()?;
        let events = run(&*model, data(&*model), options(output.path()).seed(seed)).await?;
        runs.push(losses(&events));
    }
    ensure!(runs[0] == runs[1], "a seed made the losses {:?} and {:?}", runs[0], runs[1]);
    ensure!(runs[0] != runs[2], "another seed made the same losses, {:?}", runs[0]);
    Ok(())
}

/// A cancelled run ends with what it reached saved, and the same run resumed has the losses of one that was never cancelled. A
/// run of other options cannot be gone on with.
pub async fn a_cancelled_run_is_saved_and_resumed_as_if_it_had_not_been(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let output = folder()?;
    let whole = losses(&run(&*model, data(&*model), options(output.path())).await?);

    let output = folder()?;
    let cancel = CancellationToken::new();
    let mut stream = train(&*model, data(&*model), options(output.path()).cancel(cancel.clone())).await?;
    let mut events = Vec::new();
    while let Some(event) = stream.next().await {
        let event = event?;
        if matches!(event, TrainEvent::Step { step: 3, .. }) {
            cancel.cancel();
        }
        events.push(event);
    }
    let Some(TrainEvent::Finished { step: reached, reason, .. }) = events.last() else {
        return Err(Failure::broken(format!("it ended with {:?}", events.last())));
    };
    if *reason == TrainEnd::Completed {
        return Err(Failure::inconclusive("all steps were done before the cancellation reached the engine"));
    }
    let mut together = losses(&events);
    ensure!(together.len() == *reached, "it ended after step {reached} and told of {}", together.len());
    let events = run(&*model, data(&*model), options(output.path()).resume(true)).await?;
    let resumed = matches!(events.first(), Some(TrainEvent::Started(plan)) if plan.resumed_at == *reached);
    ensure!(resumed, "resumed after step {reached}, it began with {:?}", events.first());
    together.extend(losses(&events));
    ensure!(together == whole, "cancelled and resumed the losses are {together:?}, in one run {whole:?}");

    let other = options(output.path()).resume(true).learning_rate(0.5);
    match train(&*model, data(&*model), other).await {
        Err(Error::InvalidOption { option: "resume", .. }) => Ok(()),
        Err(error) => Err(Failure::broken(format!("another rate, resumed: {}: {error}", error.kind()))),
        Ok(mut stream) => match stream.next().await {
            Some(Err(Error::InvalidOption { option: "resume", .. })) => Ok(()),
            other => Err(Failure::broken(format!("another rate, resumed, began with {other:?}"))),
        },
    }
}

/// Options, examples and layers that make no sense are typed errors, and nothing is written.
pub async fn what_makes_no_sense_is_refused_before_the_first_step(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let output = folder()?;
    let target = output.path().join("adapter");
    let options = || options(&target);
    let cases = [
        ("a rate of 0", data(&*model), options().learning_rate(0.0)),
        ("no examples", TrainingData::default(), options()),
        ("no such layer", data(&*model), {
            let adapter = inference_core::train::AdapterOptions::new().keys(["no.such.layer"]);
            options().method(Method::Lora(adapter))
        }),
        (
            "a token that the model lacks",
            TrainingData::new(vec![Example::tokens(vec![1, u32::MAX])], vec![]),
            options(),
        ),
        ("too long an example", data(&*model), options().max_length(2, Truncation::Refuse)),
    ];
    for (case, data, options) in cases {
        let result = match train(&*model, data, options).await {
            Ok(mut stream) => stream.next().await.unwrap_or(Err(Error::Closed)).map(drop),
            Err(error) => Err(error),
        };
        let refused = matches!(result, Err(Error::InvalidOption { .. } | Error::InvalidData { .. }));
        ensure!(refused, "{case} ended as {}", ended(&result));
        ensure!(!target.exists(), "{case} left {}", target.display());
    }
    Ok(())
}

/// Two examples to learn and one to validate on, of tokens that any model has.
fn data(model: &dyn TextModel) -> TrainingData {
    let example = |salt| Example::tokens(some_ids(model, 12, salt));
    TrainingData::new(vec![example(41), example(42)], vec![example(43)])
}

fn options(output: &Path) -> TrainOptions {
    TrainOptions::new(output).steps(STEPS).batch_size(2).learning_rate(1e-2).method(Method::lora())
}

async fn train(
    model: &dyn TextModel,
    data: TrainingData,
    options: TrainOptions,
) -> Result<inference_core::train::TrainStream, Error> {
    match model.trainable() {
        Some(trainer) => trainer.train(data, options).await,
        None => Err(Error::Closed),
    }
}

async fn run(
    model: &dyn TextModel,
    data: TrainingData,
    options: TrainOptions,
) -> Result<Vec<TrainEvent>, Failure> {
    let mut stream = train(model, data, options).await?;
    let mut events = Vec::new();
    while let Some(event) = stream.next().await {
        events.push(event?);
    }
    Ok(events)
}

fn losses(events: &[TrainEvent]) -> Vec<(usize, f32)> {
    let step = |event: &TrainEvent| match event {
        TrainEvent::Step { step, loss, .. } => Some((*step, *loss)),
        _ => None,
    };
    events.iter().filter_map(step).collect()
}

fn folder() -> Result<TempDir, Failure> {
    tempfile::tempdir().map_err(|error| Failure::broken(format!("no folder for temporary files: {error}")))
}
