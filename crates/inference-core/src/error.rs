//! Everything that can go wrong, as one typed enum.

use std::{fmt, path::PathBuf};

use crate::{
    Feature, FinishReason, Verdict,
    printable::{Lines, Printable},
};

/// The result of every fallible call of the contract.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A boxed cause, as [`std::error::Error::source`] gives it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// A failure. `Display` says what happened and what to do, never the text of its source. `Debug` adds the chain of sources, so that a
/// program whose `main` returns a [`Result`] ends with a message that a person can read.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No registered backend is available here and supports the model.
    #[error("no backend can load {}:{}", Printable(&path.to_string_lossy()), Listing(candidates))]
    #[non_exhaustive]
    NoBackend {
        /// The model's folder.
        path: PathBuf,
        /// Every registered backend with its verdict, in order of preference.
        candidates: Vec<Verdict>,
    },
    /// A backend was named that is not registered.
    #[error("unknown backend {backend:?}; available: {}", known.join(", "))]
    #[non_exhaustive]
    UnknownBackend {
        /// The name that was asked for.
        backend: String,
        /// The names that exist.
        known: Vec<String>,
    },
    /// The named backend cannot run on this machine.
    #[error("backend {backend} is not usable here: {}", Lines(reason))]
    #[non_exhaustive]
    Unavailable {
        /// The backend's id.
        backend: String,
        /// Why, and what would help.
        reason: String,
    },
    /// The named backend cannot run this model.
    #[error("backend {backend} does not support this model: {}", Printable(reason))]
    #[non_exhaustive]
    UnsupportedModel {
        /// The backend's id.
        backend: String,
        /// Why not.
        reason: String,
    },
    /// An option was set that the backend would have to ignore.
    #[error("backend {backend} does not support {feature}")]
    #[non_exhaustive]
    Unsupported {
        /// The backend's id.
        backend: String,
        /// What it lacks.
        feature: Feature,
    },
    /// An option's value makes no sense.
    #[error("option {option}: {}", Lines(reason))]
    #[non_exhaustive]
    InvalidOption {
        /// The option's name, as its setter is called.
        option: &'static str,
        /// What was found and what is expected.
        reason: String,
    },
    /// A prompt cannot be run: empty, or with token ids that the model does not have.
    #[error("prompt: {}", Printable(reason))]
    #[non_exhaustive]
    InvalidPrompt {
        /// What was found and what is expected.
        reason: String,
    },
    /// The prompt, or prompt and answer, do not fit the model's context.
    #[error(
        "the context holds {limit} tokens, {tokens} are needed: shorten the prompt, or load with a longer context"
    )]
    #[non_exhaustive]
    ContextExceeded {
        /// Tokens of the prompt; with those of the answer where both have to fit.
        tokens: usize,
        /// Tokens that fit.
        limit: usize,
    },
    /// A file of the model's folder is missing, broken or not what it claims to be.
    #[error("{}{}: {}", Printable(&path.to_string_lossy()), Key(key), Printable(reason))]
    #[non_exhaustive]
    InvalidModel {
        /// The file (or folder) at fault.
        path: PathBuf,
        /// The key, tensor or field in it, where there is one.
        key: Option<String>,
        /// What was found and what was expected.
        reason: String,
    },
    /// Training data is unusable.
    #[error("{}: {}", Printable(at), Printable(reason))]
    #[non_exhaustive]
    InvalidData {
        /// The file, with the line at fault, or the number of an example.
        at: String,
        /// What was found and what is expected.
        reason: String,
    },
    /// A saved session is damaged, of a newer format, or of another model.
    #[error("session {}: {}", Printable(&path.to_string_lossy()), Printable(reason))]
    #[non_exhaustive]
    InvalidSession {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// A chat template could not be applied to the conversation.
    #[error("chat template: {}", Printable(reason))]
    #[non_exhaustive]
    Template {
        /// What the template said or where it failed.
        reason: String,
    },
    /// An answer that was to be a value ended before it was whole.
    #[error("the answer is incomplete: it ended as {reason:?}; allow more tokens")]
    #[non_exhaustive]
    Incomplete {
        /// How it ended.
        reason: FinishReason,
        /// The text so far.
        text: String,
    },
    /// An answer is no value of the type that was asked for.
    #[error("the answer is not of the type: {}: {}", Printable(key), Printable(reason))]
    #[non_exhaustive]
    InvalidAnswer {
        /// Where in the value.
        key: String,
        /// What was found and what is expected.
        reason: String,
        /// The answer's text.
        text: String,
    },
    /// The model does not fit in memory.
    #[error("{} needs {needed} bytes, {available} are available", Printable(what))]
    #[non_exhaustive]
    OutOfMemory {
        /// What was to be allocated.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        available: u64,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {}", Printable(&path.to_string_lossy()))]
    #[non_exhaustive]
    Io {
        /// `read`, `write`, `open`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The engine failed at its own work.
    #[error("backend {backend} failed to {action}")]
    #[non_exhaustive]
    Backend {
        /// The backend's id.
        backend: String,
        /// What it was doing: `load the weights`, `decode`, …
        action: String,
        /// The engine's own error.
        source: BoxError,
    },
    /// The engine is gone: its thread or process ended while the call was under way.
    #[error("backend {backend} has stopped: {}", Lines(reason))]
    #[non_exhaustive]
    Stopped {
        /// The backend's id.
        backend: String,
        /// The last known state: exit code, signal, the end of its log.
        reason: String,
    },
    /// The model was closed.
    #[error("the model is closed")]
    Closed,
    /// The call was cancelled before it had a result. A cancelled generation is no error: see `FinishReason`.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// A short stable name of the kind of failure, for logs and machines: `invalid_model`, `no_backend`, ….
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoBackend { .. } => "no_backend",
            Self::UnknownBackend { .. } => "unknown_backend",
            Self::Unavailable { .. } => "unavailable",
            Self::UnsupportedModel { .. } => "unsupported_model",
            Self::Unsupported { .. } => "unsupported",
            Self::InvalidOption { .. } => "invalid_option",
            Self::InvalidPrompt { .. } => "invalid_prompt",
            Self::ContextExceeded { .. } => "context_exceeded",
            Self::InvalidModel { .. } => "invalid_model",
            Self::InvalidData { .. } => "invalid_data",
            Self::InvalidSession { .. } => "invalid_session",
            Self::Template { .. } => "template",
            Self::Incomplete { .. } => "incomplete",
            Self::InvalidAnswer { .. } => "invalid_answer",
            Self::OutOfMemory { .. } => "out_of_memory",
            Self::Io { .. } => "io",
            Self::Backend { .. } => "backend",
            Self::Stopped { .. } => "stopped",
            Self::Closed => "closed",
            Self::Cancelled => "cancelled",
        }
    }

    /// An [`Error::NoBackend`].
    pub fn no_backend(path: impl Into<PathBuf>, candidates: Vec<Verdict>) -> Self {
        Self::NoBackend { path: path.into(), candidates }
    }

    /// An [`Error::UnknownBackend`].
    pub fn unknown_backend(backend: impl Into<String>, known: Vec<String>) -> Self {
        Self::UnknownBackend { backend: backend.into(), known }
    }

    /// An [`Error::Unavailable`].
    pub fn unavailable(backend: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unavailable { backend: backend.into(), reason: reason.into() }
    }

    /// An [`Error::UnsupportedModel`].
    pub fn unsupported_model(backend: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::UnsupportedModel { backend: backend.into(), reason: reason.into() }
    }

    /// An [`Error::Unsupported`].
    pub fn unsupported(backend: impl Into<String>, feature: Feature) -> Self {
        Self::Unsupported { backend: backend.into(), feature }
    }

    /// An [`Error::InvalidOption`].
    pub fn invalid_option(option: &'static str, reason: impl Into<String>) -> Self {
        Self::InvalidOption { option, reason: reason.into() }
    }

    /// An [`Error::InvalidPrompt`].
    pub fn invalid_prompt(reason: impl Into<String>) -> Self {
        Self::InvalidPrompt { reason: reason.into() }
    }

    /// An [`Error::ContextExceeded`].
    #[must_use]
    pub fn context_exceeded(tokens: usize, limit: usize) -> Self {
        Self::ContextExceeded { tokens, limit }
    }

    /// An [`Error::InvalidModel`] about a whole file or folder.
    pub fn invalid_file(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::InvalidModel { path: path.into(), key: None, reason: reason.into() }
    }

    /// An [`Error::InvalidModel`] about one key of a file.
    pub fn invalid_key(path: impl Into<PathBuf>, key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::InvalidModel { path: path.into(), key: Some(key.into()), reason: reason.into() }
    }

    /// An [`Error::InvalidData`].
    pub fn invalid_data(at: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::InvalidData { at: at.into(), reason: reason.into() }
    }

    /// An [`Error::InvalidSession`].
    pub fn invalid_session(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::InvalidSession { path: path.into(), reason: reason.into() }
    }

    /// An [`Error::Template`].
    pub fn template(reason: impl Into<String>) -> Self {
        Self::Template { reason: reason.into() }
    }

    /// An [`Error::Incomplete`].
    pub fn incomplete(reason: FinishReason, text: impl Into<String>) -> Self {
        Self::Incomplete { reason, text: text.into() }
    }

    /// An [`Error::InvalidAnswer`].
    pub fn invalid_answer(
        key: impl Into<String>,
        reason: impl Into<String>,
        text: impl Into<String>,
    ) -> Self {
        Self::InvalidAnswer { key: key.into(), reason: reason.into(), text: text.into() }
    }

    /// An [`Error::OutOfMemory`].
    pub fn out_of_memory(what: impl Into<String>, needed: u64, available: u64) -> Self {
        Self::OutOfMemory { what: what.into(), needed, available }
    }

    /// An [`Error::Io`].
    pub fn io(action: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }

    /// An [`Error::Backend`].
    pub fn backend(
        backend: impl Into<String>,
        action: impl Into<String>,
        source: impl Into<BoxError>,
    ) -> Self {
        Self::Backend { backend: backend.into(), action: action.into(), source: source.into() }
    }

    /// An [`Error::Stopped`].
    pub fn stopped(backend: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Stopped { backend: backend.into(), reason: reason.into() }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            write!(f, "\n  caused by: {}", Printable(&cause.to_string()))?;
            source = cause.source();
        }
        Ok(())
    }
}

