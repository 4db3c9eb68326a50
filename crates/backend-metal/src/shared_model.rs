//! What a model shares with its sessions: the text pipeline, and the way to the engine.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use inference_core::{
    ContextOverflow, Error, Feature, GenerateOptions, ModelInfo, ModelManifest, Pooling, Prompt, Result,
    TokenStream,
    backend::{AdapterManifest, EmbeddingConfig, SharedStats, spawn_blocking},
};
use inference_text::{Prepared, PromptLimits, TextPipeline};
use tokio::sync::OnceCell;

use crate::engine::{Handle, Request, SessionTurn};

/// What is known of a model's embeddings.
#[derive(Debug, Default)]
pub(crate) struct EmbeddingModel {
    /// What its folder says.
    pub(crate) config: EmbeddingConfig,
    /// How the vectors of tokens become one where nobody says.
    pub(crate) pooling: Option<Pooling>,
    /// How it scores documents.
    pub(crate) reranker: Option<Reranker>,
}

/// How a model scores documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reranker {
    /// A head scores the query and the document, joined.
    Head,
    /// It says whether the document answers the query: the ids of `yes` and `no`.
    Judge([u32; 2]),
}

/// What a model shares with its sessions.
#[derive(Debug)]
pub(crate) struct SharedModel {
    pub(crate) info: ModelInfo,
    pub(crate) text: TextPipeline,
    pub(crate) handle: Handle,
    /// How keys and values are kept.
    pub(crate) layout: String,
    /// The most bytes that a cache keeps of one position, and of its recurrent states.
    pub(crate) position_bytes: u64,
    pub(crate) state_bytes: u64,
    /// Whether positions are encoded by the length of their text.
    pub(crate) length_dependent: bool,
    /// Whether it generates text.
    pub(crate) generates: bool,
    pub(crate) embedding: EmbeddingModel,
    pub(crate) manifest: ModelManifest,
    pub(crate) adapter: Option<PathBuf>,
    pub(crate) fingerprint: OnceCell<String>,
    pub(crate) stats: SharedStats,
    pub(crate) closed: AtomicBool,
}

impl SharedModel {
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    /// Refuses what a model that generates no text does not do.
    pub(crate) fn check_generates(&self, feature: Feature) -> Result<()> {
        self.check_open()?;
        if self.generates {
            return Ok(());
        }
        Err(Error::unsupported(&self.info.backend, feature))
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
    pub(crate) async fn prepare(&self, prompt: Prompt, options: &GenerateOptions) -> Result<Prepared> {
        self.text.check_options(&prompt, options)?;
        let limit = self.info.context_length;
        let answer = options.max_tokens_or_default();
        let limits = match options.context_overflow.unwrap_or_default() {
            // Together they exceed the limit wherever the answer alone does.
            ContextOverflow::Refuse => PromptLimits::new(&self.info, answer.min(limit)),
            ContextOverflow::Rotate { keep } => {
                let invalid = |reason| Err(Error::invalid_option("context_overflow", reason));
                if self.length_dependent {
                    return invalid(
                        "this model encodes positions by the length of the whole text".to_owned(),
                    );
                }
                if keep >= limit.div_ceil(2) {
                    return invalid(format!("keeps {keep} tokens, expected fewer than half of {limit}"));
                }
                PromptLimits::without_context(&self.info)
            }
            _ => PromptLimits::new(&self.info, 0),
        };
        let reserved = limits.reserved;
        let limits = limits.with_cancel(options.cancel.clone());
        let prepared = self.text.prepare(prompt, &options.template, limits).await;
        prepared.map_err(|error| match error {
            Error::ContextExceeded { tokens, limit, .. } if reserved > 0 => {
                Error::context_exceeded(tokens.saturating_add(answer), limit)
            }
            other => other,
        })
    }

    /// Hands a request over whose prompt is encoded and checked.
    pub(crate) async fn generate(
        &self,
        prompt: Prepared,
        options: GenerateOptions,
        called: Instant,
        turn: Option<SessionTurn>,
    ) -> Result<TokenStream> {
        let limits = PromptLimits::new(&self.info, 0).with_cancel(options.cancel.clone());
        let shape = self.text.constraint(&prompt, &options, limits).await?;
        let budget = self.text.thinking_budget(&prompt, &options);
        let (writer, stream) = self.text.response(&self.info, &self.stats, &prompt, &options, called)?;
        let eos = self.info.eos_token_ids.clone();
        self.handle.generate(Request { prompt: prompt.ids, options, eos, budget, shape, turn, writer })?;
        Ok(stream)
    }
}
