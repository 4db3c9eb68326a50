//! What can go wrong between a name and a folder.

use std::{io, path::PathBuf, time::Duration};

/// What every fallible call returns.
pub type Result<T, E = HubError> = std::result::Result<T, E>;

/// A failure. `Display` says what happened and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A name is none that the Hub could have.
    #[error(
        "{name:?} is no model's name: {reason}; expected ORGANISATION/NAME or ORGANISATION/NAME@REVISION"
    )]
    InvalidName {
        /// What was given.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The model is not in the cache, and nothing may be downloaded.
    #[error("{name} is not in the cache {}, and HF_HUB_OFFLINE forbids to download it", cache.display())]
    Offline {
        /// The model.
        name: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// The Hub has no such model, revision or file; it says the same of private ones to strangers.
    #[error(
        "{what} does not exist, or is private: check the name, and that HF_TOKEN is set if it is private"
    )]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// The Hub wants a token, or another one.
    #[error(
        "{what} needs permission ({status}): accept its terms on its page, and set HF_TOKEN to a token that may read it"
    )]
    Unauthorized {
        /// What was asked for.
        what: String,
        /// 401 or 403.
        status: u16,
    },
    /// The Hub asked to come back later, several times.
    #[error("{what}: the Hub has too many requests (429); try again later, or set HF_TOKEN")]
    RateLimited {
        /// What was asked for.
        what: String,
        /// How long it said to wait.
        retry_after: Option<Duration>,
    },
    /// Another answer than one that can be used.
    #[error("{what}: the Hub answered {status}")]
    Status {
        /// What was asked for.
        what: String,
        /// Its status.
        status: u16,
    },
    /// No connection, or one that broke, several times.
    #[error("{what}: {reason}; run it again to go on where it stopped")]
    Network {
        /// What was asked for.
        what: String,
        /// What the network said.
        reason: String,
    },
    /// What the Hub says of a model cannot be right, or is no model that can be loaded.
    #[error("{what}: {reason}")]
    InvalidAnswer {
        /// What was asked for.
        what: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// A file is not what the Hub says it is.
    #[error("{what}: the {check} is {found}, expected {expected}; what was downloaded of it is deleted")]
    Damaged {
        /// The file.
        what: String,
        /// `length` or `checksum`.
        check: &'static str,
        /// Of the download.
        found: String,
        /// Of the Hub's list.
        expected: String,
    },
    /// A file of the cache could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// `read`, `write`, ….
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The caller cancelled. What was downloaded stays for the next time.
    #[error("cancelled")]
    Cancelled,
}

impl HubError {
    /// Whether the same may work in a moment.
    pub(crate) fn is_temporary(&self) -> bool {
        match self {
            Self::Network { .. } | Self::RateLimited { .. } => true,
            Self::Status { status, .. } => *status >= 500,
            _ => false,
        }
    }
}

/// The error of a file in the cache.
pub(crate) fn io_error(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> HubError {
    let path = path.into();
    move |source| HubError::Io { action, path, source }
}
