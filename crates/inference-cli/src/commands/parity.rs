//! `inference parity`: whether two engines say the same, and by how little where they do not.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use inference::{CancellationToken, Feature, GenerateOptions, TextModelExt as _, Token, registry::Registry};
use serde::Serialize;
use serde_json::json;

use crate::{
    interrupt::Scope,
    model,
    options::LoadArgs,
    render::{self, Out},
    rows::{self, Row},
};

/// Prompts for a comparison to which nobody brought any.
const PROMPTS: &str = "What is 2+2?\nWhat is 37 plus 85?\nHello!\nWho are you?\nWhat is the capital of France?\n\
                       Classify: The goalkeeper saved a penalty.\nOnce upon a time\nThe first ten prime numbers are";

/// Compare the greedy text of two engines on the same model, and show where they part
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Where two engines part, the margin tells how sure each was: the difference of the log-probabilities of its two likeliest \
tokens there. If both margins are within --tolerance, either token is as good and the prompt counts as a tie, not as a \
difference. Fails where there is a difference.

Example:
  inference parity --model ~/models/Qwen3-0.6B --a cpu --b mlx_lm --chat --prompts questions.jsonl"
)]
pub(crate) struct Args {
    /// The model's folder [default: the demo model]
    #[arg(long, short, value_name = "PATH")]
    model: Option<PathBuf>,

    /// The one engine
    #[arg(long, value_name = "ID")]
    a: String,

    /// The other engine
    #[arg(long, value_name = "ID")]
    b: String,

    /// A file of prompts, as for `inference batch` [default: some short questions]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,

    /// Put plain prompts into the model's chat template
    #[arg(long)]
    chat: bool,

    /// Tokens compared at most for each prompt
    #[arg(long, short = 'n', value_name = "TOKENS", default_value_t = 64)]
    max_tokens: usize,

    /// The margin, in nats, up to which two tokens count as equally likely
    #[arg(long, value_name = "NATS", default_value_t = 0.001, value_parser = nats)]
    tolerance: f32,

    /// Print JSON Lines: a prompt each, then the totals
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    /// Print no progress on stderr
    #[arg(long, short, help_heading = "Output")]
    quiet: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let scope = Scope::enter();
    let rows = match &args.prompts {
        Some(file) => rows::read(file)?,
        None => rows::parse(PROMPTS)?,
    };
    let path = model::or_demo(args.model.as_ref())?;
    // One after the other: two engines at once may not fit into memory.
    let a = answers(&args.a, &path, &rows, &args, scope.token()).await?;
    let b = answers(&args.b, &path, &rows, &args, scope.token()).await?;
    let verdicts: Vec<Verdict> = a.iter().zip(&b).map(|(a, b)| Verdict::of(a, b, args.tolerance)).collect();
    print(&args, &rows, &verdicts)?;
    let differ = verdicts.iter().any(|verdict| matches!(verdict, Verdict::Differs(_)));
    Ok(if differ { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What one engine says to every prompt.
async fn answers(
    backend: &str,
    path: &Path,
    rows: &[Row],
    args: &Args,
    cancel: CancellationToken,
) -> anyhow::Result<Vec<Vec<Token>>> {
    let margins = Registry::linked().open(backend)?.capabilities().has(Feature::LogProbabilities);
    let mut options = GenerateOptions::new().max_tokens(args.max_tokens).cancel(cancel.clone());
    if margins {
        options = options.log_probabilities(2);
    }
    let model = model::load(path, &LoadArgs::of_backend(backend), cancel.clone(), args.quiet).await?;
    let bar = render::progress(rows.len() as u64, "{msg} {wide_bar:.cyan} {pos}/{len}")
        .with_message(backend.to_owned());
    if args.quiet {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let answers = model::using(model, async |model| {
        let mut answers = Vec::with_capacity(rows.len());
        for row in rows {
            let completion = model.complete(row.prompt_for(args.chat), options.clone()).await;
            let completion = completion.with_context(|| format!("line {} on {backend}", row.line))?;
            if cancel.is_cancelled() {
                return Err(inference::Error::Cancelled.into());
            }
            answers.push(completion.tokens);
            bar.inc(1);
        }
        Ok(answers)
    });
    let answers = answers.await?;
    bar.finish_and_clear();
    Ok(answers)
}

fn nats(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(nats) if nats.is_finite() && nats >= 0.0 => Ok(nats),
        _ => Err("expected a number of at least 0".to_owned()),
    }
}

/// How two answers to one prompt compare.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
enum Verdict {
    Equal { tokens: usize },
    Tie(Parting),
    Differs(Parting),
}

/// Where two answers part.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Parting {
    /// Tokens that both have before it.
    tokens: usize,
    /// Their text.
    text: String,
    a: Side,
    b: Side,
}

/// What one engine said where the answers part.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Side {
    /// `None` where its answer had ended.
    token: Option<u32>,
    text: String,
    /// The likeliest token's log-probability above the second's; `None` where the engine does not tell.
    margin: Option<f32>,
}

impl Verdict {
    fn of(a: &[Token], b: &[Token], tolerance: f32) -> Self {
        let same = a.iter().zip(b).take_while(|(a, b)| a.id == b.id).count();
        if same == a.len() && same == b.len() {
            return Self::Equal { tokens: same };
        }
        let parting = Parting {
            tokens: same,
            text: a[..same].iter().map(|token| token.text.as_str()).collect(),
            a: Side::of(a.get(same)),
            b: Side::of(b.get(same)),
        };
        // An end has no margin of its own; the side that went on tells how close it was.
        let margins = [parting.a.margin, parting.b.margin];
        let tie = margins.iter().any(Option::is_some) && margins.iter().flatten().all(|m| *m <= tolerance);
        if tie { Self::Tie(parting) } else { Self::Differs(parting) }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Equal { .. } => "equal",
            Self::Tie(_) => "tie",
            Self::Differs(_) => "differs",
        }
    }
}

