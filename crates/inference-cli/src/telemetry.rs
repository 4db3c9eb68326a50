//! Traces for OpenTelemetry: spans go by OTLP over HTTP to the collector that the standard variables name.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing_subscriber::{EnvFilter, Layer, registry::LookupSpan};

/// The variables that name a collector; without either, nothing is sent.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
/// The longest that a collector is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends spans until it is dropped; then it sends what is left.
#[derive(Debug)]
#[must_use = "what was not sent is lost when it is dropped early"]
pub(crate) struct Telemetry(SdkTracerProvider);

impl Telemetry {
    /// Begins to send, if a collector is named.
    ///
    /// # Errors
    /// The variables make no sense.
    pub(crate) fn begin() -> anyhow::Result<Option<Self>> {
        if !ENDPOINTS.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty())) {
            return Ok(None);
        }
        let agent =
            ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).build();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_http_client(Client(Arc::new(agent.into())))
            .build()
            .context("traces cannot be sent: see OTEL_EXPORTER_OTLP_ENDPOINT")?;
        let resource = Resource::builder();
        let resource = match std::env::var_os("OTEL_SERVICE_NAME") {
            Some(_) => resource,
            None => resource.with_service_name("inference"),
        };
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        Ok(Some(Self(provider)))
    }

    /// What hands spans of the program's own crates over.
    pub(crate) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: tracing::Subscriber + for<'span> LookupSpan<'span>,
    {
        let filter = EnvFilter::new("off,inference=info,inference_core=info,inference_server=info");
        tracing_opentelemetry::layer().with_tracer(self.0.tracer("inference")).with_filter(filter)
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        // A collector that cannot be reached has been told of in the log.
        let _ = self.0.shutdown();
    }
}

/// Sends from the exporter's own thread, which may wait.
#[derive(Debug)]
struct Client(Arc<ureq::Agent>);

#[async_trait::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let answer = self.0.run(Request::from_parts(parts, body.to_vec()))?;
        let (parts, mut body) = answer.into_parts();
        Ok(Response::from_parts(parts, Bytes::from(body.read_to_vec()?)))
    }
}
