//! The program `inference`: what the library does, for a person at a terminal and for scripts.
//!
//! A command's arguments and work are one file in `commands/`. Answers go to stdout, everything about them to stderr, so that
//! a pipe gets the text alone; `--json` gives machines the same facts.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod commands;
mod failure;
mod interrupt;
mod model;
mod options;
mod render;
mod rows;
mod stream;

/// Talk to language models in folders, on whichever engine runs them here.
#[derive(Debug, Parser)]
#[command(name = "inference", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "Examples:
  inference chat                                    talk to the demo model
  inference chat --model ~/models/Qwen3-0.6B        talk to another
  inference generate --model ~/models/Qwen3-0.6B 'Once upon a time' --max-tokens 50
  inference backends                                which engines run here, and why others do not

Exit status: 0 success, 1 failure, 2 wrong usage, 130 after Ctrl-C.")]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Log what the engines do to stderr; twice for details. INFERENCE_LOG sets a filter instead.
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    verbose: u8,

    /// The Python interpreter that has mlx_lm [default: INFERENCE_PYTHON, an active venv, python3]
    #[cfg(feature = "mlxlm")]
    #[arg(long, global = true, value_name = "PATH")]
    python: Option<std::path::PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Chat(commands::chat::Args),
    Generate(commands::generate::Args),
    Classify(commands::classify::Args),
    Batch(commands::batch::Args),
    Backends(commands::backends::Args),
    Explain(commands::explain::Args),
    Discover(commands::discover::Args),
    Info(commands::info::Args),
    Estimate(commands::estimate::Args),
    #[cfg(feature = "metal")]
    Convert(commands::convert::Args),
    #[cfg(feature = "metal")]
    Fuse(commands::fuse::Args),
    Train(Box<commands::train::Args>),
    Bench(commands::bench::Args),
    Parity(commands::parity::Args),
    Soak(commands::soak::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.verbose);
    #[cfg(feature = "mlxlm")]
    if let Some(python) = cli.python {
        inference::mlxlm::use_python(python);
    }
    let json = cli.command.json();
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => failure::report(&error, json),
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    interrupt::install()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Chat(args) => commands::chat::run(args).await,
            Command::Generate(args) => commands::generate::run(args).await,
            Command::Classify(args) => commands::classify::run(args).await,
            Command::Batch(args) => commands::batch::run(args).await,
            Command::Backends(args) => commands::backends::run(&args),
            Command::Explain(args) => commands::explain::run(&args),
            Command::Discover(args) => commands::discover::run(&args),
            Command::Info(args) => commands::info::run(&args),
            Command::Estimate(args) => commands::estimate::run(&args),
            #[cfg(feature = "metal")]
            Command::Convert(args) => commands::convert::run(&args),
            #[cfg(feature = "metal")]
            Command::Fuse(args) => commands::fuse::run(&args),
            Command::Train(args) => commands::train::run(*args).await,
            Command::Bench(args) => commands::bench::run(args).await,
            Command::Parity(args) => commands::parity::run(args).await,
            Command::Soak(args) => commands::soak::run(args).await,
        }
    })
}

impl Command {
    /// Whether errors are told as JSON too.
    fn json(&self) -> bool {
        match self {
            Self::Chat(args) => args.json,
            Self::Generate(args) => args.json,
            Self::Classify(args) => args.json,
            Self::Batch(args) => args.json,
            Self::Backends(args) => args.json,
            Self::Explain(args) => args.json,
            Self::Discover(args) => args.json,
            Self::Info(args) => args.json,
            Self::Estimate(args) => args.json,
            #[cfg(feature = "metal")]
            Self::Convert(args) => args.json,
            #[cfg(feature = "metal")]
            Self::Fuse(args) => args.json,
            Self::Train(args) => args.json,
            Self::Bench(args) => args.json,
            Self::Parity(args) => args.json,
            Self::Soak(args) => args.json,
        }
    }
}

fn start_log(verbose: u8) {
    use tracing_subscriber::EnvFilter;
    let default = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("INFERENCE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(render::stderr_is_styled())
        .init();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_argument_says_what_it_is() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
        }
    }
}
