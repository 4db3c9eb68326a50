//! How failures are reported, to a person on stderr and to a machine as JSON, and the exit status of each.

use std::{fmt, io, process::ExitCode};

use inference::Error;
use inference_core::backend::Printable;
use serde_json::json;

use crate::render::{self, Out, OutputClosed};

/// The exit status after Ctrl-C, as shells have it: 128 + SIGINT. Also after SIGTERM and SIGHUP.
pub(crate) const INTERRUPTED: u8 = 130;

const FAILURE: u8 = 1;
const USAGE: u8 = 2;

/// Library options whose flags have other names.
const FLAGS: &[(&str, &[&str])] = &[
    ("quantization", &["bits", "group-size", "mode"]),
    ("rules", &["rule"]),
    ("length", &["steps", "epochs"]),
    ("log_probabilities", &["log-probs"]),
    ("stop_tokens", &["stop-token"]),
    ("target", &["output"]),
    ("truncation", &["too-long"]),
    ("template_variables", &["var"]),
];

/// Wrong usage that was found after the command line was parsed.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Where the error is shown, which decides what to advise.
#[derive(Debug)]
pub(crate) enum Place<'a> {
    /// At a shell, having run this command.
    Shell { command: Box<clap::Command>, matches: &'a clap::ArgMatches },
    /// In a conversation: flags cannot be changed there.
    Conversation,
    /// Unknown.
    Elsewhere,
}

/// Reports a failure and returns its exit status.
pub(crate) fn report(error: &anyhow::Error, json: bool, place: &Place<'_>) -> ExitCode {
    if error.is::<OutputClosed>() {
        return ExitCode::SUCCESS;
    }
    let interrupted = matches!(error.downcast_ref(), Some(Error::Cancelled));
    if json {
        // A closed output needs no report.
        let _ = Out::new().json(&to_json(error));
    }
    if interrupted {
        render::tell("interrupted\n");
    } else {
        render::tell(&to_text(error, render::stderr_is_styled(), place));
    }
    ExitCode::from(status(error))
}

/// `{"error":{"kind":…,"message":…}}`, the message with its whole chain.
pub(crate) fn to_json(error: &anyhow::Error) -> serde_json::Value {
    let message: Vec<String> = error.chain().map(ToString::to_string).collect();
    json!({ "error": { "kind": kind(error), "message": message.join(": ") } })
}

fn kind(error: &anyhow::Error) -> &'static str {
    match error.downcast_ref::<Error>() {
        Some(error) => error.kind(),
        None if error.is::<Usage>() => "usage",
        None if error.is::<io::Error>() => "io",
        None => "failure",
    }
}

fn status(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Error>() {
        Some(Error::Cancelled) => INTERRUPTED,
        Some(Error::InvalidOption { .. } | Error::UnknownBackend { .. }) => USAGE,
        None if error.is::<Usage>() => USAGE,
        _ => FAILURE,
    }
}

fn to_text(error: &anyhow::Error, styled: bool, place: &Place<'_>) -> String {
    let label = if styled { "\u{1b}[1;31merror:\u{1b}[0m" } else { "error:" };
    let mut text = format!("{label} {}\n", render::harmless(&error.to_string()));
    for cause in error.chain().skip(1) {
        text.push_str(&format!("  caused by: {}\n", Printable(&cause.to_string())));
    }
    if let Some(hint) = error.downcast_ref().and_then(|error| hint(error, place)) {
        text.push_str(&format!("  help: {hint}\n"));
    }
    text
}

/// What to do next, in this program's own terms, where the error does not say it.
fn hint(error: &Error, place: &Place<'_>) -> Option<String> {
    let Place::Shell { command, matches } = place else {
        return match error {
            Error::ContextExceeded { .. } if matches!(place, Place::Conversation) => {
                Some("/clear forgets the conversation".to_owned())
            }
            _ => None,
        };
    };
    let has = |flag: &str| command.get_arguments().any(|argument| argument.get_long() == Some(flag));
    let given = |id: &str| {
        let source = matches.try_contains_id(id).is_ok_and(|known| known).then(|| matches.value_source(id));
        source.flatten() == Some(clap::parser::ValueSource::CommandLine)
    };
    Some(match error {
        Error::NoBackend { .. } => "`inference backends` says what each engine needs".to_owned(),
        Error::UnknownBackend { .. } | Error::Unavailable { .. } if has("backend") => {
            "leave --backend out to use the best engine here; `inference backends` lists them".to_owned()
        }
        Error::UnsupportedModel { .. } if has("backend") => {
            "leave --backend out, or see `inference explain` for what each engine makes of the model"
                .to_owned()
        }
        Error::Unsupported { .. } if has("backend") => {
            "leave that option out, or name an engine that has it with --backend".to_owned()
        }
        // Without the flag the context is the model's own, which no flag makes longer.
        Error::ContextExceeded { .. } if given("context_length") => {
            "a larger --context-length allows more".to_owned()
        }
        Error::OutOfMemory { .. } if has("batch-size") => {
            "a smaller --batch-size or --max-length, or --gradient-checkpointing, needs less".to_owned()
        }
        Error::OutOfMemory { .. } if has("context-length") => {
            "a smaller --context-length or a quantised copy of the model needs less".to_owned()
        }
        Error::InvalidOption { option, .. } => {
            let flags: Vec<String> = flags(option).into_iter().filter(|flag| has(flag)).collect();
            if flags.is_empty() {
                return None;
            }
            let flags: Vec<String> = flags.iter().map(|flag| format!("--{flag}")).collect();
            format!("see {} in `inference {} --help`", flags.join(", "), command.get_name())
        }
        _ => return None,
    })
}

