//! `inference soak`: random requests, loads and sessions for a given time, each checked, while the process is watched.

mod cases;
mod cycles;
mod http;
mod requests;
mod state;
mod watch;

use std::{
    cell::RefCell,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use futures::future::{join_all, join3};
use inference::{ModelStats, Prompt, TextModel, TextModelExt as _, registry::Registry};
use rand::{SeedableRng as _, rngs::StdRng};
use serde_json::json;

use self::{
    cases::Case,
    cycles::Cycles,
    requests::Requests,
    state::{Clock, Totals},
    watch::{ProcessUsage, Watch},
};
use crate::{
    failure::INTERRUPTED,
    http::LocalServer,
    interrupt::Scope,
    model,
    options::LoadArgs,
    render::{self, Out},
};

/// How long rows whose stream was dropped may take to leave the engine.
const SETTLING: Duration = Duration::from_secs(10);

/// What the engine's memory may have grown by at the end: allocators keep a page here and there.
const SLACK_BYTES: u64 = 8 << 20;

/// Tokens of a stream over HTTP that come faster are sent together.
const STREAM_INTERVAL: Duration = Duration::from_millis(5);

/// Samples that are printed.
const SAMPLES: u32 = 40;

/// The shortest run whose growth is judged.
const SHORTEST_JUDGED: Duration = Duration::from_secs(20);

/// How often the process is looked at; a printed sample has the lowest figures since the one before.
const LOOK: Duration = Duration::from_millis(100);

/// Run random requests, loads and sessions, check each, and watch memory, threads and descriptors
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Requests have random prompts, lengths and options; some are cancelled, some dropped, some left unread for a while. What \
is delivered must be what the same request gave alone. Beside them the model is loaded again and again, and sessions are continued, \
forked, saved and loaded. Fails where an answer differs, where a stream hangs, where the engine's memory has not returned to its level \
at the end, or where memory, threads or descriptors of the process grow from quarter to quarter of the run.

With --http the requests go to `inference serve`'s server in this process, over loopback. Some clients leave in the middle, read slowly, send \
bodies that are too large, half a request, or what is none. At the end nothing may run or wait, and the times to the first token are told.

Examples:
  inference soak --minutes 60 --model ~/models/Qwen3-0.6B --json > soak.jsonl
  inference soak --minutes 2 --http --concurrency 64 --one-load"
)]
pub(crate) struct Args {
    /// The model's folder [default: the demo model]
    #[arg(long, short, value_name = "PATH")]
    model: Option<PathBuf>,

    /// How long to go on
    #[arg(long, value_name = "MINUTES", default_value = "1", value_parser = minutes)]
    minutes: Duration,

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

    /// Load the model once only, and keep no sessions: for models that do not fit into memory twice
    #[arg(long)]
    one_load: bool,

    /// Send the requests over HTTP, to a server in this process
    #[arg(long)]
    http: bool,

    /// Accept a token other than the lone run's where it is nearly as likely, or, if tokens are drawn, one of the 20 likeliest: for
    /// engines whose rounding depends on the number of rows
    #[arg(long)]
    near_ties: bool,

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
    let server = match args.http {
        true => Some(LocalServer::start(model.clone(), args.concurrency, STREAM_INTERVAL)?),
        false => None,
    };
    let address = server.as_ref().map(|server| server.address);
    let failures =
        model::using(model, async |model| soak(model, (&path, address), &args, &scope).await).await;
    if let Some(server) = server {
        server.end().await?;
    }
    let failures = failures?;
    Ok(match failures {
        _ if scope.interrupted() => ExitCode::from(INTERRUPTED),
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Runs everything, over HTTP where there is an address. Returns the number of failures.
async fn soak(
    model: &dyn TextModel,
    (path, address): (&Path, Option<SocketAddr>),
    args: &Args,
    scope: &Scope,
) -> anyhow::Result<u64> {
    let capabilities = Registry::linked().open(&model.info().backend)?.capabilities();
    let (mut random, limits) = (StdRng::seed_from_u64(args.seed), (args.prompt_tokens, args.generate_tokens));
    let mut cases: Vec<Case> = (0..args.cases)
        .map(|_| Case::random(&mut random, model.info().vocab_size, limits, capabilities))
        .map(|case| if args.near_ties { case.with_near_ties() } else { case })
        .collect();
    let bar = render::progress(cases.len() as u64, "running each alone {wide_bar:.cyan} {pos}/{len}");
    for case in &mut cases {
        let options = case.options_alone(scope.token());
        case.alone = model.complete(Prompt::Tokens(case.prompt.clone()), options).await?.tokens;
        bar.inc(1);
    }
    bar.finish_and_clear();

    let totals = RefCell::default();
    let clock = Clock { began: Instant::now(), length: args.minutes, stop: scope.token() };
    let soak =
        Soak { model, before: model.stats(), clock: &clock, totals: &totals, watch: RefCell::default() };
    let requests = Requests { model, cases: &cases, clock: &clock, totals: &totals };
    let clients =
        address.map(|address| http::Clients { address, cases: &cases, clock: &clock, totals: &totals });
    let (clients, requests) = (&clients, &requests);
    let workers = (0..args.concurrency).map(|worker| async move {
        let seed = args.seed ^ (worker as u64 + 1);
        match clients {
            Some(clients) => clients.work(seed).await,
            None => requests.work(seed).await,
        }
    });
    let mut out = Out::new();
    let cycles = async {
        if args.one_load {
            return Ok(());
        }
        let cycles = Cycles::new(model, path, &args.load, &cases, &clock, &totals)?;
        cycles.work(args.seed).await;
        anyhow::Ok(())
    };
    let (_, cycled, sampled) = join3(join_all(workers), cycles, soak.sample(&mut out, args.json)).await;
    cycled?;
    sampled?;
    soak.settle().await;
    if let Some(address) = address.filter(|_| !scope.interrupted()) {
        for count in http::left_over(address, SETTLING).await? {
            totals.borrow_mut().fail(format!("once all clients are gone the server still counts {count}"));
        }
    }
    soak.judge_growth();
    totals.borrow_mut().near_ties = cases.iter().map(|case| case.ties.get()).sum();
    soak.report(&mut out, args.json)
}

/// Samples and judges the run.
struct Soak<'a> {
    model: &'a dyn TextModel,
    /// The model's statistics after the lone runs: the level to which memory returns.
    before: ModelStats,
    clock: &'a Clock,
    totals: &'a RefCell<Totals>,
    watch: RefCell<Watch>,
}

impl Soak<'_> {
    /// Looks at the process, and prints samples while the work goes on.
    async fn sample(&self, out: &mut Out, json: bool) -> anyhow::Result<()> {
        let every = (self.clock.length / SAMPLES).max(LOOK);
        let mut next = every;
        while !self.clock.is_over() {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.clock.stop.cancelled() => {}
            }
            self.watch.borrow_mut().look(ProcessUsage::now());
            if self.clock.began.elapsed() >= next || self.clock.is_over() {
                next += every;
                let process = self.watch.borrow_mut().end_interval();
                self.print_sample(out, process, json)?;
            }
        }
        Ok(())
    }

