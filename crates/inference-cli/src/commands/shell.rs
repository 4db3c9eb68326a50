//! `inference completions` and `inference man`: what a shell and its reader know of the program.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap_complete::Shell;

use crate::render::{self, Out};

/// Print a script that lets a shell complete commands and flags
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inference completions bash > ~/.local/share/bash-completion/completions/inference
  inference completions zsh > ~/.zfunc/_inference
  inference completions fish > ~/.config/fish/completions/inference.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Write manual pages, one for each command
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  inference man ~/.local/share/man/man1")]
pub(crate) struct ManArgs {
    /// The folder to write them to
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

pub(crate) fn completions(args: &CompletionsArgs, mut program: clap::Command) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, "inference", &mut script);
    Out::new().text(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn man(args: &ManArgs, program: clap::Command) -> anyhow::Result<ExitCode> {
    let failed = || format!("cannot write to {}", render::path(&args.folder));
    std::fs::create_dir_all(&args.folder).with_context(failed)?;
    clap_mangen::generate_to(program, &args.folder).with_context(failed)?;
    Ok(ExitCode::SUCCESS)
}
