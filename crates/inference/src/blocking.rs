//! The same calls for programs without an async runtime: each waits until it is done.
//!
#![cfg_attr(feature = "metal", doc = "```")]
#![cfg_attr(not(feature = "metal"), doc = "```no_run")]
//! use inference::{GenerateOptions, Message, blocking};
//!
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo");
//! let model = blocking::load_model(folder).load()?;
//! let mut answer = model.generate(vec![Message::user("What is 2+2?")], GenerateOptions::new())?;
//! let text = answer.by_ref().map(|token| Ok(token?.text)).collect::<inference::Result<String>>()?;
//! assert!(text.contains('4'));
//! println!("{:.1} tokens/s", answer.finish()?.metrics.decode_tokens_per_second());
//! model.close()?;
//! # Ok::<(), inference::Error>(())
//! ```
//!
//! Calls from several threads run side by side, as async ones do. Within async code use the async calls: these would hold up
//! the executor, and panic inside one of the crate `futures`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{StreamExt as _, executor::block_on};
use inference_core::{
    ChatEvent, ChatStream, Classification, ClassifyOptions, Completion, EmbedOptions, Embedding,
    ExtractStream, Finish, GenerateOptions, LoadOptions, Message, Metrics, ModelInfo, ModelStats, Prompt,
    Relevance, RerankOptions, Result, TemplateOptions, TextModel, TextModelExt as _, Token, TokenStream,
};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Loads the model in a folder with the best of the linked backends: set options, then [`load`](Load::load).
pub fn load_model(path: impl Into<PathBuf>) -> Load {
    Load(crate::load_model(path))
}

/// A load that is being set up.
#[derive(Debug, Clone)]
#[must_use = "nothing is loaded before `load` is called"]
pub struct Load(crate::Load);

impl Load {
    /// Uses this backend instead of the first that is available and supports the model.
    pub fn backend(self, id: impl Into<String>) -> Self {
        Self(self.0.backend(id))
    }

    /// Loads with these options.
    pub fn options(self, options: LoadOptions) -> Self {
        Self(self.0.options(options))
    }

    /// Whether a model of the Hub is downloaded if it is not in the cache.
    #[cfg(feature = "hub")]
    pub fn download(self, download: bool) -> Self {
        Self(self.0.download(download))
    }

    /// Loads the model.
    ///
    /// # Errors
    /// As [`crate::load_model`].
    pub fn load(self) -> Result<Model> {
        block_on(self.0.into_future()).map(Model)
    }
}

/// A model that is ready to run. Cheap to clone; dropping the last clone ends what is running and releases the model.
#[derive(Debug, Clone)]
pub struct Model(Arc<dyn TextModel>);

impl Model {
    /// What is known about the model.
    #[must_use]
    pub fn info(&self) -> &ModelInfo {
        self.0.info()
    }

    /// Continues a prompt: a text, token ids or messages.
    ///
    /// # Errors
    /// As [`TextModel::generate`].
    pub fn generate(&self, prompt: impl Into<Prompt>, options: GenerateOptions) -> Result<Tokens> {
        block_on(self.0.generate(prompt.into(), options)).map(Tokens)
    }

    /// Continues a conversation and streams the answer in parts: text, reasoning, tool calls.
    ///
    /// # Errors
    /// As [`TextModel::generate`].
    pub fn chat(&self, messages: Vec<Message>, options: GenerateOptions) -> Result<Events> {
        block_on(self.0.chat(messages, options)).map(Events)
    }

    /// The prompt's token ids.
    ///
    /// # Errors
    /// As [`TextModel::tokenize`].
    pub fn tokenize(&self, prompt: impl Into<Prompt>, options: TemplateOptions) -> Result<Vec<u32>> {
        block_on(self.0.tokenize(prompt.into(), options))
    }

    /// The text of these token ids.
    ///
    /// # Errors
    /// As [`TextModel::decode`].
    pub fn decode(&self, tokens: Vec<u32>) -> Result<String> {
        block_on(self.0.decode(tokens))
    }

    /// Generates to the end and returns the whole answer.
    ///
    /// # Errors
    /// As [`TextModel::generate`], and whatever ended the answer.
    pub fn complete(&self, prompt: impl Into<Prompt>, options: GenerateOptions) -> Result<Completion> {
        block_on(self.0.complete(prompt, options))
    }

    /// A value of the caller's own type, filled in by the model.
    ///
    /// # Errors
    /// As [`TextModelExt::extract`](crate::TextModelExt::extract).
    pub fn extract<T: JsonSchema + DeserializeOwned>(
        &self,
        prompt: impl Into<Prompt>,
        options: GenerateOptions,
    ) -> Result<T> {
        block_on(self.0.extract(prompt, options))
    }

