//! What can go wrong with a template, with the line where it did.

use std::fmt::{self, Write as _};

/// What every fallible call of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The longest message in bytes. A template chooses parts of messages, and these cost no more than their first bytes.
const MAX_MESSAGE: usize = 2_000;

/// Why a template could not be parsed or rendered.
// In a box, as every function of a recursion has room for one on the stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(Box<Failure>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Failure {
    kind: ErrorKind,
    line: Option<u32>,
    message: String,
}

/// The kinds of [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The source is not a template.
    Syntax,
    /// An expression has no value: an undefined name, a wrong type, an unknown filter.
    Runtime,
    /// The template called `raise_exception`; the message is its own.
    Raised,
    /// The template exceeded a limit of time, work, memory or nesting.
    LimitExceeded,
    /// The caller cancelled the rendering.
    Cancelled,
}

impl Error {
    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The line of the template's source, from 1. `None` if the failure has no place in it.
    #[must_use]
    pub fn line(&self) -> Option<u32> {
        self.0.line
    }

    /// What happened, without the line.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    pub(crate) fn new(kind: ErrorKind, message: fmt::Arguments<'_>) -> Self {
        let mut bounded = Bounded(String::new());
        if bounded.write_fmt(message).is_err() {
            bounded.0.push('…');
        }
        Self(Box::new(Failure { kind, line: None, message: bounded.0 }))
    }

    pub(crate) fn runtime(message: fmt::Arguments<'_>) -> Self {
        Self::new(ErrorKind::Runtime, message)
    }

    pub(crate) fn syntax(line: u32, message: fmt::Arguments<'_>) -> Self {
        Self::new(ErrorKind::Syntax, message).at(line)
    }

    pub(crate) fn limit(message: fmt::Arguments<'_>) -> Self {
        Self::new(ErrorKind::LimitExceeded, message)
    }

    /// Adds the line, if the error has none yet.
    pub(crate) fn at(mut self, line: u32) -> Self {
        self.0.line = self.0.line.or(Some(line).filter(|line| *line > 0));
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.line {
            Some(line) => write!(f, "line {line}: {}", self.0.message),
            None => f.write_str(&self.0.message),
        }
    }
}

impl std::error::Error for Error {}

/// A text that stops taking more at [`MAX_MESSAGE`].
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MAX_MESSAGE - self.0.len();
        let taken = text.floor_char_boundary(room);
        self.0.push_str(&text[..taken]);
        if taken < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

/// An [`Error`] of the kind [`ErrorKind::Runtime`], written like `format!`.
macro_rules! runtime {
    ($($message:tt)*) => { $crate::error::Error::runtime(format_args!($($message)*)) };
}
pub(crate) use runtime;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_bounded() {
        let long = "é".repeat(5_000);
        let message = Error::runtime(format_args!("'{long}' is undefined")).0.message;
        assert!(message.len() < MAX_MESSAGE + 8 && message.ends_with('…'));
    }

    #[test]
    fn the_first_line_stays() {
        assert_eq!(runtime!("no").at(3).at(5).to_string(), "line 3: no");
        assert_eq!(runtime!("no").at(0).to_string(), "no");
    }
}
