//! A request as a span, with the names that OpenTelemetry has for its fields.

use axum::extract::Request;
use tracing::{Span, field::Empty};

/// The span of a request. It ends with the answer, a streamed one's last event included.
pub(crate) fn span(request: &Request, route: &str, id: &str) -> Span {
    let method = request.method().as_str();
    let span = tracing::info_span!(
        "request",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        http.request.method = method,
        http.route = route,
        http.response.status_code = Empty,
        request = id,
    );
    #[cfg(feature = "otel")]
    follow(&span, request);
    span
}

/// Makes the span a part of its client's trace, if the client says which that is.
#[cfg(feature = "otel")]
fn follow(span: &Span, request: &Request) {
    use tracing_opentelemetry::OpenTelemetrySpanExt as _;
    let headers = Headers(request.headers());
    let parent = opentelemetry::global::get_text_map_propagator(|propagator| propagator.extract(&headers));
    // There is no trace to be part of where the program does not send any.
    let _ = span.set_parent(parent);
}

#[cfg(feature = "otel")]
struct Headers<'a>(&'a axum::http::HeaderMap);

#[cfg(feature = "otel")]
impl opentelemetry::propagation::Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(axum::http::HeaderName::as_str).collect()
    }
}