impl Side {
    fn of(token: Option<&Token>) -> Self {
        let margin = token.and_then(|token| match token.top.as_slice() {
            [first, second, ..] => Some(first.log_probability - second.log_probability),
            _ => None,
        });
        Self {
            token: token.map(|token| token.id),
            text: token.map_or_else(String::new, |token| token.text.clone()),
            margin,
        }
    }

    fn shown(&self) -> String {
        let Some(token) = self.token else { return "the end".to_owned() };
        let margin = self.margin.map_or_else(|| "margin unknown".to_owned(), |m| format!("margin {m:.5}"));
        format!("{:?} ({token}, {margin})", self.text)
    }
}

fn print(args: &Args, rows: &[Row], verdicts: &[Verdict]) -> anyhow::Result<()> {
    let mut out = Out::new();
    let count = |name| verdicts.iter().filter(|verdict| verdict.name() == name).count();
    let (equal, ties, differ) = (count("equal"), count("tie"), count("differs"));
    if args.json {
        for (row, verdict) in rows.iter().zip(verdicts) {
            out.json(&Line { line: row.line, id: row.id.as_ref(), verdict })?;
        }
        let totals = json!({ "equal": equal, "ties": ties, "differ": differ });
        return out.json(&json!({ "parity": totals }));
    }
    let mut table = render::table(&["line", "verdict", "tokens", &args.a, &args.b]);
    for (row, verdict) in rows.iter().zip(verdicts) {
        let (tokens, a, b) = match verdict {
            Verdict::Equal { tokens } => (*tokens, String::new(), String::new()),
            Verdict::Tie(parting) | Verdict::Differs(parting) => {
                (parting.tokens, parting.a.shown(), parting.b.shown())
            }
        };
        let cell = |text: &str| comfy_table::Cell::new(text);
        table.add_row([
            render::right(row.line),
            cell(verdict.name()),
            render::right(tokens),
            cell(&a),
            cell(&b),
        ]);
    }
    out.table(&table)?;
    out.line(&format!("\n{equal} equal, {}, {differ} different", render::things(ties, "tie")))
}

#[derive(Serialize)]
struct Line<'a> {
    line: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a serde_json::Value>,
    #[serde(flatten)]
    verdict: &'a Verdict,
}

#[cfg(test)]
mod tests {
    use inference::Alternative;

    use super::*;

    fn token(id: u32, margin: f32) -> Token {
        let mut token = Token::new(id, format!(" {id}"));
        token.top = vec![Alternative::new(id, -0.5), Alternative::new(9, -0.5 - margin)];
        token
    }

    #[test]
    fn answers_part_at_the_first_other_token() {
        let (a, b) =
            ([token(1, 2.0), token(2, 1.0), token(3, 1.0)], [token(1, 2.0), token(4, 0.25), token(3, 1.0)]);
        let Verdict::Differs(parting) = Verdict::of(&a, &b, 0.5) else { panic!("one margin is above") };
        assert_eq!((parting.tokens, parting.text.as_str()), (1, " 1"));
        assert_eq!((parting.a.token, parting.b.margin), (Some(2), Some(0.25)));
        assert_eq!(Verdict::of(&a, &b, 1.0).name(), "tie");
        assert_eq!(Verdict::of(&a, &a, 0.0), Verdict::Equal { tokens: 3 });
    }

    #[test]
    fn an_end_is_a_parting_too() {
        let a = [token(1, 2.0), token(2, 0.5)];
        assert_eq!(Verdict::of(&a, &a[..1], 0.5).name(), "tie");
        assert_eq!(Verdict::of(&a, &a[..1], 0.1).name(), "differs");
        let unsure = [Token::new(1, "x")];
        assert_eq!(Verdict::of(&unsure, &[], 9.0).name(), "differs", "no margin is known");
    }
}
