//! The kit can fail: for each clause, a backend that breaks it is caught by it.

#[allow(dead_code, reason = "the sibling test uses the rest")]
mod engine;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::FutureExt as _;
use inference_conformance::{Outcome, all_clauses, run_matching};
use inference_core::{
    Classification, ClassifyOptions, EmbedOptions, Embedding, Error, GenerateOptions, ModelInfo, ModelStats,
    Prompt, Relevance, RerankOptions, Result, TemplateOptions, TextModel, TokenStream, backend::Extensions,
};

/// A front door that undoes what the core does for every backend: no backend can break these clauses by itself.
#[derive(Debug)]
struct Careless(Arc<dyn TextModel>);

const UNDONE: [&str; 13] = [
    "options::foreign_extensions_are_refused",
    "options::ids_outside_the_vocabulary_are_named",
    "sampling::the_models_own_values_apply_where_none_is_set",
    "tokenizing::decoding_refuses_ids_outside_the_vocabulary",
    "closing::a_stream_keeps_its_model_loaded",
    "loading::a_missing_adapter_is_an_error",
    "options::nonsense_is_refused_before_any_work",
    "classify::no_prompts_have_no_answers",
    "embedding::no_texts_have_no_vectors",
    "embedding::no_documents_have_no_scores",
    "errors::a_missing_folder_is_an_error",
    "errors::a_broken_config_is_named",
    "errors::a_truncated_file_is_named",
];

#[test]
fn each_clause_catches_the_backend_that_breaks_it() {
    let (_folder, subject) = engine::subject();
    let subject = subject.deadline(Duration::from_secs(8));
    let careless = subject.clone().loaded_by(|load| {
        async move {
            match load.await {
                Ok(model) => Ok(Arc::new(Careless(model)) as Arc<dyn TextModel>),
                Err(error) => Err(Error::backend("syllables", "load", error)),
            }
        }
        .boxed()
    });
    let mut missed = Vec::new();
    for clause in all_clauses() {
        clause.name.clone_into(&mut engine::BREAKS.write().unwrap());
        // The model that is loaded by now is broken in another way.
        let subject = if UNDONE.contains(&clause.name) { &careless } else { &subject };
        let report = run_matching(&subject.without_model(), clause.name);
        match report.outcome(clause.name) {
            Some(Outcome::Failed { found }) => println!("{}: {found}", clause.name),
            outcome => missed.push(format!("{}: {outcome:?}", clause.name)),
        }
    }
    assert!(missed.is_empty(), "not caught:\n{}", missed.join("\n"));
}

#[async_trait]
impl TextModel for Careless {
    fn info(&self) -> &ModelInfo {
        self.0.info()
    }

    async fn generate(&self, prompt: Prompt, options: GenerateOptions) -> Result<TokenStream> {
        let mut options = if options.validate().is_ok() { options } else { GenerateOptions::new() };
        options.extensions = Extensions::default();
        options.sampling.logit_bias = None;
        options.stop_tokens = None;
        options.generation_config = Some(false);
        self.0.generate(prompt, options).await
    }

    async fn classify(&self, prompts: Vec<Prompt>, options: ClassifyOptions) -> Result<Vec<Classification>> {
        if prompts.is_empty() {
            return Err(Error::invalid_prompt("there is none"));
        }
        self.0.classify(prompts, options).await
    }

    async fn embed(&self, prompts: Vec<Prompt>, options: EmbedOptions) -> Result<Vec<Embedding>> {
        if prompts.is_empty() {
            return Err(Error::invalid_prompt("there is none"));
        }
        self.0.embed(prompts, options).await
    }

    async fn rerank(
        &self,
        query: String,
        documents: Vec<String>,
        options: RerankOptions,
    ) -> Result<Vec<Relevance>> {
        if documents.is_empty() {
            return Err(Error::invalid_prompt("there is none"));
        }
        self.0.rerank(query, documents, options).await
    }

    async fn tokenize(&self, prompt: Prompt, options: TemplateOptions) -> Result<Vec<u32>> {
        self.0.tokenize(prompt, options).await
    }

    async fn decode(&self, mut tokens: Vec<u32>) -> Result<String> {
        tokens.retain(|id| (*id as usize) < self.info().vocab_size);
        self.0.decode(tokens).await
    }

    fn stats(&self) -> ModelStats {
        self.0.stats()
    }

    async fn close(&self) -> Result<()> {
        self.0.close().await
    }
}

/// It does not wait for its streams.
impl Drop for Careless {
    fn drop(&mut self) {
        let closed = self.0.close().now_or_never();
        assert!(matches!(closed, Some(Ok(()))), "the engine closes at once");
    }
}
