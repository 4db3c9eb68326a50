//! A loaded model, as callers hold it: tokenising and templates here, the rest on the MLX thread.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use async_trait::async_trait;
use futures::{StreamExt as _, channel::mpsc, future::try_join};
use inference_core::{
    Classification, ClassifyOptions, ContextOverflow, Error, GenerateOptions, LabelScore, LoadOptions,
    ModelInfo, ModelManifest, ModelStats, Prompt, Result, Session, TemplateOptions, TextModel, TokenStream,
    backend::{AdapterManifest, spawn_blocking},
    train::{TrainOptions, TrainStream, Trainable, TrainingData},
};
use inference_text::Codec;
use tokio::sync::{OnceCell, oneshot};

use crate::{
    engine::{ClassifyRequest, Handle, Loaded, Request, SessionTurn, Stats},
    mlx::Device,
    session::MlxSession,
    train::TrainRequest,
};

/// Tokens that wait for a slow reader before its row pauses.
const STREAM_CAPACITY: usize = 64;

/// A model on MLX.
#[derive(Debug)]
pub(crate) struct MlxModel(Arc<Inner>);

/// What a model shares with its sessions.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) info: ModelInfo,
    pub(crate) codec: Codec,
    pub(crate) handle: Handle,
    /// How keys and values are kept.
    pub(crate) layout: String,
    /// Whether positions are encoded by the length of their text.
    length_dependent: bool,
    pub(crate) manifest: ModelManifest,
    adapter: Option<PathBuf>,
    fingerprint: OnceCell<String>,
    stats: Arc<Stats>,
    closed: AtomicBool,
}

impl MlxModel {
    pub(crate) async fn load(device: Device, manifest: ModelManifest, options: LoadOptions) -> Result<Self> {
        let path = manifest.path().to_owned();
        let adapter = options.adapter.clone();
        // The first to fail cancels the other.
        let codec = spawn_blocking(move || Codec::load(&path));
        let loading = Handle::load(device, manifest.clone(), options);
        let (codec, (handle, Loaded { config, layout })) = try_join(codec, loading).await?;
        let mut info = ModelInfo::from_manifest(device.id(), &manifest)?;
        info.eos_token_ids = codec.tokenizer().eos_ids().to_vec();
        info.vocab_size = config.vocab_size;
        info.layers = config.layers;
        info.hidden_size = config.hidden_size;
        info.context_length = config.context_length;
        let length_dependent = config.length_dependent;
        let inner = Inner {
            info,
            codec,
            handle,
            layout,
            length_dependent,
            manifest,
            adapter,
            fingerprint: OnceCell::new(),
            stats: Arc::default(),
            closed: AtomicBool::new(false),
        };
        Ok(Self(Arc::new(inner)))
    }
}

impl Inner {
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    /// Which weights it has.
    pub(crate) async fn fingerprint(&self) -> Result<&str> {
        let compute = || {
            let (manifest, adapter) = (self.manifest.clone(), self.adapter.clone());
            spawn_blocking(move || match adapter {
                Some(folder) => manifest.fingerprint_with(&AdapterManifest::read(folder, &manifest)?),
                None => manifest.fingerprint(),
            })
        };
        self.fingerprint.get_or_try_init(compute).await.map(String::as_str)
    }

    /// The prompt's ids, which the context holds, or is to outlive.
    pub(crate) fn encode(&self, prompt: Prompt, options: &GenerateOptions) -> Result<Vec<u32>> {
        let encode = |info: &ModelInfo, more| self.codec.encode(prompt, &options.template, info, more);
        let limit = self.info.context_length;
        let answer = options.max_tokens_or_default();
        match options.context_overflow.unwrap_or_default() {
            // Together they exceed the limit wherever the answer alone does.
            ContextOverflow::Refuse => encode(&self.info, answer.min(limit)).map_err(|error| match error {
                Error::ContextExceeded { tokens, limit } => {
                    Error::ContextExceeded { tokens: tokens.saturating_add(answer), limit }
                }
                other => other,
            }),
            ContextOverflow::Rotate { keep } => {
                let invalid = |reason| Err(Error::InvalidOption { option: "context_overflow", reason });
                if self.length_dependent {
                    return invalid(
                        "this model encodes positions by the length of the whole text".to_owned(),
                    );
                }
                if keep >= limit.div_ceil(2) {
                    return invalid(format!("keeps {keep} tokens, expected fewer than half of {limit}"));
                }
                let mut endless = self.info.clone();
                endless.context_length = usize::MAX;
                encode(&endless, 0)
            }
            _ => encode(&self.info, 0),
        }
    }

