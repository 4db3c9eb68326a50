//! `inference backends`: the engines of this program, and why each is or isn't usable here.

use std::process::ExitCode;

use inference::registry::Registry;
use inference_core::backend::{Availability, BackendDescriptor};
use serde::Serialize;

use crate::render::{self, Out};

/// List the engines in this program, and why each is or is not usable here
#[derive(Debug, clap::Args)]
#[command(after_help = "The first usable engine that supports a model loads it, unless it is told another, \
as in `inference chat --backend ID`; `inference explain PATH` shows that choice for one model.")]
pub(crate) struct Args {
    /// Print a JSON list
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    id: &'static str,
    priority: i32,
    usable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    features: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let rows: Vec<Row> = Registry::linked().iter().map(Row::of).collect();
    let mut out = Out::new();
    if args.json {
        out.json(&rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    if rows.is_empty() {
        out.line(
            "this program was built without engines: enable the feature `metal`, `mlxlm` or `llamacpp`",
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = render::table(&["backend", "usable", "why", "version"]);
    for row in rows {
        let why = match (row.device, row.reason) {
            (Some(device), _) if row.priority < 0 => format!("on {device}, only when named with --backend"),
            (Some(device), _) => format!("on {device}"),
            (None, reason) => reason.unwrap_or_default(),
        };
        let usable = if row.usable { "yes" } else { "no" };
        table.add_row([row.id, usable, &render::harmless(&why), &row.version.unwrap_or_default()]);
    }
    out.table(&table)?;
    Ok(ExitCode::SUCCESS)
}

impl Row {
    fn of(descriptor: &BackendDescriptor) -> Self {
        let mut row = Self {
            id: descriptor.id,
            priority: descriptor.priority,
            usable: false,
            device: None,
            version: None,
            features: Vec::new(),
            reason: None,
        };
        match (descriptor.probe)() {
            Availability::Unavailable(reason) => row.reason = Some(reason),
            Availability::Available(device) => match (descriptor.open)() {
                Ok(backend) => {
                    row.usable = true;
                    row.device = Some(device);
                    row.version = Some(backend.info().version.clone());
                    row.features = backend.capabilities().iter().map(inference::Feature::name).collect();
                }
                Err(error) => row.reason = Some(format!("{:#}", anyhow::Error::new(error))),
            },
        }
        row
    }
}
