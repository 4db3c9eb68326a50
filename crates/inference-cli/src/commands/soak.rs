//! `inference soak`: random requests for as long as one likes, each checked against its lone run.

mod cases;

use std::{
    cell::RefCell,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::bail;
use futures::{
    StreamExt as _,
    future::{join, join_all},
};
use inference::{
    CancellationToken, FinishReason, ModelStats, Prompt, Registry, TextModel, TextModelExt as _, Token,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde::Serialize;
use serde_json::json;

use self::cases::{Case, Fate};
use crate::{
    failure::INTERRUPTED,
    interrupt::Scope,
    model,
    options::LoadArgs,
    render::{self, Out},
};

/// A request that is silent for so long hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long rows whose stream was dropped may take to leave the engine.
const SETTLING: Duration = Duration::from_secs(10);

/// What memory may have grown by at the end: allocators keep a page here and there.
const SLACK_BYTES: u64 = 8 << 20;

/// Samples that are taken of a run's memory.
const SAMPLES: u32 = 30;

/// Run random requests side by side, check each against its lone run, and watch the memory
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Requests have random prompts, lengths and options; some are cancelled, some dropped, some left unread for a while. What \
is delivered must be what the same request gave alone. Fails where it is not, where a stream hangs, or where memory has \
not returned to its level at the end.

Example:
  inference soak --minutes 60 --model ~/models/Qwen3-0.6B --json > soak.jsonl"
)]
pub(crate) struct Args {
    /// The model's folder [default: the demo model]
    #[arg(long, short, value_name = "PATH")]
    model: Option<PathBuf>,

    /// How long to go on
    #[arg(long, value_name = "MINUTES", default_value_t = 1.0)]
    minutes: f64,

    /// Requests that run at once
    #[arg(long, value_name = "REQUESTS", default_value_t = 10, value_parser = super::positive)]
    concurrency: usize,

    /// Different requests that are repeated
    #[arg(long, value_name = "REQUESTS", default_value_t = 32, value_parser = super::positive)]
    cases: usize,

    /// Tokens of the longest prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 200, value_parser = super::positive)]
    prompt_tokens: usize,

    /// Tokens of the longest answer
    #[arg(long, value_name = "TOKENS", default_value_t = 48, value_parser = super::positive)]
    generate_tokens: usize,

    /// Chooses the random requests
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    seed: u64,

    #[command(flatten)]
    load: LoadArgs,

