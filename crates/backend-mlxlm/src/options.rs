//! Options of a load that only this backend has.

use std::{ffi::OsString, path::PathBuf, time::Duration};

/// How the child process of one model is run; an extension of
/// [`LoadOptions`](inference_core::LoadOptions::extension).
///
/// ```
/// use backend_mlxlm::MlxLmOptions;
/// use inference_core::LoadOptions;
///
/// let options = LoadOptions::new().extension(MlxLmOptions::new().python("/opt/venv/bin/python").restart(false));
/// assert!(options.extensions.get::<MlxLmOptions>().is_some());
/// ```
#[derive(Debug, Clone)]
pub struct MlxLmOptions {
    pub(crate) python: Option<PathBuf>,
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) trust_remote_code: bool,
    pub(crate) restart: bool,
    pub(crate) patience: Duration,
    pub(crate) longest_line: usize,
}

impl Default for MlxLmOptions {
    fn default() -> Self {
        Self {
            python: None,
            environment: Vec::new(),
            trust_remote_code: false,
            restart: true,
            patience: Duration::from_secs(600),
            longest_line: 64 << 20,
        }
    }
}

impl MlxLmOptions {
    /// Options with nothing set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs this interpreter instead of the one that was found.
    #[must_use]
    pub fn python(mut self, path: impl Into<PathBuf>) -> Self {
        self.python = Some(path.into());
        self
    }

    /// Sets a variable of the child's environment, which else is the parent's.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Lets the model's folder bring Python code of its own, which then runs with all of the caller's rights. Off by default.
    #[must_use]
    pub fn trust_remote_code(mut self, trust: bool) -> Self {
        self.trust_remote_code = trust;
        self
    }

    /// Whether the call after a crash starts a new child and loads the model again. On by default; else every such call
    /// fails with [`Error::Stopped`](inference_core::Error::Stopped).
    #[must_use]
    pub fn restart(mut self, restart: bool) -> Self {
        self.restart = restart;
        self
    }

    /// How long a child that has work may be silent before it counts as hung and is killed: 10 minutes by default, longer than
    /// any load, prefill chunk or decode step should take.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The longest line that is taken from the child, in bytes: 64 MiB by default, enough for the logits of any vocabulary.
    #[must_use]
    pub fn longest_line(mut self, bytes: usize) -> Self {
        self.longest_line = bytes;
        self
    }
}