struct Key<'a>(&'a Option<String>);

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |key| write!(f, ": {}", Printable(key)))
    }
}

struct Listing<'a>(&'a [Verdict]);

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str(" none is built into this program; enable a backend feature such as `metal`");
        }
        self.0.iter().try_for_each(|verdict| write!(f, "\n  {verdict}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_files_cannot_drive_the_terminal() {
        let error = Error::invalid_key("m/config.json", "a\u{1b}[2Jb", "bad \u{202e}text");
        assert_eq!(error.to_string(), "m/config.json: a\\u{1b}[2Jb: bad \\u{202e}text");
        let error = Error::invalid_key("m/a\nb", "a\r\n\terror: all is well", "x\u{2028}y\u{85}z");
        assert_eq!(error.to_string(), "m/a\\nb: a\\r\\n\\terror: all is well: x\\u{2028}y\\u{85}z");
        let error =
            Error::Stopped { backend: "b".into(), reason: "killed; its last words:\na\u{7}\nb".into() };
        assert_eq!(error.to_string(), "backend b has stopped: killed; its last words:\n  a\\u{7}\n  b");
    }

    #[test]
    fn display_leaves_the_source_to_the_chain() {
        let error = Error::io("read", "m/config.json", std::io::Error::other("disk on fire"));
        assert_eq!(error.to_string(), "cannot read m/config.json");
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "disk on fire");
    }

    #[test]
    fn debug_is_the_message_and_its_causes() {
        let error = Error::io("read", "m/config.json", std::io::Error::other("disk\u{1b} on fire"));
        let printed = format!("Error: {error:?}");
        assert_eq!(printed, "Error: cannot read m/config.json\n  caused by: disk\\u{1b} on fire");
    }

    #[test]
    fn a_folders_name_cannot_drive_the_terminal() {
        let error = Error::NoBackend { path: "a\u{1b}[2Jb".into(), candidates: vec![] };
        assert!(error.to_string().starts_with("no backend can load a\\u{1b}[2Jb:"), "{error}");
    }

    #[test]
    fn without_backends_the_message_says_what_to_enable() {
        let error = Error::NoBackend { path: "m".into(), candidates: vec![] };
        assert!(error.to_string().contains("enable a backend feature"), "{error}");
    }
}