    /// [`extract`](Self::extract) as it is written.
    ///
    /// # Errors
    /// As [`TextModelExt::extract_stream`](crate::TextModelExt::extract_stream).
    pub fn extract_stream<T: JsonSchema + DeserializeOwned>(
        &self,
        prompt: impl Into<Prompt>,
        options: GenerateOptions,
    ) -> Result<Values<T>> {
        block_on(self.0.extract_stream(prompt, options)).map(Values)
    }

    /// Completes several prompts side by side, each with its own result, in their order.
    pub fn batch_generate(&self, prompts: Vec<Prompt>, options: GenerateOptions) -> Vec<Result<Completion>> {
        block_on(self.0.batch_generate(prompts, options))
    }

    /// What the model would say next after each prompt, in their order, from one forward pass.
    ///
    /// # Errors
    /// As [`TextModel::classify`].
    pub fn classify(&self, prompts: Vec<Prompt>, options: ClassifyOptions) -> Result<Vec<Classification>> {
        block_on(self.0.classify(prompts, options))
    }

    /// The vector of each text, in their order.
    ///
    /// # Errors
    /// As [`TextModel::embed`].
    pub fn embed(&self, prompts: Vec<Prompt>, options: EmbedOptions) -> Result<Vec<Embedding>> {
        block_on(self.0.embed(prompts, options))
    }

    /// How relevant each document is to the query, in their order.
    ///
    /// # Errors
    /// As [`TextModel::rerank`].
    pub fn rerank(
        &self,
        query: impl Into<String>,
        documents: Vec<String>,
        options: RerankOptions,
    ) -> Result<Vec<Relevance>> {
        block_on(self.0.rerank(query.into(), documents, options))
    }

    /// A new session: a text whose keys and values are kept until it is dropped.
    ///
    /// # Errors
    /// As [`TextModel::session`].
    pub fn session(&self) -> Result<Session> {
        block_on(self.0.session()).map(Session)
    }

    /// The session that was saved to this file.
    ///
    /// # Errors
    /// As [`TextModel::load_session`].
    pub fn load_session(&self, path: impl AsRef<Path>) -> Result<Session> {
        block_on(self.0.load_session(path.as_ref())).map(Session)
    }

    /// Running totals.
    #[must_use]
    pub fn stats(&self) -> ModelStats {
        self.0.stats()
    }

    /// Ends running requests as cancelled and releases weights and caches.
    ///
    /// # Errors
    /// The engine failed at it; the model is closed all the same.
    pub fn close(&self) -> Result<()> {
        block_on(self.0.close())
    }

    /// The model for async code.
    #[must_use]
    pub fn into_inner(self) -> Arc<dyn TextModel> {
        self.0
    }
}

impl From<Arc<dyn TextModel>> for Model {
    fn from(model: Arc<dyn TextModel>) -> Self {
        Self(model)
    }
}

/// A text that is kept going, as [`inference_core::Session`] is.
#[derive(Debug)]
pub struct Session(inference_core::Session);

impl Session {
    /// Continues the text: a text or tokens are added to it, a conversation is the whole of it. Ends a turn that still runs: read
    /// its tokens first.
    ///
    /// # Errors
    /// As [`inference_core::Session::generate`].
    pub fn generate(&mut self, prompt: impl Into<Prompt>, options: GenerateOptions) -> Result<Tokens> {
        block_on(self.0.generate(prompt, options)).map(Tokens)
    }

    /// Goes on to the end of the turn and returns the whole answer.
    ///
    /// # Errors
    /// As [`inference_core::Session::complete`].
    pub fn complete(&mut self, prompt: impl Into<Prompt>, options: GenerateOptions) -> Result<Completion> {
        block_on(self.0.complete(prompt, options))
    }

    /// Computes more of the text and generates nothing.
    ///
    /// # Errors
    /// As [`inference_core::Session::append`].
    pub fn append(&mut self, prompt: impl Into<Prompt>) -> Result<Metrics> {
        block_on(self.0.append(prompt))
    }

    /// The text that it holds, prompts and answers.
    #[must_use]
    pub fn tokens(&self) -> Vec<u32> {
        block_on(self.0.tokens())
    }

    /// A second session with the same text, which goes its own way.
    ///
    /// # Errors
    /// As [`inference_core::Session::fork`].
    pub fn fork(&self) -> Result<Self> {
        block_on(self.0.fork()).map(Self)
    }

    /// Writes the session to one file.
    ///
    /// # Errors
    /// As [`inference_core::Session::save`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        block_on(self.0.save(path))
    }

    /// The session for async code, and its note.
    #[must_use]
    pub fn into_inner(self) -> inference_core::Session {
        self.0
    }
}

/// The tokens of one generation, in order; it ends after the last one, or after one error. Dropping it cancels the generation.
#[derive(Debug)]
pub struct Tokens(TokenStream);

