//! Random requests over HTTP, and clients that misbehave.

use std::{
    cell::RefCell,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};
use inference::Token;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{
    cases::Case,
    requests::HANG_TIMEOUT,
    state::{Clock, Totals},
};
use crate::http::{Connection, completion, post};

/// What a slow client's system takes in of an answer that is not read, in bytes.
const SMALL_BUFFER: u32 = 4096;
/// Bytes of a body that is too large.
const HUGE: usize = 17 << 20;
/// Bytes of it that are sent at once.
const PIECE: usize = 64 << 10;

/// The clients of a server.
pub(super) struct Clients<'a> {
    pub(super) address: SocketAddr,
    pub(super) cases: &'a [Case],
    pub(super) clock: &'a Clock,
    pub(super) totals: &'a RefCell<Totals>,
}

/// How a client behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Manner {
    /// It reads its answer to the end.
    Good,
    /// It leaves after this many pieces of its answer.
    Vanishing(usize),
    /// It takes in little, and waits so many milliseconds before each of the first pieces.
    Slow(u64),
    /// It sends a body that is too large.
    Huge,
    /// It sends this share of a request, waits so many milliseconds, and leaves.
    Half(f64, u64),
    /// It sends something that is no request.
    Garbage,
}

impl Manner {
    fn random(random: &mut StdRng) -> Self {
        match random.random_range(0..100) {
            0..12 => Self::Vanishing(random.random_range(0..20)),
            12..22 => Self::Slow(random.random_range(1..40)),
            22..23 => Self::Huge,
            23..29 => Self::Half(random.random_range(0.0..1.0), random.random_range(0..200)),
            29..32 => Self::Garbage,
            _ => Self::Good,
        }
    }
}

