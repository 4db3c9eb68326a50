//! The checks in front of every model: what the contract promises once, so that no backend has to.

use std::{
    any::TypeId,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use tracing::Instrument as _;

use crate::{
    Classification, ClassifyOptions, EmbedOptions, Embedding, Error, Feature, GenerateOptions, ModelInfo,
    ModelStats, Prompt, Relevance, RerankOptions, Result, Session, TemplateOptions, TextModel, TokenStream,
    capabilities::Capabilities,
    engine::Backend,
    manifest::GenerationConfig,
    printable::Printable,
    request,
    session::TurnGate,
    train::{TrainOptions, TrainStream, Trainable, TrainingData},
};

/// A model behind the contract's checks. [`load_model`](crate::load_model) wraps every model in one.
///
/// Before any work it refuses option values that make no sense, options that the backend lacks, and ids outside the
/// vocabulary. It applies generation_config.json, numbers the requests, and lets each stream keep its model loaded.
#[derive(Debug)]
pub struct CheckedModel(Arc<Gate>);

impl CheckedModel {
    /// Puts a model of this backend behind the checks.
    pub fn new(model: Arc<dyn TextModel>, backend: &dyn Backend) -> Self {
        Self::with_generation_config(model, backend, GenerationConfig::default())
    }

    /// The same, with sampling values for requests that leave them unset.
    pub fn with_generation_config(
        model: Arc<dyn TextModel>,
        backend: &dyn Backend,
        generation: GenerationConfig,
    ) -> Self {
        Self(Arc::new(Gate {
            model,
            capabilities: backend.capabilities(),
            extensions: backend.extensions(),
            generation,
            closed: AtomicBool::new(false),
        }))
    }
}

/// What is checked before a call reaches a backend. Sessions share their model's.
#[derive(Debug)]
struct Gate {
    model: Arc<dyn TextModel>,
    capabilities: Capabilities,
    extensions: &'static [TypeId],
    generation: GenerationConfig,
    closed: AtomicBool,
}

impl Gate {
    fn backend(&self) -> &str {
        &self.model.info().backend
    }

    /// Refuses a call of a closed model, and one that needs a feature that the backend lacks.
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
        refuse_missing(self.backend(), self.capabilities, required)
    }

    /// Checks the options of a generation and applies the model's own sampling values; the features among these that the
    /// backend lacks.
    fn prepare(&self, prompt: &Prompt, options: &mut GenerateOptions) -> Result<Vec<Feature>> {
        options.validate()?;
        self.check(Feature::Generate, std::slice::from_ref(prompt), options.required_features())?;
        options.extensions.check(self.backend(), self.extensions)?;
        let info = self.model.info();
        let biased = options.sampling.logit_bias.iter().flat_map(|biases| biases.iter().map(|(id, _)| *id));
        check_ids("logit_bias", biased, info)?;
        let stops = options.stop_tokens.iter().flat_map(|ids| ids.iter().copied());
        check_ids("stop_tokens", stops, info)?;
        Ok(self.generation.apply(options, self.capabilities, info.context_length))
    }

    fn attach(
        self: &Arc<Self>,
        stream: TokenStream,
        request: u64,
        without_effect: Vec<Feature>,
    ) -> TokenStream {
        stream.with_request(request).with_options_without_effect(without_effect).keeping(Arc::clone(self))
    }
}

#[async_trait]
impl TextModel for CheckedModel {
    fn info(&self) -> &ModelInfo {
        self.0.model.info()
    }

    async fn generate(&self, prompt: Prompt, mut options: GenerateOptions) -> Result<TokenStream> {
        let without_effect = self.0.prepare(&prompt, &mut options)?;
        refuse_empty(std::slice::from_ref(&prompt))?;
        let request = request::next_request();
        let span = request::span(self.0.backend(), request, false);
        let called = self.0.model.generate(prompt, options).instrument(span).await;
        let stream = TokenStream::from_call(called, self.0.backend())?;
        Ok(self.0.attach(stream, request, without_effect))
    }

    async fn classify(&self, prompts: Vec<Prompt>, options: ClassifyOptions) -> Result<Vec<Classification>> {
        options.validate()?;
        self.0.check(Feature::Classify, &prompts, options.required_features())?;
        options.extensions.check(self.0.backend(), self.0.extensions)?;
        refuse_empty(&prompts)?;
        if prompts.is_empty() {
            return Ok(Vec::new());
        }
        let request = request::next_request();
        let span =
            tracing::info_span!("classify", request, backend = self.0.backend(), prompts = prompts.len());
        self.0.model.classify(prompts, options).instrument(span).await
    }

    async fn embed(&self, prompts: Vec<Prompt>, options: EmbedOptions) -> Result<Vec<Embedding>> {
        options.validate()?;
        self.0.check(Feature::Embed, &prompts, std::iter::empty())?;
        options.extensions.check(self.0.backend(), self.0.extensions)?;
        refuse_empty(&prompts)?;
        if prompts.is_empty() {
            return Ok(Vec::new());
        }
        let request = request::next_request();
        let span = tracing::info_span!("embed", request, backend = self.0.backend(), texts = prompts.len());
        self.0.model.embed(prompts, options).instrument(span).await
    }

