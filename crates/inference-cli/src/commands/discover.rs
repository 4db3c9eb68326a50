//! `inference discover`: the models below a folder.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use comfy_table::Cell;
use directories::BaseDirs;
use inference::registry::Discovered;
use serde::Serialize;

use super::info::Facts;
use crate::{
    failure,
    render::{self, Out},
};

/// List the models below a folder; only headers are read
#[derive(Debug, clap::Args)]
#[command(
    after_help = "`inference chat --model PATH` and the other commands load one. What cannot be read is reported and passed over.

Examples:
  inference discover                       what Hugging Face tools have downloaded
  inference discover ~/models
  inference discover ~/models --json       a line a model, as it is found"
)]
pub(crate) struct Args {
    /// Where to look [default: the Hugging Face cache]
    root: Option<PathBuf>,

    /// Print JSON Lines: a model each, or {"error":{"kind":…,"message":…}}
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Serialize)]
struct Found {
    name: String,
    #[serde(flatten)]
    facts: Facts,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let root = args.root.clone().unwrap_or_else(cache);
    let mut out = Out::new();
    let bar = render::progress(0, "searching, {pos} found");
    let mut table =
        render::table(&["model", "architecture", "parameters", "size", "quantised", "context", "path"]);
    let (mut found, mut broken) = (0, 0);
    for item in inference::discover(&root) {
        match item.and_then(Found::of) {
            Ok(model) => {
                found += 1;
                bar.inc(1);
                if args.json {
                    out.json(&model)?;
                } else {
                    table.add_row(model.cells());
                }
            }
            Err(error) => {
                broken += 1;
                let error = anyhow::Error::new(error);
                if args.json {
                    out.json(&failure::to_json(&error))?;
                } else {
                    let text = format!("passed over: {}\n", render::harmless(&format!("{error:#}")));
                    bar.suspend(|| render::tell(&text));
                }
            }
        }
    }
    bar.finish_and_clear();
    if !args.json && found > 0 {
        out.table(&table)?;
    }
    if !args.json && found == 0 {
        render::tell(&format!("no models below {}\n", render::path(&root)));
    }
    // A root that cannot be read finds nothing and has told why.
    Ok(if found == 0 && broken > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

impl Found {
    fn of(model: Discovered) -> inference::Result<Self> {
        Ok(Self { facts: Facts::of(&model.manifest)?, name: model.name })
    }

    fn cells(&self) -> [Cell; 7] {
        let facts = &self.facts;
        let quantised = facts.quantization.as_ref().map_or_else(String::new, |q| format!("{} bits", q.bits));
        [
            Cell::new(render::harmless(&self.name)),
            Cell::new(render::harmless(&facts.architecture)),
            render::right(render::count(facts.parameters)),
            render::right(render::bytes(facts.weight_bytes)),
            Cell::new(quantised),
            render::right(facts.context_length.map_or_else(String::new, |tokens| tokens.to_string())),
            Cell::new(render::path(&facts.path)),
        ]
    }
}

/// Where Hugging Face's tools keep what they download.
fn cache() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || BaseDirs::new().map_or_else(|| PathBuf::from("."), |dirs| dirs.home_dir().to_owned());
    variable("HF_HUB_CACHE")
        .or_else(|| variable("HF_HOME").map(|home| home.join("hub")))
        .unwrap_or_else(|| home().join(Path::new(".cache/huggingface/hub")))
}
