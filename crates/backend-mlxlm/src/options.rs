//! Load options of this backend.

use std::{ffi::OsString, path::PathBuf, time::Duration};

/// How to run the child process of one model. Pass it to
/// [`LoadOptions::extension`](inference_core::LoadOptions::extension).
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
    pub(crate) hang_timeout: Duration,
    pub(crate) max_line_bytes: usize,
}

impl Default for MlxLmOptions {
    fn default() -> Self {
        Self {
            python: None,
            environment: Vec::new(),
            trust_remote_code: false,
            restart: true,
            hang_timeout: Duration::from_secs(600),
            max_line_bytes: 64 << 20,
        }
    }
}

impl MlxLmOptions {
    /// Options with nothing set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Uses this Python interpreter instead of the one that the backend found.
    #[must_use]
    pub fn python(mut self, path: impl Into<PathBuf>) -> Self {
        self.python = Some(path.into());
        self
    }

    /// Sets an environment variable of the child, which otherwise inherits the parent's environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Allows Python code in the model's folder to run, with all of the caller's rights. Off by default.
    #[must_use]
    pub fn trust_remote_code(mut self, trust: bool) -> Self {
        self.trust_remote_code = trust;
        self
    }

    /// Whether the first call after a crash starts a new child and loads the model again. On by default. When off, each call
    /// after a crash fails with [`Error::Stopped`](inference_core::Error::Stopped).
    #[must_use]
    pub fn restart(mut self, restart: bool) -> Self {
        self.restart = restart;
        self
    }

    /// Kills a child that has work and sends nothing for this long. The default is 10 minutes, longer than any load, prefill
    /// chunk or decode step should take.
    #[must_use]
    pub fn hang_timeout(mut self, timeout: Duration) -> Self {
        self.hang_timeout = timeout;
        self
    }

    /// The longest line that is accepted from the child, in bytes. The default is 64 MiB, enough for the logits of any vocabulary.
    #[must_use]
    pub fn max_line_bytes(mut self, bytes: usize) -> Self {
        self.max_line_bytes = bytes;
        self
    }
}
