//! An engine for `inference` that lives in a repository of its own.
//!
//! Its model is a table: how often each character follows each other in a text. Small as that is, the table gives real
//! logits, so everything that stands on logits works: greedy and drawn text, biases, log-probabilities, classification. What
//! it does not offer (chat, top-p, …) it does not claim, and the core refuses it for us.
//!
//! - [`table`]: reading a model's folder, and making one by counting.
//! - `model`: one thread for each request.
//! - `sampling`: which character comes next.
#![forbid(unsafe_code)]

mod model;
mod sampling;
pub mod table;

use std::sync::Arc;

use async_trait::async_trait;
use inference_core::{
    Error, Feature, LoadOptions, ModelManifest, Result, TextModel,
    backend::{
        Availability, Backend, BackendDescriptor, BackendInfo, Capabilities, Support, register_backend,
    },
};

use crate::{model::Model, table::Table};

/// The backend, and the `model_type` that it runs.
const ID: &str = "abacus";

// ANCHOR: register
/// How programs learn of this backend: an id, a priority, whether it runs here, and how to open it.
pub const DESCRIPTOR: BackendDescriptor = BackendDescriptor::new(
    ID,
    5,
    || Availability::Available("beads on rods".to_owned()),
    || Ok(Arc::new(Abacus(BackendInfo::new(ID, env!("CARGO_PKG_VERSION"), "beads on rods")))),
);

register_backend!(DESCRIPTOR);
// ANCHOR_END: register

/// The backend. Opening it is free; the work begins with a load.
#[derive(Debug)]
pub struct Abacus(BackendInfo);

// ANCHOR: backend
#[async_trait]
impl Backend for Abacus {
    fn info(&self) -> &BackendInfo {
        &self.0
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::from_features(&[
            Feature::Generate,
            Feature::Classify,
            Feature::Logits,
            Feature::LogProbabilities,
            Feature::Sampling,
            Feature::Seed,
            Feature::LogitBias,
            Feature::Stop,
            Feature::ContextLength,
        ])
    }

    fn supports(&self, model: &ModelManifest) -> Support {
        match model.model_type() {
            ID => Support::Yes,
            other => Support::No(format!("model_type is {other:?}, expected {ID:?}")),
        }
    }

    async fn load(&self, model: ModelManifest, options: LoadOptions) -> Result<Arc<dyn TextModel>> {
        let table = Table::read(&model)?;
        if options.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        Ok(Arc::new(Model::new(&model, table, &options)?))
    }
}
// ANCHOR_END: backend
