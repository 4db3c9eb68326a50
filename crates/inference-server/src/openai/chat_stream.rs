//! The chunks of a chat completion.

use std::{sync::Arc, time::Duration};

use axum::response::Response;
use futures::StreamExt as _;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Usage,
    answer::{Logprobs, finish_reason},
};
use crate::{
    error::{ApiError, ApiResult, Dialect},
    generation::{Ended, Generation, Part, Progress, Step, Ticket, interleave, new_id, now},
    logprobs::TokenNames,
    sse::{self, Events, Gone},
};

#[derive(Debug, Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<Choice<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<&'a Usage>>,
}

#[derive(Debug, Serialize)]
struct Choice<'a> {
    index: usize,
    delta: Delta<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Debug, Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Value>,
}

/// The response that streams these answers.
pub(super) fn respond(
    ticket: Arc<Ticket>,
    generations: Vec<Generation>,
    logprobs: bool,
    include_usage: bool,
    keep_alive: Duration,
) -> Response {
    let write = move |events| async move {
        let mut writer = Writer {
            events,
            ticket,
            id: new_id("chatcmpl-"),
            created: now(),
            names: TokenNames::default(),
            logprobs,
            include_usage,
            usage: Usage::default(),
        };
        // A client that is gone needs no more.
        let _ = writer.run(generations).await;
    };
    sse::respond(write, keep_alive, sse::comment())
}

struct Writer {
    events: Events,
    ticket: Arc<Ticket>,
    id: String,
    created: u64,
    names: TokenNames,
    logprobs: bool,
    include_usage: bool,
    usage: Usage,
}

impl Writer {
    async fn run(&mut self, generations: Vec<Generation>) -> Result<(), Gone> {
        for index in 0..generations.len() {
            let delta = Delta { role: Some("assistant"), content: Some(""), ..Delta::default() };
            self.choice(Choice { index, delta, logprobs: None, finish_reason: None }).await?;
        }
        let mut calls = vec![0; generations.len()];
        let mut progress = std::pin::pin!(interleave(generations));
        while let Some((index, went)) = progress.next().await {
            match went {
                Ok(Progress::Went(step)) => {
                    if let Err(error) = self.step(index, &mut calls[index], step).await? {
                        return self.fail(&error).await;
                    }
                }
                Ok(Progress::Ended(ended)) => self.end(index, &ended).await?,
                Err(error) => return self.fail(&error).await,
            }
        }
        if self.include_usage {
            let usage = std::mem::take(&mut self.usage);
            let chunk = Chunk { usage: Some(Some(&usage)), ..self.chunk(vec![]) };
            let sent = serde_json::to_string(&chunk).map_err(|_| Gone)?;
            self.events.text(&sent).await?;
        }
        self.events.text("[DONE]").await
    }

    async fn step(&mut self, index: usize, calls: &mut usize, step: Step) -> Result<ApiResult<()>, Gone> {
        let mut logprobs = None;
        if self.logprobs && !step.tokens.is_empty() {
            match self.names.logprobs(self.ticket.model(), &step.tokens).await {
                Ok(content) => logprobs = Some(Logprobs { content, refusal: None }),
                Err(error) => return Ok(Err(error)),
            }
        }
        for part in &step.parts {
            let Some(delta) = delta(part, calls) else { continue };
            let logprobs = logprobs.take();
            self.choice(Choice { index, delta, logprobs, finish_reason: None }).await?;
        }
        if logprobs.is_some() {
            let delta = Delta::default();
            self.choice(Choice { index, delta, logprobs, finish_reason: None }).await?;
        }
        Ok(Ok(()))
    }

    async fn end(&mut self, index: usize, ended: &Ended) -> Result<(), Gone> {
        if self.usage.prompt_tokens == 0 {
            self.usage.add_prompt(ended);
        } else {
            self.usage.add_answer(ended);
        }
        let finish_reason = Some(finish_reason(&ended.end));
        self.choice(Choice { index, delta: Delta::default(), logprobs: None, finish_reason }).await
    }

    async fn fail(&mut self, error: &ApiError) -> Result<(), Gone> {
        self.events.data(&Dialect::OpenAi.body(error)).await
    }

    async fn choice(&mut self, choice: Choice<'_>) -> Result<(), Gone> {
        let chunk = serde_json::to_string(&self.chunk(vec![choice])).map_err(|_| Gone)?;
        self.events.text(&chunk).await
    }

    fn chunk<'a>(&'a self, choices: Vec<Choice<'a>>) -> Chunk<'a> {
        Chunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: self.ticket.model_name(),
            choices,
            usage: self.include_usage.then_some(None),
        }
    }
}

/// What a part adds to the message. `calls` counts those that have ended.
fn delta<'a>(part: &'a Part, calls: &mut usize) -> Option<Delta<'a>> {
    match part {
        Part::Text(text) => Some(Delta { content: Some(text), ..Delta::default() }),
        Part::Reasoning(text) => Some(Delta { reasoning_content: Some(text), ..Delta::default() }),
        Part::CallBegun { id, name } => {
            let function = json!({"name": name, "arguments": ""});
            let call = json!({"index": calls, "id": id, "type": "function", "function": function});
            Some(Delta { tool_calls: vec![call], ..Delta::default() })
        }
        Part::CallArguments(piece) => {
            let call = json!({"index": calls, "function": {"arguments": piece}});
            Some(Delta { tool_calls: vec![call], ..Delta::default() })
        }
        // All of it was told.
        Part::Call(_) | Part::BrokenCall(_) => {
            *calls += 1;
            None
        }
    }
}
