//! The gate in front of every model: what the contract promises once, so that no backend has to.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use tracing::Instrument as _;

use crate::{
    Capabilities, Classification, ClassifyOptions, Error, Feature, GenerateOptions, ModelInfo, ModelStats,
    Prompt, Result, TextModel, TokenStream, Trainable, registry::refuse_missing,
};

/// A model behind the contract's checks: option values are validated, and options that the backend lacks are refused,
/// before any work. [`load_model`](crate::load_model) wraps every model in one.
#[derive(Debug)]
pub struct CheckedModel {
    inner: Arc<dyn TextModel>,
    capabilities: Capabilities,
    closed: AtomicBool,
}

impl CheckedModel {
    /// Puts a model behind the checks for these capabilities.
    pub fn new(inner: Arc<dyn TextModel>, capabilities: Capabilities) -> Self {
        Self { inner, capabilities, closed: AtomicBool::new(false) }
    }

    fn check(
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
        refuse_missing(&self.info().backend, self.capabilities, required)?;
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
}

#[async_trait]
impl TextModel for CheckedModel {
    fn info(&self) -> &ModelInfo {
        self.inner.info()
    }

    async fn generate(&self, prompt: Prompt, options: GenerateOptions) -> Result<TokenStream> {
        options.validate()?;
        self.check(Feature::Generate, std::slice::from_ref(&prompt), options.required_features())?;
        let span = tracing::info_span!("generate", backend = self.info().backend);
        self.inner.generate(prompt, options).instrument(span).await
    }

    async fn classify(&self, prompts: Vec<Prompt>, options: ClassifyOptions) -> Result<Vec<Classification>> {
        options.validate()?;
        self.check(Feature::Classify, &prompts, options.required_features())?;
        if prompts.is_empty() {
            return Ok(Vec::new());
        }
        let span = tracing::info_span!("classify", backend = self.info().backend, prompts = prompts.len());
        self.inner.classify(prompts, options).instrument(span).await
    }

    fn trainable(&self) -> Option<&dyn Trainable> {
        if self.capabilities.has(Feature::Train) { self.inner.trainable() } else { None }
    }

    fn stats(&self) -> ModelStats {
        self.inner.stats()
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        self.inner.close().await
    }
}
