//! Embeddings and reranking of a model, as callers ask for them: texts are tokenised here, and the rest happens on the MLX thread.

use inference_core::{
    CancellationToken, EmbedOptions, Embedding, Error, Feature, Pooling, Prompt, Relevance, RerankOptions,
    Result,
};
use inference_text::{Judgement, PromptLimits, TextSettings};
use tokio::sync::oneshot;

use crate::{
    engine::{EmbedRequest, EmbedText, Wanted},
    shared_model::{EmbeddingModel, Reranker, SharedModel},
};

impl SharedModel {
    /// The vector of each text.
    pub(crate) async fn embed(&self, prompts: Vec<Prompt>, options: EmbedOptions) -> Result<Vec<Embedding>> {
        let EmbeddingModel { config, pooling, .. } = &self.embedding;
        let settings = TextSettings {
            prefix: config.prefix(&options)?.to_owned(),
            lowercase: config.lowercase,
            truncate: options.truncate,
        };
        let texts = self.text.prepare_texts(prompts, settings, self.text_limits(&options.cancel)).await?;
        let texts: Vec<_> = texts.into_iter().map(|ids| EmbedText { ids, token_types: None }).collect();
        let lengths: Vec<usize> = texts.iter().map(|text| text.ids.len()).collect();
        let pooling = options.pooling.or(config.pooling).or(*pooling).unwrap_or(Pooling::Mean);
        let (reply, vectors) = oneshot::channel();
        let (cancel, observer) = (options.cancel.clone(), options.on_progress.clone());
        let wanted = Wanted::Vector(pooling);
        self.handle.embed(EmbedRequest { texts, wanted, observer, cancel, reply })?;
        let vectors = vectors.await.map_err(|_| self.handle.stopped())??;
        let normalizes = config.normalize.unwrap_or(true);
        let embedding = |(vector, tokens)| Embedding::from_pooled(vector, tokens, &options, normalizes);
        vectors.into_iter().zip(lengths).map(embedding).collect()
    }

    /// How relevant each document is to the query.
    pub(crate) async fn rerank(
        &self,
        query: String,
        documents: Vec<String>,
        options: RerankOptions,
    ) -> Result<Vec<Relevance>> {
        let limits = PromptLimits::new(&self.info, 0).with_cancel(options.cancel.clone());
        let (texts, wanted) = match self.embedding.reranker {
            None => {
                let backend = self.info.backend.clone();
                return Err(Error::unsupported(backend, Feature::Rerank));
            }
            Some(Reranker::Head) if options.instruction.is_some() => {
                let reason = "this model reads the query and the document alone".to_owned();
                return Err(Error::invalid_option("instruction", reason));
            }
            Some(Reranker::Head) => {
                let pairs = self.text.prepare_pairs(query, documents, options.truncate, limits).await?;
                let text = |pair: inference_text::EncodedPair| EmbedText {
                    ids: pair.ids,
                    token_types: Some(pair.token_types),
                };
                (pairs.into_iter().map(text).collect::<Vec<_>>(), Wanted::Relevance)
            }
            Some(Reranker::Judge(ids)) => {
                let judgement =
                    Judgement { instruction: options.instruction.clone(), query, truncate: options.truncate };
                let texts = self.text.prepare_judgements(judgement, documents, limits).await?;
                let text = |ids| EmbedText { ids, token_types: None };
                (texts.into_iter().map(text).collect(), Wanted::Difference(ids))
            }
        };
        let lengths: Vec<usize> = texts.iter().map(|text| text.ids.len()).collect();
        let (reply, logits) = oneshot::channel();
        let (cancel, observer) = (options.cancel.clone(), options.on_progress.clone());
        self.handle.embed(EmbedRequest { texts, wanted, observer, cancel, reply })?;
        let logits = logits.await.map_err(|_| self.handle.stopped())??;
        let scored = logits.into_iter().zip(lengths).map(|(logit, tokens)| {
            let logit = logit.first().copied().ok_or_else(|| self.handle.stopped())?;
            Ok(Relevance::from_logit(logit, tokens, options.raw))
        });
        scored.collect()
    }

    /// How long a text may be that becomes a vector.
    fn text_limits(&self, cancel: &CancellationToken) -> PromptLimits {
        let mut limits = PromptLimits::new(&self.info, 0).with_cancel(cancel.clone());
        if let Some(most) = self.embedding.config.max_tokens {
            limits.context_length = limits.context_length.min(most);
        }
        limits
    }
}
