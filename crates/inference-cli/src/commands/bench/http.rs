//! The same requests over HTTP, to a server in this process.

use std::{net::SocketAddr, time::Instant};

use anyhow::ensure;
use futures::future::try_join_all;
use inference::FinishReason;
use serde_json::json;

use super::shape::{Request, Shape};
use crate::http::{Connection, completion};

/// One connection for each request of a trial; they stay open from trial to trial.
#[derive(Debug)]
pub(super) struct Clients(Vec<Connection>);

impl Clients {
    pub(super) async fn connect(address: SocketAddr, count: usize) -> anyhow::Result<Self> {
        Ok(Self(try_join_all((0..count).map(|_| Connection::open(address, None))).await?))
    }

    /// Sends the requests at once.
    pub(super) async fn send(&mut self, prompts: &[Vec<u32>], shape: Shape) -> anyhow::Result<Vec<Request>> {
        let bodies: Vec<Vec<u8>> = prompts.iter().map(|prompt| body(prompt, shape)).collect();
        let began = Instant::now();
        let requests = self.0.iter_mut().zip(&bodies);
        try_join_all(requests.map(|(connection, body)| request(connection, body, began))).await
    }
}

fn body(prompt: &[u32], shape: Shape) -> Vec<u8> {
    completion(&json!({"prompt": prompt, "max_tokens": shape.generate_tokens, "ignore_eos": true}))
}

async fn request(connection: &mut Connection, body: &[u8], began: Instant) -> anyhow::Result<Request> {
    connection.send(body).await?;
    let status = connection.status().await?;
    ensure!(status == 200, "the server answers a request with {status}");
    let mut tokens = Vec::new();
    while let Some(piece) = connection.piece().await? {
        // Tokens that were ready together come together.
        tokens.extend(std::iter::repeat_n(began.elapsed(), piece.token_ids.len()));
    }
    Ok(Request { tokens, peak_memory: 0, reason: FinishReason::Length })
}
