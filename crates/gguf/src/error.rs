//! What can be wrong with a file.

use std::io;

/// What every fallible call of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure. Whoever opened the file adds its path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot be read")]
    Io(#[from] io::Error),
    /// The file is broken, or holds what is not supported.
    #[error("{}{reason}", key.as_deref().map_or_else(String::new, |key| format!("{key}: ")))]
    Invalid {
        /// The metadata key or tensor at fault, where there is one.
        key: Option<String>,
        /// What was found and what was expected.
        reason: String,
    },
}

impl Error {
    /// An error of the file as a whole.
    pub(crate) fn file(reason: impl Into<String>) -> Self {
        Self::Invalid { key: None, reason: reason.into() }
    }

    /// An error of one metadata key or tensor.
    pub(crate) fn at(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { key: Some(key.into()), reason: reason.into() }
    }
}
