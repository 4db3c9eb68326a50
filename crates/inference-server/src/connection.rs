//! What a connection allows its client.

use std::{
    future::{Ready, ready},
    io,
    pin::Pin,
    time::Duration,
};

use axum_server::accept::Accept;
use tokio::net::TcpStream;
use tokio_io_timeout::TimeoutStream;

/// Takes connections whose client has to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Acceptor {
    /// How long a client may take nothing of what is sent to it.
    pub(crate) write_timeout: Duration,
}

impl<S> Accept<TcpStream, S> for Acceptor {
    type Stream = Pin<Box<TimeoutStream<TcpStream>>>;
    type Service = S;
    type Future = Ready<io::Result<(Self::Stream, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        // Each token is a small write, which must not wait for the client to acknowledge the one before.
        ready(stream.set_nodelay(true).map(|()| {
            let mut stream = TimeoutStream::new(stream);
            stream.set_write_timeout(Some(self.write_timeout));
            (Box::pin(stream), service)
        }))
    }
}
