//! Requests to the Hub.

use std::{io::Read, time::Duration};

use ureq::{
    Agent, Body,
    config::RedirectAuthHeaders,
    http::{HeaderMap, Response, StatusCode},
};

use crate::{HubError, ModelName, Result, files::Listing};

/// How long the Hub may take to accept a connection, and to begin an answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of the list of a repository's files at most.
const LISTING_BYTES: u64 = 32 << 20;
/// The longest wait that the Hub may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// Asks the Hub.
pub(crate) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// A file's bytes from some place on.
pub(crate) struct Download {
    pub(crate) reader: Box<dyn Read + Send>,
    /// The place of the first byte.
    pub(crate) start: u64,
    /// Bytes of the whole file, if the Hub says so.
    pub(crate) total: Option<u64>,
}

impl Client {
    pub(crate) fn new(endpoint: &str, token: Option<String>) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            // Weights lie on other hosts, which the token is not for.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .user_agent(concat!("inference/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.into(), endpoint: endpoint.trim_end_matches('/').to_owned(), token }
    }

    /// The files of a model.
    pub(crate) fn list(&self, name: &ModelName) -> Result<Listing> {
        let revision = name.revision().replace('/', "%2F");
        let url =
            format!("{}/api/models/{}/revision/{revision}?blobs=true", self.endpoint, name.repository());
        let what = name.to_string();
        let mut response = self.get(&url, &what, None)?;
        let text = response.body_mut().with_config().limit(LISTING_BYTES).read_to_string();
        let text = text.map_err(|error| network(&what, &error))?;
        serde_json::from_str(&text).map_err(|error| HubError::InvalidAnswer {
            what,
            reason: format!("the Hub's list of its files cannot be read: {error}"),
        })
    }

    /// A file from a place on. Where the Hub cannot begin there, from the beginning.
    pub(crate) fn download(&self, name: &ModelName, commit: &str, file: &str, from: u64) -> Result<Download> {
        let url = format!("{}/{}/resolve/{commit}/{file}", self.endpoint, name.repository());
        let what = format!("{name}: {file}");
        let response = self.get(&url, &what, (from > 0).then_some(from))?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let (start, total) = match response.status() {
            StatusCode::PARTIAL_CONTENT => header("content-range").and_then(range).ok_or_else(|| {
                HubError::InvalidAnswer { what, reason: "a part of it has no Content-Range".to_owned() }
            })?,
            _ => (0, header("content-length").and_then(|length| length.parse().ok())),
        };
        Ok(Download { reader: Box::new(response.into_body().into_reader()), start, total })
    }

    fn get(&self, url: &str, what: &str, from: Option<u64>) -> Result<Response<Body>> {
        // Compressed, the lengths would not be those of the file.
        let mut request = self.agent.get(url).header("accept-encoding", "identity");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        let response = request.call().map_err(|error| network(what, &error))?;
        check(response, what)
    }
}

fn network(what: &str, error: &ureq::Error) -> HubError {
    HubError::Network { what: what.to_owned(), reason: error.to_string() }
}

fn check(response: Response<Body>, what: &str) -> Result<Response<Body>> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let what = what.to_owned();
    Err(match status.as_u16() {
        status @ (401 | 403) => HubError::Unauthorized { what, status },
        404 => HubError::NotFound { what },
        429 => HubError::RateLimited { what, retry_after: retry_after(response.headers()) },
        status => HubError::Status { what, status },
    })
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get("retry-after")?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_WAIT))
}

/// The first byte and the length of the whole of `bytes 5-9/10`.
fn range(header: &str) -> Option<(u64, Option<u64>)> {
    let (part, total) = header.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = part.split_once('-')?;
    Some((start.parse().ok()?, total.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(range("bytes */10"), None);
    }
}
