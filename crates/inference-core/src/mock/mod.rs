//! A deterministic backend with no model behind it, for tests and examples.
//!
//! Its tokens are words. `generate` goes on with the prompt's own words from the second on, over and over; at a temperature
//! it draws from them; the word `<eos>` ends the text. `classify` prefers labels by the letters they share with the prompt.
//! `embed` counts words by the remainder of their ids, and `rerank` the words of the query that a document has.
//! It keeps the whole contract and is never selected unless it is named.

mod generation;
mod model;
mod words;

use std::sync::Arc;

use async_trait::async_trait;
use tempfile::TempDir;

pub use self::words::VOCAB_SIZE;
use self::{
    model::MockModel,
    words::{EOS, ID},
};
use crate::{
    Feature, LoadOptions, LoadProgress, ModelInfo, ModelManifest, Result, TextModel,
    capabilities::Capabilities,
    engine::{Backend, BackendInfo, Support},
    registry::{Availability, BackendDescriptor},
};

/// The mock's entry for a registry. The feature `mock` also registers it, with a priority that needs it to be named.
pub const DESCRIPTOR: BackendDescriptor = BackendDescriptor::new(
    ID,
    -100,
    || Availability::Available("imagination".to_owned()),
    || Ok(Arc::new(MockBackend::default())),
);

crate::register_backend!(DESCRIPTOR);

/// What the mock can do.
pub const CAPABILITIES: Capabilities = Capabilities::from_features(&[
    Feature::Generate,
    Feature::Chat,
    Feature::Classify,
    Feature::Logits,
    Feature::Sampling,
    Feature::Seed,
    Feature::Stop,
    Feature::ContextLength,
    Feature::Session,
    Feature::Tokenize,
    Feature::Embed,
    Feature::Rerank,
]);

const CONTEXT: usize = 1 << 20;

/// A new folder with a model that the mock can load; it is removed when the value is dropped.
///
/// # Panics
/// The system has no folder for temporary files: this is for tests.
#[must_use]
pub fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let header = br#"{"weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let mut tensors = (header.len() as u64).to_le_bytes().to_vec();
    tensors.extend_from_slice(header);
    tensors.extend_from_slice(&[0; 4]);
    std::fs::write(folder.path().join("config.json"), r#"{"model_type":"mock"}"#).expect("a writable folder");
    std::fs::write(folder.path().join("model.safetensors"), tensors).expect("a writable folder");
    folder
}

/// The mock as a [`Backend`].
#[derive(Debug)]
pub struct MockBackend {
    info: BackendInfo,
}

impl Default for MockBackend {
    fn default() -> Self {
        Self { info: BackendInfo::new(ID, env!("CARGO_PKG_VERSION"), "imagination") }
    }
}

#[async_trait]
impl Backend for MockBackend {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn supports(&self, model: &ModelManifest) -> Support {
        match model.model_type() {
            "mock" => Support::Yes,
            other => Support::No(format!("model_type is {other:?}, expected \"mock\"")),
        }
    }

    async fn load(&self, model: ModelManifest, options: LoadOptions) -> Result<Arc<dyn TextModel>> {
        if let Some(progress) = &options.on_progress {
            progress.report(LoadProgress::new(model.weight_bytes(), model.weight_bytes()));
        }
        let mut info = ModelInfo::from_manifest(ID, &model)?;
        (info.vocab_size, info.layers, info.hidden_size) = (VOCAB_SIZE, 1, 1);
        info.context_length = options.context_length.unwrap_or(CONTEXT);
        info.eos_token_ids = vec![EOS];
        Ok(Arc::new(MockModel::new(info, model)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Error, FinishReason, GenerateOptions, Message, Registry, StopCause, TextModelExt as _};

    async fn model() -> Arc<dyn TextModel> {
        let folder = folder();
        Registry::empty().with(DESCRIPTOR).load_model(folder.path()).backend("mock").await.unwrap()
    }

    #[tokio::test]
    async fn it_goes_on_with_the_prompts_words() {
        let model = model().await;
        let answer = model.complete("a b c", GenerateOptions::new().max_tokens(4)).await.unwrap();
        assert_eq!(answer.text, " b c a b");
        assert_eq!(answer.finish.reason, FinishReason::Length);
        assert_eq!(answer.finish.metrics.prompt_tokens, 3);
        let chat = vec![Message::user("x y <eos>")];
        let answer = model.complete(chat, GenerateOptions::new()).await.unwrap();
        assert_eq!(
            (answer.text.as_str(), answer.finish.reason),
            (" y", FinishReason::Stop(StopCause::EndOfSequence(0)))
        );
        assert_eq!(model.stats().requests, 2);
    }

    #[tokio::test]
    async fn stop_strings_cut_across_tokens() {
        let model = model().await;
        let answer = model.complete("a b c d", GenerateOptions::new().stop(["c d"])).await.unwrap();
        assert_eq!(answer.text, " b ");
        assert_eq!(answer.finish.reason, FinishReason::Stop(StopCause::StopString("c d".into())));
    }

    #[tokio::test]
    async fn a_seed_reproduces() {
        let model = model().await;
        let options = GenerateOptions::new().temperature(1.0).seed(7).max_tokens(20);
        let one = model.complete("a b c d e f", options.clone()).await.unwrap();
        assert_eq!(one.text, model.complete("a b c d e f", options).await.unwrap().text);
    }

    #[tokio::test]
    async fn what_it_lacks_is_refused() {
        let error = model().await.generate("a".into(), GenerateOptions::new().top_k(1)).await.unwrap_err();
        assert!(matches!(error, Error::Unsupported { feature: Feature::TopK, .. }), "{error}");
    }

    #[tokio::test]
    async fn closing_ends_running_requests_and_refuses_new_ones() {
        let model = model().await;
        let mut stream =
            model.generate("a b".into(), GenerateOptions::new().max_tokens(usize::MAX)).await.unwrap();
        model.close().await.unwrap();
        assert_eq!(stream.finish().await.unwrap().reason, FinishReason::Cancelled);
        assert!(matches!(model.generate("a".into(), GenerateOptions::new()).await, Err(Error::Closed)));
    }

    #[tokio::test]
    async fn it_is_never_selected_unnamed() {
        let folder = folder();
        let error = Registry::empty().with(DESCRIPTOR).load_model(folder.path()).await.unwrap_err();
        assert!(error.to_string().contains("mock: usable, only when it is named"), "{error}");
    }
}
