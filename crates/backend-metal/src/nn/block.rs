//! Transformer blocks.

use cuda_kernels::{AttentionSpec, FeedForwardSpec, LayerSpec};
use inference_core::Result as LoadResult;
use mlx_rs::{Array, error::Result};

use super::{
    attention::Attention,
    cache::LayerState,
    cpu::{Recorded, Recording, Unrecorded, Value},
    cuda::{SpecBuilder, Unsupported},
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

    /// The same as [`forward`](Self::forward) in a recording, where that can be.
    fn record(&self, x: Value, recording: &mut Recording<'_, '_>, layer: usize) -> Recorded {
        let _ = (x, recording, layer);
        Err(Unrecorded::Never("blocks of this family"))
    }

    /// What the kernels of CUDA need to know, if they can compute it.
    fn describe(&self, builder: &mut SpecBuilder) -> std::result::Result<LayerSpec, Unsupported> {
        let _ = builder;
        Err(Unsupported("blocks of this family".to_owned()))
    }
}

impl Block for Box<dyn Block> {
    fn record(&self, x: Value, recording: &mut Recording<'_, '_>, layer: usize) -> Recorded {
        (**self).record(x, recording, layer)
    }

    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        (**self).forward(x, pass, layer)
    }

    fn state(&self) -> LayerState {
        (**self).state()
    }

    fn describe(&self, builder: &mut SpecBuilder) -> std::result::Result<LayerSpec, Unsupported> {
        (**self).describe(builder)
    }
}

/// The feed-forward part of a block.
pub(crate) trait FeedForward {
    /// `[B, T, hidden]` → the same
    fn forward(&self, x: &Array) -> Result<Array>;

    /// The same in a recording, where that can be.
    fn record(&self, x: Value, recording: &mut Recording<'_, '_>) -> Recorded {
        let _ = (x, recording);
        Err(Unrecorded::Never("feed-forward parts of this kind"))
    }

    /// What the kernels of CUDA need to know, if they can compute it.
    fn describe(&self, builder: &mut SpecBuilder) -> std::result::Result<FeedForwardSpec, Unsupported> {
        let _ = builder;
        Err(Unsupported("feed-forward parts of this family".to_owned()))
    }
}

impl FeedForward for GatedMlp {
    fn forward(&self, x: &Array) -> Result<Array> {
        Self::forward(self, x)
    }

    fn record(&self, x: Value, recording: &mut Recording<'_, '_>) -> Recorded {
        Self::record(self, x, recording)
    }

    fn describe(&self, builder: &mut SpecBuilder) -> std::result::Result<FeedForwardSpec, Unsupported> {
        Self::describe(self, builder).map(FeedForwardSpec::Dense)
    }
}

impl FeedForward for PlainMlp {
    fn forward(&self, x: &Array) -> Result<Array> {
        Self::forward(self, x)
    }

    fn record(&self, x: Value, recording: &mut Recording<'_, '_>) -> Recorded {
        Self::record(self, x, recording)
    }
}

impl FeedForward for Box<dyn FeedForward> {
    fn forward(&self, x: &Array) -> Result<Array> {
        (**self).forward(x)
    }

    fn record(&self, x: Value, recording: &mut Recording<'_, '_>) -> Recorded {
        (**self).record(x, recording)
    }

    fn describe(&self, builder: &mut SpecBuilder) -> std::result::Result<FeedForwardSpec, Unsupported> {
        (**self).describe(builder)
    }
}

/// The part of a block that mixes tokens: attention, or something in its place.
pub(crate) trait Mixer {
    /// `[B, T, hidden]` → the same, as layer `layer` of the model.
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array>;

    /// The same in a recording, where that can be.
    fn record(&self, x: Value, recording: &mut Recording<'_, '_>, layer: usize) -> Recorded {
        let _ = (x, recording, layer);
        Err(Unrecorded::Never("layers that mix tokens in another way"))
    }

    /// What it keeps of a text.
    fn state(&self) -> LayerState;

    /// What the kernels of CUDA need to know, if they can compute it.
    fn describe(&self, builder: &mut SpecBuilder) -> std::result::Result<AttentionSpec, Unsupported> {
        let _ = builder;
        Err(Unsupported("layers that mix tokens in another way".to_owned()))
    }
}

impl Mixer for Attention {
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        Self::forward(self, x, pass, layer)
    }

    fn record(&self, x: Value, recording: &mut Recording<'_, '_>, layer: usize) -> Recorded {
        Self::record(self, x, recording, layer)
    }

    fn state(&self) -> LayerState {
        Self::state(self)
    }

    fn describe(&self, builder: &mut SpecBuilder) -> std::result::Result<AttentionSpec, Unsupported> {
        Self::describe(self, builder)
    }
}

impl Mixer for Box<dyn Mixer> {
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        (**self).forward(x, pass, layer)
    }

    fn record(&self, x: Value, recording: &mut Recording<'_, '_>, layer: usize) -> Recorded {
        (**self).record(x, recording, layer)
    }

    fn state(&self) -> LayerState {
        (**self).state()
    }

    fn describe(&self, builder: &mut SpecBuilder) -> std::result::Result<AttentionSpec, Unsupported> {
        (**self).describe(builder)
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

    fn record(&self, x: Value, recording: &mut Recording<'_, '_>, layer: usize) -> Recorded {
        let normalised = recording.rms_norm(x, &self.input_layernorm)?;
        let mixed = self.self_attn.record(normalised, recording, layer)?;
        let x = recording.add(x, mixed, None)?;
        let normalised = recording.rms_norm(x, &self.post_attention_layernorm)?;
        let output = self.mlp.record(normalised, recording)?;
        recording.add(x, output, None)
    }

    fn state(&self) -> LayerState {
        self.self_attn.state()
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

    fn record(&self, x: Value, recording: &mut Recording<'_, '_>, layer: usize) -> Recorded {
        let normalised = recording.layer_norm(x, &self.input_layernorm)?;
        let mixed = self.self_attn.record(normalised, recording, layer)?;
        let mixed = recording.add(x, mixed, None)?;
        let normalised = match &self.post_attention_layernorm {
            Some(norm) => recording.layer_norm(mixed, norm)?,
            None => normalised,
        };
        let output = self.mlp.record(normalised, recording)?;
        recording.add(mixed, output, None)
    }

    fn state(&self) -> LayerState {
        self.self_attn.state()
    }
}
