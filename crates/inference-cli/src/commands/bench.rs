//! `inference bench`: how fast an engine runs a model, on random prompts.

mod sentences;

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::ensure;
use futures::{StreamExt as _, future::try_join_all};
use inference::{CancellationToken, FinishReason, GenerateOptions, ModelInfo, Prompt, Registry, TextModel};
use inference_core::backend::BackendInfo;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde::Serialize;

use crate::{
    failure::INTERRUPTED,
    interrupt::Scope,
    model,
    options::LoadArgs,
    render::{self, Out},
};

/// Measure how fast an engine runs a model
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Each trial sends --batch requests at once, each with a random prompt of its own; one more trial before the \
others warms up and is not counted. All times are the caller's, from sending the requests:

  time_to_first_token_ms     until every request has its first token
  prefill_tokens_per_second  tokens of all prompts over that time
  decode_tokens_per_second   tokens that come after that, over the time until the last one
  peak_memory_bytes          the engine's highest use, weights included; 0 where it cannot tell

With --classify each trial has short sentences of its own:

  classify_ms                until all of them are classified, in one call
  generate_ms                until one token was generated after each of them, one request after the other

Examples:
  inference bench --model ~/models/Qwen3-0.6B --batch 8 --json
  inference bench --model ~/models/Qwen3-0.6B --classify 1000"
)]
pub(crate) struct Args {
    /// The model's folder
    #[arg(long, short, value_name = "PATH")]
    model: PathBuf,

    /// Tokens of each prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = super::positive)]
    prompt_tokens: usize,