    async fn rerank(
        &self,
        query: String,
        documents: Vec<String>,
        options: RerankOptions,
    ) -> Result<Vec<Relevance>> {
        self.0.check(Feature::Rerank, &[], std::iter::empty())?;
        options.extensions.check(self.0.backend(), self.0.extensions)?;
        if documents.is_empty() {
            return Ok(Vec::new());
        }
        let request = request::next_request();
        let span =
            tracing::info_span!("rerank", request, backend = self.0.backend(), documents = documents.len());
        self.0.model.rerank(query, documents, options).instrument(span).await
    }

    async fn tokenize(&self, prompt: Prompt, options: TemplateOptions) -> Result<Vec<u32>> {
        self.0.check(Feature::Tokenize, std::slice::from_ref(&prompt), options.required_features())?;
        self.0.model.tokenize(prompt, options).await
    }

    async fn decode(&self, tokens: Vec<u32>) -> Result<String> {
        self.0.check(Feature::Tokenize, &[], std::iter::empty())?;
        let info = self.0.model.info();
        if let Some(id) = outside(tokens.iter().copied(), info) {
            let reason = format!("token {id} is outside the vocabulary of {}", info.vocab_size);
            return Err(Error::invalid_prompt(reason));
        }
        self.0.model.decode(tokens).await
    }

    async fn session(&self) -> Result<Session> {
        self.0.check(Feature::Session, &[], std::iter::empty())?;
        Ok(self.0.model.session().await?.behind(self.0.clone()))
    }

    async fn load_session(&self, path: &Path) -> Result<Session> {
        self.0.check(Feature::Session, &[], std::iter::empty())?;
        let span = tracing::info_span!("load_session", backend = self.0.backend(), path = %Printable(&path.to_string_lossy()));
        Ok(self.0.model.load_session(path).instrument(span).await?.behind(self.0.clone()))
    }

    fn trainable(&self) -> Option<&dyn Trainable> {
        let can = self.0.capabilities.has(Feature::Train) && self.0.model.trainable().is_some();
        can.then_some(self)
    }

    fn stats(&self) -> ModelStats {
        self.0.model.stats()
    }

    async fn close(&self) -> Result<()> {
        self.0.closed.store(true, Ordering::Release);
        self.0.model.close().await
    }
}

#[async_trait]
impl Trainable for CheckedModel {
    async fn train(&self, data: TrainingData, options: TrainOptions) -> Result<TrainStream> {
        options.validate()?;
        self.0.check(Feature::Train, &[], std::iter::empty())?;
        if data.train.is_empty() {
            let reason = "no examples to learn from".to_owned();
            return Err(Error::invalid_option("data", reason));
        }
        let backend = self.0.backend();
        let refuse = || Error::unsupported(backend, Feature::Train);
        let request = request::next_request();
        let span = tracing::info_span!("train", request, backend, method = options.method.name());
        let trainable = self.0.model.trainable().ok_or_else(refuse)?;
        Ok(trainable.train(data, options).instrument(span).await?.keeping(self.0.clone()))
    }
}

impl TurnGate for Gate {
    fn prepare(&self, prompt: &Prompt, options: &mut GenerateOptions) -> Result<Vec<Feature>> {
        Self::prepare(self, prompt, options)
    }

    fn backend(&self) -> &str {
        Self::backend(self)
    }
}

/// Refuses what a backend would otherwise ignore.
pub(crate) fn refuse_missing(
    backend: &str,
    capabilities: Capabilities,
    mut required: impl Iterator<Item = Feature>,
) -> Result<()> {
    match required.find(|feature| !capabilities.has(*feature)) {
        Some(feature) => Err(Error::unsupported(backend, feature)),
        None => Ok(()),
    }
}

/// Refuses prompts of nothing. A text without characters may become a prompt by a BOS token.
fn refuse_empty(prompts: &[Prompt]) -> Result<()> {
    let empty = |prompt: &Prompt| match prompt {
        Prompt::Text(_) => false,
        Prompt::Tokens(tokens) => tokens.is_empty(),
        Prompt::Chat(messages) => messages.is_empty(),
    };
    if prompts.iter().any(empty) {
        return Err(Error::invalid_prompt("it is empty"));
    }
    Ok(())
}

fn check_ids(option: &'static str, ids: impl Iterator<Item = u32>, info: &ModelInfo) -> Result<()> {
    match outside(ids, info) {
        None => Ok(()),
        Some(id) => {
            let reason = format!("token {id} is outside the vocabulary of {}", info.vocab_size);
            Err(Error::invalid_option(option, reason))
        }
    }
}

fn outside(mut ids: impl Iterator<Item = u32>, info: &ModelInfo) -> Option<u32> {
    ids.find(|id| usize::try_from(*id).is_ok_and(|id| id >= info.vocab_size))
}
