//! Embeddings and reranking: OpenAI's `/v1/embeddings`, Jina's and Cohere's `/v1/rerank`, and `/embed` and `/rerank` of text embeddings
//! inference (TEI).

use axum::{Json as Body, extract::State};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use inference_core::{EmbedOptions, Embedding, Prompt, Relevance, RerankOptions};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::{
    error::{ApiError, ApiResult},
    generation::{Ticket, new_id},
    json::Json,
    openai::completions::Prompts,
    server::Server,
};

/// A request of `POST /v1/embeddings`. Fields that are not listed are refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EmbeddingRequest {
    /// The model's name; unset: the first one.
    model: Option<String>,
    input: Prompts,
    /// Whether vectors are lists of numbers, or the bytes of little-endian floats.
    encoding_format: Option<EncodingFormat>,
    /// Keeps so many elements of each vector.
    #[schema(minimum = 1)]
    dimensions: Option<usize>,
    /// The name of a prefix of the model's folder that is put before each text: `query`, say.
    prompt_name: Option<String>,
    /// Whether texts that are too long are cut.
    truncate: Option<bool>,
    /// Has no effect here.
    #[allow(dead_code, reason = "read from requests to be known")]
    user: Option<Value>,
}

/// How vectors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EncodingFormat {
    Float,
    Base64,
}

/// A request of `POST /v1/rerank`. Fields that are not listed are refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RerankRequest {
    /// The model's name; unset: the first one.
    model: Option<String>,
    query: String,
    documents: Vec<Document>,
    /// Returns the most relevant ones alone.
    #[schema(minimum = 1)]
    top_n: Option<usize>,
    /// Whether the answer repeats the documents.
    return_documents: Option<bool>,
    /// What makes a document relevant, for models that read it.
    instruction: Option<String>,
    /// Whether documents that are too long are cut.
    truncate: Option<bool>,
}

/// A document: its text, alone or in an object.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string, or an object with `text`")]
pub(crate) enum Document {
    /// The text.
    Text(String),
    /// The text in an object.
    Object {
        /// The text.
        text: String,
    },
}

/// A request of TEI's `POST /embed`. Fields that are not listed are refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TeiEmbedRequest {
    inputs: Prompts,
    /// Whether vectors have the length 1; unset: yes.
    normalize: Option<bool>,
    /// Whether texts that are too long are cut.
    truncate: Option<bool>,
    /// Only `right`: the end of a text is cut.
    truncation_direction: Option<String>,
    /// The name of a prefix of the model's folder that is put before each text.
    prompt_name: Option<String>,
    /// Keeps so many elements of each vector.
    #[schema(minimum = 1)]
    dimensions: Option<usize>,
}

/// A request of TEI's `POST /rerank`. Fields that are not listed are refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TeiRerankRequest {
    query: String,
    texts: Vec<String>,
    /// Whether scores are logits.
    raw_scores: Option<bool>,
    /// Whether the answer repeats the texts.
    return_text: Option<bool>,
    /// Whether texts that are too long are cut.
    truncate: Option<bool>,
    /// Only `right`: the end of a text is cut.
    truncation_direction: Option<String>,
}

impl Document {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Object { text } => text,
        }
    }
}

/// The vectors of texts.
#[utoipa::path(post, path = "/v1/embeddings", tag = "OpenAI", request_body = EmbeddingRequest,
    responses((status = 200, description = "A vector for each text", body = Object)))]
pub(crate) async fn embeddings(
    State(server): State<Server>,
    Json(request): Json<EmbeddingRequest>,
) -> ApiResult<Body<Value>> {
    let mut options = EmbedOptions::new().truncate(request.truncate.unwrap_or(false));
    (options.dimensions, options.prefix_name) = (request.dimensions, request.prompt_name);
    let format = request.encoding_format.unwrap_or(EncodingFormat::Float);
    let prompts = request.input.into_vec();
    let (embeddings, model) = embed(&server, request.model.as_deref(), prompts, options, "input").await?;
    let tokens: usize = embeddings.iter().map(|embedding| embedding.prompt_tokens).sum();
    let data = embeddings.iter().enumerate().map(|(index, embedding)| {
        json!({"object": "embedding", "index": index, "embedding": written(embedding, format)})
    });
    let data: Vec<Value> = data.collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    Ok(Body(json!({"object": "list", "data": data, "model": model, "usage": usage})))
}

/// How relevant documents are to a query, the most relevant first.
#[utoipa::path(post, path = "/v1/rerank", tag = "Reranking", request_body = RerankRequest,
    responses((status = 200, description = "A score for each document", body = Object)))]
