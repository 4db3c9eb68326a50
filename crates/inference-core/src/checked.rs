//! The gate in front of every model: what the contract promises once, so that no backend has to.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use tracing::Instrument as _;

use crate::{
    Classification, ClassifyOptions, Error, Feature, GenerateOptions, ModelInfo, ModelStats, Prompt, Result,
    Session, TextModel, TokenStream,
    capabilities::Capabilities,
    metrics,
    registry::refuse_missing,
    train::{TrainOptions, TrainStream, Trainable, TrainingData},
};

/// A model behind the contract's checks: option values are validated, and options that the backend lacks are refused,
/// before any work. [`load_model`](crate::load_model) wraps every model in one.
#[derive(Debug)]
pub struct CheckedModel {
    inner: Arc<dyn TextModel>,
    gate: Gate,
}

impl CheckedModel {
    /// Puts a model behind the checks for these capabilities.
    pub fn new(inner: Arc<dyn TextModel>, capabilities: Capabilities) -> Self {
        let gate = Gate { backend: inner.info().backend.clone(), capabilities, closed: Arc::default() };
        Self { inner, gate }
    }
}

/// What is checked before a call reaches a backend. Sessions share their model's.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    backend: String,
    capabilities: Capabilities,
    closed: Arc<AtomicBool>,
}

impl Gate {
    /// Refuses a call of a closed model, one that needs a feature that the backend lacks, and a prompt of nothing.
    fn check(
        &self,
        entry: Feature,
        prompts: &[Prompt],
        options: impl Iterator<Item = Feature>,
    ) -> Result<()> {
        self.check_features(entry, prompts, options)?;
        for prompt in prompts {
            let nothing = match prompt {
                Prompt::Text(_) => false, // a BOS token may make it a prompt
                Prompt::Tokens(tokens) => tokens.is_empty(),
                Prompt::Chat(messages) => messages.is_empty(),
            };
            if nothing {
                return Err(Error::InvalidPrompt { reason: "it is empty".to_owned() });
            }
        }
        Ok(())
    }

    pub(crate) fn backend(&self) -> &str {
        &self.backend
    }

    /// As `check`, where a prompt of nothing goes on from a text that is there already.
    pub(crate) fn check_features(
        &self,
        entry: Feature,
        prompts: &[Prompt],
        options: impl Iterator<Item = Feature>,
    ) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        let chat = prompts.iter().any(|prompt| matches!(prompt, Prompt::Chat(_))).then_some(Feature::Chat);
        let required = std::iter::once(entry).chain(chat).chain(options);
        refuse_missing(&self.backend, self.capabilities, required)
    }
}

#[async_trait]
impl TextModel for CheckedModel {
    fn info(&self) -> &ModelInfo {
        self.inner.info()
    }

    async fn generate(&self, prompt: Prompt, options: GenerateOptions) -> Result<TokenStream> {
        options.validate()?;
        self.gate.check(Feature::Generate, std::slice::from_ref(&prompt), options.required_features())?;
        let span = metrics::span(&self.info().backend, false);
        self.inner.generate(prompt, options).instrument(span).await
    }

    async fn classify(&self, prompts: Vec<Prompt>, options: ClassifyOptions) -> Result<Vec<Classification>> {
        options.validate()?;
        self.gate.check(Feature::Classify, &prompts, options.required_features())?;
        if prompts.is_empty() {
            return Ok(Vec::new());
        }
        let span = tracing::info_span!("classify", backend = self.info().backend, prompts = prompts.len());
        self.inner.classify(prompts, options).instrument(span).await
    }

    async fn session(&self) -> Result<Session> {
        self.gate.check(Feature::Session, &[], std::iter::empty())?;
        Ok(self.inner.session().await?.behind(self.gate.clone()))
    }

    async fn load_session(&self, path: &Path) -> Result<Session> {
        self.gate.check(Feature::Session, &[], std::iter::empty())?;
        let span = tracing::info_span!("load_session", backend = self.info().backend, path = %path.display());
        Ok(self.inner.load_session(path).instrument(span).await?.behind(self.gate.clone()))
    }

    fn trainable(&self) -> Option<&dyn Trainable> {
        let can = self.gate.capabilities.has(Feature::Train) && self.inner.trainable().is_some();
        can.then_some(self)
    }

    fn stats(&self) -> ModelStats {
        self.inner.stats()
    }

    async fn close(&self) -> Result<()> {
        self.gate.closed.store(true, Ordering::Release);
        self.inner.close().await
    }
}

#[async_trait]
impl Trainable for CheckedModel {
    async fn train(&self, data: TrainingData, options: TrainOptions) -> Result<TrainStream> {
        options.validate()?;
        self.gate.check(Feature::Train, &[], std::iter::empty())?;
        if data.train.is_empty() {
            let reason = "no examples to learn from".to_owned();
            return Err(Error::InvalidOption { option: "data", reason });
        }
        let refuse = || Error::Unsupported { backend: self.info().backend.clone(), feature: Feature::Train };
        let span =
            tracing::info_span!("train", backend = self.info().backend, method = options.method.name());
        self.inner.trainable().ok_or_else(refuse)?.train(data, options).instrument(span).await
    }
}
