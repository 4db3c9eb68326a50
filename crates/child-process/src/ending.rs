//! How a child ended, in words.

use std::{io, os::unix::process::ExitStatusExt as _, process::ExitStatus};

/// Describes how a child ended.
pub(crate) fn describe(
    what: &str,
    cause: Option<String>,
    status: io::Result<ExitStatus>,
    last_lines: &[String],
) -> String {
    let how = match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("{what} exited with code {code}"),
            (None, Some(signal)) => format!("{what} was killed by {}", signal_name(signal)),
            (None, None) => format!("{what} ended: {status}"),
        },
        Err(error) => format!("{what} cannot be waited for: {error}"),
    };
    let mut text = match cause {
        Some(cause) => format!("{what} was killed: {cause}"),
        None => how,
    };
    if !last_lines.is_empty() {
        text.push_str("; its last lines on stderr:\n");
        text.push_str(&last_lines.join("\n"));
    }
    text
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        number::ILL => "SIGILL, an instruction that this processor lacks",
        number::ABRT => "SIGABRT",
        number::BUS => "SIGBUS",
        number::FPE => "SIGFPE",
        number::KILL => "SIGKILL, as the system does when memory runs out",
        number::SEGV => "SIGSEGV",
        number::TERM => "SIGTERM",
        _ => return format!("signal {signal}"),
    };
    format!("signal {signal} ({name})")
}

/// Signal numbers, which differ between systems.
mod number {
    use rustix::process::Signal;

    pub(super) const ILL: i32 = Signal::ILL.as_raw();
    pub(super) const ABRT: i32 = Signal::ABORT.as_raw();
    pub(super) const BUS: i32 = Signal::BUS.as_raw();
    pub(super) const FPE: i32 = Signal::FPE.as_raw();
    pub(super) const KILL: i32 = Signal::KILL.as_raw();
    pub(super) const SEGV: i32 = Signal::SEGV.as_raw();
    pub(super) const TERM: i32 = Signal::TERM.as_raw();
}

/// The first bytes of a received line, for an error message.
#[must_use]
pub fn excerpt(line: &[u8]) -> String {
    const LONGEST: usize = 120;
    let text = String::from_utf8_lossy(&line[..line.len().min(LONGEST)]);
    let more = if line.len() > LONGEST { "…" } else { "" };
    format!("{text:?}{more}")
}
