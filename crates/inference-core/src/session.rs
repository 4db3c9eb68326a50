//! Sessions: a text that grows turn by turn. Each turn computes only what is new.

use std::{fmt::Debug, path::Path, sync::Arc};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::{Completion, Feature, GenerateOptions, Metrics, Prompt, Result, TokenStream, request};

/// A text and what a model has computed of it, kept until the session is dropped. From
/// [`TextModel::session`](crate::TextModel::session).
///
/// ```
/// use inference_core::{GenerateOptions, Registry, TextModel as _, mock};
///
/// # let folder = mock::folder();
/// # let (folder, saved) = (folder.path(), folder.path().join("talk.session"));
/// # futures::executor::block_on(async {
/// let model = Registry::empty().with(mock::DESCRIPTOR).load_model(folder).backend("mock").await?;
/// let options = GenerateOptions::new().max_tokens(2);
///
/// let mut session = model.session().await?;
/// assert_eq!(session.complete("one two three", options.clone()).await?.text, " two three");
/// session.save(&saved).await?;
///
/// let mut other = session.fork().await?;
/// let answer = other.complete("four", options.clone()).await?;
/// assert_eq!(answer.finish.metrics.cached_tokens, 5); // all but what is new
///
/// let mut session = model.load_session(&saved).await?;
/// assert_eq!(session.complete("four", options).await?.text, answer.text);
/// # Ok::<(), inference_core::Error>(()) }).unwrap();
/// ```
///
/// What a turn gives is what the model gives for the whole text, token for token: a session saves time and changes nothing.
#[derive(Debug)]
pub struct Session {
    engine: Box<dyn SessionEngine>,
    metadata: String,
    gate: Option<Arc<dyn TurnGate>>,
    /// Ends the turn before.
    turn: Option<CancellationToken>,
}

/// What stands between a session and its backend: the checks of the model, which it keeps loaded.
pub(crate) trait TurnGate: Debug + Send + Sync {
    /// Checks and completes the options of a turn; those that the backend lacks and that were left out.
    fn prepare(&self, prompt: &Prompt, options: &mut GenerateOptions) -> Result<Vec<Feature>>;

    /// The backend's id.
    fn backend(&self) -> &str;
}

/// What a backend implements of a [`Session`].
///
/// One turn at a time: a call waits until the turn before has ended. [`Session`] cancels that turn first, and a cancelled
/// turn must end whether its stream is read or not.
#[async_trait]
pub trait SessionEngine: Debug + Send + Sync + 'static {
    /// See [`Session::generate`]. The prompt may have no tokens, where the text has some.
    ///
    /// # Errors
    /// As [`TextModel::generate`](crate::TextModel::generate).
    async fn generate(&mut self, prompt: Prompt, options: GenerateOptions) -> Result<TokenStream>;

    /// See [`Session::tokens`].
    async fn tokens(&self) -> Vec<u32>;

    /// See [`Session::fork`].
    ///
    /// # Errors
    /// The model is closed, or the engine failed.
    async fn fork(&self) -> Result<Box<dyn SessionEngine>>;

    /// See [`Session::save`]. [`SessionFile`](crate::backend::SessionFile) is the format.
    ///
    /// # Errors
    /// The model is closed, the engine failed, or the file cannot be written.
    async fn save(&self, path: &Path, metadata: &str) -> Result<()>;
}

impl Session {
    /// A backend's session, with the note that it was saved with.
    #[must_use]
    pub fn new(engine: Box<dyn SessionEngine>, metadata: impl Into<String>) -> Self {
        Self { engine, metadata: metadata.into(), gate: None, turn: None }
    }

    pub(crate) fn behind(self, gate: Arc<dyn TurnGate>) -> Self {
        Self { gate: Some(gate), ..self }
    }

    /// Continues the text. A text or tokens are added to what the session holds; a conversation is the whole of it, because
    /// templates render earlier turns again, and what it shares with the text held is not computed again.
    ///
    /// The session then holds the prompt and the generated tokens, without a token that ended the text. Where the call fails,
    /// the text stays as it was.
    ///
    /// There is one turn at a time. A further call of this or another method ends a turn that still runs, as
    /// [`FinishReason::Cancelled`](crate::FinishReason::Cancelled): read its stream to the end first to have all of it.
    ///
    /// # Errors
    /// As [`TextModel::generate`](crate::TextModel::generate); the context holds prompt and earlier turns together.
    pub async fn generate(
        &mut self,
        prompt: impl Into<Prompt>,
        mut options: GenerateOptions,
    ) -> Result<TokenStream> {
        let prompt = prompt.into();
        let (mut span, request, mut without_effect) =
            (tracing::Span::none(), request::next_request(), Vec::new());
        match &self.gate {
            Some(gate) => {
                without_effect = gate.prepare(&prompt, &mut options)?;
                span = request::span(gate.backend(), request, true);
            }
            None => options.validate()?,
        }
        self.end_turn();
        let cancel = options.cancel.child_token();
        options.cancel = cancel.clone();
        let called = self.engine.generate(prompt, options).instrument(span).await;
        let backend = self.gate.as_ref().map_or("", |gate| gate.backend());
        let stream = TokenStream::from_call(called, backend)?;
        self.turn = Some(cancel);
        let stream = stream.with_request(request).with_options_without_effect(without_effect);
        Ok(match &self.gate {
            Some(gate) => stream.keeping(Arc::clone(gate)),
            None => stream,
        })
    }

    /// Goes on to the end of the turn and returns the whole answer.
    ///
    /// # Errors
    /// As [`generate`](Self::generate), and whatever ended the turn.
    pub async fn complete(
        &mut self,
        prompt: impl Into<Prompt>,
        options: GenerateOptions,
    ) -> Result<Completion> {
        Completion::from_stream(self.generate(prompt, options).await?).await
    }

    /// Computes more of the text and generates nothing: the next turn begins at once. What it cost.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub async fn append(&mut self, prompt: impl Into<Prompt>) -> Result<Metrics> {
        let nothing = GenerateOptions::new().max_tokens(0);
        Ok(self.generate(prompt, nothing).await?.finish().await?.metrics)
    }

    /// The text that it holds, prompts and answers. Ends a turn that still runs.
    pub async fn tokens(&self) -> Vec<u32> {
        self.end_turn();
        self.engine.tokens().await
    }

    /// A second session with the same text, which continues independently. Cheap: what was computed is shared until one of
    /// them changes it. Ends a turn that still runs.
    ///
    /// # Errors
    /// The model is closed, or the engine failed.
    pub async fn fork(&self) -> Result<Self> {
        self.end_turn();
        let engine = self.engine.fork().await?;
        Ok(Self { engine, metadata: self.metadata.clone(), gate: self.gate.clone(), turn: None })
    }

    /// Writes the session to one file, which replaces an older one only once it is complete.
    /// [`TextModel::load_session`](crate::TextModel::load_session) reads it. Ends a turn that still runs.
    ///
    /// # Errors
    /// The model is closed, the engine failed, or the file cannot be written.
    pub async fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.end_turn();
        self.engine.save(path.as_ref(), &self.metadata).await
    }

    /// The program's own metadata, saved with the session: the messages of its conversation, for example.
    #[must_use]
    pub fn metadata(&self) -> &str {
        &self.metadata
    }

    /// Sets the program's own metadata.
    pub fn set_metadata(&mut self, metadata: impl Into<String>) {
        self.metadata = metadata.into();
    }

    /// Cancels the turn before, whose stream may never be read.
    fn end_turn(&self) {
        if let Some(turn) = &self.turn {
            turn.cancel();
        }
    }
}
