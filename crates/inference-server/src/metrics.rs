//! What Prometheus is told.

use std::{sync::Mutex, time::Duration};

use inference_core::Metrics;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        gauge::Gauge,
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};

use crate::models::Models;

/// The content type of [`ServerMetrics::encode`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfModel {
    model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRequest {
    path: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfDecodeSteps {
    model: String,
    computed_by: String,
}

/// Bounds of a histogram in seconds.
#[derive(Debug, Clone)]
struct Seconds(&'static [f64]);

const WAITS: Seconds = Seconds(&[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]);
const STEPS: Seconds = Seconds(&[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0]);
const WHOLE: Seconds = Seconds(&[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0]);

impl MetricConstructor<Histogram> for Seconds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

type Histograms = Family<OfModel, Histogram, Seconds>;

/// Counters and histograms of one server.
#[derive(Debug)]
pub(crate) struct ServerMetrics {
    registry: Mutex<Registry>,
    responses: Family<OfRequest, Counter>,
    prompt_tokens: Family<OfModel, Counter>,
    cached_tokens: Family<OfModel, Counter>,
    generated_tokens: Family<OfModel, Counter>,
    cancelled: Family<OfModel, Counter>,
    first_token: Histograms,
    inter_token: Histograms,
    queued: Histograms,
    generation: Histograms,
    running: Family<OfModel, Gauge>,
    waiting: Family<OfModel, Gauge>,
    loaded: Family<OfModel, Gauge>,
    memory: Family<OfModel, Gauge>,
    decode_steps: Family<OfDecodeSteps, Gauge>,
}

impl Default for ServerMetrics {
    fn default() -> Self {
        let histograms = |bounds: &Seconds| Histograms::new_with_constructor(bounds.clone());
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("inference")),
            responses: Family::default(),
            prompt_tokens: Family::default(),
            cached_tokens: Family::default(),
            generated_tokens: Family::default(),
            cancelled: Family::default(),
            first_token: histograms(&WAITS),
            inter_token: histograms(&STEPS),
            queued: histograms(&WAITS),
            generation: histograms(&WHOLE),
            running: Family::default(),
            waiting: Family::default(),
            loaded: Family::default(),
            memory: Family::default(),
            decode_steps: Family::default(),
        };
        metrics.register();
        metrics
    }
}

impl ServerMetrics {
    fn register(&self) {
        let mut registry = self.registry();
        let r = &mut *registry;
        r.register("http_responses", "Responses by path and status", self.responses.clone());
        r.register("prompt_tokens", "Tokens of prompts, cached ones included", self.prompt_tokens.clone());
        r.register("cached_tokens", "Tokens of prompts found in a cache", self.cached_tokens.clone());
        r.register("generated_tokens", "Tokens of answers", self.generated_tokens.clone());
        r.register("cancelled", "Generations whose client left or that were cut", self.cancelled.clone());
        let first = "From the request to the first token";
        r.register_with_unit("time_to_first_token", first, Unit::Seconds, self.first_token.clone());
        let inter = "Between successive tokens of one answer";
        r.register_with_unit("inter_token", inter, Unit::Seconds, self.inter_token.clone());
        r.register_with_unit("queue", "Waiting for a model", Unit::Seconds, self.queued.clone());
        let whole = "From the first work on a request to its end";
        r.register_with_unit("generation", whole, Unit::Seconds, self.generation.clone());
        r.register("running", "Answers that run", self.running.clone());
        r.register("waiting", "Requests that wait", self.waiting.clone());
        r.register("model_loaded", "Whether the model is loaded", self.loaded.clone());
        let steps = "What computes the decode steps of a loaded model";
        r.register("decode_steps", steps, self.decode_steps.clone());
        let memory = "The engine's memory in use, process-wide where its allocator is";
        r.register_with_unit("memory", memory, Unit::Bytes, self.memory.clone());
    }

    pub(crate) fn response(&self, path: &str, status: u16) {
        self.responses.get_or_create(&OfRequest { path: path.to_owned(), status }).inc();
    }

    pub(crate) fn waited(&self, model: &str, time: Duration) {
        self.queued.get_or_create(&of(model)).observe(time.as_secs_f64());
    }

    /// Where the times of one answer's tokens go.
    pub(crate) fn times(&self, model: &str) -> TokenTimes {
        let label = of(model);
        TokenTimes {
            first: self.first_token.get_or_create_owned(&label),
            between: self.inter_token.get_or_create_owned(&label),
        }
    }

    /// A generation has ended by itself.
    pub(crate) fn finished(&self, model: &str, metrics: &Metrics, time: Duration) {
        self.prompt_tokens.get_or_create(&of(model)).inc_by(metrics.prompt_tokens as u64);
        self.cached_tokens.get_or_create(&of(model)).inc_by(metrics.cached_tokens as u64);
        self.generated_tokens.get_or_create(&of(model)).inc_by(metrics.generated_tokens as u64);
        self.generation.get_or_create(&of(model)).observe(time.as_secs_f64());
    }

    /// A generation was cut after so many tokens.
    pub(crate) fn cancelled(&self, model: &str, tokens: usize) {
        self.cancelled.get_or_create(&of(model)).inc();
        self.generated_tokens.get_or_create(&of(model)).inc_by(tokens as u64);
    }

    /// All of it in OpenMetrics' text format.
    pub(crate) fn encode(&self, models: &Models) -> String {
        self.decode_steps.clear();
        for entry in models.entries() {
            let label = of(entry.name());
            let number = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
            self.running.get_or_create(&label).set(number(entry.queue.running()));
            self.waiting.get_or_create(&label).set(number(entry.queue.waiting()));
            let model = entry.loaded();
            self.loaded.get_or_create(&label).set(i64::from(model.is_some()));
            if let Some(how) = model.as_ref().and_then(|model| model.info().decode_steps.clone()) {
                let label = OfDecodeSteps { model: label.model.clone(), computed_by: how };
                self.decode_steps.get_or_create(&label).set(1);
            }
            let bytes = model.map_or(0, |model| model.stats().memory.active_bytes);
            self.memory.get_or_create(&label).set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry());
        text
    }

    fn registry(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The histograms of the times of tokens, for one model.
#[derive(Debug)]
pub(crate) struct TokenTimes {
    first: Histogram,
    between: Histogram,
}

impl TokenTimes {
    /// The first token came this long after the request.
    pub(crate) fn first(&self, time: Duration) {
        self.first.observe(time.as_secs_f64());
    }

    /// So many tokens came after this time.
    pub(crate) fn tokens(&self, tokens: usize, time: Duration) {
        let each = time.as_secs_f64() / tokens.max(1) as f64;
        (0..tokens).for_each(|_| self.between.observe(each));
    }
}

fn of(model: &str) -> OfModel {
    OfModel { model: model.to_owned() }
}
