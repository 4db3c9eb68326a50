//! A loaded model.

use std::{fmt::Debug, path::Path};

use async_trait::async_trait;
use futures::future::join_all;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::{
    ChatStream, Classification, ClassifyOptions, Completion, EmbedOptions, Embedding, Error, ExtractStream,
    Feature, GenerateOptions, Message, ModelInfo, ModelStats, Prompt, Relevance, RerankOptions, Result,
    Session, TemplateOptions, TokenStream, extract, train::Trainable,
};

/// A model that is ready to run. Shared freely: calls from many tasks run side by side.
///
/// What every implementation promises, and `inference-conformance` checks:
///
/// - `generate` returns once the request is taken in; errors of the prompt come from this call, errors of the engine from
///   the stream. Nothing about a call is kept on the model, so two callers never see each other's error or metrics.
/// - A request's tokens do not depend on what runs beside it.
/// - Cancelling ends the work within one decode step or one prefill chunk, and is a finish reason, not an error.
/// - After `close`, every call fails with [`Error::Closed`](crate::Error::Closed) and the engine's memory is released.
#[async_trait]
pub trait TextModel: Debug + Send + Sync + 'static {
    /// What is known about the model.
    fn info(&self) -> &ModelInfo;

    /// Continues a prompt.
    ///
    /// # Errors
    /// The prompt is empty, has ids that the model lacks or does not fit the context; the template fails; the model is closed.
    async fn generate(&self, prompt: Prompt, options: GenerateOptions) -> Result<TokenStream>;

    /// What the model would say next after each prompt, in their order, from one forward pass.
    ///
    /// # Errors
    /// As [`generate`](Self::generate), for any of the prompts; [`Error::Cancelled`](crate::Error::Cancelled).
    async fn classify(&self, prompts: Vec<Prompt>, options: ClassifyOptions) -> Result<Vec<Classification>>;

    /// The vector of each text, in their order: texts that mean the same have vectors with a small angle between them. A text's vector
    /// does not depend on what is embedded beside it. Call it with as many texts as there are: engines sort them by length and compute
    /// them in batches.
    ///
    /// A prefix is put before [`Prompt::Text`]. [`Prompt::Tokens`] are taken as they are, special tokens and all; a conversation is
    /// rendered with the model's chat template.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported): the backend, or this model, makes no embeddings;
    /// [`Error::InvalidOption`](crate::Error::InvalidOption): more dimensions than vectors have, the name of a prefix that the folder
    /// lacks, a prefix for what is no text; [`Error::ContextExceeded`](crate::Error::ContextExceeded) for a text that is too long and
    /// not to be truncated; [`Error::Cancelled`](crate::Error::Cancelled); else as [`classify`](Self::classify).
    async fn embed(&self, prompts: Vec<Prompt>, options: EmbedOptions) -> Result<Vec<Embedding>> {
        let _ = (prompts, options);
        Err(unsupported(self.info(), Feature::Embed))
    }

    /// How relevant each document is to the query, in the documents' order, by a model that reads both together.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported): the backend, or this model, does not rerank;
    /// [`Error::InvalidOption`](crate::Error::InvalidOption): an instruction for a model that reads none; else as
    /// [`embed`](Self::embed).
    async fn rerank(
        &self,
        query: String,
        documents: Vec<String>,
        options: RerankOptions,
    ) -> Result<Vec<Relevance>> {
        let _ = (query, documents, options);
        Err(unsupported(self.info(), Feature::Rerank))
    }

    /// The prompt's token ids, as [`generate`](Self::generate) would compute them: a conversation is rendered with the model's
    /// chat template. They may exceed the context.
    ///
    /// # Errors
    /// The backend has no tokenizer; the text or the template fails; the model is closed.
    async fn tokenize(&self, prompt: Prompt, options: TemplateOptions) -> Result<Vec<u32>> {
        let _ = (prompt, options);
        Err(unsupported(self.info(), Feature::Tokenize))
    }

    /// The text of these token ids, special tokens included.
    ///
    /// # Errors
    /// The backend has no tokenizer; [`Error::InvalidPrompt`] names an id outside the vocabulary; the model is closed.
    async fn decode(&self, tokens: Vec<u32>) -> Result<String> {
        let _ = tokens;
        Err(unsupported(self.info(), Feature::Tokenize))
    }

    /// A new session: a text whose keys and values are kept until it is dropped. Keeps the model loaded.
    ///
    /// # Errors
    /// The backend has no sessions; the model is closed.
    async fn session(&self) -> Result<Session> {
        Err(unsupported(self.info(), Feature::Session))
    }

    /// The session that was saved to this file with [`Session::save`].
    ///
    /// # Errors
    /// [`Error::InvalidSession`]: the file is damaged, or the session is that of other weights or of another layout of keys and
    /// values. [`Error::Io`]; as [`session`](Self::session).
    async fn load_session(&self, path: &Path) -> Result<Session> {
        let _ = path;
        Err(unsupported(self.info(), Feature::Session))
    }

    /// The trainer, where the backend has one.
    fn trainable(&self) -> Option<&dyn Trainable> {
        None
    }

    /// Running totals.
    fn stats(&self) -> ModelStats;

    /// Ends running requests as cancelled and releases weights and caches; returns when that is done. Idempotent.
    ///
    /// Dropping the last `Arc` releases the model too, unawaited, as soon as the streams and sessions that it gave have ended or
    /// were dropped: each of them keeps its model loaded.
    ///
    /// # Errors
    /// The engine failed at it; the model is closed all the same.
    async fn close(&self) -> Result<()>;
}