    /// Print JSON Lines: a sample each, then the totals
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let scope = Scope::enter();
    let path = model::or_demo(args.model.as_ref())?;
    let model = model::load(&path, &args.load, scope.token(), args.json).await?;
    let failures = model::using(model, async |model| soak(model, &args, &scope).await).await?;
    Ok(match failures {
        _ if scope.interrupted() => ExitCode::from(INTERRUPTED),
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Runs it all; how many failures there were.
async fn soak(model: &dyn TextModel, args: &Args, scope: &Scope) -> anyhow::Result<u64> {
    let capabilities = Registry::linked().open(&model.info().backend)?.capabilities();
    let (mut random, limits) = (StdRng::seed_from_u64(args.seed), (args.prompt_tokens, args.generate_tokens));
    let mut cases: Vec<Case> = (0..args.cases)
        .map(|_| Case::random(&mut random, model.info().vocab_size, limits, capabilities))
        .collect();
    let bar = render::progress(cases.len() as u64, "running each alone {wide_bar:.cyan} {pos}/{len}");
    for case in &mut cases {
        let options = case.options(scope.token());
        case.alone = model.complete(Prompt::Tokens(case.prompt.clone()), options).await?.tokens;
        bar.inc(1);
    }
    bar.finish_and_clear();

    let soak = Soak {
        model,
        cases: &cases,
        began: Instant::now(),
        length: Duration::from_secs_f64((args.minutes * 60.0).clamp(0.0, 1e9)),
        before: model.stats(),
        stop: scope.token(),
        totals: RefCell::default(),
    };
    let mut out = Out::new();
    let workers = (0..args.concurrency).map(|worker| soak.work(args.seed ^ (worker as u64 + 1)));
    let (_, sampled) = join(join_all(workers), soak.sample(&mut out, args.json)).await;
    sampled?;
    soak.settle().await;
    soak.report(&mut out, args.json)
}

struct Soak<'a> {
    model: &'a dyn TextModel,
    cases: &'a [Case],
    began: Instant,
    length: Duration,
    /// The model's statistics after the lone runs: the level to which memory returns.
    before: ModelStats,
    stop: CancellationToken,
    totals: RefCell<Totals>,
}

#[derive(Debug, Default, Serialize)]
struct Totals {
    requests: u64,
    tokens: u64,
    cancelled: u64,
    dropped: u64,
    /// What went wrong, the first of each kind in words.
    failures: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    first_failures: Vec<String>,
}

impl Soak<'_> {
    fn over(&self) -> bool {
        self.stop.is_cancelled() || self.began.elapsed() >= self.length
    }

    /// Sends one request after the other until the time is over.
    async fn work(&self, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        while !self.over() {
            let number = random.random_range(0..self.cases.len());
            let fate = Fate::random(&mut random);
            let outcome = match tokio::time::timeout(PATIENCE, self.request(number, fate)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(anyhow::anyhow!("hangs: nothing within {} s", PATIENCE.as_secs())),
            };
            let mut totals = self.totals.borrow_mut();
            totals.requests += 1;
            match outcome {
                Ok(tokens) => totals.tokens += tokens as u64,
                Err(error) => {
                    totals.failures += 1;
                    if totals.first_failures.len() < 5 {
                        totals.first_failures.push(format!("case {number}, {fate:?}: {error:#}"));
                    }
                }
            }
        }
    }

    /// One request; how many tokens came.
    async fn request(&self, number: usize, fate: Fate) -> anyhow::Result<usize> {
        let case = &self.cases[number];
        let cancel = CancellationToken::new();
        let prompt = Prompt::Tokens(case.prompt.clone());
        let mut stream = self.model.generate(prompt, case.options(cancel.clone())).await?;
        let limit = match fate {
            Fate::Read => usize::MAX,
            Fate::Cancel(after) | Fate::Drop(after) => after,
            Fate::LeaveUnread(milliseconds) => {
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                usize::MAX
            }
        };
        let mut tokens: Vec<Token> = Vec::new();
        while tokens.len() < limit
            && let Some(token) = stream.next().await
        {
            tokens.push(token?);
        }
        match fate {
            Fate::Drop(_) => {
                drop(stream);
                self.totals.borrow_mut().dropped += 1;
                case.check_beginning(&tokens)?;
            }
            Fate::Cancel(_) => {
                cancel.cancel();
                while let Some(token) = stream.next().await {
                    tokens.push(token?);
                }
                self.totals.borrow_mut().cancelled += 1;
                case.check_beginning(&tokens)?;
                stream.finish().await?;
            }
            Fate::Read | Fate::LeaveUnread(_) => {
                if stream.finish().await?.reason == FinishReason::Cancelled {
                    bail!("ended as cancelled, which nobody did");
                }
                case.check_whole(&tokens)?;
            }
        }
        Ok(tokens.len())
    }

    /// Prints the curve of memory while the work goes on.
    async fn sample(&self, out: &mut Out, json: bool) -> anyhow::Result<()> {
        let every = (self.length / SAMPLES).max(Duration::from_millis(200));
        while !self.over() {
            let left = self.length.saturating_sub(self.began.elapsed());
            tokio::select! {
                () = tokio::time::sleep(every.min(left)) => {}
                () = self.stop.cancelled() => {}
            }
            self.print_sample(out, json)?;
        }
        Ok(())
    }

    fn print_sample(&self, out: &mut Out, json: bool) -> anyhow::Result<()> {
        let (stats, totals) = (self.model.stats(), self.totals.borrow());
        let seconds = self.began.elapsed().as_secs_f64();
        if json {
            return out.json(&json!({ "sample": {
                "seconds": seconds, "requests": totals.requests, "tokens": totals.tokens,
                "failures": totals.failures, "running": stats.active, "memory": stats.memory,
                "process_bytes": process_bytes(),
            }}));
        }
        out.line(&format!(
            "{seconds:7.1} s  {:6} requests  {:8} tokens  {:3} failed  {:2} running  memory {:>9} active {:>9} cache {:>9} peak {:>9} process",
            totals.requests,
            totals.tokens,
            totals.failures,
            stats.active,
            render::bytes(stats.memory.active_bytes),
            render::bytes(stats.memory.cache_bytes),
            render::bytes(stats.memory.peak_bytes),
            process_bytes().map_or_else(|| "?".to_owned(), render::bytes),
        ))
    }

    /// Waits until rows whose stream was dropped have left, then holds memory and statistics against their level.
    async fn settle(&self) {
        let until = Instant::now() + SETTLING;
        let level = self.before.memory.active_bytes + SLACK_BYTES;
        loop {
            let stats = self.model.stats();
            if stats.active == 0 && stats.memory.active_bytes <= level {
                return;
            }
            if Instant::now() >= until {
                let mut totals = self.totals.borrow_mut();
                totals.failures += 1;
                totals.first_failures.push(format!(
                    "after the last request {} still run and {} are in use; it began with {}",
                    render::things(stats.active as usize, "request"),
                    render::bytes(stats.memory.active_bytes),
                    render::bytes(self.before.memory.active_bytes),
                ));
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Prints the totals; how many failures there were.
    fn report(&self, out: &mut Out, json: bool) -> anyhow::Result<u64> {
        let totals = self.totals.borrow();
        if json {
            let memory = self.model.stats().memory;
            let report = json!({
                "seconds": self.began.elapsed().as_secs_f64(), "totals": &*totals,
                "memory_before": self.before.memory, "memory_after": memory,
            });
            out.json(&json!({ "soak": report }))?;
        } else {
            out.line(&format!(
                "\n{} ({} cancelled, {} dropped), {} tokens, {}; memory in use {} before, {} after",
                render::things(totals.requests as usize, "request"),
                totals.cancelled,
                totals.dropped,
                totals.tokens,
                render::things(totals.failures as usize, "failure"),
                render::bytes(self.before.memory.active_bytes),
                render::bytes(self.model.stats().memory.active_bytes),
            ))?;
            for failure in &totals.first_failures {
                out.line(&format!("  {failure}"))?;
            }
        }
        Ok(totals.failures)
    }
}

/// What the process has in physical memory; `None` where the system does not say.
fn process_bytes() -> Option<u64> {
    memory_stats::memory_stats().map(|stats| stats.physical_mem as u64)
}
