//! How failures are told, to a person on stderr and to a machine as JSON, and the exit status each has.

use std::{fmt, io, process::ExitCode};

use inference::Error;
use inference_core::backend::Printable;
use serde_json::json;

use crate::render::{self, Out};

/// The exit status after Ctrl-C, as shells have it: 128 + SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;

const FAILURE: u8 = 1;
const USAGE: u8 = 2;

/// The reader of stdout has gone, as `head` does: nothing is wrong, and nobody is left to tell.
#[derive(Debug)]
pub(crate) struct OutputClosed;

impl fmt::Display for OutputClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the reader of the output has gone")
    }
}

impl std::error::Error for OutputClosed {}

/// What the person typed makes no sense, found after the command line was parsed.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Tells a failure and returns its exit status.
pub(crate) fn report(error: &anyhow::Error, json: bool) -> ExitCode {
    if error.is::<OutputClosed>() {
        return ExitCode::SUCCESS;
    }
    let interrupted = matches!(error.downcast_ref(), Some(Error::Cancelled));
    if json {
        // A reader that has gone needs no report.
        let _ = Out::new().json(&to_json(error));
    }
    if interrupted {
        eprintln!("interrupted");
    } else {
        eprint!("{}", to_text(error, render::stderr_is_styled()));
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

fn to_text(error: &anyhow::Error, styled: bool) -> String {
    let label = if styled { "\u{1b}[1;31merror:\u{1b}[0m" } else { "error:" };
    let mut text = format!("{label} {error}\n");
    for cause in error.chain().skip(1) {
        text.push_str(&format!("  caused by: {}\n", Printable(&cause.to_string())));
    }
    if let Some(hint) = error.downcast_ref().and_then(hint) {
        text.push_str(&format!("  help: {hint}\n"));
    }
    text
}

/// What to do next, in this program's own terms, where the error does not say it.
fn hint(error: &Error) -> Option<String> {
    Some(match error {
        Error::NoBackend { .. } => "`inference backends` says what each engine needs".to_owned(),
        Error::UnknownBackend { .. } | Error::Unavailable { .. } => {
            "leave --backend out to use the best engine here; `inference backends` lists them".to_owned()
        }
        Error::UnsupportedModel { .. } => {
            "leave --backend out, or see `inference explain` for what each engine makes of the model"
                .to_owned()
        }
        Error::Unsupported { .. } => {
            "leave that option out, or name an engine that has it with --backend".to_owned()
        }
        Error::ContextExceeded { .. } => "--context-length sets the context at load".to_owned(),
        Error::OutOfMemory { .. } => {
            "a smaller --context-length or a quantised copy of the model needs less".to_owned()
        }
        Error::InvalidOption { option, .. } => {
            format!("see --{} in the command's --help", option.split(' ').next()?.replace('_', "-"))
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_gets_the_chain_and_what_to_do() {
        let source = io::Error::other("no such device");
        let error = anyhow::Error::new(Error::io("read", "m/config.json", source));
        assert_eq!(to_text(&error, false), "error: cannot read m/config.json\n  caused by: no such device\n");
        let error = anyhow::Error::new(Error::InvalidOption { option: "top_p", reason: "2".into() });
        assert!(to_text(&error, false).ends_with("help: see --top-p in the command's --help\n"));
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
        assert_eq!(of(Error::InvalidOption { option: "seed", reason: String::new() }), 2);
        assert_eq!(of(Error::UnknownBackend { backend: "x".into(), known: vec![] }), 2);
        assert_eq!(of(Error::Cancelled), 130);
        assert_eq!(of(Error::Closed), 1);
        assert_eq!(status(&anyhow::anyhow!("whatever")), 1);
        assert_eq!(status(&anyhow::Error::new(Usage("no".into()))), 2);
    }
}
