//! `inference explain`: what each engine makes of a model.

use std::{path::PathBuf, process::ExitCode};

use inference::registry::Outcome;

use crate::{
    model,
    render::{self, Out},
};

/// Say what each engine makes of a model, and which one would load it
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  inference explain ~/models/Qwen3-0.6B")]
pub(crate) struct Args {
    /// The model's folder
    path: PathBuf,

    /// Print a JSON list
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let verdicts = inference::explain(model::find(&args.path)?)?;
    let mut out = Out::new();
    if args.json {
        out.json(&verdicts)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = render::table(&["backend", "priority", "verdict"]);
    let chosen = verdicts.iter().position(|verdict| verdict.outcome == Outcome::Usable);
    for (i, verdict) in verdicts.iter().enumerate() {
        let outcome = match &verdict.outcome {
            Outcome::Usable if Some(i) == chosen => {
                "usable, and chosen unless --backend names another".to_owned()
            }
            Outcome::OnlyWhenNamed => "usable, only when it is named with --backend".to_owned(),
            Outcome::Unavailable(reason) => format!("not available here: {}", render::harmless(reason)),
            Outcome::Unsupported(reason) => {
                format!("does not support this model: {}", render::harmless(reason))
            }
            // The verdict's own words begin with the backend's name, which has a column here.
            _ => verdict.to_string().split_once(": ").map_or_else(String::new, |(_, text)| text.to_owned()),
        };
        table.add_row([
            comfy_table::Cell::new(&verdict.backend),
            render::right(verdict.priority),
            comfy_table::Cell::new(outcome),
        ]);
    }
    out.table(&table)?;
    if chosen.is_none() {
        out.line("\nno engine would load it on its own")?;
    }
    Ok(ExitCode::SUCCESS)
}
