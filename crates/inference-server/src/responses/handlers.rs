//! `POST /v1/responses` and what is kept of it.

use std::sync::Arc;

use axum::{
    Json as Body,
    extract::{Path, State},
    response::{IntoResponse as _, Response},
};
use inference_core::{Message, Prompt};
use serde_json::{Value, json};

use super::{
    output::{Event, Output},
    request::{Plan, ResponsesRequest},
    store::Stored,
};
use crate::{
    error::{ApiError, ApiResult},
    generation::{End, Ended, Generation, Step, Ticket, new_id, now},
    json::Json,
    logprobs::TokenNames,
    server::Server,
    sse::{self, Events, Gone},
};

/// Answers a text or a list of items.
#[utoipa::path(post, path = "/v1/responses", tag = "OpenAI", request_body = ResponsesRequest,
    responses((status = 200, description = "A response, or a stream of its events", body = Object)))]
pub(crate) async fn create(
    State(server): State<Server>,
    Json(request): Json<ResponsesRequest>,
) -> ApiResult<Response> {
    let entry = server.models().find(request.model.as_deref(), request.adapter.as_deref())?.clone();
    let (stream, keep) = (request.stream.unwrap_or(false), request.store.unwrap_or(true));
    let Plan { conversation, messages, options, shape, logprobs, echo } = request.plan(server.responses())?;
    let ticket = Ticket::take(&server, &entry, 1).await?;
    // Clients ask with no input at all to see whether the server is there: there is nothing to answer.
    let generation = if messages.is_empty() {
        None
    } else {
        Some(ticket.start(Prompt::Chat(messages), options, shape, "input").await?)
    };
    let names = TokenNames::default();
    let run = Run {
        server,
        ticket,
        conversation,
        keep,
        logprobs,
        names,
        echo,
        id: new_id("resp_"),
        created: now(),
    };
    if stream {
        return Ok(run.stream(generation));
    }
    Ok(Body(run.whole(generation).await?).into_response())
}

/// A response that was kept.
#[utoipa::path(get, path = "/v1/responses/{id}", tag = "OpenAI", params(("id" = String, Path, description = "The id")),
    responses((status = 200, description = "The response", body = Object), (status = 404, description = "There is none")))]
pub(crate) async fn get(State(server): State<Server>, Path(id): Path<String>) -> ApiResult<Body<Value>> {
    let stored = server.responses().get(&id);
    stored.map(|stored| Body(stored.response)).ok_or_else(|| no_response(&id))
}

/// Forgets a response.
#[utoipa::path(delete, path = "/v1/responses/{id}", tag = "OpenAI", params(("id" = String, Path, description = "The id")),
    responses((status = 200, description = "It is forgotten", body = Object), (status = 404, description = "There is none")))]
pub(crate) async fn delete(State(server): State<Server>, Path(id): Path<String>) -> ApiResult<Body<Value>> {
    if server.responses().remove(&id) {
        Ok(Body(json!({"id": id, "object": "response", "deleted": true})))
    } else {
        Err(no_response(&id))
    }
}

fn no_response(id: &str) -> ApiError {
    ApiError::not_found(format!("there is no response {id:?}: it was not stored, or is no longer"))
}

/// A response in the making.
struct Run {
    server: Server,
    ticket: Arc<Ticket>,
    conversation: Vec<Message>,
    keep: bool,
    logprobs: bool,
    names: TokenNames,
    echo: Value,
    id: String,
    created: u64,
}

impl Run {
    async fn whole(mut self, generation: Option<Generation>) -> ApiResult<Value> {
        let (mut output, mut events) = (Output::default(), Vec::new());
        let mut ended = None;
        if let Some(mut generation) = generation.map(Generation::whole) {
            while let Some(step) = generation.next().await? {
                self.take(step, &mut output, &mut events).await?;
                events.clear();
            }
            ended = Some(generation.finish().await?);
        }
        output.close(status(ended.as_ref()), &mut events);
        Ok(self.complete(&output, ended.as_ref()))
    }

    fn stream(mut self, generation: Option<Generation>) -> Response {
        let every = self.server.settings().keep_alive;
        let write = move |events| async move {
            let mut writer = Writer { events, number: 0 };
            // A client that is gone needs no more.
            let _ = self.write(&mut writer, generation).await;
        };
        sse::respond(write, every, sse::comment())
    }

