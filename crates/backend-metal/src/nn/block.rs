//! Transformer blocks.

use inference_core::Result as LoadResult;
use mlx_rs::{Array, error::Result};

use super::{
    attention::Attention,
    cache::LayerState,
    dimensions::Dimensions,
    forward_pass::ForwardPass,
    mlp::{GatedMlp, PlainMlp},
    norm::{LayerNorm, RmsNorm},
    weights::Weights,
};

/// A transformer block.
pub(crate) trait Block {
    /// `[B, T, hidden]` → the same, as layer `layer` of the model.
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array>;

    /// What it keeps of a text.
    fn state(&self) -> LayerState;
}

impl Block for Box<dyn Block> {
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        (**self).forward(x, pass, layer)
    }

    fn state(&self) -> LayerState {
        (**self).state()
    }
}

/// The feed-forward part of a block.
pub(crate) trait FeedForward {
    /// `[B, T, hidden]` → the same
    fn forward(&self, x: &Array) -> Result<Array>;
}

impl FeedForward for GatedMlp {
    fn forward(&self, x: &Array) -> Result<Array> {
        Self::forward(self, x)
    }
}

impl FeedForward for PlainMlp {
    fn forward(&self, x: &Array) -> Result<Array> {
        Self::forward(self, x)
    }
}

impl FeedForward for Box<dyn FeedForward> {
    fn forward(&self, x: &Array) -> Result<Array> {
        (**self).forward(x)
    }
}

/// The part of a block that mixes tokens: attention, or something in its place.
pub(crate) trait Mixer {
    /// `[B, T, hidden]` → the same, as layer `layer` of the model.
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array>;

    /// What it keeps of a text.
    fn state(&self) -> LayerState;
}

impl Mixer for Attention {
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        Self::forward(self, x, pass, layer)
    }

    fn state(&self) -> LayerState {
        Self::state(self)
    }
}

impl Mixer for Box<dyn Mixer> {
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        (**self).forward(x, pass, layer)
    }

    fn state(&self) -> LayerState {
        (**self).state()
    }
}

/// The block of most families: x + mixer(norm(x)), then x + mlp(norm(x)).
#[derive(Debug)]
pub(crate) struct PreNorm<F, M = Attention> {
    pub(crate) input_layernorm: RmsNorm,
    pub(crate) self_attn: M,
    pub(crate) post_attention_layernorm: RmsNorm,
    pub(crate) mlp: F,
}

impl<F: FeedForward, M: Mixer> PreNorm<F, M> {
    /// The block at `weights`, around its attention and feed-forward parts.
    pub(crate) fn load(weights: &Weights<'_>, dims: &Dimensions, self_attn: M, mlp: F) -> LoadResult<Self> {
        Ok(Self {
            input_layernorm: dims.norm(&weights.at("input_layernorm"))?,
            self_attn,
            post_attention_layernorm: dims.norm(&weights.at("post_attention_layernorm"))?,
            mlp,
        })
    }
}

impl<F: FeedForward, M: Mixer> Block for PreNorm<F, M> {
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        let mixed = self.self_attn.forward(&self.input_layernorm.forward(x)?, pass, layer)?;
        let [x, normalised] = self.post_attention_layernorm.of_sum(x, &mixed, None)?;
        x.add(self.mlp.forward(&normalised)?)
    }

    fn state(&self) -> LayerState {
        self.self_attn.state()
    }
}

/// A block whose norms are of mean and variance: as [`PreNorm`], or with attention and feed-forward part side by side.
#[derive(Debug)]
pub(crate) struct LayerNormBlock<F> {
    pub(crate) input_layernorm: LayerNorm,
    pub(crate) self_attn: Attention,
    /// `None`: x + attention(norm(x)) + mlp(norm(x)).
    pub(crate) post_attention_layernorm: Option<LayerNorm>,
    pub(crate) mlp: F,
}

impl<F: FeedForward> Block for LayerNormBlock<F> {
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        let normalised = self.input_layernorm.forward(x)?;
        let mixed = x.add(self.self_attn.forward(&normalised, pass, layer)?)?;
        let normalised = match &self.post_attention_layernorm {
            Some(norm) => norm.forward(&mixed)?,
            None => normalised,
        };
        mixed.add(self.mlp.forward(&normalised)?)
    }

    fn state(&self) -> LayerState {
        self.self_attn.state()
    }
}