/// What every [`TextModel`] can do by means of the above.
pub trait TextModelExt: TextModel {
    /// Continues a conversation and streams the answer in parts: text, reasoning, tool calls.
    /// [`generate`](TextModel::generate) with a [`Prompt::Chat`] streams its tokens.
    ///
    /// # Errors
    /// As [`TextModel::generate`].
    fn chat(
        &self,
        messages: Vec<Message>,
        options: GenerateOptions,
    ) -> impl Future<Output = Result<ChatStream>> + Send {
        async move { Ok(self.generate(Prompt::Chat(messages), options).await?.events()) }
    }

    /// Generates to the end and returns the whole answer.
    ///
    /// # Errors
    /// As [`TextModel::generate`], and whatever ended the stream.
    fn complete(
        &self,
        prompt: impl Into<Prompt>,
        options: GenerateOptions,
    ) -> impl Future<Output = Result<Completion>> + Send {
        let prompt = prompt.into();
        async move { Completion::from_stream(self.generate(prompt, options).await?).await }
    }

    /// A value of the caller's own type, filled in by the model. The answer is held to the type's JSON schema
    /// ([`Constraint::JsonSchema`](crate::Constraint)); a conversation tells the model the schema as well, behind the person's last message.
    ///
    /// # Errors
    /// As [`complete`](Self::complete); [`Error::InvalidOption`] where the schema has what cannot be held to; [`Error::Incomplete`] where
    /// `max_tokens` cut the answer; [`Error::InvalidAnswer`] where the type refuses what its schema admits.
    fn extract<T: JsonSchema + DeserializeOwned>(
        &self,
        prompt: impl Into<Prompt>,
        options: GenerateOptions,
    ) -> impl Future<Output = Result<T>> + Send {
        let stream = self.extract_stream::<T>(prompt, options);
        async move { stream.await?.finish().await }
    }

    /// [`extract`](Self::extract) as it is written: all of the value that is certain, again and again, and then the value.
    ///
    /// # Errors
    /// As [`TextModel::generate`].
    fn extract_stream<T: JsonSchema + DeserializeOwned>(
        &self,
        prompt: impl Into<Prompt>,
        options: GenerateOptions,
    ) -> impl Future<Output = Result<ExtractStream<T>>> + Send {
        let schema = extract::schema_of::<T>();
        let prompt = extract::with_schema(prompt.into(), &schema);
        async move {
            let options = extract::with_constraint(options, schema)?;
            Ok(ExtractStream::new(self.generate(prompt, options).await?.events()))
        }
    }

    /// Completes several prompts concurrently, each with its own result, in their order. The same as that many concurrent
    /// calls of [`complete`](Self::complete): the engine decodes them in batches.
    fn batch_generate(
        &self,
        prompts: impl IntoIterator<Item: Into<Prompt>>,
        options: GenerateOptions,
    ) -> impl Future<Output = Vec<Result<Completion>>> + Send {
        let prompts: Vec<Prompt> = prompts.into_iter().map(Into::into).collect();
        async move { join_all(prompts.into_iter().map(|prompt| self.complete(prompt, options.clone()))).await }
    }

    /// The number of the prompt's tokens.
    ///
    /// # Errors
    /// As [`TextModel::tokenize`].
    fn count_tokens(
        &self,
        prompt: impl Into<Prompt>,
        options: TemplateOptions,
    ) -> impl Future<Output = Result<usize>> + Send {
        let prompt = prompt.into();
        async move { Ok(self.tokenize(prompt, options).await?.len()) }
    }
}

impl<M: TextModel + ?Sized> TextModelExt for M {}

fn unsupported(info: &ModelInfo, feature: Feature) -> Error {
    Error::unsupported(info.backend.clone(), feature)
}