    async fn write(&mut self, writer: &mut Writer, generation: Option<Generation>) -> Result<(), Gone> {
        let mut output = Output::default();
        let begun = self.response("in_progress", &output, None);
        writer.send(("response.created", json!({"response": begun}))).await?;
        writer.send(("response.in_progress", json!({"response": begun}))).await?;
        let ended = match generation {
            None => Ok(None),
            Some(generation) => self.run(writer, &mut output, generation).await?.map(Some),
        };
        match ended {
            Ok(ended) => {
                let mut events = Vec::new();
                output.close(status(ended.as_ref()), &mut events);
                writer.send_all(events).await?;
                let response = self.complete(&output, ended.as_ref());
                let name = match status(ended.as_ref()) {
                    "incomplete" => "response.incomplete",
                    _ => "response.completed",
                };
                writer.send((name, json!({"response": response}))).await
            }
            Err(error) => {
                let mut events = Vec::new();
                output.close("incomplete", &mut events);
                writer.send_all(events).await?;
                let mut response = self.response("failed", &output, None);
                response["error"] = json!({"code": "server_error", "message": error.message});
                writer.send(("response.failed", json!({"response": response}))).await
            }
        }
    }

    /// Takes what came into the output, with the log-probabilities of its text.
    async fn take(&mut self, step: Step, output: &mut Output, events: &mut Vec<Event>) -> ApiResult<()> {
        let mut logprobs: Vec<Vec<Value>> = step.parts.iter().map(|_| Vec::new()).collect();
        if self.logprobs {
            for (part, token) in &step.text_tokens {
                let named = self.names.logprobs(self.ticket.model(), std::slice::from_ref(token)).await?;
                if let Some(of_part) = logprobs.get_mut(*part) {
                    of_part.extend(named.into_iter().map(|entry| json!(entry.with_bytes())));
                }
            }
        }
        for (part, logprobs) in step.parts.into_iter().zip(logprobs) {
            output.push(part, logprobs, events);
        }
        Ok(())
    }

    async fn run(
        &mut self,
        writer: &mut Writer,
        output: &mut Output,
        mut generation: Generation,
    ) -> Result<ApiResult<Ended>, Gone> {
        loop {
            match generation.next().await {
                Ok(Some(step)) => {
                    let mut events = Vec::new();
                    if let Err(error) = self.take(step, output, &mut events).await {
                        return Ok(Err(error));
                    }
                    writer.send_all(events).await?;
                }
                Ok(None) => return Ok(generation.finish().await),
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// The response that has ended, kept if it is to be.
    fn complete(&mut self, output: &Output, ended: Option<&Ended>) -> Value {
        let response = self.response(status(ended), output, ended);
        if self.keep {
            let mut conversation = std::mem::take(&mut self.conversation);
            conversation.push(output.message());
            self.server.responses().insert(&self.id, Stored { response: response.clone(), conversation });
        }
        response
    }

    fn response(&self, status: &str, output: &Output, ended: Option<&Ended>) -> Value {
        let incomplete = (status == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
        let mut response = json!({
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "error": null,
            "incomplete_details": incomplete, "model": self.ticket.model_name(), "output": output.items(),
            "usage": null,
        });
        if let (Some(fields), Value::Object(echo)) = (response.as_object_mut(), self.echo.clone()) {
            fields.extend(echo);
        }
        if status != "in_progress" {
            let zero = inference_core::Metrics::default();
            let metrics = ended.map_or(&zero, |ended| &ended.metrics);
            response["usage"] = json!({
                "input_tokens": metrics.prompt_tokens,
                "input_tokens_details": {"cached_tokens": metrics.cached_tokens},
                "output_tokens": metrics.generated_tokens,
                "output_tokens_details": {"reasoning_tokens": ended.map_or(0, |ended| ended.reasoning_tokens)},
                "total_tokens": metrics.prompt_tokens + metrics.generated_tokens,
            });
        }
        response
    }
}

fn status(ended: Option<&Ended>) -> &'static str {
    match ended.map(|ended| &ended.end) {
        Some(End::Length) => "incomplete",
        _ => "completed",
    }
}

/// Numbers the events.
struct Writer {
    events: Events,
    number: u64,
}

impl Writer {
    async fn send(&mut self, (name, mut content): Event) -> Result<(), Gone> {
        content["type"] = json!(name);
        content["sequence_number"] = json!(self.number);
        self.number += 1;
        self.events.named(name, &content).await
    }

    async fn send_all(&mut self, events: Vec<Event>) -> Result<(), Gone> {
        for event in events {
            self.send(event).await?;
        }
        Ok(())
    }
}
