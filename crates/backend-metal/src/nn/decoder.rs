//! The frame of every family: embedding, blocks, norm, head.

use inference_core::Result as LoadResult;
use mlx_rs::{Array, error::Result, ops};

use super::{
    block::Block,
    cache::{KvCache, Rows},
    linear::{Embedding, Linear},
    norm::RmsNorm,
    ops::scalar,
    pass::Pass,
    weights::Weights,
};
use crate::arch::{Architecture, Dimensions, ModelConfig};

/// A decoder-only model of blocks of one kind.
#[derive(Debug)]
pub(crate) struct Decoder<B> {
    /// What the engine must know of it.
    pub(crate) config: ModelConfig,
    /// `embed_tokens`
    pub(crate) embed_tokens: Embedding,
    /// What embeddings are multiplied by.
    pub(crate) embed_scale: Option<f32>,
    /// `layers`
    pub(crate) layers: Vec<B>,
    /// `norm`
    pub(crate) norm: RmsNorm,
    /// `lm_head`, or the embedding where they are tied.
    pub(crate) lm_head: Linear,
    /// What logits are multiplied by.
    pub(crate) logit_scale: Option<f32>,
    /// Logits `l` become `cap · tanh(l / cap)`.
    pub(crate) logit_cap: Option<f32>,
}

impl<B: Block> Decoder<B> {
    /// The frame around `layers`, from `model` (the tensors besides the head) of a checkpoint. `recompute_at` is that of
    /// [`ModelConfig`].
    pub(crate) fn load(
        weights: &Weights<'_>,
        model: &Weights<'_>,
        dims: &Dimensions,
        layers: Vec<B>,
        recompute_at: Option<usize>,
    ) -> LoadResult<Self> {
        let embed_tokens = Embedding::load(&model.at("embed_tokens"), dims.vocab_size, dims.hidden_size)?;
        let lm_head = if dims.tie_word_embeddings {
            // Some publishers store the embedding a second time.
            weights.skip(|name| name.starts_with("lm_head."));
            embed_tokens.as_linear()
        } else {
            Linear::load(&weights.at("lm_head"), dims.vocab_size, dims.hidden_size, false)?
        };
        let windows = layers.iter().map(Block::window).collect();
        Ok(Self {
            config: dims.model_config(weights, windows, recompute_at),
            norm: dims.norm(&model.at("norm"))?,
            embed_tokens,
            embed_scale: None,
            layers,
            lm_head,
            logit_scale: None,
            logit_cap: None,
        })
    }
}

impl<B: Block> Architecture for Decoder<B> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn new_cache(&self) -> KvCache {
        KvCache::new(self.config.windows.iter().copied())
    }

    fn hidden(&self, tokens: &Array, rows: Rows<'_>) -> Result<Array> {
        let mut pass = Pass::new(tokens, rows)?;
        let mut x = self.embed_tokens.forward(tokens)?;
        if let Some(scale) = self.embed_scale {
            x = x.multiply(scalar(scale, x.dtype())?)?;
        }
        for (layer, block) in self.layers.iter().enumerate() {
            x = block.forward(&x, &mut pass, layer)?;
        }
        pass.finish();
        self.norm.forward(&x)
    }

    fn logits(&self, hidden: &Array) -> Result<Array> {
        let mut logits = self.lm_head.forward(hidden)?;
        if let Some(scale) = self.logit_scale {
            logits = logits.multiply(scalar(scale, logits.dtype())?)?;
        }
        if let Some(cap) = self.logit_cap {
            let cap = scalar(cap, logits.dtype())?;
            logits = ops::tanh(logits.divide(&cap)?)?.multiply(&cap)?;
        }
        Ok(logits)
    }
}
