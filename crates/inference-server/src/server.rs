//! What all requests of one server share.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use inference_core::CancellationToken;

use crate::{metrics::ServerMetrics, models::Models, responses::ResponseStore, settings::Settings};

/// The models, settings and counters of one server. A clone shares them.
#[derive(Debug, Clone)]
pub struct Server(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    models: Models,
    settings: Settings,
    metrics: ServerMetrics,
    responses: ResponseStore,
    draining: AtomicBool,
    cancel: CancellationToken,
}

impl Server {
    /// A server of these models.
    #[must_use]
    pub fn new(models: Models, settings: Settings) -> Self {
        Self(Arc::new(Inner {
            models,
            metrics: ServerMetrics::default(),
            responses: ResponseStore::new(settings.stored_response_bytes),
            settings,
            draining: AtomicBool::new(false),
            cancel: CancellationToken::new(),
        }))
    }

    /// Its models.
    #[must_use]
    pub fn models(&self) -> &Models {
        &self.0.models
    }

    /// From now on new work is refused; what runs goes on.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Release);
    }

    /// Ends all work as soon as the engines can, within one step each, and refuses new work.
    pub fn cancel(&self) {
        self.drain();
        self.0.cancel.cancel();
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    pub(crate) fn metrics(&self) -> &ServerMetrics {
        &self.0.metrics
    }

    pub(crate) fn responses(&self) -> &ResponseStore {
        &self.0.responses
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }

    /// What cancels all work.
    pub(crate) fn cancellation(&self) -> &CancellationToken {
        &self.0.cancel
    }
}