    /// Tokens that each request generates
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = super::positive)]
    generate_tokens: usize,

    /// Requests that run at once
    #[arg(long, value_name = "REQUESTS", default_value_t = 1, value_parser = super::positive)]
    batch: usize,

    /// Classify so many short sentences in one call, and generate a token after each, in place of the above
    #[arg(long, value_name = "SENTENCES", value_parser = super::positive,
        conflicts_with_all = ["prompt_tokens", "generate_tokens", "batch"])]
    classify: Option<usize>,

    /// Trials that are measured
    #[arg(long, value_name = "TIMES", default_value_t = 5, value_parser = super::positive)]
    trials: usize,

    /// Chooses the random prompts
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    seed: u64,

    #[command(flatten)]
    load: LoadArgs,

    /// Print a JSON object
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    /// Print no progress on stderr
    #[arg(long, short, help_heading = "Output")]
    quiet: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let scope = Scope::enter();
    let model = model::load(&args.model, &args.load, scope.token(), args.quiet).await?;
    model::using(model, async |model| {
        let (args, cancel) = (&args, &scope.token());
        let backend = Registry::linked().open(&model.info().backend)?;
        let mut out = Out::new();
        if let Some(count) = args.classify {
            let trial = async |random: &mut StdRng| sentences::Trial::run(model, count, random, cancel).await;
            let Some(trials) = measure(args, &scope, trial).await? else {
                return Ok(ExitCode::from(INTERRUPTED));
            };
            let report = sentences::Report::new(args, count, model.info(), backend.info(), &trials);
            if args.json {
                out.json(&report)?;
            } else {
                report.print(&mut out)?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let trial = async |random: &mut StdRng| Trial::run(model, args, random, cancel).await;
        let Some(trials) = measure(args, &scope, trial).await? else {
            return Ok(ExitCode::from(INTERRUPTED));
        };
        let report = Report::new(args, model.info(), backend.info(), &trials);
        if args.json {
            out.json(&report)?;
        } else {
            report.print(&mut out)?;
        }
        Ok(ExitCode::SUCCESS)
    })
    .await
}

/// Runs the trials; `None` where Ctrl-C ended them.
async fn measure<T>(
    args: &Args,
    scope: &Scope,
    mut run: impl AsyncFnMut(&mut StdRng) -> anyhow::Result<T>,
) -> anyhow::Result<Option<Vec<T>>> {
    let bar = render::progress(args.trials as u64 + 1, "measuring {wide_bar:.cyan} {pos}/{len} trials");
    if args.quiet {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let mut random = StdRng::seed_from_u64(args.seed);
    let mut trials = Vec::with_capacity(args.trials);
    for trial in 0..=args.trials {
        let measured = run(&mut random).await;
        if scope.interrupted() {
            return Ok(None);
        }
        let measured = measured?;
        bar.inc(1);
        if trial > 0 {
            trials.push(measured);
        }
    }
    bar.finish_and_clear();
    Ok(Some(trials))
}

/// What one trial showed.
#[derive(Debug, Clone, Copy)]
struct Trial {
    prefill: f64,
    decode: f64,
    first_token: Duration,
    peak_memory: u64,
}

/// What the caller of one request saw.
struct Request {
    /// When each token came, from the start of the trial.
    tokens: Vec<Duration>,
    peak_memory: u64,
    reason: FinishReason,
}

impl Trial {
    async fn run(
        model: &dyn TextModel,
        args: &Args,
        random: &mut StdRng,
        cancel: &CancellationToken,
    ) -> anyhow::Result<Self> {
        // New prompts each time: a prefix that the engine has kept would not be computed again.
        let vocabulary = u32::try_from(model.info().vocab_size).unwrap_or(u32::MAX).max(1);
        let prompts: Vec<Vec<u32>> = (0..args.batch)
            .map(|_| (0..args.prompt_tokens).map(|_| random.random_range(0..vocabulary)).collect())
            .collect();
        let options =
            GenerateOptions::new().max_tokens(args.generate_tokens).ignore_eos(true).cancel(cancel.clone());
        let began = Instant::now();
        let requests = prompts.into_iter().map(|prompt| request(model, prompt, options.clone(), began));
        let requests = try_join_all(requests).await?;
        if !cancel.is_cancelled() {
            for request in &requests {
                ensure!(
                    request.tokens.len() == args.generate_tokens,
                    "a request ended after {} tokens of {} ({:?}): prompt and answer may not fit the context",
                    request.tokens.len(),
                    args.generate_tokens,
                    request.reason,
                );
            }
        }
        Ok(Self::of(args.prompt_tokens, &requests))
    }

    fn of(prompt_tokens: usize, requests: &[Request]) -> Self {
        let first_token = requests.iter().filter_map(|r| r.tokens.first()).max().copied().unwrap_or_default();
        let last_token = requests.iter().filter_map(|r| r.tokens.last()).max().copied().unwrap_or_default();
        let decoded =
            requests.iter().flat_map(|request| &request.tokens).filter(|at| **at > first_token).count();
        Self {
            prefill: per_second(prompt_tokens * requests.len(), first_token),
            decode: per_second(decoded, last_token.saturating_sub(first_token)),
            first_token,
            peak_memory: requests.iter().map(|request| request.peak_memory).max().unwrap_or_default(),
        }
    }
}

async fn request(
    model: &dyn TextModel,
    prompt: Vec<u32>,
    options: GenerateOptions,
    began: Instant,
) -> anyhow::Result<Request> {
    let mut stream = model.generate(Prompt::Tokens(prompt), options).await?;
    let mut tokens = Vec::new();
    while let Some(token) = stream.next().await {
        token?;
        tokens.push(began.elapsed());
    }
    let finish = stream.finish().await?;
    Ok(Request { tokens, peak_memory: finish.metrics.peak_memory_bytes, reason: finish.reason })
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    model: &'a ModelInfo,
    backend: &'a BackendInfo,
    program: Program,
    prompt_tokens: usize,
    generate_tokens: usize,
    batch: usize,
    trials: usize,
    seed: u64,
    prefill_tokens_per_second: Spread,
    decode_tokens_per_second: Spread,
    time_to_first_token_ms: Spread,
    peak_memory_bytes: Spread,
}

/// What was measured with.
#[derive(Debug, Serialize)]
struct Program {
    version: &'static str,
    profile: &'static str,
    os: &'static str,
    arch: &'static str,
}

impl Program {
    fn this() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            profile: if cfg!(debug_assertions) { "debug" } else { "release" },
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
        }
    }
}

