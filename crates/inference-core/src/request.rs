//! Requests in spans and logs: a number for each, and what it cost.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tracing::{Span, field::Empty};

use crate::{Error, FinishReason, Metrics};

/// A number for the next request of this process, from 1: spans, logs and [`Finish`](crate::Finish) have it.
pub(crate) fn next_request() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The span of a generation: the fields of its [`Metrics`] are empty until they are recorded.
pub(crate) fn span(backend: &str, request: u64, session: bool) -> Span {
    tracing::info_span!(
        "generate",
        request,
        backend,
        session,
        prompt_tokens = Empty,
        cached_tokens = Empty,
        generated_tokens = Empty,
        queued_seconds = Empty,
        prefill_seconds = Empty,
        decode_seconds = Empty,
        time_to_first_token_seconds = Empty,
        inter_token_p50_seconds = Empty,
        inter_token_p99_seconds = Empty,
        peak_memory_bytes = Empty,
        active_memory_bytes = Empty,
        end = Empty,
    )
}

impl Metrics {
    /// Records them in the span in which the request was handed over, with how it ended, and says so there.
    pub(crate) fn record(&self, span: &Span, end: Result<&FinishReason, &Error>) {
        // Signed: OpenTelemetry has no other whole numbers, and would be told them as texts.
        let count = |name, count: usize| span.record(name, i64::try_from(count).unwrap_or(i64::MAX));
        count("prompt_tokens", self.prompt_tokens);
        count("cached_tokens", self.cached_tokens);
        count("generated_tokens", self.generated_tokens);
        let time = |name, time: Duration| span.record(name, time.as_secs_f64());
        time("queued_seconds", self.queued);
        time("prefill_seconds", self.prefill);
        time("decode_seconds", self.decode);
        if let Some(first) = self.time_to_first_token {
            time("time_to_first_token_seconds", first);
        }
        if let Some(inter_token) = self.inter_token {
            time("inter_token_p50_seconds", inter_token.p50);
            time("inter_token_p99_seconds", inter_token.p99);
        }
        span.record("peak_memory_bytes", self.peak_memory_bytes.cast_signed());
        span.record("active_memory_bytes", self.active_memory_bytes.cast_signed());
        match end {
            Ok(reason) => span.record("end", tracing::field::debug(reason)),
            Err(error) => span.record("end", error.kind()),
        };
        span.in_scope(|| tracing::debug!("request ended"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_requests_span_has_its_metrics() {
        #[derive(Clone, Default)]
        struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
        impl std::io::Write for Log {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let first = Some(Duration::from_millis(250));
            let metrics = Metrics { generated_tokens: 7, time_to_first_token: first, ..Metrics::default() };
            metrics.record(&span("cpu", 42, false), Ok(&FinishReason::Length));
        });
        let line = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        for field in [
            "request=42",
            "backend=\"cpu\"",
            "generated_tokens=7",
            "time_to_first_token_seconds=0.25",
            "end=Length",
        ] {
            assert!(line.contains(field), "{line}");
        }
    }
}