pub(crate) async fn rerank(
    State(server): State<Server>,
    Json(request): Json<RerankRequest>,
) -> ApiResult<Body<Value>> {
    if request.top_n == Some(0) {
        return Err(ApiError::invalid("top_n", "0, expected at least 1"));
    }
    let mut options = RerankOptions::new().truncate(request.truncate.unwrap_or(false));
    options.instruction = request.instruction;
    let documents: Vec<String> = request.documents.into_iter().map(Document::into_text).collect();
    let texts = request.return_documents.unwrap_or(false).then(|| documents.clone());
    let model = request.model.as_deref();
    let (scores, model) = score(&server, model, request.query, documents, options, "documents").await?;
    let tokens: usize = scores.iter().map(|score| score.prompt_tokens).sum();
    let results = ranked(&scores).into_iter().take(request.top_n.unwrap_or(usize::MAX)).map(|index| {
        let mut result = json!({"index": index, "relevance_score": scores[index].score});
        if let Some(texts) = &texts {
            result["document"] = json!({"text": texts[index]});
        }
        result
    });
    let results: Vec<Value> = results.collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    Ok(Body(json!({"id": new_id("rerank-"), "model": model, "results": results, "usage": usage})))
}

/// The vectors of texts, as TEI gives them.
#[utoipa::path(post, path = "/embed", tag = "TEI", request_body = TeiEmbedRequest,
    responses((status = 200, description = "A list of numbers for each text", body = Object)))]
pub(crate) async fn tei_embed(
    State(server): State<Server>,
    Json(request): Json<TeiEmbedRequest>,
) -> ApiResult<Body<Value>> {
    only_right(request.truncation_direction.as_deref())?;
    let options = EmbedOptions::new().normalize(request.normalize.unwrap_or(true));
    let mut options = options.truncate(request.truncate.unwrap_or(false));
    (options.dimensions, options.prefix_name) = (request.dimensions, request.prompt_name);
    let (embeddings, _) = embed(&server, None, request.inputs.into_vec(), options, "inputs").await?;
    let vectors: Vec<Vec<f32>> = embeddings.iter().map(Embedding::to_floats).collect();
    Ok(Body(json!(vectors)))
}

/// How relevant texts are to a query, as TEI gives it: the most relevant first.
#[utoipa::path(post, path = "/rerank", tag = "TEI", request_body = TeiRerankRequest,
    responses((status = 200, description = "A score for each text", body = Object)))]
pub(crate) async fn tei_rerank(
    State(server): State<Server>,
    Json(request): Json<TeiRerankRequest>,
) -> ApiResult<Body<Value>> {
    only_right(request.truncation_direction.as_deref())?;
    let options = RerankOptions::new().raw(request.raw_scores.unwrap_or(false));
    let options = options.truncate(request.truncate.unwrap_or(false));
    let texts = request.return_text.unwrap_or(false).then(|| request.texts.clone());
    let (scores, _) = score(&server, None, request.query, request.texts, options, "texts").await?;
    let results = ranked(&scores).into_iter().map(|index| {
        let mut result = json!({"index": index, "score": scores[index].score});
        if let Some(texts) = &texts {
            result["text"] = json!(texts[index]);
        }
        result
    });
    Ok(Body(results.collect()))
}

/// The vectors, and the model's name.
async fn embed(
    server: &Server,
    model: Option<&str>,
    prompts: Vec<Prompt>,
    options: EmbedOptions,
    field: &str,
) -> ApiResult<(Vec<Embedding>, String)> {
    if prompts.is_empty() {
        return Err(ApiError::invalid(field, "it is empty, expected at least one text"));
    }
    let entry = server.models().find(model, None)?.clone();
    let ticket = Ticket::take(server, &entry, 1).await?;
    let options = options.cancel(server.cancellation().child_token());
    let embeddings = ticket.call(ticket.model().embed(prompts, options), field).await?;
    Ok((embeddings, ticket.model_name().to_owned()))
}

/// The scores, and the model's name.
async fn score(
    server: &Server,
    model: Option<&str>,
    query: String,
    documents: Vec<String>,
    options: RerankOptions,
    field: &str,
) -> ApiResult<(Vec<Relevance>, String)> {
    if documents.is_empty() {
        return Err(ApiError::invalid(field, "it is empty, expected at least one text"));
    }
    let entry = server.models().find(model, None)?.clone();
    let ticket = Ticket::take(server, &entry, 1).await?;
    let options = options.cancel(server.cancellation().child_token());
    let scores = ticket.call(ticket.model().rerank(query, documents, options), field).await?;
    Ok((scores, ticket.model_name().to_owned()))
}

/// The indices of the scores, the highest first; of equals the first.
fn ranked(scores: &[Relevance]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].score.total_cmp(&scores[*a].score));
    order
}

fn written(embedding: &Embedding, format: EncodingFormat) -> Value {
    let floats = embedding.to_floats();
    match format {
        EncodingFormat::Float => json!(floats),
        EncodingFormat::Base64 => {
            let bytes: Vec<u8> = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
            json!(STANDARD.encode(bytes))
        }
    }
}

fn only_right(direction: Option<&str>) -> ApiResult<()> {
    match direction {
        None => Ok(()),
        Some(direction) if direction.eq_ignore_ascii_case("right") => Ok(()),
        Some(_) => {
            Err(ApiError::unsupported("truncation_direction", "expected \"right\": the end of a text is cut"))
        }
    }
}
