//! The server in this process, and the little of HTTP that it is measured and tested with.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use inference::TextModel;
use inference_server::{ModelEntry, ModelLimits, Models, ServeOptions, Server, Settings, serve};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpSocket, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};

/// How long a client may take nothing of its answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a line of an answer at most.
const LONGEST_LINE: u64 = 64 << 10;
/// Bytes of a chunk of an answer at most.
const LARGEST_CHUNK: usize = 16 << 20;

/// A server in this process, on a port of its own that other machines cannot reach.
#[derive(Debug)]
pub(crate) struct LocalServer {
    pub(crate) address: SocketAddr,
    end: oneshot::Sender<()>,
    served: JoinHandle<io::Result<()>>,
}

impl LocalServer {
    /// Serves this model, which answers so many requests at once, and sends tokens together that come faster than `interval`. The server
    /// closes the model at its end.
    pub(crate) fn start(
        model: Arc<dyn TextModel>,
        running: usize,
        interval: Duration,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on loopback")?;
        let address = listener.local_addr()?;
        let mut limits = ModelLimits::default();
        limits.max_running = running;
        let models = Models::new([ModelEntry::loaded("model", model)], limits)?;
        let server = Server::new(models, Settings::new().page(false).stream_interval(interval));
        // It waits for none of its clients for long.
        let options = ServeOptions::new().write_timeout(WRITE_TIMEOUT);
        let (end, ended) = oneshot::channel::<()>();
        let served = tokio::spawn(serve(server, listener, options, async {
            // An end that is dropped is one as well.
            let _ = ended.await;
        }));
        Ok(Self { address, end, served })
    }

    /// Ends the server, and closes its model.
    pub(crate) async fn end(self) -> anyhow::Result<()> {
        let _ = self.end.send(());
        Ok(self.served.await??)
    }
}

/// A client's connection, for one request after another.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
    /// What was read of the stream of events and belongs to no event yet.
    pending: Vec<u8>,
}

/// A piece of a streamed completion.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Piece {
    #[serde(default)]
    pub(crate) token_ids: Vec<u32>,
    pub(crate) finish_reason: Option<String>,
}

/// An event of a stream of completions.
#[derive(Debug, Deserialize)]
struct Event {
    #[serde(default)]
    choices: Vec<Piece>,
    error: Option<Value>,
}

impl Connection {
    /// Connects. With a `buffer`, the system takes in no more than about so many bytes that are not read.
    pub(crate) async fn open(address: SocketAddr, buffer: Option<u32>) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        if let Some(bytes) = buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        let stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream), pending: Vec::new() })
    }

    /// Sends bytes, whatever they are.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// The status of the answer. A body that follows is chunked, or is left unread.
    pub(crate) async fn status(&mut self) -> anyhow::Result<u16> {
        self.pending.clear();
        let line = self.line().await?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.with_context(|| format!("{line:?} is no line of a status"))?;
        while !self.line().await?.is_empty() {}
        Ok(status)
    }

    /// The body of an answer whose length is known.
    pub(crate) async fn text(&mut self) -> anyhow::Result<String> {
        let mut length = None;
        let status = self.line().await?;
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                break;
            }
            let field = line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            length = field.and_then(|(_, value)| value.trim().parse::<usize>().ok()).or(length);
        }
        let length = length.filter(|length| *length <= LARGEST_CHUNK);
        let length = length.with_context(|| format!("the answer has no length, or is too long: {status}"))?;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// The next piece of a streamed completion; `None` at its end.
    pub(crate) async fn piece(&mut self) -> anyhow::Result<Option<Piece>> {
        while let Some(data) = self.event().await? {
            if data == b"[DONE]" {
                continue;
            }
            let event: Event = serde_json::from_slice(&data).context("an event is no JSON")?;
            if let Some(error) = event.error {
                bail!("the server says {error}");
            }
            if let Some(piece) = event.choices.into_iter().next() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    /// The content of the next event; `None` at the end of the body.
    async fn event(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        loop {
            if let Some(at) = self.pending.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = self.pending.drain(..at + 2).collect();
                if let Some(data) = event.strip_prefix(b"data: ") {
                    return Ok(Some(data.trim_ascii_end().to_vec()));
                }
                // A comment that says that the server is alive.
                continue;
            }
            let size = self.line().await?;
            let size = usize::from_str_radix(&size, 16)
                .with_context(|| format!("{size:?} is no length of a chunk"))?;
            ensure!(size <= LARGEST_CHUNK, "a chunk has {size} bytes");
            let begins = self.pending.len();
            self.pending.resize(begins + size + 2, 0);
            self.stream.read_exact(&mut self.pending[begins..]).await?;
            self.pending.truncate(begins + size);
            if size == 0 {
                return Ok(None);
            }
        }
    }

    async fn line(&mut self) -> anyhow::Result<String> {
        let mut line = Vec::new();
        (&mut self.stream).take(LONGEST_LINE).read_until(b'\n', &mut line).await?;
        ensure!(line.ends_with(b"\n"), "the server hung up");
        Ok(String::from_utf8_lossy(line.trim_ascii_end()).into_owned())
    }
}

/// A request for a streamed completion of these tokens, as bytes to send.
pub(crate) fn completion(fields: &Value) -> Vec<u8> {
    let mut body = json!({"model": "model", "stream": true, "return_token_ids": true});
    if let (Some(body), Some(fields)) = (body.as_object_mut(), fields.as_object()) {
        body.extend(fields.clone());
    }
    post("/v1/completions", &body.to_string())
}

/// A request with a body of JSON, as bytes to send.
pub(crate) fn post(path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}
