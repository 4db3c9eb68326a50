//! A loaded model, as callers hold it: tokenising and templates here, the rest on the MLX thread.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use async_trait::async_trait;
use futures::{StreamExt as _, channel::mpsc, future::try_join};
use inference_core::{
    Classification, ClassifyOptions, EmbedOptions, Embedding, Feature, GenerateOptions, LabelScore,
    LoadOptions, ModelInfo, ModelManifest, ModelStats, Prompt, Relevance, RerankOptions, Result, Session,
    TemplateOptions, TextModel, TokenStream,
    backend::{SharedStats, spawn_blocking},
    train::{TrainOptions, TrainStream, Trainable, TrainingData},
};
use inference_text::{PromptLimits, TextPipeline};
use tokio::sync::{OnceCell, oneshot};

use crate::{
    engine::{ClassifyRequest, Handle, Loaded},
    load::default_pooling,
    mlx::{Device, memory},
    nn::ModelConfig,
    session::MlxSession,
    shared_model::{EmbeddingModel, Reranker, SharedModel},
    train::TrainRequest,
};

/// A model on MLX.
#[derive(Debug)]
pub(crate) struct MlxModel(Arc<SharedModel>);

impl MlxModel {
    pub(crate) async fn load(device: Device, manifest: ModelManifest, options: LoadOptions) -> Result<Self> {
        let path = manifest.path().to_owned();
        let adapter = options.adapter.clone();
        // The first to fail cancels the other.
        let text = spawn_blocking(move || TextPipeline::load(&path));
        let loading = Handle::load(device, manifest.clone(), options);
        let (text, (handle, loaded)) = try_join(text, loading).await?;
        let Loaded { config, layout, embedding, decode_steps } = loaded;
        let mut info = ModelInfo::from_manifest(device.id(), &manifest)?;
        info.eos_token_ids = text.tokenizer().eos_ids().to_vec();
        info.vocab_size = config.vocab_size;
        info.layers = config.layers;
        info.hidden_size = config.hidden_size;
        info.context_length = config.context_length;
        info.decode_steps = Some(decode_steps);
        let length_dependent = config.length_dependent;
        let embedding = EmbeddingModel {
            config: embedding,
            pooling: Some(default_pooling(&config)),
            reranker: reranker(&config, manifest.model_type(), &text),
        };
        let (position_bytes, state_bytes) = config.cache_bytes();
        let shared = SharedModel {
            info,
            text,
            handle,
            layout,
            position_bytes,
            state_bytes,
            length_dependent,
            generates: config.generates,
            embedding,
            manifest,
            adapter,
            fingerprint: OnceCell::new(),
            stats: SharedStats::default(),
            closed: AtomicBool::new(false),
        };
        Ok(Self(Arc::new(shared)))
    }
}

/// How a model scores documents. Folders do not say that a Qwen 3 is a reranker: any is asked as Qwen3-Reranker is.
fn reranker(config: &ModelConfig, model_type: &str, text: &TextPipeline) -> Option<Reranker> {
    if config.scores {
        return Some(Reranker::Head);
    }
    let tokens = ["yes", "no"].map(|token| text.tokenizer().token_to_id(token));
    match tokens {
        [Some(yes), Some(no)] if model_type == "qwen3" && config.generates => {
            let known = [yes, no].iter().all(|id| (*id as usize) < config.vocab_size);
            known.then_some(Reranker::Judge([yes, no]))
        }
        _ => None,
    }
}

#[async_trait]
impl TextModel for MlxModel {
    fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    async fn generate(&self, prompt: Prompt, options: GenerateOptions) -> Result<TokenStream> {
        let called = Instant::now();
        self.0.check_generates(Feature::Generate)?;
        let prompt = self.0.prepare(prompt, &options).await?;
        self.0.generate(prompt, options, called, None).await
    }

    async fn classify(&self, prompts: Vec<Prompt>, options: ClassifyOptions) -> Result<Vec<Classification>> {
        let model = &*self.0;
        model.check_generates(Feature::Classify)?;
        let labels = options.labels.as_deref().unwrap_or_default();
        let limits = PromptLimits::new(&model.info, 0).with_cancel(options.cancel.clone());
        let label_tokens = model.text.encode_labels(&options, limits.clone()).await?;
        let longest = label_tokens.iter().map(Vec::len).max().unwrap_or(1) - 1;
        let limits = limits.with_reserved(longest);
        let prompts = model.text.prepare_all(prompts, &options.template, limits).await?;
        let prompts: Vec<Vec<u32>> = prompts.into_iter().map(|prompt| prompt.ids).collect();
        let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
        let (reply, results) = oneshot::channel();
        let (cancel, logits) = (options.cancel.clone(), options.logits);
        model.handle.classify(ClassifyRequest { prompts, labels: label_tokens, logits, cancel, reply })?;
        let results = results.await.map_err(|_| model.handle.stopped())??;
        let classifications = results.into_iter().zip(lengths).map(|(result, prompt_tokens)| {
            let mut classification = Classification::default();
            classification.token = result.token;
            classification.text = model.text.tokenizer().decode(&[result.token], false);
            classification.labels = LabelScore::normalize(labels, &result.labels);
            classification.logits = result.logits;
            classification.prompt_tokens = prompt_tokens;
            classification
        });
        Ok(classifications.collect())
    }

