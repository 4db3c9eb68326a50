//! A listening server: connections, their limits, and the end.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use axum_server::Handle;
#[cfg(feature = "tls")]
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::{connection::Acceptor, router::router, server::Server};

/// How long a client may take over its request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a request's headers at most.
const HEADER_BYTES: usize = 64 << 10;
/// How long a client may take nothing of its answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(120);
/// After the work was cancelled, this long until connections are cut.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How a server listens and how it ends.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServeOptions {
    /// After the signal to end, running requests go on for so long; what is left is cancelled.
    pub grace: Duration,
    /// A client that takes nothing of its answer for so long is disconnected, and its work cancelled.
    pub write_timeout: Duration,
    /// The certificate and the key, in PEM.
    #[cfg(feature = "tls")]
    pub tls: Option<(Vec<u8>, Vec<u8>)>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            grace: Duration::ZERO,
            write_timeout: WRITE_TIMEOUT,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }
}

impl ServeOptions {
    /// Ends at once, without TLS.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets running requests go on for so long after the signal to end.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Disconnects clients that take nothing of their answer for so long.
    #[must_use]
    pub fn write_timeout(mut self, timeout: Duration) -> Self {
        self.write_timeout = timeout;
        self
    }

    /// Speaks HTTPS with this certificate and key, in PEM.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.tls = Some((certificate.into(), key.into()));
        self
    }
}

/// Serves until `shutdown` is ready: then new work is refused, what runs may end within the grace period, what is left is
/// cancelled, and the models are closed.
///
/// # Errors
/// The listener or the certificate cannot be used.
pub async fn serve(
    server: Server,
    listener: TcpListener,
    options: ServeOptions,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let handle = Handle::new();
    let ending = tokio::spawn(end(server.clone(), handle.clone(), options.grace, shutdown));
    let served = listen(&server, listener, options, handle).await;
    ending.abort();
    server.models().close().await;
    served
}

async fn listen(
    server: &Server,
    listener: TcpListener,
    options: ServeOptions,
    handle: Handle<SocketAddr>,
) -> io::Result<()> {
    let app = router(server.clone()).into_make_service();
    let acceptor = Acceptor { write_timeout: options.write_timeout };
    #[cfg(feature = "tls")]
    if let Some((certificate, key)) = options.tls {
        let config = RustlsConfig::from_pem(certificate, key).await?;
        let acceptor = RustlsAcceptor::new(config).acceptor(acceptor);
        let mut bound = axum_server::from_tcp(listener)?.acceptor(acceptor).handle(handle);
        limit(bound.http_builder());
        return bound.serve(app).await;
    }
    let mut bound = axum_server::from_tcp(listener)?.acceptor(acceptor).handle(handle);
    limit(bound.http_builder());
    bound.serve(app).await
}

fn limit(http: &mut hyper_util::server::conn::auto::Builder<TokioExecutor>) {
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(HEADER_BYTES);
}

async fn end(
    server: Server,
    handle: Handle<SocketAddr>,
    grace: Duration,
    shutdown: impl Future<Output = ()> + Send,
) {
    shutdown.await;
    server.drain();
    handle.graceful_shutdown(Some(grace.saturating_add(LAST_WORDS)));
    tokio::time::sleep(grace).await;
    server.cancel();
}