    fn print_sample(&self, out: &mut Out, process: ProcessUsage, json: bool) -> anyhow::Result<()> {
        let (stats, totals) = (self.model.stats(), self.totals.borrow());
        let seconds = self.clock.began.elapsed().as_secs_f64();
        if json {
            return out.json(&json!({ "sample": {
                "seconds": seconds, "requests": totals.requests, "tokens": totals.tokens,
                "loads": totals.loads, "sessions": totals.sessions, "failures": totals.failures,
                "running": stats.active, "memory": stats.memory, "process": process,
            }}));
        }
        out.line(&format!(
            "{seconds:7.1} s  {:6} requests  {:8} tokens  {:4} loads  {:4} sessions  {:3} failed  {:2} running  memory {:>9} active \
             {:>9} cache {:>9} peak  process {process}",
            totals.requests,
            totals.tokens,
            totals.loads,
            totals.sessions,
            totals.failures,
            stats.active,
            render::bytes(stats.memory.active_bytes),
            render::bytes(stats.memory.cache_bytes),
            render::bytes(stats.memory.peak_bytes),
        ))
    }

    /// Waits until rows whose stream was dropped have left, then compares memory and statistics with their level before.
    async fn settle(&self) {
        let until = Instant::now() + SETTLING;
        let level = self.before.memory.active_bytes + SLACK_BYTES;
        loop {
            let stats = self.model.stats();
            if stats.active == 0 && stats.memory.active_bytes <= level {
                return;
            }
            if Instant::now() >= until {
                self.totals.borrow_mut().fail(format!(
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

    /// Counts as a failure what grew from quarter to quarter. A run that is too short ends while caches still fill.
    fn judge_growth(&self) {
        if self.clock.began.elapsed() < SHORTEST_JUDGED {
            return;
        }
        for growth in self.watch.borrow().growth() {
            self.totals.borrow_mut().fail(growth);
        }
    }

    /// Prints the totals. Returns the number of failures.
    fn report(&self, out: &mut Out, json: bool) -> anyhow::Result<u64> {
        let totals = self.totals.borrow();
        let first_token = totals.first_token();
        if json {
            let [p50, p99, max] = first_token.unwrap_or_default().map(|time| time.as_secs_f64() * 1e3);
            let first_token = first_token.map(|_| json!({"p50": p50, "p99": p99, "max": max}));
            let report = json!({
                "first_token_ms": first_token, "seconds": self.clock.began.elapsed().as_secs_f64(), "totals": &*totals,
                "memory_before": self.before.memory, "memory_after": self.model.stats().memory,
                "process": ProcessUsage::now(),
            });
            out.json(&json!({ "soak": report }))?;
        } else {
            out.line(&format!(
                "\n{} ({} cancelled, {} dropped), {} tokens, {}, {}, {}, {}; memory in use {} before, {} after",
                render::things(totals.requests as usize, "request"),
                totals.cancelled,
                totals.dropped,
                totals.tokens,
                render::things(totals.loads as usize, "load"),
                render::things(totals.sessions as usize, "session"),
                render::things(totals.failures as usize, "failure"),
                render::things(totals.near_ties as usize, "near tie"),
                render::bytes(self.before.memory.active_bytes),
                render::bytes(self.model.stats().memory.active_bytes),
            ))?;
            if let Some(times) = first_token {
                let [p50, p99, max] = times.map(render::duration);
                out.line(&format!(
                    "first token after {p50} (median), {p99} (99 of 100), {max} (the longest)"
                ))?;
            }
            for failure in &totals.first_failures {
                out.line(&format!("  {}", render::harmless(failure)))?;
            }
        }
        Ok(totals.failures)
    }
}

/// Parses a length of time in minutes.
fn minutes(text: &str) -> Result<Duration, String> {
    const MOST: f64 = 1e6;
    match text.parse::<f64>() {
        Ok(minutes) if minutes > 0.0 && minutes <= MOST => Ok(Duration::from_secs_f64(minutes * 60.0)),
        _ => Err(format!("expected a number of minutes above 0, at most {MOST}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_are_finite_and_above_zero() {
        assert_eq!(minutes("0.5"), Ok(Duration::from_secs(30)));
        for text in ["nan", "inf", "-inf", "0", "-1", "1e300", "1e7", "", "two"] {
            assert!(minutes(text).is_err(), "{text}");
        }
    }
}
