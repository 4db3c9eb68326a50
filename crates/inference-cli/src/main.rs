//! The program `inference`: the library at a terminal and in scripts.
//!
//! A command's arguments and work are one file in `commands/`. Answers go to stdout, everything about them to stderr, so that
//! a pipe gets the text alone; `--json` gives machines the same facts.

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

mod commands;
mod failure;
mod http;
mod interrupt;
mod model;
mod options;
mod render;
mod rows;
mod shape;
mod stream;
#[cfg(feature = "otel")]
mod telemetry;
mod text_input;

/// Talk to language models in folders, on whichever engine runs them here.
#[derive(Debug, Parser)]
#[command(name = "inference", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "Examples:
  inference chat                                    talk to the demo model
  inference chat --model ~/models/Qwen3-0.6B        talk to another
  inference generate --model ~/models/Qwen3-0.6B 'Once upon a time' --max-tokens 50
  inference serve                                   OpenAI's and Anthropic's APIs, and a page to chat
  inference backends                                which engines run here, and why others do not

Exit status: 0 success, 1 failure, 2 wrong usage, 130 after Ctrl-C, SIGTERM or SIGHUP.")]
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
    Embed(commands::embed::Args),
    Rerank(commands::rerank::Args),
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
    #[cfg(feature = "metal")]
    Dist(commands::dist::Args),
    Train(Box<commands::train::Args>),
    Bench(commands::bench::Args),
    Parity(commands::parity::Args),
    Serve(Box<commands::serve::Args>),
    Pull(commands::hub::PullArgs),
    List(commands::hub::ListArgs),
    Rm(commands::hub::RmArgs),
    Completions(commands::shell::CompletionsArgs),
    Man(commands::shell::ManArgs),
    Soak(commands::soak::Args),
}

fn main() -> ExitCode {
    let line = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&line).unwrap_or_else(|error| error.exit());
    let json = cli.command.json();
    if let Command::Train(args) = &cli.command {
        commands::train::choose_launches(args);
    }
    let telemetry = start_log(cli.verbose);
    #[cfg(feature = "mlxlm")]
    if let Some(python) = cli.python {
        inference::mlxlm::use_python(python);
    }
    let ended = telemetry.and_then(|_telemetry| run(cli.command));
    match ended {
        Ok(code) => code,
        Err(error) => failure::report(&error, json, &place(&line)),
    }
}

/// The command that was run, for advice on its flags.
fn place(line: &clap::ArgMatches) -> failure::Place<'_> {
    let Some((name, matches)) = line.subcommand() else { return failure::Place::Elsewhere };
    match Cli::command().find_subcommand(name).cloned() {
        Some(command) => failure::Place::Shell { command: Box::new(command), matches },
        None => failure::Place::Elsewhere,
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
            Command::Embed(args) => commands::embed::run(args).await,
            Command::Rerank(args) => commands::rerank::run(args).await,
            Command::Batch(args) => commands::batch::run(args).await,
            Command::Backends(args) => commands::backends::run(&args),
            Command::Explain(args) => commands::explain::run(&args),
            Command::Discover(args) => commands::discover::run(&args),
            Command::Info(args) => commands::info::run(&args).await,
            Command::Estimate(args) => commands::estimate::run(&args),
            #[cfg(feature = "metal")]
            Command::Convert(args) => commands::convert::run(&args),
            #[cfg(feature = "metal")]
            Command::Fuse(args) => commands::fuse::run(&args),
            #[cfg(feature = "metal")]
            Command::Dist(args) => commands::dist::run(&args),
            Command::Train(args) => commands::train::run(*args).await,
            Command::Bench(args) => commands::bench::run(args).await,
            Command::Parity(args) => commands::parity::run(args).await,
            Command::Serve(args) => commands::serve::run(*args).await,
            Command::Pull(args) => commands::hub::pull(args).await,
            Command::List(args) => commands::hub::list(&args),
            Command::Rm(args) => commands::hub::remove(&args),
            Command::Completions(args) => commands::shell::completions(&args, Cli::command()),
            Command::Man(args) => commands::shell::man(&args, Cli::command()),
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
            Self::Rerank(args) => args.json,
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
            #[cfg(feature = "metal")]
            Self::Dist(args) => args.json,
            Self::Train(args) => args.json,
            Self::Bench(args) => args.json,
            Self::Parity(args) => args.json,
            // Its output is JSON Lines.
            Self::Embed(_) => true,
            Self::Serve(_) | Self::Completions(_) | Self::Man(_) => false,
            Self::Pull(args) => args.json,
            Self::List(args) => args.json,
            Self::Rm(args) => args.json,
            Self::Soak(args) => args.json,
        }
    }
}