/// The flags behind an option of the library.
fn flags(option: &str) -> Vec<String> {
    match FLAGS.iter().find(|(name, _)| *name == option) {
        Some((_, flags)) => flags.iter().map(|flag| (*flag).to_owned()).collect(),
        None => option.split(' ').next().map(|name| name.replace('_', "-")).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Arg, ArgAction, Command, value_parser};

    use super::*;

    /// What is printed after a command with some flags of the program's.
    fn text(error: Error, line: &[&str]) -> String {
        let flag = |name: &'static str| Arg::new(name).long(name).action(ArgAction::Set);
        let command = Command::new("test").args(
            ["top-p", "bits", "group-size", "backend"].map(flag).into_iter().chain([Arg::new(
                "context_length",
            )
            .long("context-length")
            .value_parser(value_parser!(usize))]),
        );
        let matches = command.clone().get_matches_from(["test"].iter().chain(line));
        let place = Place::Shell { command: Box::new(command), matches: &matches };
        to_text(&anyhow::Error::new(error), false, &place)
    }

    #[test]
    fn a_person_gets_the_chain_and_what_to_do() {
        let source = io::Error::other("no such device");
        let printed = text(Error::io("read", "m/config.json", source), &[]);
        assert_eq!(printed, "error: cannot read m/config.json\n  caused by: no such device\n");
        let printed = text(Error::invalid_option("top_p", "2"), &[]);
        assert!(printed.ends_with("help: see --top-p in `inference test --help`\n"), "{printed}");
        let printed = text(Error::invalid_option("quantization", "no"), &[]);
        assert!(
            printed.ends_with("help: see --bits, --group-size in `inference test --help`\n"),
            "{printed}"
        );
    }

    #[test]
    fn a_flag_that_the_command_lacks_is_not_advised() {
        let printed = text(Error::invalid_option("target", "it exists"), &[]);
        assert_eq!(printed, "error: option target: it exists\n");
        let exceeded = || Error::context_exceeded(9, 3);
        assert!(!text(exceeded(), &[]).contains("--"), "the model's own context cannot be raised");
        assert!(text(exceeded(), &["--context-length=3"]).contains("a larger --context-length"));
        let printed = to_text(&anyhow::Error::new(exceeded()), false, &Place::Conversation);
        assert!(printed.contains("/clear") && !printed.contains("--"), "{printed}");
    }

    #[test]
    fn what_could_drive_a_terminal_is_escaped() {
        let printed = text(Error::no_backend("a\u{1b}[2Jb", vec![]), &[]);
        assert!(!printed.contains('\u{1b}') && printed.contains("a\\u{1b}[2Jb"), "{printed}");
    }

    #[test]
    fn a_machine_gets_the_kind_and_the_chain_in_one_line() {
        let source = io::Error::other("no such device");
        let error = anyhow::Error::new(Error::io("read", "m/config.json", source));
        let expected =
            json!({"error": {"kind": "io", "message": "cannot read m/config.json: no such device"}});
        assert_eq!(to_json(&error), expected);
    }

    #[test]
    fn the_status_tells_usage_failure_and_interruption_apart() {
        let of = |error: Error| status(&anyhow::Error::new(error));
        assert_eq!(of(Error::invalid_option("seed", String::new())), 2);
        assert_eq!(of(Error::unknown_backend("x", vec![])), 2);
        assert_eq!(of(Error::Cancelled), 130);
        assert_eq!(of(Error::Closed), 1);
        assert_eq!(status(&anyhow::anyhow!("whatever")), 1);
        assert_eq!(status(&anyhow::Error::new(Usage("no".into()))), 2);
    }
}
