//! `inference bench`: how fast an engine runs a model, on random prompts.

mod embeddings;
mod http;
mod report;
mod requests;
mod sentences;
mod trial;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use inference::{TextModel, registry::Registry};
use rand::{SeedableRng as _, rngs::StdRng};

use self::{http::Clients, requests::Target, trial::Shape};
use crate::{
    failure::{INTERRUPTED, Usage},
    http::LocalServer,
    interrupt::Scope,
    model,
    options::LoadArgs,
    render::{self, Out},
};

/// Tokens of all requests of a trial at most: their prompts are made before the clock starts.
const MOST_TOKENS: usize = 1 << 27;

/// Measure how fast an engine runs a model
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Each trial sends --batch requests at once, each with a random prompt of its own; one more trial before the \
others warms up and is not counted. All times are the caller's, from sending the requests:

  time_to_first_token_ms     until every request has its first token
  prefill_tokens_per_second  tokens of all prompts over that time
  decode_tokens_per_second   tokens that come after that, over the time until the last one
  peak_memory_bytes          the engine's highest use, weights included; 0 where it cannot tell

With --http the requests go through `inference serve`'s server in this process, over loopback: what the API costs beside the engine. \
Client and server share the machine.

With --classify each trial has short sentences of its own:

  classify_ms                until all of them are classified, in one call
  generate_ms                until one token was generated after each of them, one request after the other

With --embed each trial embeds texts of --prompt-tokens random tokens in one call, and then texts of all lengths up to that:

  texts_per_second           the former
  tokens_per_second          the former
  mixed_tokens_per_second    the latter

Examples:
  inference bench --model ~/models/Qwen3-0.6B --batch 8 --json
  inference bench --model ~/models/Qwen3-0.6B --batch 8 --http
  inference bench --model ~/models/Qwen3-0.6B --classify 1000
  inference bench --model ~/models/all-MiniLM-L6-v2 --embed 1000 --prompt-tokens 32"
)]
pub(crate) struct Args {
    /// The model's folder [default: the demo model]
    #[arg(long, short, value_name = "PATH")]
    model: Option<PathBuf>,

    /// Tokens of each prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = super::positive)]
    prompt_tokens: usize,

    /// Tokens that each request generates
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = super::positive)]
    generate_tokens: usize,

    /// Requests that run at once
    #[arg(long, value_name = "REQUESTS", default_value_t = 1, value_parser = super::positive)]
    batch: usize,

    /// Send the requests over HTTP, to a server in this process
    #[arg(long)]
    http: bool,

    /// With --http: tokens of one stream that come faster than this are sent together; 0 sends each as it comes
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 5, requires = "http", value_parser = clap::value_parser!(u64).range(..=50))]
    stream_interval: u64,

    /// Classify this many short sentences in one call, and generate a token after each, in place of the above
    #[arg(long, value_name = "SENTENCES", value_parser = super::positive,
        conflicts_with_all = ["prompt_tokens", "generate_tokens", "batch", "http"])]
    classify: Option<usize>,

    /// Embed this many texts in one call, in place of the above
    #[arg(long, value_name = "TEXTS", value_parser = super::positive,
        conflicts_with_all = ["generate_tokens", "batch", "http", "classify"])]
    embed: Option<usize>,

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
    let shape = args.shape()?;
    let path = model::or_demo(args.model.as_ref())?;
    let model = model::load(&path, &args.load, scope.token(), args.quiet).await?;
    let server = match args.http {
        true => {
            Some(LocalServer::start(model.clone(), args.batch, Duration::from_millis(args.stream_interval))?)
        }
        false => None,
    };
    let ended = model::using(model, async |model| {
        let mut target = match &server {
            Some(server) => Target::Http(model, Clients::connect(server.address, args.batch).await?),
            None => Target::Model(model),
        };
        run_on(model, &mut target, shape, &args, &scope).await
    })
    .await;
    if let Some(server) = server {
        server.end().await?;
    }
    ended
}

/// Measures a model and reports.
async fn run_on(
    model: &dyn TextModel,
    target: &mut Target<'_>,
    shape: Shape,
    args: &Args,
    scope: &Scope,
) -> anyhow::Result<ExitCode> {
    let cancel = &scope.token();
    let backend = Registry::linked().open(&model.info().backend)?;
    let subject = (model.info(), backend.info());
    let mut out = Out::new();
    if let Some(count) = args.classify {
        let trial = async |random: &mut StdRng| sentences::Trial::run(model, count, random, cancel).await;
        let Some(trials) = measure(args, scope, trial).await? else {
            return Ok(ExitCode::from(INTERRUPTED));
        };
        let report = sentences::Report::new(count, args.seed, subject, &trials);
        match args.json {
            true => out.json(&report)?,
            false => report.print(&mut out)?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(count) = args.embed {
        let texts = (count, args.prompt_tokens);
        let trial = async |random: &mut StdRng| embeddings::Trial::run(model, texts, random, cancel).await;
        let Some(trials) = measure(args, scope, trial).await? else {
            return Ok(ExitCode::from(INTERRUPTED));
        };
        let report = embeddings::Report::new(count, args.seed, subject, &trials);
        match args.json {
            true => out.json(&report)?,
            false => report.print(&mut out)?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let trial = async |random: &mut StdRng| requests::Trial::run(target, shape, random, cancel).await;
    let Some(trials) = measure(args, scope, trial).await? else {
        return Ok(ExitCode::from(INTERRUPTED));
    };
    let report = requests::Report::new(shape, args.seed, subject, &trials);
    match args.json {
        true => out.json(&report)?,
        false => report.print(&mut out)?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn shape(&self) -> anyhow::Result<Shape> {
        let Self { batch, prompt_tokens, generate_tokens, http, embed, .. } = *self;
        let (option, tokens) = match embed {
            Some(texts) => ("--embed", prompt_tokens.saturating_mul(texts)),
            None => ("--batch", prompt_tokens.saturating_add(generate_tokens).saturating_mul(batch)),
        };
        if tokens > MOST_TOKENS {
            let message =
                format!("{option}: the requests have {tokens} tokens, expected at most {MOST_TOKENS}");
            return Err(Usage(message).into());
        }
        Ok(Shape { batch, prompt_tokens, generate_tokens, http })
    }
}

/// Runs the trials; `None` where Ctrl-C ended them.
async fn measure<T>(
    args: &Args,
    scope: &Scope,
    mut run: impl AsyncFnMut(&mut StdRng) -> anyhow::Result<T>,
) -> anyhow::Result<Option<Vec<T>>> {
    let bar = render::progress(
        (args.trials as u64).saturating_add(1),
        "measuring {wide_bar:.cyan} {pos}/{len} trials",
    );
    if args.quiet {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let mut random = StdRng::seed_from_u64(args.seed);
    let mut trials = Vec::new();
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