    async fn embed(&self, prompts: Vec<Prompt>, options: EmbedOptions) -> Result<Vec<Embedding>> {
        self.0.check_open()?;
        self.0.embed(prompts, options).await
    }

    async fn rerank(
        &self,
        query: String,
        documents: Vec<String>,
        options: RerankOptions,
    ) -> Result<Vec<Relevance>> {
        self.0.check_open()?;
        self.0.rerank(query, documents, options).await
    }

    async fn tokenize(&self, prompt: Prompt, options: TemplateOptions) -> Result<Vec<u32>> {
        self.0.check_open()?;
        let limits = PromptLimits::without_context(&self.0.info);
        Ok(self.0.text.prepare(prompt, &options, limits).await?.ids)
    }

    async fn decode(&self, tokens: Vec<u32>) -> Result<String> {
        self.0.check_open()?;
        let limits = PromptLimits::without_context(&self.0.info);
        self.0.text.run(limits, move |text, _| Ok(text.tokenizer().decode(&tokens, false))).await
    }

    async fn session(&self) -> Result<Session> {
        self.0.check_generates(Feature::Session)?;
        Ok(Session::new(Box::new(MlxSession::new(self.0.clone())), ""))
    }

    async fn load_session(&self, path: &Path) -> Result<Session> {
        self.0.check_generates(Feature::Session)?;
        let (session, note) = MlxSession::load(self.0.clone(), path).await?;
        Ok(Session::new(Box::new(session), note))
    }

    fn trainable(&self) -> Option<&dyn Trainable> {
        self.0.generates.then_some(self as _)
    }

    fn stats(&self) -> ModelStats {
        let mut stats = self.0.stats.snapshot();
        stats.memory = memory::usage();
        stats
    }

    async fn close(&self) -> Result<()> {
        self.0.closed.store(true, Ordering::Release);
        self.0.handle.close().await
    }
}

#[async_trait]
impl Trainable for MlxModel {
    async fn train(&self, data: TrainingData, options: TrainOptions) -> Result<TrainStream> {
        let model = &self.0;
        model.check_open()?;
        let (encode, info) = (options.clone(), model.info.clone());
        let limits = PromptLimits::new(&info, 0).with_cancel(options.cancel.clone());
        let data = model
            .text
            .run(limits, move |text, limits| text.encode_training(data, &encode, &info, &limits.cancel));
        let data = data.await?;
        let (events, mut stream) = mpsc::unbounded();
        let weight_bytes = model.info.weight_bytes;
        let free_bytes = model.handle.device().free_memory();
        let closes = options.close_model;
        model.handle.train(TrainRequest { data, options, events, weight_bytes, free_bytes })?;
        // What makes no sense for this model is found before the first step, and is the call's own error.
        let first = stream.next().await.ok_or_else(|| model.handle.stopped())??;
        model.closed.fetch_or(closes, Ordering::AcqRel);
        Ok(TrainStream::new(futures::stream::iter([Ok(first)]).chain(stream)))
    }
}

#[cfg(test)]
mod tests {
    use inference_core::{
        Error, Message, TextModelExt as _,
        train::{Example, TrainingData},
    };

    use super::*;

    /// The demo model on a thread that ends with the first thing that is asked of it.
    fn doomed() -> MlxModel {
        let demo = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo"));
        let manifest = ModelManifest::read(demo).unwrap();
        let mut info = ModelInfo::from_manifest("cpu", &manifest).unwrap();
        (info.vocab_size, info.context_length) = (2048, 1024);
        MlxModel(Arc::new(SharedModel {
            info,
            text: TextPipeline::load(demo).unwrap(),
            handle: Handle::of_a_thread_that_ends(Device::Cpu),
            layout: String::new(),
            length_dependent: false,
            generates: true,
            embedding: EmbeddingModel::default(),
            manifest,
            adapter: None,
            fingerprint: OnceCell::new(),
            stats: SharedStats::default(),
            position_bytes: 0,
            state_bytes: 0,
            closed: AtomicBool::new(false),
        }))
    }

    fn question() -> Prompt {
        Prompt::Chat(vec![Message::user("What is 2+2?")])
    }

    #[tokio::test]
    async fn all_requests_say_that_the_thread_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let options = || GenerateOptions::new().max_tokens(4);
        let data = || TrainingData::new(vec![Example::text("a text to learn")], vec![]);
        // Which request is under way when the thread ends; the others come later, and closing last.
        for under_way in 0..6 {
            let model = doomed();
            let mut session = model.session().await.unwrap();
            for request in (under_way..5).chain(0..under_way.min(5)).chain([5]) {
                let result = match request {
                    0 => model.complete(question(), options()).await.map(drop),
                    1 => model.classify(vec![question()], ClassifyOptions::new()).await.map(drop),
                    2 => session.complete(question(), options()).await.map(drop),
                    3 => session.save(folder.path().join("session")).await,
                    4 => match model.train(data(), TrainOptions::new(folder.path().join("adapter"))).await {
                        Ok(mut run) => run.finish().await.map(drop),
                        Err(error) => Err(error),
                    },
                    _ => model.close().await,
                };
                let error = result.unwrap_err();
                assert!(matches!(error, Error::Stopped { .. }), "{request} after {under_way}: {error:?}");
            }
            assert_eq!(model.stats().active, 0);
        }
    }
}
