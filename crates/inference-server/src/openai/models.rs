//! `GET /v1/models`. Its objects have the fields of OpenAI's API and of Anthropic's, which share the path.

use axum::{
    Json as Body,
    extract::{Path, State},
};
use serde_json::{Value, json};

use crate::{error::ApiResult, models::Entry, server::Server};

/// The models that requests can name.
#[utoipa::path(get, path = "/v1/models", tag = "Models",
    responses((status = 200, description = "A list of models", body = Object)))]
pub(crate) async fn list(State(server): State<Server>) -> Body<Value> {
    let models: Vec<Value> = server.models().entries().iter().map(|entry| describe(entry)).collect();
    let id = |model: Option<&Value>| model.map_or(Value::Null, |model| model["id"].clone());
    let (first, last) = (id(models.first()), id(models.last()));
    Body(json!({"object": "list", "data": models, "has_more": false, "first_id": first, "last_id": last}))
}

/// One model, by its name or an alias.
#[utoipa::path(get, path = "/v1/models/{name}", tag = "Models", params(("name" = String, Path, description = "The name")),
    responses((status = 200, description = "A model", body = Object), (status = 404, description = "There is none")))]
pub(crate) async fn get(State(server): State<Server>, Path(name): Path<String>) -> ApiResult<Body<Value>> {
    Ok(Body(describe(server.models().find(Some(&name), None)?)))
}

fn describe(entry: &Entry) -> Value {
    let loaded = entry.loaded();
    let info = loaded.as_ref().map(|model| {
        let info = model.info();
        json!({
            "backend": info.backend, "architecture": info.architecture, "context_length": info.context_length,
            "vocab_size": info.vocab_size, "parameters": info.parameters, "weight_bytes": info.weight_bytes,
            "decode_steps": info.decode_steps,
        })
    });
    json!({
        "id": entry.name(), "object": "model", "created": 0, "owned_by": "inference",
        "type": "model", "display_name": entry.name(), "created_at": "1970-01-01T00:00:00Z",
        "aliases": entry.aliases(), "loaded": loaded.is_some(), "error": entry.failure(), "meta": info,
    })
}
