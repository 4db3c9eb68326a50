//! What a model shares with its sessions: the text pipeline, and the way to the engine.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use inference_core::{
    ContextOverflow, Error, GenerateOptions, ModelInfo, ModelManifest, Prompt, Result, TokenStream,
    backend::{AdapterManifest, spawn_blocking},
};
use inference_text::Codec;
use tokio::sync::OnceCell;

use crate::engine::{Handle, Request, SessionTurn, Stats};

/// Tokens that wait for a slow reader before its row pauses.
const STREAM_CAPACITY: usize = 64;

/// What a model shares with its sessions.
#[derive(Debug)]
pub(crate) struct SharedModel {
    pub(crate) info: ModelInfo,
    pub(crate) codec: Codec,
    pub(crate) handle: Handle,
    /// How keys and values are kept.
    pub(crate) layout: String,
    /// Whether positions are encoded by the length of their text.
    pub(crate) length_dependent: bool,
    pub(crate) manifest: ModelManifest,
    pub(crate) adapter: Option<PathBuf>,
    pub(crate) fingerprint: OnceCell<String>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) closed: AtomicBool,
}

impl SharedModel {
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