/// The spread of one figure over the trials.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl<'a> Report<'a> {
    fn new(args: &Args, model: &'a ModelInfo, backend: &'a BackendInfo, trials: &[Trial]) -> Self {
        let spread = |figure: fn(&Trial) -> f64| Spread::of(trials.iter().map(figure).collect());
        Self {
            model,
            backend,
            program: Program::this(),
            prompt_tokens: args.prompt_tokens,
            generate_tokens: args.generate_tokens,
            batch: args.batch,
            trials: args.trials,
            seed: args.seed,
            prefill_tokens_per_second: spread(|trial| trial.prefill),
            decode_tokens_per_second: spread(|trial| trial.decode),
            time_to_first_token_ms: spread(|trial| trial.first_token.as_secs_f64() * 1e3),
            peak_memory_bytes: spread(|trial| trial.peak_memory as f64),
        }
    }

    fn print(&self, out: &mut Out) -> anyhow::Result<()> {
        let trials = format!(
            "{} of {} at once, {} prompt tokens and {} generated each",
            self.trials,
            render::things(self.batch, "request"),
            self.prompt_tokens,
            self.generate_tokens
        );
        out.table(&subject(self.model, self.backend, trials))?;
        out.line("")?;
        let mut table = Spread::table();
        self.prefill_tokens_per_second.add_to(&mut table, "prefill, tokens/s", &render::rate);
        self.decode_tokens_per_second.add_to(&mut table, "decode, tokens/s", &render::rate);
        let first = |ms| format!("{ms:.2}");
        self.time_to_first_token_ms.add_to(&mut table, "time to first token, ms", &first);
        self.peak_memory_bytes.add_to(&mut table, "peak memory", &|bytes| render::bytes(bytes as u64));
        out.table(&table)
    }
}

/// What is measured, and how often.
fn subject(model: &ModelInfo, backend: &BackendInfo, trials: String) -> comfy_table::Table {
    let parameters = render::count(model.parameters);
    render::facts([
        ("model", format!("{}, {}, {parameters} parameters", model.path.display(), model.architecture)),
        ("backend", format!("{}, {} on {}", backend.id, backend.version, backend.device)),
        ("trials", trials),
    ])
}

impl Spread {
    fn table() -> comfy_table::Table {
        render::table(&["", "min", "median", "max"])
    }

    fn add_to(self, table: &mut comfy_table::Table, name: &str, show: &dyn Fn(f64) -> String) {
        let cells = [self.min, self.median, self.max].map(|value| render::right(show(value)));
        table.add_row([comfy_table::Cell::new(name)].into_iter().chain(cells));
    }

    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => (values[middle - 1] + values[middle]) / 2.0,
            _ => values[middle],
        };
        Self { min: values[0], median, max: values[values.len() - 1] }
    }
}

fn per_second(tokens: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(milliseconds: &[u64]) -> Request {
        Request {
            tokens: milliseconds.iter().map(|ms| Duration::from_millis(*ms)).collect(),
            peak_memory: milliseconds[0],
            reason: FinishReason::Length,
        }
    }

    #[test]
    fn a_batch_decodes_once_every_request_has_begun() {
        let trial = Trial::of(50, &[request(&[100, 150, 300, 400]), request(&[200, 300, 400, 600])]);
        assert_eq!(trial.first_token, Duration::from_millis(200));
        assert_eq!(trial.prefill, 100.0 / 0.2);
        assert_eq!(trial.decode, 5.0 / 0.4);
        assert_eq!(trial.peak_memory, 200);
    }

    #[test]
    fn the_median_is_the_middle_or_between_the_middles() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Spread { min: 1.0, median: 2.0, max: 3.0 });
        assert_eq!(Spread::of(vec![4.0, 1.0]).median, 2.5);
    }
}
