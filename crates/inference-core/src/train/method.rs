//! What of a model is trained.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What of a model is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Method {
    /// Low-rank adapters beside frozen weights: y = W·x + scale · (x·A)·B (Hu et al. 2021, arXiv 2106.09685).
    Lora(AdapterOptions),
    /// The same with a learnt magnitude of each output: the rows of W + scale · (A·B)ᵀ, normalised, times m (Liu et al. 2024,
    /// arXiv 2402.09353).
    Dora(AdapterOptions),
    /// The weights themselves. A quantised model has none that could be trained.
    Full(FullOptions),
}

/// The adapters of [`Method::Lora`] and [`Method::Dora`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AdapterOptions {
    /// The inner dimension of A [inputs, rank] and B [rank, outputs].
    pub rank: usize,
    /// The factor on what the adapter adds. Peft's `lora_alpha` is this times the rank.
    pub scale: f32,
    /// The share of an adapter's inputs that a training step drops.
    pub dropout: f32,
    /// The layers that get adapters, by their names within a block (`self_attn.q_proj`) or in the whole model; unset: every
    /// linear layer of a block, experts included.
    pub keys: Option<Vec<String>>,
    /// How many of the last blocks get adapters; unset: all.
    pub layers: Option<usize>,
    /// Whether the token embedding gets one too.
    pub embeddings: bool,
    /// The type of the adapters' weights.
    pub dtype: AdapterDtype,
}

/// The type of an adapter's weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum AdapterDtype {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits: half the memory of adapters, gradients and optimiser.
    Bf16,
}

/// What [`Method::Full`] trains.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FullOptions {
    /// How many of the last blocks are trained, and nothing else; unset: every weight, embeddings and head included.
    pub layers: Option<usize>,
    /// The share of what a block's attention and MLP add to the residual stream that a training step drops.
    pub dropout: f32,
    /// Whether a step computes in bfloat16, with weights that are rounded for it, while the weights themselves and the
    /// optimiser keep their type (Micikevicius et al. 2018, arXiv 1710.03740). For weights in float32.
    #[serde(default)]
    pub mixed_precision: bool,
}

impl Method {
    /// LoRA with [`AdapterOptions::new`].
    #[must_use]
    pub fn lora() -> Self {
        Self::Lora(AdapterOptions::new())
    }

    /// DoRA with [`AdapterOptions::new`].
    #[must_use]
    pub fn dora() -> Self {
        Self::Dora(AdapterOptions::new())
    }

    /// Every weight.
    #[must_use]
    pub fn full() -> Self {
        Self::Full(FullOptions::default())
    }

    /// The name that adapter_config.json has for it: `lora`, `dora` or `full`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Lora(_) => "lora",
            Self::Dora(_) => "dora",
            Self::Full(_) => "full",
        }
    }

    /// The adapters' options; `None` where there are no adapters.
    #[must_use]
    pub fn adapter(&self) -> Option<&AdapterOptions> {
        match self {
            Self::Lora(adapter) | Self::Dora(adapter) => Some(adapter),
            Self::Full(_) => None,
        }
    }

    /// The last blocks that are trained; `None`: all.
    #[must_use]
    pub fn layers(&self) -> Option<usize> {
        match self {
            Self::Lora(adapter) | Self::Dora(adapter) => adapter.layers,
            Self::Full(full) => full.layers,
        }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        if self.layers() == Some(0) {
            return invalid("layers", "0, expected at least 1");
        }
        let dropout = match self {
            Self::Lora(adapter) | Self::Dora(adapter) => {
                adapter.validate()?;
                adapter.dropout
            }
            Self::Full(full) => full.dropout,
        };
        if !(0.0..1.0).contains(&dropout) {
            return invalid("dropout", format!("{dropout}, expected from 0 to less than 1"));
        }
        Ok(())
    }
}

impl AdapterOptions {
    /// Rank 8, scale 20, no dropout, f32, on every linear layer of every block: mlx_lm's defaults, but for all blocks.
    #[must_use]
    pub fn new() -> Self {
        Self {
            rank: 8,
            scale: 20.0,
            dropout: 0.0,
            keys: None,
            layers: None,
            embeddings: false,
            dtype: AdapterDtype::F32,
        }
    }

    /// Sets the inner dimension.
    #[must_use]
    pub fn rank(mut self, rank: usize) -> Self {
        self.rank = rank;
        self
    }

    /// Sets the factor on what the adapter adds.
    #[must_use]
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = scale;
        self
    }

    /// Drops this share of an adapter's inputs in a training step.
    #[must_use]
    pub fn dropout(mut self, share: f32) -> Self {
        self.dropout = share;
        self
    }

    /// Gives adapters to these layers only, by their names within a block (`self_attn.q_proj`) or in the whole model.
    #[must_use]
    pub fn keys(mut self, keys: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.keys = Some(keys.into_iter().map(Into::into).collect());
        self
    }

    /// Gives adapters to the last `blocks` blocks only.
    #[must_use]
    pub fn layers(mut self, blocks: usize) -> Self {
        self.layers = Some(blocks);
        self
    }

    /// Gives the token embedding an adapter too.
    #[must_use]
    pub fn embeddings(mut self, yes: bool) -> Self {
        self.embeddings = yes;
        self
    }

    /// Sets the type of the adapters' weights.
    #[must_use]
    pub fn dtype(mut self, dtype: AdapterDtype) -> Self {
        self.dtype = dtype;
        self
    }

    fn validate(&self) -> Result<()> {
        const MOST_RANK: usize = 1 << 16;
        if !(1..=MOST_RANK).contains(&self.rank) {
            return invalid("rank", format!("{}, expected from 1 to {MOST_RANK}", self.rank));
        }
        if !self.scale.is_finite() || self.scale == 0.0 {
            return invalid("scale", format!("{}, expected a finite number other than 0", self.scale));
        }
        match self.keys.as_deref() {
            Some([]) => invalid("keys", "none, expected at least one layer's name"),
            Some(keys) if keys.iter().any(String::is_empty) => {
                invalid("keys", "an empty name, expected a layer's, such as self_attn.q_proj")
            }
            _ => Ok(()),
        }
    }
}

impl Default for AdapterOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl FullOptions {
    /// Every weight, without dropout.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Trains the last `blocks` blocks and nothing else.
    #[must_use]
    pub fn layers(mut self, blocks: usize) -> Self {
        self.layers = Some(blocks);
        self
    }

    /// Drops this share of what a block's attention and MLP add to the residual stream.
    #[must_use]
    pub fn dropout(mut self, share: f32) -> Self {
        self.dropout = share;
        self
    }

    /// Computes steps in bfloat16.
    #[must_use]
    pub fn mixed_precision(mut self, yes: bool) -> Self {
        self.mixed_precision = yes;
        self
    }
}

fn invalid(option: &'static str, reason: impl Into<String>) -> Result<()> {
    Err(Error::invalid_option(option, reason))
}
