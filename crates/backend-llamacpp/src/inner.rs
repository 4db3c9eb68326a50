//! What a model and its sessions share: where answers begin.

use std::{sync::Arc, time::Instant};

use child_process::Keeper;
use inference_core::{
    CancellationToken, Feature, GenerateOptions, ModelInfo, ModelManifest, Prompt, Result, TokenStream,
    backend::SharedStats,
};
use inference_text::{Prepared, PromptLimits, TextPipeline};
use tokio::sync::OwnedMutexGuard;

use crate::{
    adapter::Adapter,
    client::Client,
    command::Setup,
    generation::{Asked, Generation, Vocabulary},
    sampling::Sampler,
    shape::Shape,
    turn::{SessionText, Turn},
};

/// What a model shares with its sessions.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) info: ModelInfo,
    pub(crate) manifest: ModelManifest,
    pub(crate) text: TextPipeline,
    pub(crate) vocabulary: Arc<Vocabulary>,
    pub(crate) keeper: Keeper<Client>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) setup: Setup,
    pub(crate) stats: SharedStats,
}

impl Inner {
    /// The child; a new one where the last has ended.
    pub(crate) async fn client(&self) -> Result<Arc<Client>> {
        self.keeper.get(Client::start(&self.setup, None, &self.shutdown)).await
    }

    /// How the child writes the state of a slot.
    pub(crate) fn state_layout(&self) -> String {
        let (keys, values) = self.setup.cache_types();
        let adapters = Adapter::layout(&self.setup.adapters);
        format!("llama.cpp {}, keys {keys}, values {values}{adapters}", self.setup.server.version)
    }

    /// Starts an answer. With the text of a session, the prompt goes on from that.
    pub(crate) async fn generate(
        &self,
        prompt: Prompt,
        options: GenerateOptions,
        called: Instant,
        session: Option<OwnedMutexGuard<SessionText>>,
    ) -> Result<TokenStream> {
        self.check_generates(Feature::Generate)?;
        self.text.check_options(&prompt, &options)?;
        let sampler = Sampler::new(&options, self.info.vocab_size, self.info.context_length)?;
        let held = session.as_ref().map_or(&[][..], |session| session.tokens.as_slice());
        let prompt = self.prepare(held, prompt, &options).await?;
        let limits = PromptLimits::new(&self.info, 0).with_cancel(options.cancel.clone());
        let run = self.text.constraint(&prompt, &options, limits).await?;
        let (filtered, liftable) = (sampler.is_filtered(), sampler.is_liftable());
        let shape = run.map(|run| Shape::new(run, self.info.eos_token_ids.clone(), filtered, liftable));
        let client = self.client().await?;
        let (writer, stream) = self.text.response(&self.info, &self.stats, &prompt, &options, called)?;
        let generation = Generation {
            client: client.clone(),
            vocabulary: self.vocabulary.clone(),
            writer,
            shutdown: self.shutdown.clone(),
            asked: Asked {
                sampler,
                ends: self.info.eos_token_ids.clone(),
                min_tokens: options.min_tokens.unwrap_or(0),
                log_probabilities: options.log_probabilities,
                vocab_size: self.info.vocab_size,
            },
            shape,
            prompt: prompt.ids.len(),
            text: prompt.ids,
            turn: session.map(Turn::new),
            prefill: None,
        };
        client.spawn(generation.run());
        Ok(stream)
    }

    /// The whole text of a request. A conversation replaces what a session holds.
    async fn prepare(&self, held: &[u32], prompt: Prompt, options: &GenerateOptions) -> Result<Prepared> {
        let limits = PromptLimits::new(&self.info, 0).with_cancel(options.cancel.clone());
        let whole = match prompt {
            Prompt::Text(text) if !held.is_empty() => {
                let more = self.text.encode_more(text, limits.clone()).await?;
                Prompt::Tokens([held, &more].concat())
            }
            Prompt::Tokens(more) => Prompt::Tokens([held, &more].concat()),
            other => other,
        };
        self.text.prepare(whole, &options.template, limits).await
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Running generations hold the child until they see this.
        self.shutdown.cancel();
    }
}
