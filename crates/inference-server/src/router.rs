//! Which path leads where, and what happens to every request.

use std::time::Instant;

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowOrigin, Any, CorsLayer},
    timeout::RequestBodyTimeoutLayer,
};
use tracing::Instrument as _;

use crate::{
    access, anthropic, embeddings,
    error::{ApiError, Dialect},
    generation::new_id,
    openai, openapi, operations, page, responses,
    server::Server,
    settings::Settings,
    tokens, trace,
};

/// The server's APIs as a router, for a program's own: `Router::new().nest("/llm", inference_server::router(server))`.
///
/// Dropping a response that streams, as axum does when the client leaves, cancels its work.
pub fn router(server: Server) -> Router {
    let keyed = Router::new()
        .route("/v1/models", get(openai::models::list))
        .route("/v1/models/{*name}", get(openai::models::get))
        .route("/v1/chat/completions", post(openai::chat::chat))
        .route("/v1/completions", post(openai::completions::complete))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/rerank", post(embeddings::rerank))
        .route("/embed", post(embeddings::tei_embed))
        .route("/rerank", post(embeddings::tei_rerank))
        .route("/v1/responses", post(responses::create))
        .route("/v1/responses/{id}", get(responses::get).delete(responses::delete))
        .route("/v1/messages", post(anthropic::create))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/apply-template", post(tokens::apply_template))
        .route("/metrics", get(operations::metrics))
        .layer(middleware::from_fn_with_state(server.clone(), access::require_key));
    let open =
        Router::new().route("/health", get(operations::health)).route("/openapi.json", get(openapi::openapi));
    let open = if server.settings().page { open.merge(page::routes()) } else { open };
    let limit = server.settings().body_limit;
    let router = keyed
        .merge(open)
        .fallback(|| async { ApiError::not_found("there is nothing at this path; see /openapi.json") })
        .layer(DefaultBodyLimit::max(limit))
        .layer(RequestBodyTimeoutLayer::new(server.settings().body_timeout))
        .layer(CatchPanicLayer::new())
        .layer(middleware::from_fn_with_state(server.clone(), access::require_host))
        .layer(middleware::from_fn_with_state(server.clone(), finish));
    let router = match cors(server.settings()) {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router.with_state(server)
}

fn cors(settings: &Settings) -> Option<CorsLayer> {
    let origins = &settings.cors_origins;
    if origins.is_empty() {
        return None;
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::from(Any)
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    Some(CorsLayer::new().allow_origin(allowed).allow_methods(Any).allow_headers(Any))
}

/// Numbers the request, counts it, and writes errors in the shape of its API.
async fn finish(State(server): State<Server>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let dialect = Dialect::of(request.uri().path());
    let matched = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let path = matched.unwrap_or_else(|| "other".to_owned());
    let id = new_id("req_");
    let span = trace::span(&request, &path, &id);
    let response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    span.record("http.response.status_code", i64::from(status));
    server.metrics().response(&path, status);
    let milliseconds = began.elapsed().as_millis();
    tracing::debug!(request = id, path, status, milliseconds, "answered");
    let mut response = with_body(response, dialect, &id);
    if let Ok(id) = HeaderValue::from_str(&id) {
        for name in ["x-request-id", "request-id"] {
            response.headers_mut().insert(HeaderName::from_static(name), id.clone());
        }
    }
    response
}

/// The response; one that failed, with the body that its API gives it.
fn with_body(mut response: Response, dialect: Dialect, id: &str) -> Response {
    let status = response.status();
    let error = match response.extensions_mut().remove::<ApiError>() {
        Some(error) => error,
        None if is_bare(&response) => ApiError::new(status, code(status), message(status)),
        None => return response,
    };
    if status.is_server_error() {
        tracing::error!(request = id, code = error.code, "{}", error.message);
    }
    let body = axum::Json(dialect.body(&error)).into_response();
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.map(|_| body.into_body()).map(Body::new)
}

/// Whether axum or a layer failed the request, in a shape of its own.
fn is_bare(response: &Response) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE);
    let json = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    (response.status().is_client_error() || response.status().is_server_error()) && !json
}

fn code(status: StatusCode) -> &'static str {
    match status {
        StatusCode::METHOD_NOT_ALLOWED => "method_not_allowed",
        StatusCode::PAYLOAD_TOO_LARGE => "too_large",
        status if status.is_client_error() => "invalid_request",
        _ => "internal",
    }
}

fn message(status: StatusCode) -> String {
    let reason = status.canonical_reason().unwrap_or("failed").to_lowercase();
    match status {
        StatusCode::METHOD_NOT_ALLOWED => format!("{reason} at this path; see /openapi.json"),
        StatusCode::INTERNAL_SERVER_ERROR => {
            "the server failed at its own work; its log says more".to_owned()
        }
        _ => reason,
    }
}
