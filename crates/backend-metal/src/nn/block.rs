//! Transformer blocks.

use cuda_kernels::{LayerSpec, MlpSpec};
use inference_core::Result as LoadResult;
use mlx_rs::{Array, error::Result};

use super::{
    attention::Attention, cuda::{SpecBuilder, Unsupported}, dimensions::Dimensions, forward_pass::ForwardPass, mlp::GatedMlp, norm::RmsNorm,
    weights::Weights,
};

/// A transformer block.
pub(crate) trait Block {
    /// `[B, T, hidden]` → the same, as layer `layer` of the model.
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array>;

    /// The sliding window, if it has one.
    fn window(&self) -> Option<usize>;

    /// What the kernels of CUDA need to know, if they can compute it.
    fn describe(&self, builder: &mut SpecBuilder) -> std::result::Result<LayerSpec, Unsupported> {
        let _ = builder;
        Err(Unsupported("blocks of this family".to_owned()))
    }
}

/// The feed-forward part of a block.
pub(crate) trait FeedForward {
    /// `[B, T, hidden]` → the same
    fn forward(&self, x: &Array) -> Result<Array>;

    /// What the kernels of CUDA need to know, if they can compute it.
    fn describe(&self, builder: &mut SpecBuilder) -> std::result::Result<MlpSpec, Unsupported> {
        let _ = builder;
        Err(Unsupported("experts".to_owned()))
    }
}

impl FeedForward for GatedMlp {
    fn forward(&self, x: &Array) -> Result<Array> {
        Self::forward(self, x)
    }

    fn describe(&self, builder: &mut SpecBuilder) -> std::result::Result<MlpSpec, Unsupported> {
        Self::describe(self, builder)
    }
}

impl FeedForward for Box<dyn FeedForward> {
    fn forward(&self, x: &Array) -> Result<Array> {
        (**self).forward(x)
    }

    fn describe(&self, builder: &mut SpecBuilder) -> std::result::Result<MlpSpec, Unsupported> {
        (**self).describe(builder)
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

    fn describe(&self, builder: &mut SpecBuilder) -> std::result::Result<LayerSpec, Unsupported> {
        Ok(LayerSpec {
            input_norm: builder.norm(&self.input_layernorm)?,
            attention: self.self_attn.describe(builder)?,
            mlp_norm: builder.norm(&self.post_attention_layernorm)?,
            mlp: self.mlp.describe(builder)?,
            post_norms: None,
        })
    }
}