    /// Hands a request over whose prompt is encoded and checked.
    pub(crate) fn generate(
        &self,
        prompt: Vec<u32>,
        options: GenerateOptions,
        called: Instant,
        turn: Option<SessionTurn>,
    ) -> Result<TokenStream> {
        let assembler = self.codec.assembler(&options)?;
        let budget = self.codec.thinking_budget(&prompt, &options);
        let (sink, stream) =
            TokenStream::channel(&self.info.backend, STREAM_CAPACITY, options.cancel.clone());
        let stream = stream.with_parser(self.codec.reader(&prompt, &options));
        self.handle.generate(Request {
            prompt,
            options,
            eos: self.info.eos_token_ids.clone(),
            sink,
            assembler,
            budget,
            called,
            span: tracing::Span::current(),
            turn,
            active: self.stats.begin(),
        })?;
        Ok(stream)
    }
}

#[async_trait]
impl TextModel for MlxModel {
    fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    async fn generate(&self, prompt: Prompt, options: GenerateOptions) -> Result<TokenStream> {
        let called = Instant::now();
        self.0.check_open()?;
        let prompt = self.0.encode(prompt, &options)?;
        self.0.generate(prompt, options, called, None)
    }

    async fn classify(&self, prompts: Vec<Prompt>, options: ClassifyOptions) -> Result<Vec<Classification>> {
        let model = &*self.0;
        model.check_open()?;
        let labels = options.labels.as_deref().unwrap_or_default();
        let label_tokens = model.codec.encode_labels(&options)?;
        let longest = label_tokens.iter().map(Vec::len).max().unwrap_or(1) - 1;
        let prompts = model.codec.encode_all(prompts, &options.template, &model.info, longest)?;
        let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
        let (reply, results) = oneshot::channel();
        let (cancel, logits) = (options.cancel.clone(), options.logits);
        model.handle.classify(ClassifyRequest { prompts, labels: label_tokens, logits, cancel, reply })?;
        let results = results.await.map_err(|_| model.handle.stopped())??;
        let classifications = results.into_iter().zip(lengths).map(|(result, prompt_tokens)| {
            let mut classification = Classification::default();
            classification.token = result.token;
            classification.text = model.codec.tokenizer().decode(&[result.token], false);
            classification.labels = LabelScore::normalize(labels, &result.labels);
            classification.logits = result.logits;
            classification.prompt_tokens = prompt_tokens;
            classification
        });
        Ok(classifications.collect())
    }

    async fn tokenize(&self, prompt: Prompt, options: TemplateOptions) -> Result<Vec<u32>> {
        self.0.check_open()?;
        let mut endless = self.0.info.clone();
        endless.context_length = usize::MAX;
        self.0.codec.encode(prompt, &options, &endless, 0)
    }

    async fn decode(&self, tokens: Vec<u32>) -> Result<String> {
        self.0.check_open()?;
        Ok(self.0.codec.tokenizer().decode(&tokens, false))
    }

    async fn session(&self) -> Result<Session> {
        self.0.check_open()?;
        Ok(Session::new(Box::new(MlxSession::new(self.0.clone())), ""))
    }

    async fn load_session(&self, path: &Path) -> Result<Session> {
        self.0.check_open()?;
        let (session, note) = MlxSession::load(self.0.clone(), path).await?;
        Ok(Session::new(Box::new(session), note))
    }

    fn trainable(&self) -> Option<&dyn Trainable> {
        Some(self)
    }

    fn stats(&self) -> ModelStats {
        self.0.stats.snapshot()
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
        let data = model.codec.encode_training(data, &options, &model.info)?;
        let (events, mut stream) = mpsc::unbounded();
        let weight_bytes = model.info.weight_bytes;
        let free_bytes = model.handle.device().free_memory();
        model.handle.train(TrainRequest { data, options, events, weight_bytes, free_bytes })?;
        // What makes no sense for this model is found before the first step, and is the call's own error.
        let first = stream.next().await.ok_or_else(|| model.handle.stopped())??;
        Ok(TrainStream::new(futures::stream::iter([Ok(first)]).chain(stream)))
    }
}
