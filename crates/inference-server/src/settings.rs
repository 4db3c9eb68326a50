//! How a server behaves.

use std::{fmt, time::Duration};

/// How a server behaves towards its clients.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct Settings {
    /// Keys of which a request has to give one, as `Authorization: Bearer KEY` or `x-api-key: KEY`; none: anyone may ask.
    pub api_keys: Vec<String>,
    /// Sites whose pages may call this server; `*` is all of them, none is the server's own page alone.
    pub cors_origins: Vec<String>,
    /// Host names that requests may be sent to, besides `localhost`, names below it and IP addresses; `None`: any. A page of
    /// another site can have its own name lead to this machine, and its scripts could then talk to a server that asks for no
    /// key (DNS rebinding).
    pub allowed_hosts: Option<Vec<String>>,
    /// The largest body of a request, in bytes.
    pub body_limit: usize,
    /// How long a client may send nothing while the rest of its request's body is due.
    pub body_timeout: Duration,
    /// The longest time from a request to the end of its answer, waiting included.
    pub request_timeout: Option<Duration>,
    /// Tokens of one stream that come faster than this are sent together: each event costs the server and its client more than a small
    /// model's token. The first token is always sent at once.
    pub stream_interval: Duration,
    /// How often a stream says that it is alive while the model is silent.
    pub keep_alive: Duration,
    /// Tokens of an answer whose request names no limit; unset: as many as the context holds.
    pub default_max_tokens: Option<usize>,
    /// Bytes of responses that are kept for `previous_response_id`.
    pub stored_response_bytes: usize,
    /// Whether there is a page at `/` to talk to the model.
    pub page: bool,
}

/// Without the keys.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("api_keys", &self.api_keys.len())
            .field("cors_origins", &self.cors_origins)
            .field("allowed_hosts", &self.allowed_hosts)
            .field("body_limit", &self.body_limit)
            .field("request_timeout", &self.request_timeout)
            .finish_non_exhaustive()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            api_keys: Vec::new(),
            cors_origins: Vec::new(),
            allowed_hosts: None,
            body_limit: 16 << 20,
            body_timeout: Duration::from_secs(30),
            request_timeout: Some(Duration::from_secs(3600)),
            stream_interval: Duration::from_millis(5),
            keep_alive: Duration::from_secs(15),
            default_max_tokens: None,
            stored_response_bytes: 64 << 20,
            page: true,
        }
    }
}

impl Settings {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a key that requests may give.
    #[must_use]
    pub fn api_key(mut self, key: impl Into<String>) -> Self {
        self.api_keys.push(key.into());
        self
    }

    /// Lets pages of this site (`https://example.org`, or `*`) call the server.
    #[must_use]
    pub fn cors_origin(mut self, origin: impl Into<String>) -> Self {
        self.cors_origins.push(origin.into());
        self
    }

    /// Refuses requests to host names other than these, `localhost`, names below it and IP addresses.
    #[must_use]
    pub fn allowed_hosts(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.allowed_hosts = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// Refuses larger bodies.
    #[must_use]
    pub fn body_limit(mut self, bytes: usize) -> Self {
        self.body_limit = bytes;
        self
    }

    /// Refuses requests whose client is silent for so long before the body is complete.
    #[must_use]
    pub fn body_timeout(mut self, timeout: Duration) -> Self {
        self.body_timeout = timeout;
        self
    }

    /// Ends requests that take longer; `None` lets them run.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Sends tokens of one stream together that come faster than this; zero sends them as they come.
    #[must_use]
    pub fn stream_interval(mut self, interval: Duration) -> Self {
        self.stream_interval = interval;
        self
    }

    /// Says this often that a silent stream is alive.
    #[must_use]
    pub fn keep_alive(mut self, interval: Duration) -> Self {
        self.keep_alive = interval;
        self
    }

    /// Limits answers whose request names no limit.
    #[must_use]
    pub fn default_max_tokens(mut self, tokens: usize) -> Self {
        self.default_max_tokens = Some(tokens);
        self
    }

    /// Whether to show a page at `/`.
    #[must_use]
    pub fn page(mut self, page: bool) -> Self {
        self.page = page;
        self
    }
}
