//! HTTP to one child: a connection for each request, whose end cancels the request.

use std::{path::PathBuf, sync::Arc};

use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode, body::Bytes, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use inference_core::backend::BoxError;
use serde_json::Value;
use tokio::{net::UnixStream, task::AbortHandle};

/// Where a child listens, and what it asks for.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    pub(crate) socket: PathBuf,
    pub(crate) key: Arc<str>,
}

/// An answer whose head has come. Dropping it closes the connection.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    body: Incoming,
    _connection: Closing,
}

/// Closes the connection on drop, whatever is still under way on it.
#[derive(Debug)]
struct Closing(AbortHandle);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Address {
    /// Sends a request. It needs a runtime of tokio.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, BoxError> {
        let stream = UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // An error of the connection is the request's, too.
        let task = tokio::spawn(async move { drop(connection.await) });
        let closing = Closing(task.abort_handle());
        let body = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::AUTHORIZATION, format!("Bearer {}", self.key))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let (parts, body) = sender.send_request(request).await?.into_parts();
        Ok(Answer { status: parts.status, body, _connection: closing })
    }
}

impl Answer {
    /// The next bytes of the body; `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, BoxError> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(data) = frame?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// The whole body, of at most `limit` bytes.
    pub(crate) async fn bytes(mut self, limit: usize) -> Result<Vec<u8>, BoxError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if bytes.len() + chunk.len() > limit {
                return Err(format!("its answer has more than {limit} bytes").into());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}
