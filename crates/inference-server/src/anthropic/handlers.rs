//! `POST /v1/messages` and `POST /v1/messages/count_tokens`.

use std::sync::Arc;

use axum::{
    Json as Body,
    extract::State,
    response::{IntoResponse as _, Response, sse::Event as SseEvent},
};
use inference_core::{Error, Feature, Prompt, TextModelExt as _};
use serde_json::{Value, json};

use super::{
    request::{CountRequest, MessagesRequest, Plan},
    stream::{self, Blocks},
};
use crate::{
    error::{ApiError, ApiResult, Dialect},
    generation::{Ended, Generation, Ticket, new_id},
    json::Json,
    server::Server,
    sse::{self, Events, Gone},
};

/// Answers a conversation.
#[utoipa::path(post, path = "/v1/messages", tag = "Anthropic", request_body = MessagesRequest,
    responses((status = 200, description = "A message, or a stream of its events", body = Object)))]
pub(crate) async fn create(
    State(server): State<Server>,
    Json(request): Json<MessagesRequest>,
) -> ApiResult<Response> {
    let entry = server.models().find(Some(&request.model), None)?.clone();
    let stream = request.stream.unwrap_or(false);
    let Plan { messages, options, shape } = request.plan()?;
    let ticket = Ticket::take(&server, &entry, 1).await?;
    if !stream {
        let generation = ticket.start(Prompt::Chat(messages), options, shape, "messages").await?;
        return Ok(Body(whole(&ticket, generation.whole()).await?).into_response());
    }
    // The first event says how long the prompt is: it is made into tokens before the answer begins, and only once.
    let prompt = Prompt::Chat(messages);
    let tokens = ticket.model().tokenize(prompt.clone(), options.template.clone()).await;
    let (prompt, tokens) = match tokens {
        Ok(ids) => (Prompt::Tokens(ids.clone()), ids.len()),
        Err(Error::Unsupported { feature: Feature::Tokenize, .. }) => (prompt, 0),
        Err(error) => return Err(ApiError::of_request(&error, "messages")),
    };
    let generation = ticket.start(prompt, options, shape, "messages").await?;
    let every = server.settings().keep_alive;
    let write = move |events| async move {
        // A client that is gone needs no more.
        let _ = write(&ticket, generation, tokens, events).await;
    };
    Ok(sse::respond(write, every, SseEvent::default().event("ping").data(r#"{"type":"ping"}"#)))
}

/// Counts the tokens of a conversation.
#[utoipa::path(post, path = "/v1/messages/count_tokens", tag = "Anthropic", request_body = CountRequest,
    responses((status = 200, description = "The number of tokens", body = Object)))]
pub(crate) async fn count_tokens(
    State(server): State<Server>,
    Json(request): Json<CountRequest>,
) -> ApiResult<Body<Value>> {
    let entry = server.models().find(Some(&request.model), None)?.clone();
    let (messages, options) = request.plan()?;
    let lease = server.models().lease(&entry).await?;
    let tokens = lease.model.count_tokens(messages, options).await;
    let tokens = tokens.map_err(|error| ApiError::of_request(&error, "messages"))?;
    Ok(Body(json!({"input_tokens": tokens})))
}

async fn whole(ticket: &Ticket, mut generation: Generation) -> ApiResult<Value> {
    let mut parts = Vec::new();
    while let Some(step) = generation.next().await? {
        parts.extend(step.parts);
    }
    let ended = generation.finish().await?;
    let (reason, sequence) = stream::stop(&ended);
    Ok(json!({
        "id": new_id("msg_"), "type": "message", "role": "assistant", "model": ticket.model_name(),
        "content": stream::blocks(parts), "stop_reason": reason, "stop_sequence": sequence,
        "usage": stream::usage(&ended.metrics),
    }))
}

async fn write(
    ticket: &Arc<Ticket>,
    mut generation: Generation,
    prompt_tokens: usize,
    mut events: Events,
) -> Result<(), Gone> {
    let message = json!({
        "id": new_id("msg_"), "type": "message", "role": "assistant", "model": ticket.model_name(),
        "content": [], "stop_reason": null, "stop_sequence": null,
        "usage": {
            "input_tokens": prompt_tokens, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
            "output_tokens": 0,
        },
    });
    events.named("message_start", &json!({"type": "message_start", "message": message})).await?;
    events.named("ping", &json!({"type": "ping"})).await?;
    let mut blocks = Blocks::default();
    let ended = loop {
        let mut pending = Vec::new();
        match generation.next().await {
            Ok(Some(step)) => step.parts.iter().for_each(|part| blocks.push(part, &mut pending)),
            Ok(None) => break generation.finish().await,
            Err(error) => break Err(error),
        }
        for (name, event) in pending {
            events.named(name, &event).await?;
        }
    };
    match ended {
        Ok(ended) => end(&mut blocks, &ended, &mut events).await,
        Err(error) => events.named("error", &Dialect::Anthropic.body(&error)).await,
    }
}

async fn end(blocks: &mut Blocks, ended: &Ended, events: &mut Events) -> Result<(), Gone> {
    let mut pending = Vec::new();
    blocks.close(&mut pending);
    for (name, event) in pending {
        events.named(name, &event).await?;
    }
    let (reason, sequence) = stream::stop(ended);
    let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
    let delta = json!({"type": "message_delta", "delta": delta, "usage": stream::usage(&ended.metrics)});
    events.named("message_delta", &delta).await?;
    events.named("message_stop", &json!({"type": "message_stop"})).await
}
