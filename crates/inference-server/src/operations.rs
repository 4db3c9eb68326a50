//! What those who run a server ask it: `/health`, `/metrics`.

use axum::{
    Json as Body,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::{metrics, server::Server};

/// Whether the server takes requests.
#[utoipa::path(get, path = "/health", tag = "Operations", responses(
    (status = 200, description = "It does", body = Object),
    (status = 503, description = "It is loading its models, or shutting down", body = Object)))]
pub(crate) async fn health(State(server): State<Server>) -> Response {
    let (status, word) = if server.is_draining() {
        (StatusCode::SERVICE_UNAVAILABLE, "shutting_down")
    } else if server.models().is_starting() {
        (StatusCode::SERVICE_UNAVAILABLE, "loading")
    } else {
        (StatusCode::OK, "ok")
    };
    (status, Body(json!({ "status": word }))).into_response()
}

/// Counters and histograms in OpenMetrics' text format, for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "Operations",
    responses((status = 200, description = "The metrics", body = String, content_type = "application/openmetrics-text")))]
pub(crate) async fn metrics(State(server): State<Server>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], server.metrics().encode(server.models()))
}