impl Tokens {
    /// How the generation ended. Reads and drops the tokens that are left; call it after the last one to lose none.
    ///
    /// # Errors
    /// As [`TokenStream::finish`].
    pub fn finish(&mut self) -> Result<Finish> {
        block_on(self.0.finish())
    }

    /// The answer's parts in place of its tokens: text, reasoning, calls of tools.
    #[must_use]
    pub fn events(self) -> Events {
        Events(self.0.events())
    }
}

impl Iterator for Tokens {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Self::Item> {
        block_on(self.0.next())
    }
}

/// The parts of one answer, in order; it ends after the last one, or after one error. Dropping it cancels the generation.
#[derive(Debug)]
pub struct Events(ChatStream);

impl Events {
    /// How the generation ended. Reads and drops the parts that are left; call it after the last one to lose none.
    ///
    /// # Errors
    /// As [`ChatStream::finish`].
    pub fn finish(&mut self) -> Result<Finish> {
        block_on(self.0.finish())
    }
}

impl Iterator for Events {
    type Item = Result<ChatEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        block_on(self.0.next())
    }
}

/// A value that grows while the model writes it. Dropping it cancels the generation.
#[derive(Debug)]
pub struct Values<T>(ExtractStream<T>);

impl<T: DeserializeOwned> Values<T> {
    /// The whole value. Reads and drops the partial ones that are left.
    ///
    /// # Errors
    /// As [`ExtractStream::finish`].
    pub fn finish(&mut self) -> Result<T> {
        block_on(self.0.finish())
    }
}

impl<T: DeserializeOwned> Iterator for Values<T> {
    type Item = Result<Value>;

    fn next(&mut self) -> Option<Self::Item> {
        block_on(self.0.next())
    }
}

#[cfg(test)]
mod tests {
    use inference_core::{Error, FinishReason, mock};

    use super::*;

    fn model() -> Model {
        load_model(mock::folder().path()).backend("mock").load().unwrap()
    }

    #[test]
    fn tokens_come_one_by_one_then_the_finish() {
        let model = model();
        let mut tokens = model.generate("a b c", GenerateOptions::new().max_tokens(4)).unwrap();
        let texts: Vec<String> = tokens.by_ref().map(|token| token.unwrap().text).collect();
        assert_eq!(texts, [" b", " c", " a", " b"]);
        assert_eq!(tokens.finish().unwrap().reason, FinishReason::Length);

        let mut events = model.generate("a b", GenerateOptions::new().max_tokens(1)).unwrap().events();
        assert_eq!(events.next().unwrap().unwrap(), ChatEvent::Text(" b".to_owned()));
        assert!(events.next().is_none());
        assert_eq!(events.finish().unwrap().reason, FinishReason::Length);
    }

    #[test]
    fn whole_answers_and_errors_are_those_of_the_async_calls() {
        let model = model();
        let options = GenerateOptions::new().max_tokens(1);
        assert_eq!(model.complete("a b", options.clone()).unwrap().text, " b");
        let answers = model.batch_generate(vec!["a b".into(), vec![u32::MAX].into()], options.clone());
        assert!(answers[0].is_ok() && matches!(answers[1], Err(Error::InvalidPrompt { .. })));
        let labels = ClassifyOptions::new().labels(["ab", "xy"]);
        assert_eq!(model.classify(vec!["a b".into()], labels).unwrap()[0].best().unwrap().label, "ab");
        assert_eq!(model.stats().requests, 2);
        model.close().unwrap();
        assert!(matches!(model.complete("a b", options), Err(Error::Closed)));
    }

    #[test]
    fn a_session_goes_on_forks_and_comes_back_from_a_file() {
        let folder = mock::folder();
        let model = load_model(folder.path()).backend("mock").load().unwrap();
        let options = GenerateOptions::new().max_tokens(2);
        let mut session = model.session().unwrap();
        assert_eq!(session.append("a b").unwrap().prompt_tokens, 2);
        assert_eq!(session.generate("c", options.clone()).unwrap().count(), 2);
        let mut fork = session.fork().unwrap();
        session.save(folder.path().join("s")).unwrap();
        let mut loaded = model.load_session(folder.path().join("s")).unwrap();
        assert_eq!(loaded.tokens(), session.tokens());
        let answers =
            [&mut session, &mut fork, &mut loaded].map(|s| s.complete("d", options.clone()).unwrap());
        assert!(answers.iter().all(|answer| answer.text == answers[0].text));
    }

    #[test]
    fn threads_share_a_model() {
        let model = model();
        let answers = [1, 2, 3].map(|n| {
            let model = model.clone();
            std::thread::spawn(move || {
                model.complete("a b", GenerateOptions::new().max_tokens(n)).unwrap().text
            })
        });
        let texts = answers.map(|answer| answer.join().unwrap());
        assert_eq!(texts, [" b", " b a", " b a b"]);
    }
}
