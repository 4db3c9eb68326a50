//! Training without a model: one number is learnt, which a seed and the examples begin, and each step halves.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use inference_core::{
    Error, Result,
    backend::{ADAPTER_FILE, AdapterConfig, TrainState},
    train::{
        Example, ExampleKind, Method, TokenExample, TrainEnd, TrainEvent, TrainLength, TrainOptions,
        TrainPlan, TrainStream, Trainable, TrainingData, Truncation,
    },
};

use super::{Fault, language::VOCAB, model::Model};

/// The adapter's numbers: A [4, rank] and B [rank, 2] of one layer.
const LAYER: &str = "model.layers.0.self_attn.q_proj";

static RUNS: AtomicU32 = AtomicU32::new(0);

struct Run {
    options: TrainOptions,
    data: String,
    fault: Fault,
    steps: usize,
    step: usize,
    loss: f32,
    over: bool,
}

#[async_trait]
impl Trainable for Model {
    async fn train(&self, data: TrainingData, options: TrainOptions) -> Result<TrainStream> {
        let fault = self.fault.clone();
        let lenient = fault.is("what_makes_no_sense_is_refused_before_the_first_step");
        let encode = |examples: &[Example]| -> Result<Vec<TokenExample>> {
            examples.iter().zip(1..).map(|(example, n)| encode(example, n, &options, lenient)).collect()
        };
        let (train, validation) = (encode(&data.train)?, encode(&data.validation)?);
        let adapter = options.method.adapter().cloned().unwrap_or_default();
        if let Some(key) = adapter.keys.iter().flatten().find(|key| !LAYER.ends_with(key.as_str()))
            && !lenient
        {
            let reason = format!("there is no layer {key:?}; expected self_attn.q_proj");
            return Err(Error::invalid_option("keys", reason));
        }
        let data = TrainState::fingerprint(&train);
        let TrainLength::Steps(steps) = options.length else {
            return Err(Error::invalid_option("epochs", "expected steps"));
        };
        let mut run = Run { data, fault, steps, step: 0, loss: 0.0, over: false, options };
        let chance = if run.fault.is("a_seed_makes_a_run_reproducible") {
            RUNS.fetch_add(1, Ordering::Relaxed)
        } else {
            0
        };
        run.loss = 8.0 + run.options.seed as f32 / 16.0 + chance as f32 / 64.0;
        let forgets = run.fault.is("a_cancelled_run_is_saved_and_resumed_as_if_it_had_not_been");
        if run.options.resume
            && let Some((_, state)) = TrainState::latest(&run.options.output)?
            && !forgets
        {
            state.check(&run.options, &run.data)?;
            run.step = state.step;
            run.loss /= 2_f32.powi(state.step as i32);
        }
        let mut plan = TrainPlan::new(run.options.method.name());
        plan.trainable_parameters = 6 * adapter.rank as u64;
        if run.fault.is("what_was_learnt_is_an_adapter") {
            plan.trainable_parameters += 1;
        }
        plan.total_parameters = 1000 + plan.trainable_parameters;
        (plan.steps, plan.resumed_at) = (steps, run.step);
        (plan.examples, plan.validation_examples) = (train.len(), validation.len());
        let begin =
            [TrainEvent::Started(plan), TrainEvent::Validation { step: run.step, loss: run.loss, tokens: 1 }];
        let rest = stream::unfold(run, |mut run| async {
            let events = run.advance().transpose()?;
            Some((
                stream::iter(
                    events.map_or_else(|error| vec![Err(error)], |e| e.into_iter().map(Ok).collect()),
                ),
                run,
            ))
        });
        Ok(TrainStream::new(stream::iter(begin.map(Ok)).chain(rest.flatten())))
    }
}

impl Run {
    /// One step, or the end.
    fn advance(&mut self) -> Result<Option<Vec<TrainEvent>>> {
        if self.over {
            return Ok(None);
        }
        let cancelled = self.options.cancel.is_cancelled();
        if cancelled || self.step == self.steps {
            self.over = true;
            self.save()?;
            let reason = if cancelled { TrainEnd::Cancelled } else { TrainEnd::Completed };
            let path = self.options.output.clone();
            return Ok(Some(vec![
                TrainEvent::Validation { step: self.step, loss: self.loss, tokens: 1 },
                TrainEvent::Finished {
                    step: self.step,
                    reason,
                    path,
                    tokens: self.step as u64,
                    seconds: 0.0,
                },
            ]));
        }
        self.step += 1;
        let loss = self.loss;
        self.loss *= if self.fault.is("a_run_learns_and_says_so") { 2.0 } else { 0.5 };
        Ok(Some(vec![TrainEvent::Step {
            step: self.step,
            loss,
            learning_rate: self.options.rate(self.step, self.steps),
            tokens: 1,
            tokens_per_second: 1.0,
            gradient_norm: None,
            peak_memory: None,
        }]))
    }

    fn save(&self) -> Result<()> {
        let output = &self.options.output;
        let checkpoint = TrainState::folder(output, self.step);
        fs::create_dir_all(&checkpoint).unwrap();
        TrainState::new(self.step, self.step as u64, &self.options, &self.data)?.write(&checkpoint)?;
        AdapterConfig::new(&self.options.method, 1, vec!["self_attn.q_proj".to_owned()]).write(output)?;
        let rank = match &self.options.method {
            Method::Lora(adapter) | Method::Dora(adapter) => adapter.rank,
            _ => 0,
        };
        write_adapter(&output.join(ADAPTER_FILE), rank);
        Ok(())
    }
}

fn encode(example: &Example, number: usize, options: &TrainOptions, lenient: bool) -> Result<TokenExample> {
    let ExampleKind::Tokens(tokens) = &example.kind else {
        return Err(example.invalid(number, "expected tokens"));
    };
    let mut tokens = tokens.clone();
    if tokens.tokens.iter().any(|id| *id >= VOCAB) {
        return Err(example.invalid(number, "has a token outside the vocabulary"));
    }
    if tokens.truncate(options.max_length) && options.truncation == Truncation::Refuse && !lenient {
        return Err(example.invalid(number, "is too long"));
    }
    Ok(tokens)
}

fn write_adapter(path: &Path, rank: usize) {
    let (a, b) = (16 * rank, 8 * rank);
    let header = format!(
        "{{\"{LAYER}.lora_a\":{{\"dtype\":\"F32\",\"shape\":[4,{rank}],\"data_offsets\":[0,{a}]}},\
         \"{LAYER}.lora_b\":{{\"dtype\":\"F32\",\"shape\":[{rank},2],\"data_offsets\":[{a},{}]}}}}",
        a + b
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + a + b, 0);
    fs::write(path, bytes).unwrap();
}
