//! Texts and tokens: `/tokenize`, `/detokenize`, `/apply-template`.

use axum::{Json as Body, extract::State};
use inference_core::{Message, Prompt, TemplateOptions};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::{
    error::{ApiError, ApiResult},
    json::Json,
    openai::conversation,
    server::Server,
};

/// A request of `POST /tokenize`: a text or a conversation.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenizeRequest {
    /// The model's name; unset: the first one.
    model: Option<String>,
    /// A text.
    content: Option<String>,
    /// A conversation, in place of a text.
    #[schema(value_type = Option<Vec<Object>>)]
    messages: Option<Vec<Message>>,
    /// Given to the chat template.
    #[schema(value_type = Option<Vec<Object>>)]
    tools: Option<Vec<Value>>,
    /// Further variables of the chat template.
    #[schema(value_type = Option<Object>)]
    chat_template_kwargs: Option<Map<String, Value>>,
}

/// A request of `POST /detokenize`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DetokenizeRequest {
    /// The model's name; unset: the first one.
    model: Option<String>,
    tokens: Vec<u32>,
}

/// A request of `POST /apply-template`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TemplateRequest {
    /// The model's name; unset: the first one.
    model: Option<String>,
    #[schema(value_type = Vec<Object>)]
    messages: Vec<Message>,
    /// Given to the chat template.
    #[schema(value_type = Option<Vec<Object>>)]
    tools: Option<Vec<Value>>,
    /// Further variables of the chat template.
    #[schema(value_type = Option<Object>)]
    chat_template_kwargs: Option<Map<String, Value>>,
}

/// The token ids of a text or a conversation, as a generation would compute them.
#[utoipa::path(post, path = "/tokenize", tag = "Tokens", request_body = TokenizeRequest,
    responses((status = 200, description = "The ids, and how many they are", body = Object)))]
pub(crate) async fn tokenize(
    State(server): State<Server>,
    Json(request): Json<TokenizeRequest>,
) -> ApiResult<Body<Value>> {
    let (prompt, field) = match (request.content, request.messages) {
        (Some(text), None) => (Prompt::Text(text), "content"),
        (None, Some(messages)) => (Prompt::Chat(conversation(messages, "messages")?), "messages"),
        _ => return Err(ApiError::invalid("content", "expected either `content` or `messages`")),
    };
    let lease = server.models().lease(server.models().find(request.model.as_deref(), None)?).await?;
    let options = options(request.tools, request.chat_template_kwargs);
    let tokens = lease.model.tokenize(prompt, options).await;
    let tokens = tokens.map_err(|error| ApiError::of_request(&error, field))?;
    Ok(Body(json!({"count": tokens.len(), "tokens": tokens})))
}

/// The text of token ids, special tokens included.
#[utoipa::path(post, path = "/detokenize", tag = "Tokens", request_body = DetokenizeRequest,
    responses((status = 200, description = "The text", body = Object)))]
pub(crate) async fn detokenize(
    State(server): State<Server>,
    Json(request): Json<DetokenizeRequest>,
) -> ApiResult<Body<Value>> {
    let lease = server.models().lease(server.models().find(request.model.as_deref(), None)?).await?;
    let content = lease.model.decode(request.tokens).await;
    let content = content.map_err(|error| ApiError::of_request(&error, "tokens"))?;
    Ok(Body(json!({ "content": content })))
}

/// The text that the model's chat template makes of a conversation.
#[utoipa::path(post, path = "/apply-template", tag = "Tokens", request_body = TemplateRequest,
    responses((status = 200, description = "The text", body = Object)))]
pub(crate) async fn apply_template(
    State(server): State<Server>,
    Json(request): Json<TemplateRequest>,
) -> ApiResult<Body<Value>> {
    let messages = conversation(request.messages, "messages")?;
    let lease = server.models().lease(server.models().find(request.model.as_deref(), None)?).await?;
    let options = options(request.tools, request.chat_template_kwargs);
    let text =
        async { lease.model.decode(lease.model.tokenize(Prompt::Chat(messages), options).await?).await };
    let prompt = text.await.map_err(|error| ApiError::of_request(&error, "messages"))?;
    Ok(Body(json!({ "prompt": prompt })))
}

fn options(tools: Option<Vec<Value>>, variables: Option<Map<String, Value>>) -> TemplateOptions {
    let options = TemplateOptions::new();
    let options = match tools {
        Some(tools) => options.tools(tools),
        None => options,
    };
    let variables = variables.into_iter().flatten();
    variables.fold(options, |options, (name, value)| options.variable(name, value))
}