impl Clients<'_> {
    /// Sends one request after the other until the time is over.
    pub(super) async fn work(&self, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut kept = None;
        while !self.clock.is_over() {
            let number = random.random_range(0..self.cases.len());
            let manner = Manner::random(&mut random);
            let asked = tokio::time::timeout(HANG_TIMEOUT, self.ask(&self.cases[number], manner, &mut kept));
            let outcome = match asked.await {
                Ok(outcome) => outcome,
                Err(_) => Err(anyhow::anyhow!("hangs: nothing within {} s", HANG_TIMEOUT.as_secs())),
            };
            let mut totals = self.totals.borrow_mut();
            totals.requests += 1;
            match outcome {
                Ok(tokens) => totals.tokens += tokens as u64,
                Err(error) => {
                    kept = None;
                    totals.fail(format!("case {number}, {manner:?}: {error:#}"));
                }
            }
        }
    }

    /// Sends one request. Returns the number of its tokens. `kept` is the connection of the good requests.
    async fn ask(&self, case: &Case, manner: Manner, kept: &mut Option<Connection>) -> anyhow::Result<usize> {
        let request = completion(&case.fields());
        match manner {
            Manner::Good => {
                let mut connection = match kept.take() {
                    Some(connection) => connection,
                    None => Connection::open(self.address, None).await?,
                };
                let tokens = self.read(case, &request, &mut connection, None).await?;
                *kept = Some(connection);
                Ok(tokens)
            }
            Manner::Slow(wait) => {
                let mut connection = Connection::open(self.address, Some(SMALL_BUFFER)).await?;
                self.read(case, &request, &mut connection, Some(Duration::from_millis(wait))).await
            }
            Manner::Vanishing(after) => self.vanish(case, &request, after).await,
            Manner::Huge => self.send_huge().await.map(|()| 0),
            Manner::Half(share, wait) => {
                let mut connection = Connection::open(self.address, None).await?;
                connection.send(&request[..(request.len() as f64 * share) as usize]).await?;
                tokio::time::sleep(Duration::from_millis(wait)).await;
                self.totals.borrow_mut().dropped += 1;
                Ok(0)
            }
            Manner::Garbage => {
                let mut connection = Connection::open(self.address, None).await?;
                connection.send(b"\x16\x03\x01 this is no HTTP\r\n\r\n").await?;
                let status = connection.status().await?;
                ensure!(status == 400, "what is no request is answered with {status}");
                Ok(0)
            }
        }
    }

    /// Reads an answer to its end, and compares it with the lone run.
    async fn read(
        &self,
        case: &Case,
        request: &[u8],
        connection: &mut Connection,
        pause: Option<Duration>,
    ) -> anyhow::Result<usize> {
        const PAUSES: usize = 10;
        let began = Instant::now();
        connection.send(request).await?;
        let status = connection.status().await?;
        ensure!(status == 200, "the answer has the status {status}");
        let (mut tokens, mut ended, mut pieces) = (Vec::new(), false, 0);
        while let Some(piece) = connection.piece().await? {
            if tokens.is_empty() && !piece.token_ids.is_empty() {
                self.totals.borrow_mut().first_tokens.push(began.elapsed());
            }
            tokens.extend(piece.token_ids.into_iter().map(|id| Token::new(id, "")));
            ended |= piece.finish_reason.is_some();
            pieces += 1;
            if let Some(pause) = pause.filter(|_| pieces <= PAUSES) {
                tokio::time::sleep(pause).await;
            }
        }
        if !ended {
            bail!("the stream says nothing of its end");
        }
        case.check_whole(&tokens)?;
        Ok(tokens.len())
    }

    async fn vanish(&self, case: &Case, request: &[u8], after: usize) -> anyhow::Result<usize> {
        let mut connection = Connection::open(self.address, None).await?;
        connection.send(request).await?;
        let mut tokens = Vec::new();
        if after > 0 {
            connection.status().await?;
            for _ in 0..after {
                let Some(piece) = connection.piece().await? else { break };
                tokens.extend(piece.token_ids.into_iter().map(|id| Token::new(id, "")));
            }
        }
        self.totals.borrow_mut().dropped += 1;
        case.check_beginning(&tokens)?;
        Ok(tokens.len())
    }

    /// Sends more than the server takes: it has to say so, or to hang up, and must not keep it.
    async fn send_huge(&self) -> anyhow::Result<()> {
        let mut connection = Connection::open(self.address, None).await?;
        let head = post("/v1/completions", "");
        let head =
            String::from_utf8_lossy(&head).replace("content-length: 0", &format!("content-length: {HUGE}"));
        let mut sent = connection.send(head.as_bytes()).await;
        for _ in 0..HUGE / PIECE {
            if sent.is_err() {
                return Ok(());
            }
            sent = connection.send(&[b' '; PIECE]).await;
        }
        // Where it hung up, what it said may be lost with what it had not read.
        if let Ok(status) = connection.status().await {
            ensure!(status == 413, "a body that is too large is answered with {status}");
        }
        Ok(())
    }
}

/// What the server counts as running or waiting, once all clients are gone and it had this long to notice.
pub(super) async fn left_over(address: SocketAddr, within: Duration) -> anyhow::Result<Vec<String>> {
    let until = Instant::now() + within;
    loop {
        let counts = counts(address).await?;
        if counts.is_empty() || Instant::now() >= until {
            return Ok(counts);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The lines of the server's metrics that count requests now, and are not 0.
async fn counts(address: SocketAddr) -> anyhow::Result<Vec<String>> {
    let mut connection = Connection::open(address, None).await?;
    connection.send(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").await?;
    let metrics = connection.text().await?;
    let count =
        |line: &&str| ["inference_running{", "inference_waiting{"].iter().any(|name| line.starts_with(name));
    let counts: Vec<&str> = metrics.lines().filter(count).collect();
    ensure!(counts.len() == 2, "the server's metrics do not say what runs");
    Ok(counts.into_iter().filter(|line| !line.ends_with(" 0")).map(str::to_owned).collect())
}
