//! `inference pull`, `list` and `rm`: models of the Hugging Face Hub in the cache that Python's package uses.

use std::process::ExitCode;

use inference::hub::{Hub, HubError, ModelName, PullOptions};
use inference_core::backend::spawn_blocking;
use serde_json::json;

use crate::{
    failure::Usage,
    interrupt::Scope,
    render::{self, Out},
};

/// Download a model from the Hugging Face Hub; one that was cut goes on where it stopped
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inference pull mlx-community/Qwen3-0.6B-4bit
  inference chat --model mlx-community/Qwen3-0.6B-4bit

HF_TOKEN gives access to private models; HF_ENDPOINT, HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE mean what they mean to Python's package.")]
pub(crate) struct PullArgs {
    /// The model: ORGANISATION/NAME, or ORGANISATION/NAME@REVISION
    #[arg(value_name = "NAME")]
    name: String,

    /// Print a JSON object
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    /// Print no progress on stderr
    #[arg(long, short, help_heading = "Output")]
    quiet: bool,
}

/// List the models in the Hugging Face cache
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Print a JSON list
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// Delete a model from the Hugging Face cache, with all of its revisions
#[derive(Debug, clap::Args)]
pub(crate) struct RmArgs {
    /// The model: ORGANISATION/NAME
    #[arg(value_name = "NAME")]
    name: String,

    /// Print a JSON object
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

pub(crate) async fn pull(args: PullArgs) -> anyhow::Result<ExitCode> {
    let scope = Scope::enter();
    let name = parse(&args.name)?;
    let hub = Hub::from_env()?;
    let bar = render::progress(0, "downloading {wide_bar:.cyan} {bytes}/{total_bytes} {bytes_per_sec}");
    if args.quiet || args.json {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let shown = bar.clone();
    let options = PullOptions::new().cancel(scope.token()).on_progress(move |progress| {
        shown.set_length(progress.total_bytes);
        shown.set_position(progress.bytes);
    });
    let pulled = spawn_blocking(move || Ok(hub.pull(&name, &options))).await?;
    bar.finish_and_clear();
    let folder = match pulled {
        Err(HubError::Cancelled) => return Err(inference::Error::Cancelled.into()),
        pulled => pulled?,
    };
    let mut out = Out::new();
    if args.json {
        out.json(&json!({"name": args.name, "path": folder}))?;
    } else {
        out.line(&render::path(folder))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn list(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let hub = Hub::from_env()?;
    let models = hub.list()?;
    let mut out = Out::new();
    if args.json {
        let model = |model: &inference::hub::CachedModel| json!({"name": model.name, "commits": model.commits, "bytes": model.bytes, "path": model.path});
        out.json(&models.iter().map(model).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    if models.is_empty() {
        render::remark(&format!("there are no models in {}", render::path(hub.cache())));
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = render::table(&["model", "size", "revisions"]);
    for model in &models {
        let revisions = model.commits.iter().map(|commit| &commit[..8]).collect::<Vec<_>>().join(", ");
        table.add_row([render::harmless(&model.name), render::bytes(model.bytes), revisions]);
    }
    out.table(&table)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn remove(args: &RmArgs) -> anyhow::Result<ExitCode> {
    let name = parse(&args.name)?;
    let hub = Hub::from_env()?;
    if !hub.list()?.iter().any(|model| model.name == name.repository()) {
        let message = format!("{name} is not in the cache {}", render::path(hub.cache()));
        return Err(Usage(message).into());
    }
    let bytes = hub.remove(&name)?;
    let mut out = Out::new();
    if args.json {
        out.json(&json!({"name": name.repository(), "bytes": bytes}))?;
    } else {
        out.line(&format!("{} are free", render::bytes(bytes)))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn parse(name: &str) -> anyhow::Result<ModelName> {
    name.parse().map_err(|error: HubError| Usage(error.to_string()).into())
}
