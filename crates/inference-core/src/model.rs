//! A loaded model.

use std::{
    fmt::Debug,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use futures::{StreamExt as _, future::join_all};
use serde::Serialize;

use crate::{
    AssistantMessage, ChatStream, Classification, ClassifyOptions, Dtype, Error, Feature, Finish,
    GenerateOptions, Message, ModelManifest, ModelStats, Prompt, Quantization, Result, Session,
    TemplateOptions, Token, TokenStream, train::Trainable,
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

/// What is known about a loaded model.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ModelInfo {
    /// The folder it was loaded from.
    pub path: PathBuf,
    /// The id of the backend that runs it.
    pub backend: String,
    /// The `model_type` of config.json.
    pub architecture: String,
    /// Ids that the model can produce.
    pub vocab_size: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// The width of the residual stream.
    pub hidden_size: usize,
    /// Tokens of prompt and answer together.
    pub context_length: usize,
    /// Weights of the model before quantisation.
    pub parameters: u64,
    /// Bytes of the weights as stored.
    pub weight_bytes: u64,
    /// The element type of weights that are not quantised; `None` where there are none.
    pub dtype: Option<Dtype>,
    /// How the weights are quantised, where they are.
    pub quantization: Option<Quantization>,
    /// Ids that end a text.
    pub eos_token_ids: Vec<u32>,
}

impl ModelInfo {
    /// What the model's folder says of it. A backend sets what it knows better: the size of its vocabulary, the context that
    /// was asked for, the ids that end a text.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names a key of config.json that makes no sense.
    pub fn from_manifest(backend: impl Into<String>, manifest: &ModelManifest) -> Result<Self> {
        Ok(Self {
            path: manifest.path().to_owned(),
            backend: backend.into(),
            architecture: manifest.model_type().to_owned(),
            vocab_size: manifest.vocab_size()?.unwrap_or_default(),
            layers: manifest.layers()?.unwrap_or_default(),
            hidden_size: manifest.hidden_size()?.unwrap_or_default(),
            context_length: manifest.context_length()?.unwrap_or_default(),
            parameters: manifest.parameters(),
            weight_bytes: manifest.weight_bytes(),
            dtype: manifest.float_dtype(),
            quantization: manifest.quantization().copied(),
            eos_token_ids: manifest.eos_token_ids()?,
        })
    }
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Completion {
    /// The text: the tokens' texts in one.
    pub text: String,
    /// The same taken apart: text for the reader, reasoning, calls of tools.
    pub answer: AssistantMessage,
    /// The tokens.
    pub tokens: Vec<Token>,
    /// How it ended and what it cost.
    pub finish: Finish,
}

impl Completion {
    /// Reads a stream to its end.
    ///
    /// # Errors
    /// Whatever ended the stream.
    pub async fn from_stream(mut stream: TokenStream) -> Result<Self> {
        let mut parser = stream.take_parser();
        let (mut text, mut tokens, mut events) = (String::new(), Vec::new(), Vec::new());
        while let Some(token) = stream.next().await {
            let token = token?;
            text.push_str(&token.text);
            parser.push(&token, &mut events);
            tokens.push(token);
        }
        parser.finish(&mut events);
        let mut answer = AssistantMessage::default();
        answer.extend(events);
        Ok(Self { text, answer, tokens, finish: stream.finish().await? })
    }
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
    Error::Unsupported { backend: info.backend.clone(), feature }
}
