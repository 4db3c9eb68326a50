//! Transformer blocks.

use inference_core::Result as LoadResult;
use mlx_rs::{Array, error::Result};

use super::{
    attention::Attention, dimensions::Dimensions, forward_pass::ForwardPass, mlp::GatedMlp, norm::RmsNorm,
    weights::Weights,
};

/// A transformer block.
pub(crate) trait Block {
    /// `[B, T, hidden]` → the same, as layer `layer` of the model.
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array>;

    /// The sliding window, if it has one.
    fn window(&self) -> Option<usize>;
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

impl FeedForward for Box<dyn FeedForward> {
    fn forward(&self, x: &Array) -> Result<Array> {
        (**self).forward(x)
    }
}

/// The block of most families: x + attention(norm(x)), then x + mlp(norm(x)).
#[derive(Debug)]
pub(crate) struct PreNorm<F> {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: F,
}

impl<F: FeedForward> PreNorm<F> {
    /// The block at `weights`, around its attention and feed-forward parts.
    pub(crate) fn load(
        weights: &Weights<'_>,
        dims: &Dimensions,
        self_attn: Attention,
        mlp: F,
    ) -> LoadResult<Self> {
        Ok(Self {
            input_layernorm: dims.norm(&weights.at("input_layernorm"))?,
            self_attn,
            post_attention_layernorm: dims.norm(&weights.at("post_attention_layernorm"))?,
            mlp,
        })
    }
}

impl<F: FeedForward> Block for PreNorm<F> {
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        let mixed = self.self_attn.forward(&self.input_layernorm.forward(x)?, pass, layer)?;
        let [x, normalised] = self.post_attention_layernorm.of_sum(x, &mixed, None)?;
        x.add(self.mlp.forward(&normalised)?)
    }

    fn window(&self) -> Option<usize> {
        self.self_attn.window()
    }
}
