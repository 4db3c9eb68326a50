//! Texts as vectors: the server computes and pools, the rest is the contract's.

use inference_core::{
    EmbedOptions, Embedding, Error, Feature, Prompt, Result, TextProgress, backend::EmbeddingConfig,
};
use inference_text::{PromptLimits, TextSettings};
use serde_json::json;

use crate::{client::Requests, inner::Inner, protocol::Embedded};

/// Texts of one request: progress and cancelling are told in between.
const BATCH: usize = 32;

/// The server's word for vectors as they come out of the pooling.
const NOT_NORMALIZED: i32 = -1;

impl Inner {
    /// See [`TextModel::embed`](inference_core::TextModel::embed).
    pub(crate) async fn embed(&self, prompts: Vec<Prompt>, options: EmbedOptions) -> Result<Vec<Embedding>> {
        self.keeper.check_open()?;
        let Some(pooling) = self.setup.pooling else {
            return Err(Error::unsupported(self.setup.backend, Feature::Embed));
        };
        if let Some(asked) = options.pooling.filter(|asked| *asked != pooling) {
            let reason = format!(
                "is {asked:?}, but llama-server pools as it was started, by {pooling:?}: load with LlamaCppOptions::pooling"
            );
            return Err(Error::invalid_option("pooling", reason));
        }
        // A GGUF file has no prefixes.
        let prefix = EmbeddingConfig::default().prefix(&options)?.to_owned();
        let settings = TextSettings { prefix, lowercase: false, truncate: options.truncate };
        let limits = PromptLimits::new(&self.info, 0).with_cancel(options.cancel.clone());
        let texts = self.text.prepare_texts(prompts, settings, limits).await?;
        let client = self.client().await?;
        let (mut embeddings, total) = (Vec::with_capacity(texts.len()), texts.len());
        for batch in texts.chunks(BATCH) {
            let (requests, ids) = (client.weak(), batch.to_vec());
            let vectors = client.run(async move { vectors(&requests, &ids).await });
            let vectors = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Err(Error::Closed),
                () = options.cancel.cancelled() => return Err(Error::Cancelled),
                vectors = vectors => vectors?,
            };
            for (vector, text) in vectors.into_iter().zip(batch) {
                embeddings.push(Embedding::from_pooled(vector, text.len(), &options, true)?);
            }
            if let Some(observer) = &options.on_progress {
                observer.report(TextProgress::new(embeddings.len(), total));
            }
        }
        Ok(embeddings)
    }

    /// Refuses what a model that was loaded for embeddings does not do.
    pub(crate) fn check_generates(&self, feature: Feature) -> Result<()> {
        self.keeper.check_open()?;
        match self.setup.pooling {
            Some(_) => Err(Error::unsupported(self.setup.backend, feature)),
            None => Ok(()),
        }
    }
}

/// The pooled vectors of these texts, in their order.
async fn vectors(requests: &Requests, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
    let body = json!({"content": texts, "embd_normalize": NOT_NORMALIZED});
    let mut answers: Vec<Embedded> = requests.post("/embedding", &body, "embed").await?;
    answers.sort_by_key(|answer| answer.index);
    let in_order = answers.iter().enumerate().all(|(at, answer)| answer.index == at);
    let vectors: Vec<Vec<f32>> = answers.into_iter().filter_map(Embedded::only).collect();
    let finite = vectors.iter().flatten().all(|x| x.is_finite());
    if !in_order || vectors.len() != texts.len() || !finite {
        let reason = format!(
            "llama-server gave {} vectors for {} texts, expected one of numbers each",
            vectors.len(),
            texts.len()
        );
        return Err(requests.failed("embed", reason));
    }
    Ok(vectors)
}