fn start_log(verbose: u8) -> anyhow::Result<Telemetry> {
    use tracing_subscriber::{
        EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _,
    };
    let default = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("INFERENCE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let log = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(render::stderr_is_styled())
        // They are reported with `eprintln!`, which panics if stderr is closed.
        .log_internal_errors(false)
        .with_filter(filter);
    let registry = tracing_subscriber::registry().with(log);
    #[cfg(feature = "otel")]
    {
        let telemetry = telemetry::Telemetry::begin()?;
        registry.with(telemetry.as_ref().map(telemetry::Telemetry::layer)).init();
        Ok(telemetry)
    }
    #[cfg(not(feature = "otel"))]
    {
        registry.init();
        Ok(())
    }
}

/// What has to live as long as the program works.
#[cfg(feature = "otel")]
type Telemetry = Option<telemetry::Telemetry>;
#[cfg(not(feature = "otel"))]
type Telemetry = ();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// The flags that a text names: `--max-tokens`.
    fn flags(text: &str) -> Vec<&str> {
        let parts = text.split("--").skip(1);
        let flag =
            |part: &'_ str| part.find(|c: char| !c.is_ascii_lowercase() && c != '-').unwrap_or(part.len());
        parts.map(|part| part[..flag(part)].trim_end_matches('-')).filter(|flag| !flag.is_empty()).collect()
    }

    fn has(command: &clap::Command, flag: &str) -> bool {
        let known = |argument: &clap::Arg| {
            argument.get_long() == Some(flag)
                || argument.get_all_aliases().is_some_and(|aliases| aliases.contains(&flag))
        };
        command.get_arguments().any(known)
    }

    /// Fails unless each flag in the text is one of this command or of a command that its line names; without a command, of any.
    fn check_flags(of: Option<&clap::Command>, text: &str, place: &str) {
        let root = Cli::command();
        let known = |command: &clap::Command, flag: &str| {
            has(command, flag) || has(&root, flag) || ["help", "version"].contains(&flag)
        };
        // Flags of cargo are its own affair.
        for line in text.lines().filter(|line| !line.contains("cargo ")) {
            let named: Vec<&str> = line
                .split("inference ")
                .skip(1)
                .filter_map(|rest| rest.split([' ', '`', '\'']).next())
                .collect();
            // A text that belongs to no command may name any command's flags.
            let meant = |command: &clap::Command| of.is_none() || named.contains(&command.get_name());
            for flag in flags(line) {
                let mut commands = root.get_subcommands().filter(|command| meant(command)).chain(of);
                let found = commands.any(|command| known(command, flag));
                assert!(found, "{place} names --{flag}, which does not exist: {line}");
            }
        }
    }

    #[test]
    fn help_texts_name_flags_that_exist() {
        let root = Cli::command();
        check_flags(None, &root.get_after_help().unwrap().to_string(), "the program's help");
        for command in root.get_subcommands() {
            let argument = |argument: &clap::Arg| {
                let values = argument.get_possible_values();
                let values: Vec<_> = values.iter().filter_map(|value| value.get_help()).collect();
                let texts = argument.get_help().into_iter().chain(argument.get_long_help()).chain(values);
                texts.map(ToString::to_string).collect::<Vec<_>>()
            };
            let texts = [command.get_about(), command.get_long_about(), command.get_after_help()];
            let texts = texts.into_iter().flatten().map(ToString::to_string);
            for text in texts.chain(command.get_arguments().flat_map(argument)) {
                check_flags(Some(command), &text, command.get_name());
            }
        }
    }

    /// Messages lie in string literals: every line of code counts that is neither a comment nor a test.
    #[test]
    fn messages_name_flags_that_exist() {
        let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut pending = vec![here.join("src"), here.join("../backend-metal/src/load")];
        let mut files = 0;
        while let Some(path) = pending.pop() {
            if path.is_dir() {
                pending.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                continue;
            }
            files += 1;
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap().lines();
            // Other programs' flags are passed as such.
            let message = |line: &&str| !line.trim_start().starts_with("//") && !line.contains(".as_ref()");
            let code: Vec<_> = code.filter(message).collect();
            check_flags(None, &code.join("\n"), &path.display().to_string());
        }
        assert!(files > 30);
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
