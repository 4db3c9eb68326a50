//! A text that is kept going: turn after turn, each computing only what is new.

use std::{fmt::Debug, path::Path};

use async_trait::async_trait;
use tracing::Instrument as _;

use crate::{
    Completion, Feature, GenerateOptions, Metrics, Prompt, Result, TokenStream, checked::Gate, metrics,
};

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
    gate: Option<Gate>,
}

/// What a backend implements of a [`Session`].
///
/// One turn at a time: a call waits until the turn before has ended, which dropping or cancelling its stream brings about.
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
        Self { engine, metadata: metadata.into(), gate: None }
    }

    pub(crate) fn behind(self, gate: Gate) -> Self {
        Self { gate: Some(gate), ..self }
    }

    /// Goes on with the text. A text or tokens are added to what the session holds; a conversation is the whole of it,
    /// because templates write earlier turns anew, and what it shares with the text held is not computed again.
    ///
    /// The session then holds the prompt and the generated tokens, without a token that ended the text. Waits until the turn
    /// before has ended: read its stream, drop it or cancel it. Where it fails, the text stays as it was.
    ///
    /// # Errors
    /// As [`TextModel::generate`](crate::TextModel::generate); the context holds prompt and earlier turns together.
    pub async fn generate(
        &mut self,
        prompt: impl Into<Prompt>,
        options: GenerateOptions,
    ) -> Result<TokenStream> {
        let prompt = prompt.into();
        options.validate()?;
        let mut span = tracing::Span::none();
        if let Some(gate) = &self.gate {
            gate.check_features(
                Feature::Generate,
                std::slice::from_ref(&prompt),
                options.required_features(),
            )?;
            span = metrics::span(gate.backend(), true);
        }
        self.engine.generate(prompt, options).instrument(span).await
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

    /// The text that it holds, prompts and answers. Waits until the turn before has ended.
    pub async fn tokens(&self) -> Vec<u32> {
        self.engine.tokens().await
    }

    /// A second session with the same text, which goes its own way. Cheap: what was computed is shared until one of them
    /// changes it. Waits until the turn before has ended.
    ///
    /// # Errors
    /// The model is closed, or the engine failed.
    pub async fn fork(&self) -> Result<Self> {
        Ok(Self {
            engine: self.engine.fork().await?,
            metadata: self.metadata.clone(),
            gate: self.gate.clone(),
        })
    }

    /// Writes the session to one file, which takes the place of an older one only once it is whole.
    /// [`TextModel::load_session`](crate::TextModel::load_session) reads it. Waits until the turn before has ended.
    ///
    /// # Errors
    /// The model is closed, the engine failed, or the file cannot be written.
    pub async fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.engine.save(path.as_ref(), &self.metadata).await
    }

    /// The program's own remark, which is saved with the session: the messages of its conversation, say.
    #[must_use]
    pub fn metadata(&self) -> &str {
        &self.metadata
    }

    /// Sets the program's own remark.
    pub fn set_metadata(&mut self, metadata: impl Into<String>) {
        self.metadata = metadata.into();
    }
}
