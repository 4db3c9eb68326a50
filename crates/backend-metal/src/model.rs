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
    ModelManifest, ModelStats, Prompt, Result, TemplateOptions, TextModel, TokenStream,
};
use inference_text::{ChatTemplate, StopStrings, TextAssembler, Tokenizer};
use tokio::sync::oneshot;

use crate::engine::{ClassifyRequest, Device, Handle, Request, Stats};

/// Tokens that wait for a slow reader before its row pauses.
const STREAM_CAPACITY: usize = 64;

/// A model on MLX.
#[derive(Debug)]
pub(crate) struct MlxModel {
    info: ModelInfo,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    handle: Handle,
    stats: Arc<Stats>,
    closed: AtomicBool,
}

impl MlxModel {
    pub(crate) async fn load(device: Device, manifest: ModelManifest, options: LoadOptions) -> Result<Self> {
        let tokenizer = Tokenizer::load(manifest.path())?;
        let template = ChatTemplate::load(manifest.path(), tokenizer.special_tokens())?;
        let stats = Arc::new(Stats::default());
        let mut info = ModelInfo::default();
        info.path = manifest.path().to_owned();
        info.backend = device.id().to_owned();
        info.architecture = manifest.model_type().to_owned();
        info.weight_bytes = manifest.weight_bytes();
        info.quantization = manifest.quantization().cloned();
        info.eos_token_ids = tokenizer.eos_ids().to_vec();
        let eos = info.eos_token_ids.clone();
        let (handle, config) = Handle::load(device, manifest, options, eos, stats.clone()).await?;
        info.vocab_size = config.vocab_size;
        info.layers = config.layers;
        info.hidden_size = config.hidden_size;
        info.context_length = config.context_length;
        info.parameters = config.parameters;
        info.dtype = config.dtype;
        Ok(Self { info, tokenizer, template, handle, stats, closed: AtomicBool::new(false) })
    }

    /// The prompt's ids: not empty, within the vocabulary, with room for `more` tokens in the context.
    fn tokens(&self, prompt: Prompt, template: &TemplateOptions, more: usize) -> Result<Vec<u32>> {
        let tokens = match prompt {
            Prompt::Tokens(tokens) => tokens,
            Prompt::Text(text) => self.tokenizer.encode(&text, true)?,
            Prompt::Chat(messages) => {
                let Some(chat) = &self.template else {
                    let reason = "the model's folder has no chat template; use a text prompt".to_owned();
                    return Err(Error::Template { reason });
                };
                self.tokenizer.encode(&chat.render(&messages, template, true)?, false)?
            }
            other => {
                let reason = format!("{other:?} is of a kind that this backend does not know");
                return Err(Error::InvalidPrompt { reason });
            }
        };
        if tokens.is_empty() {
            return Err(Error::InvalidPrompt { reason: "it is empty".to_owned() });
        }
        let vocab_size = self.info.vocab_size;
        if let Some(id) = tokens.iter().find(|id| **id as usize >= vocab_size) {
            return Err(Error::InvalidPrompt {
                reason: format!("token {id} is outside the vocabulary of {vocab_size}"),
            });
        }
        if tokens.len() + more > self.info.context_length {
            return Err(Error::ContextExceeded { tokens: tokens.len(), limit: self.info.context_length });
        }
        Ok(tokens)
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
        let prompt = self.tokens(prompt, &options.template, 0)?;
        let stops = options.stop.iter().flat_map(|stops| stops.iter().cloned());
        let stops = options.stop.is_some().then(|| StopStrings::new(stops)).transpose()?.map(Arc::new);
        let assembler = TextAssembler::new(self.tokenizer.detokenizer(true), stops);
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
        let label_tokens =
            labels.iter().map(|label| self.tokenizer.encode(label, false)).collect::<Result<Vec<_>>>()?;
        if let Some(index) = label_tokens.iter().position(Vec::is_empty) {
            let reason = format!("{:?} has no tokens", labels[index]);
            return Err(Error::InvalidOption { option: "labels", reason });
        }
        let longest = label_tokens.iter().map(Vec::len).max().unwrap_or(1) - 1;
        let prompts = prompts.into_iter().map(|prompt| self.tokens(prompt, &options.template, longest));
        let prompts = prompts.collect::<Result<Vec<_>>>()?;
        let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
        let (reply, results) = oneshot::channel();
        let (cancel, logits) = (options.cancel.clone(), options.logits);
        self.handle.classify(ClassifyRequest { prompts, labels: label_tokens, logits, cancel, reply })?;
        let results = results.await.map_err(|_| self.handle.stopped())??;
        let classifications = results.into_iter().zip(lengths).map(|(result, prompt_tokens)| {
            let mut classification = Classification::default();
            classification.token = result.token;
            classification.text = self.tokenizer.decode(&[result.token], false);
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
