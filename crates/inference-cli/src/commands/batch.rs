//! `inference batch`: answers to a file of prompts, many at once, resumed where it stopped.

mod answers;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use futures::{StreamExt as _, stream};
use inference::{FinishReason, GenerateOptions, TextModel, TextModelExt as _};
use serde_json::json;

use self::answers::Answers;
use crate::{
    failure::{self, INTERRUPTED},
    interrupt::Scope,
    model,
    options::{GenerateArgs, LoadArgs},
    render,
    rows::{self, Row},
    shape::ShapeArgs,
};

/// Answer a file of prompts, many at once; run again, it goes on where it stopped
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{}

Each answer is a JSON line, written as the prompt ends, in whatever order they do:

  {{\"line\":1,\"id\":…,\"digest\":…,\"text\":…,\"finish\":{{\"reason\":…,\"metrics\":{{…}}}}}}
  {{\"line\":2,\"id\":…,\"digest\":…,\"error\":{{\"kind\":…,\"message\":…}}}}

Example:
  inference batch --model ~/models/Qwen3-0.6B questions.jsonl --max-tokens 200
  inference batch --model ~/models/Qwen3-0.6B letters.jsonl --json-schema person.json --chat", rows::FORMAT))]
pub(crate) struct Args {
    /// The model's folder [default: the demo model]
    #[arg(long, short, value_name = "PATH")]
    model: Option<PathBuf>,

    /// The prompts, a line each
    file: PathBuf,

    /// Where answers go [default: FILE with .answers.jsonl in place of its extension]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Prompts that are sent to the engine at once
    #[arg(long, value_name = "PROMPTS", default_value_t = 16, value_parser = super::positive)]
    concurrency: usize,

    /// Put plain prompts into the model's chat template
    #[arg(long)]
    chat: bool,

    /// Ask again what failed before
    #[arg(long)]
    retry: bool,

    #[command(flatten)]
    load: LoadArgs,

    #[command(flatten)]
    generate: GenerateArgs,

    #[command(flatten)]
    shape: ShapeArgs,

    /// Print the totals as a JSON object
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    /// Print no totals and no progress on stderr
    #[arg(long, short, help_heading = "Output")]
    quiet: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let scope = Scope::enter();
    let options = args.shape.apply(args.generate.options(scope.token()))?;
    options.validate()?;
    let mut rows = rows::read(&args.file)?;
    let output = args.output.clone().unwrap_or_else(|| args.file.with_extension("answers.jsonl"));
    let mut answers = Answers::open(&output, &rows, args.retry)?;
    rows.retain(|row| !answers.has(row.line));
    let before = answers.len();

    let path = model::or_demo(args.model.as_ref())?;
    let model = model::load(&path, &args.load, scope.token(), args.quiet).await?;
    let (answered, failed) =
        model::using(model, async |model| ask(model, &args, rows, &options, &mut answers, &scope).await)
            .await?;
    report(&args, &output, before, answered, failed)?;
    Ok(match (scope.interrupted(), failed) {
        (true, _) => ExitCode::from(INTERRUPTED),
        (false, 0) => ExitCode::SUCCESS,
        (false, _) => ExitCode::FAILURE,
    })
}

/// Asks every row and writes each answer as it ends; how many were written, and how many of them are errors.
async fn ask(
    model: &dyn TextModel,
    args: &Args,
    rows: Vec<Row>,
    options: &GenerateOptions,
    answers: &mut Answers,
    scope: &Scope,
) -> anyhow::Result<(usize, usize)> {
    let before = answers.len();
    let bar = render::progress((before + rows.len()) as u64, "{wide_bar:.cyan} {pos}/{len} · {eta} left");
    if args.quiet {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    bar.set_position(before as u64);
    let (mut answered, mut failed) = (0, 0);
    let asked = rows.into_iter().take_while(|_| !scope.interrupted()).map(|row| {
        let options = row.options(options.clone());
        answer(model, row, options, args.chat)
    });
    let mut asked = stream::iter(asked).buffer_unordered(args.concurrency);
    while let Some((row, answer)) = asked.next().await {
        // A cancelled row is asked again by the next run.
        let Some(answer) = answer else { continue };
        failed += usize::from(answer.get("error").is_some());
        answered += 1;
        answers.write(&row, answer)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok((answered, failed))
}

/// The answer's own fields; `None` where it was cancelled.
async fn answer(
    model: &dyn TextModel,
    row: Row,
    options: GenerateOptions,
    chat: bool,
) -> (Row, Option<serde_json::Value>) {
    let answer = match model.complete(row.prompt_for(chat), options).await {
        Ok(completion) if completion.finish.reason == FinishReason::Cancelled => None,
        Ok(completion) => {
            let mut answer = json!(completion.answer);
            answer["finish"] = json!(completion.finish);
            Some(answer)
        }
        Err(inference::Error::Cancelled) => None,
        Err(error) => Some(failure::to_json(&error.into())),
    };
    (row, answer)
}

fn report(args: &Args, output: &Path, before: usize, answered: usize, failed: usize) -> anyhow::Result<()> {
    if args.json {
        let totals = json!({
            "output": output, "answered": answered, "failed": failed, "answered_before": before,
        });
        return render::Out::new().json(&totals);
    }
    if !args.quiet {
        let mut text = format!("{} in {}", render::things(answered, "new answer"), render::path(output));
        if before > 0 {
            text.push_str(&format!(", {before} were there"));
        }
        if failed > 0 {
            text.push_str(&format!("; {failed} failed, --retry asks them again"));
        }
        render::remark(&text);
    }
    Ok(())
}
