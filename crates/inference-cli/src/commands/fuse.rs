//! `inference fuse`: a model and an adapter in one.

use std::{path::PathBuf, process::ExitCode};

use inference::{
    manifest::ModelManifest,
    metal::{FuseOptions, fuse},
};
use inference_core::backend::AdapterManifest;
use serde_json::json;

use crate::{
    interrupt::Scope,
    model,
    render::{self, Out},
};

/// Write a model that has an adapter built in
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The new folder is a model like any other, which mlx_lm loads too. It appears when it is complete; a run that fails or is \
interrupted leaves nothing. A quantised model stays so, which rounds what was learnt: --dequantize writes weights in full.

Example:
  inference fuse --model ~/models/Qwen3-0.6B --adapter adapter --output ~/models/mine"
)]
pub(crate) struct Args {
    /// The folder of the model that the adapter is for
    #[arg(long, short, value_name = "PATH")]
    model: PathBuf,

    /// The adapter's folder
    #[arg(long, short, value_name = "PATH")]
    adapter: PathBuf,

    /// The new folder
    #[arg(long, short, value_name = "PATH")]
    output: PathBuf,

    /// Write quantised weights in full
    #[arg(long)]
    dequantize: bool,

    /// Print a JSON object
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    /// Print no progress on stderr
    #[arg(long, short, help_heading = "Output")]
    quiet: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let scope = Scope::enter();
    let cancel = scope.token();
    let source = ModelManifest::read(model::find(&args.model)?)?;
    let adapter = AdapterManifest::read(&args.adapter, &source)?;
    let bar = render::progress(source.weight_bytes(), "fusing {wide_bar:.cyan} {bytes}/{total_bytes}");
    if args.quiet {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let mut options = FuseOptions::default();
    options.dequantize = args.dequantize;
    let fused = fuse(&source, &adapter, &args.output, &options, &mut |progress| {
        bar.set_position(progress.bytes);
        !cancel.is_cancelled()
    });
    bar.finish_and_clear();
    fused?;
    let target = ModelManifest::read(&args.output)?;
    let mut out = Out::new();
    if args.json {
        out.json(&json!({
            "path": args.output,
            "bytes": target.weight_bytes(),
            "quantization": target.quantization(),
        }))?;
    } else {
        let bytes = render::bytes(target.weight_bytes());
        out.line(&format!(
            "{}: {bytes} of weights, with {}",
            render::path(&args.output),
            render::path(&args.adapter)
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
