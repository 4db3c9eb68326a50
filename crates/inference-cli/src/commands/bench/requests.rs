//! Requests of one length, sent at once.

use std::time::{Duration, Instant};

use anyhow::ensure;
use futures::{StreamExt as _, future::try_join_all};
use inference::{CancellationToken, FinishReason, GenerateOptions, ModelInfo, Prompt, TextModel};
use inference_core::backend::BackendInfo;
use rand::{RngExt as _, rngs::StdRng};
use serde::Serialize;

use super::{
    http::Clients,
    report::{Program, Spread, subject},
    shape::{Request, Shape},
};
use crate::render::{self, Out};

/// What one trial showed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trial {
    prefill: f64,
    decode: f64,
    first_token: Duration,
    peak_memory: u64,
}

/// Where requests go.
#[derive(Debug)]
pub(super) enum Target<'a> {
    Model(&'a dyn TextModel),
    /// The model behind a server.
    Http(&'a dyn TextModel, Clients),
}

impl Target<'_> {
    fn model(&self) -> &dyn TextModel {
        match self {
            Self::Model(model) | Self::Http(model, _) => *model,
        }
    }
}

impl Trial {
    /// Sends the requests at once, each with a random prompt.
    pub(super) async fn run(
        target: &mut Target<'_>,
        shape: Shape,
        random: &mut StdRng,
        cancel: &CancellationToken,
    ) -> anyhow::Result<Self> {
        // New prompts each time: a prefix that the engine has kept would not be computed again.
        let vocabulary = u32::try_from(target.model().info().vocab_size).unwrap_or(u32::MAX).max(1);
        let prompts: Vec<Vec<u32>> = (0..shape.batch)
            .map(|_| (0..shape.prompt_tokens).map(|_| random.random_range(0..vocabulary)).collect())
            .collect();
        let requests = match target {
            Target::Model(model) => send(*model, prompts, shape, cancel).await?,
            Target::Http(_, clients) => tokio::select! {
                sent = clients.send(&prompts, shape) => sent?,
                () = cancel.cancelled() => Vec::new(),
            },
        };
        if !cancel.is_cancelled() {
            for request in &requests {
                ensure!(
                    request.tokens.len() == shape.generate_tokens,
                    "a request ended after {} tokens of {} ({:?}): prompt and answer may not fit the context",
                    request.tokens.len(),
                    shape.generate_tokens,
                    request.reason,
                );
            }
        }
        Ok(Self::of(shape.prompt_tokens, &requests))
    }

    fn of(prompt_tokens: usize, requests: &[Request]) -> Self {
        let first_token = requests.iter().filter_map(|r| r.tokens.first()).max().copied().unwrap_or_default();
        let last_token = requests.iter().filter_map(|r| r.tokens.last()).max().copied().unwrap_or_default();
        let decoded =
            requests.iter().flat_map(|request| &request.tokens).filter(|at| **at > first_token).count();
        Self {
            prefill: per_second(prompt_tokens * requests.len(), first_token),
            decode: per_second(decoded, last_token.saturating_sub(first_token)),
            first_token,
            peak_memory: requests.iter().map(|request| request.peak_memory).max().unwrap_or_default(),
        }
    }
}

/// Sends the requests at once.
async fn send(
    model: &dyn TextModel,
    prompts: Vec<Vec<u32>>,
    shape: Shape,
    cancel: &CancellationToken,
) -> anyhow::Result<Vec<Request>> {
    let options =
        GenerateOptions::new().max_tokens(shape.generate_tokens).ignore_eos(true).cancel(cancel.clone());
    let began = Instant::now();
    try_join_all(prompts.into_iter().map(|prompt| request(model, prompt, options.clone(), began))).await
}

async fn request(
    model: &dyn TextModel,
    prompt: Vec<u32>,
    options: GenerateOptions,
    began: Instant,
) -> anyhow::Result<Request> {
    let mut stream = model.generate(Prompt::Tokens(prompt), options).await?;
    let mut tokens = Vec::new();
    while let Some(token) = stream.next().await {
        token?;
        tokens.push(began.elapsed());
    }
    let finish = stream.finish().await?;
    Ok(Request { tokens, peak_memory: finish.metrics.peak_memory_bytes, reason: finish.reason })
}

#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    model: &'a ModelInfo,
    backend: &'a BackendInfo,
    program: Program,
    prompt_tokens: usize,
    generate_tokens: usize,
    batch: usize,
    http: bool,
    trials: usize,
    seed: u64,
    prefill_tokens_per_second: Spread,
    decode_tokens_per_second: Spread,
    time_to_first_token_ms: Spread,
    peak_memory_bytes: Spread,
}

impl<'a> Report<'a> {
    pub(super) fn new(
        shape: Shape,
        seed: u64,
        (model, backend): (&'a ModelInfo, &'a BackendInfo),
        trials: &[Trial],
    ) -> Self {
        let spread = |figure: fn(&Trial) -> f64| Spread::of(trials.iter().map(figure).collect());
        Self {
            model,
            backend,
            program: Program::this(),
            prompt_tokens: shape.prompt_tokens,
            generate_tokens: shape.generate_tokens,
            batch: shape.batch,
            http: shape.http,
            trials: trials.len(),
            seed,
            prefill_tokens_per_second: spread(|trial| trial.prefill),
            decode_tokens_per_second: spread(|trial| trial.decode),
            time_to_first_token_ms: spread(|trial| trial.first_token.as_secs_f64() * 1e3),
            peak_memory_bytes: spread(|trial| trial.peak_memory as f64),
        }
    }

    pub(super) fn print(&self, out: &mut Out) -> anyhow::Result<()> {
        let trials = format!(
            "{} of {} at once{}, {} prompt tokens and {} generated each",
            self.trials,
            render::things(self.batch, "request"),
            if self.http { " over HTTP" } else { "" },
            self.prompt_tokens,
            self.generate_tokens
        );
        out.table(&subject(self.model, self.backend, trials))?;
        out.line("")?;
        let mut table = Spread::table();
        self.prefill_tokens_per_second.add_to(&mut table, "prefill, tokens/s", &render::rate);
        self.decode_tokens_per_second.add_to(&mut table, "decode, tokens/s", &render::rate);
        let first = |ms| format!("{ms:.2}");
        self.time_to_first_token_ms.add_to(&mut table, "time to first token, ms", &first);
        if !self.http {
            self.peak_memory_bytes.add_to(&mut table, "peak memory", &|bytes| render::bytes(bytes as u64));
        }
        out.table(&table)
    }
}

fn per_second(tokens: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(milliseconds: &[u64]) -> Request {
        Request {
            tokens: milliseconds.iter().map(|ms| Duration::from_millis(*ms)).collect(),
            peak_memory: milliseconds[0],
            reason: FinishReason::Length,
        }
    }

    #[test]
    fn a_batch_decodes_once_every_request_has_begun() {
        let trial = Trial::of(50, &[request(&[100, 150, 300, 400]), request(&[200, 300, 400, 600])]);
        assert_eq!(trial.first_token, Duration::from_millis(200));
        assert_eq!(trial.prefill, 100.0 / 0.2);
        assert_eq!(trial.decode, 5.0 / 0.4);
        assert_eq!(trial.peak_memory, 200);
    }
}
