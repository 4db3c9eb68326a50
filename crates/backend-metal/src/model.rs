//! A loaded model, as callers hold it: tokenising and templates here, the rest on the MLX thread.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use async_trait::async_trait;
use inference_core::{
    Classification, ClassifyOptions, Error, GenerateOptions, LabelScore, LoadOptions, ModelInfo,
    ModelManifest, ModelStats, Prompt, Result, TextModel, TokenStream, off_thread,
};
use inference_text::Codec;
use tokio::sync::oneshot;

use crate::engine::{ClassifyRequest, Device, Handle, Request, Stats};

/// Tokens that wait for a slow reader before its row pauses.
const STREAM_CAPACITY: usize = 64;

/// A model on MLX.
#[derive(Debug)]
pub(crate) struct MlxModel {
    info: ModelInfo,
    codec: Codec,
    handle: Handle,
    stats: Arc<Stats>,
    closed: AtomicBool,
}

impl MlxModel {
    pub(crate) async fn load(device: Device, manifest: ModelManifest, options: LoadOptions) -> Result<Self> {
        let path = manifest.path().to_owned();
        let codec = off_thread(move || Codec::load(&path)).await?;
        let stats = Arc::new(Stats::default());
        let mut info = ModelInfo::default();
        info.path = manifest.path().to_owned();
        info.backend = device.id().to_owned();
        info.architecture = manifest.model_type().to_owned();
        info.weight_bytes = manifest.weight_bytes();
        info.quantization = manifest.quantization().cloned();
        info.eos_token_ids = codec.tokenizer().eos_ids().to_vec();
        let eos = info.eos_token_ids.clone();
        let (handle, config) = Handle::load(device, manifest, options, eos, stats.clone()).await?;
        info.vocab_size = config.vocab_size;
        info.layers = config.layers;
        info.hidden_size = config.hidden_size;
        info.context_length = config.context_length;
        info.parameters = config.parameters;
        info.dtype = config.dtype;
        Ok(Self { info, codec, handle, stats, closed: AtomicBool::new(false) })
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }
}

#[async_trait]
impl TextModel for MlxModel {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    async fn generate(&self, prompt: Prompt, options: GenerateOptions) -> Result<TokenStream> {
        let called = Instant::now();
        self.check_open()?;
        let prompt = self.codec.encode(prompt, &options.template, &self.info, 0)?;
        let assembler = self.codec.assembler(&options)?;
        let (sink, stream) =
            TokenStream::channel(&self.info.backend, STREAM_CAPACITY, options.cancel.clone());
        self.stats.began();
        self.handle.generate(Request {
            prompt,
            options,
            sink,
            assembler,
            called,
            span: tracing::Span::current(),
        })?;
        Ok(stream)
    }

    async fn classify(&self, prompts: Vec<Prompt>, options: ClassifyOptions) -> Result<Vec<Classification>> {
        self.check_open()?;
        let labels = options.labels.as_deref().unwrap_or_default();
        let label_tokens = self.codec.encode_labels(&options)?;
        let longest = label_tokens.iter().map(Vec::len).max().unwrap_or(1) - 1;
        let encode = |prompt| self.codec.encode(prompt, &options.template, &self.info, longest);
        let prompts = prompts.into_iter().map(encode).collect::<Result<Vec<_>>>()?;
        let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
        let (reply, results) = oneshot::channel();
        let (cancel, logits) = (options.cancel.clone(), options.logits);
        self.handle.classify(ClassifyRequest { prompts, labels: label_tokens, logits, cancel, reply })?;
        let results = results.await.map_err(|_| self.handle.stopped())??;
        let classifications = results.into_iter().zip(lengths).map(|(result, prompt_tokens)| {
            let mut classification = Classification::default();
            classification.token = result.token;
            classification.text = self.codec.tokenizer().decode(&[result.token], false);
            classification.labels = LabelScore::normalise(labels, &result.labels);
            classification.logits = result.logits;
            classification.prompt_tokens = prompt_tokens;
            classification
        });
        Ok(classifications.collect())
    }

    fn stats(&self) -> ModelStats {
        self.stats.snapshot()
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        self.handle.close().await
    }
}
