//! `inference train`: fine-tunes a model, with its progress and curves.

mod args;
mod curve;
mod metrics;
mod svg;

use std::{fs, path::Path, process::ExitCode};

use anyhow::Context as _;
use futures::StreamExt as _;
use indicatif::ProgressBar;
use inference::{
    Error, Feature,
    train::{TrainEnd, TrainEvent, TrainPlan, TrainingData},
};

pub(crate) use self::args::Args;
use self::metrics::{Curves, Metrics};
use crate::{
    failure::INTERRUPTED,
    interrupt::Scope,
    model,
    render::{self, Out},
};

/// The width and height of the curves in the terminal, in characters.
const CURVE: (usize, usize) = (60, 10);

/// MLX's settings for a process: kernels are launched one by one, not collected in CUDA graphs, and what a step is done with is given
/// back after every 20 of them, not 100.
const LAUNCHES: [(&str, &str); 2] = [("MLX_USE_CUDA_GRAPHS", "0"), ("MLX_MAX_OPS_PER_BUFFER", "20")];

/// Has MLX launch kernels one by one where its graphs cost more than they save: where most buffers lie elsewhere in every step. What the
/// person has set stays. It is for the beginning of the program.
pub(crate) fn choose_launches(args: &Args) {
    for (name, value) in LAUNCHES {
        if args.changes_most_buffers() && std::env::var_os(name).is_none() {
            // SAFETY: the program has no other thread yet that could read the environment.
            unsafe { std::env::set_var(name, value) };
        }
    }
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let scope = Scope::enter();
    // Before a load that may take a while: the options, then the data.
    let options = args.options(scope.token())?;
    options.validate()?;
    let data = TrainingData::read(&args.data, args.split(), options.seed)?;
    let path = model::or_demo(args.model.as_ref())?;
    let model = model::load(&path, &args.load, scope.token(), args.quiet || args.json).await?;
    model::using(model, async |model| {
        let Some(trainable) = model.trainable() else {
            let backend = model.info().backend.clone();
            return Err(Error::unsupported(backend, Feature::Train).into());
        };
        let stream = trainable.train(data, options).await?;
        Report::new(&args).follow(stream).await
    })
    .await
}

/// What a run tells, to the person, to machines, and for later.
struct Report<'a> {
    args: &'a Args,
    out: Out,
    bar: ProgressBar,
    metrics: Option<Metrics>,
    curves: Curves,
}

impl<'a> Report<'a> {
    fn new(args: &'a Args) -> Self {
        let bar = render::progress(0, "step {pos}/{len} {wide_bar:.cyan} {msg} {eta}");
        if args.quiet || args.json {
            bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        }
        Self { args, out: Out::new(), bar, metrics: None, curves: Curves::default() }
    }

    async fn follow(mut self, mut stream: inference::train::TrainStream) -> anyhow::Result<ExitCode> {
        while let Some(event) = stream.next().await {
            let event = event.inspect_err(|_| self.bar.finish_and_clear())?;
            if self.args.json {
                self.out.json(&event)?;
            }
            if let TrainEvent::Started(plan) = &event {
                self.metrics = Some(Metrics::open(&self.args.output, plan.resumed_at)?);
            }
            if let Some(metrics) = &mut self.metrics {
                metrics.write(&event)?;
            }
            if let Some(status) = self.tell(&event)? {
                return Ok(status);
            }
        }
        anyhow::bail!("the training ended without saying how")
    }

    /// Tells an event; the last one gives the program's status.
    fn tell(&mut self, event: &TrainEvent) -> anyhow::Result<Option<ExitCode>> {
        match event {
            TrainEvent::Started(plan) => self.started(plan)?,
            TrainEvent::Step { step, loss, tokens_per_second, .. } => {
                self.bar.set_position(*step as u64);
                let rate = render::rate(*tokens_per_second);
                self.bar.set_message(format!("loss {loss:.4}, {rate} tokens/s"));
            }
            TrainEvent::Validation { step, loss, .. } => {
                self.remark(&format!("step {step}: validation loss {loss:.4}"));
            }
            TrainEvent::Finished { step, reason, path, .. } => {
                self.bar.finish_and_clear();
                return self.finished(*step, *reason, path).map(Some);
            }
            _ => {}
        }
        Ok(None)
    }

    fn started(&mut self, plan: &TrainPlan) -> anyhow::Result<()> {
        self.bar.set_length(plan.steps as u64);
        self.bar.set_position(plan.resumed_at as u64);
        if self.args.json || self.args.quiet {
            return Ok(());
        }
        let share = 100.0 * plan.trainable_parameters as f64 / plan.total_parameters.max(1) as f64;
        let memory = &plan.memory;
        let examples = |count, cut: &str| format!("{}{cut}", render::things(count, "example"));
        let cut = match plan.truncated_examples {
            0 => String::new(),
            cut => format!(", {cut} of all cut at {} tokens", self.args.max_length),
        };
        let mut rows = vec![
            ("method", plan.method.to_owned()),
            (
                "trainable",
                format!(
                    "{} of {} parameters ({share:.2} %)",
                    render::count(plan.trainable_parameters),
                    render::count(plan.total_parameters)
                ),
            ),
            ("to learn", format!("{}, {} tokens", examples(plan.examples, &cut), plan.tokens_per_epoch)),
            ("to validate on", examples(plan.validation_examples, "")),
            ("steps", plan.steps.to_string()),
            (
                "memory",
                format!(
                    "about {}: weights {}, gradients {}, optimiser {}, activations {}",
                    render::bytes(memory.total()),
                    render::bytes(memory.weights),
                    render::bytes(memory.gradients),
                    render::bytes(memory.optimizer),
                    render::bytes(memory.activations)
                ),
            ),
        ];
        if plan.resumed_at > 0 {
            rows.push(("resumed", format!("after step {}", plan.resumed_at)));
        }
        render::tell(&format!("{}\n", render::facts(rows).trim_fmt()));
        Ok(())
    }

    fn finished(&mut self, step: usize, reason: TrainEnd, path: &Path) -> anyhow::Result<ExitCode> {
        self.curves = Curves::read(&self.args.output)?;
        let svg = self.args.output.join("loss.svg");
        fs::write(&svg, svg::draw(&self.curves))
            .with_context(|| format!("cannot write {}", render::path(&svg)))?;
        if !self.args.json {
            if !self.args.quiet {
                render::tell(&curve::draw(&self.curves, CURVE));
            }
            let last = |points: &[(usize, f64)]| points.last().map(|(_, loss)| *loss);
            let mut line = format!("{}: {} after step {step}", render::path(path), self.args.method.name());
            if let Some(loss) = last(&self.curves.training) {
                line.push_str(&format!(", loss {loss:.4}"));
            }
            if let (Some((_, first)), Some(last)) =
                (self.curves.validation.first(), last(&self.curves.validation))
            {
                line.push_str(&format!(", validation {first:.4} → {last:.4}"));
            }
            self.out.line(&line)?;
        }
        if reason == TrainEnd::Cancelled {
            render::tell(
                "interrupted; what was learnt is saved. The same command with --resume goes on from here.\n",
            );
            return Ok(ExitCode::from(INTERRUPTED));
        }
        Ok(ExitCode::SUCCESS)
    }

    fn remark(&self, text: &str) {
        if !self.args.quiet && !self.args.json {
            self.bar.suspend(|| render::remark(text));
        }
    }
}
