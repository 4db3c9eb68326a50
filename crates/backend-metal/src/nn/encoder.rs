//! Models that read whole texts and generate none: embeddings, blocks, and what scores a pair of texts.

use std::rc::Rc;

use inference_core::Result as LoadResult;
use mlx_rs::{
    Array,
    error::{Exception, Result},
    ops,
};

use super::{
    activation::Activation,
    architecture::{Architecture, ModelConfig, TrainMode},
    attention::Attention,
    block::{Block, FeedForward},
    cache::{KvCache, LayerState},
    dimensions::Dimensions,
    forward_pass::{ForwardPass, Rows},
    linear::{Embedding, Linear},
    norm::LayerNorm,
    packed::PackedTokens,
    registry::ParamRegistry,
    weights::Weights,
};

/// A model whose tokens attend both ways.
#[derive(Debug)]
pub(crate) struct Encoder<B> {
    config: ModelConfig,
    embeddings: TextEmbeddings,
    layers: Vec<B>,
    norm: Option<LayerNorm>,
    head: Option<RelevanceHead>,
    registry: Rc<ParamRegistry>,
}

/// What tokens are made into: the sum of a vector for the token, for its position and for its type, normalised.
#[derive(Debug)]
pub(crate) struct TextEmbeddings {
    pub(crate) words: Embedding,
    /// For each position a vector, and where positions begin.
    pub(crate) positions: Option<(Embedding, PositionIds)>,
    /// For each type a vector, and how many there are.
    pub(crate) types: Option<(Embedding, usize)>,
    pub(crate) norm: LayerNorm,
}

/// Which row of the position embeddings a token has.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PositionIds {
    /// Its place in the text, from 0.
    Places,
    /// Counted from `padding + 1`, without those tokens that are `padding`, which have row `padding`.
    Beyond { padding: u32 },
}

impl TextEmbeddings {
    /// Those at `weights` with the names of BERT: `word_embeddings`, `position_embeddings`, `token_type_embeddings` where there are
    /// types, `LayerNorm`.
    pub(crate) fn load(
        weights: &Weights<'_>,
        dims: &Dimensions,
        types: Option<usize>,
        position_ids: PositionIds,
    ) -> LoadResult<Self> {
        let table = |name: &str, rows: usize| Embedding::load(&weights.at(name), rows, dims.hidden_size);
        let positions = table("position_embeddings", dims.max_position_embeddings)?;
        let types = types.map(|types| Ok((table("token_type_embeddings", types)?, types))).transpose()?;
        Ok(Self {
            words: table("word_embeddings", dims.vocab_size)?,
            positions: Some((positions, position_ids)),
            types,
            norm: LayerNorm::load(
                &weights.at("LayerNorm"),
                dims.hidden_size,
                dims.rms_norm_eps,
                true,
                false,
            )?,
        })
    }

    /// `[N, 1, hidden_size]`
    fn forward(&self, tokens: &Array, texts: &PackedTokens) -> Result<Array> {
        let mut x = self.words.forward(tokens)?;
        let rows = |ids: &[u32]| Array::from_slice(ids, &[ids.len() as i32, 1]);
        if let Some((positions, ids)) = &self.positions {
            x = x.add(positions.forward(&rows(&ids.of(texts)))?)?;
        }
        if let Some((types, count)) = &self.types {
            let ids = texts.token_types();
            x = match ids.iter().max() {
                // A model with one type has no use for those of its tokenizer.
                _ if *count == 1 => x.add(types.forward(&Array::from_slice(&[0_u32], &[1, 1]))?)?,
                None => x.add(types.forward(&Array::from_slice(&[0_u32], &[1, 1]))?)?,
                Some(largest) if (*largest as usize) < *count => x.add(types.forward(&rows(ids))?)?,
                Some(largest) => {
                    return Err(Exception::custom(format!("a token of type {largest}, and {count} types")));
                }
            };
        }
        self.norm.forward(&x)
    }
}

impl PositionIds {
    fn of(self, texts: &PackedTokens) -> Vec<u32> {
        let places = texts.positions();
        match self {
            Self::Places => places.iter().map(|place| *place as u32).collect(),
            Self::Beyond { padding } => {
                let mut counted = 0;
                let ids = texts.tokens().iter().zip(places).map(|(token, place)| {
                    if *place == 0 {
                        counted = 0;
                    }
                    counted += u32::from(*token != padding);
                    if *token == padding { padding } else { padding + counted }
                });
                ids.collect()
            }
        }
    }

    /// How many tokens a text may have where there are so many rows.
    pub(crate) fn longest(self, rows: usize) -> usize {
        match self {
            Self::Places => rows,
            Self::Beyond { padding } => rows.saturating_sub(padding as usize + 1),
        }
    }
}

/// A block with a norm behind each of its parts: norm(x + attention(x)), then norm(x + mlp(x)).
#[derive(Debug)]
pub(crate) struct PostNorm<F> {
    pub(crate) self_attn: Attention,
    pub(crate) attention_norm: LayerNorm,
    pub(crate) mlp: F,
    pub(crate) output_norm: LayerNorm,
}

impl<F: FeedForward> Block for PostNorm<F> {
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        let mixed = self.self_attn.forward(x, pass, layer)?;
        let x = self.attention_norm.of_sum(x, &mixed)?;
        self.output_norm.of_sum(&x, &self.mlp.forward(&x)?)
    }

    fn state(&self) -> LayerState {
        LayerState::default()
    }
}

/// What makes one logit of a pair of texts: output(norm(act(dense(x)))), where x is the vector of the first token or the mean of all.
#[derive(Debug)]
pub(crate) struct RelevanceHead {
    pub(crate) takes_mean: bool,
    pub(crate) dense: Option<(Linear, HeadActivation)>,
    pub(crate) norm: Option<LayerNorm>,
    /// `[1, hidden_size]`
    pub(crate) output: Linear,
}

/// The activation of a [`RelevanceHead`].
#[derive(Debug, Clone, Copy)]
pub(crate) enum HeadActivation {
    Tanh,
    Other(Activation),
}

impl RelevanceHead {
    /// The head that the checkpoint at `classifier` has, if that gives one logit: a dense layer of this name with an activation, and
    /// the output.
    pub(crate) fn load(
        classifier: &Weights<'_>,
        dense: (&Weights<'_>, HeadActivation),
        dims: &Dimensions,
    ) -> LoadResult<Option<Self>> {
        if !gives_one(classifier) {
            return Ok(None);
        }
        let size = dims.hidden_size;
        Ok(Some(Self {
            takes_mean: false,
            dense: Some((Linear::load(dense.0, size, size, true)?, dense.1)),
            norm: None,
            output: Linear::load(classifier, 1, size, true)?,
        }))
    }

    /// Hidden states `[N, 1, hidden_size]` → the logit of each text, `[texts]`.
    fn forward(&self, hidden: &Array, texts: &PackedTokens) -> Result<Array> {
        let mut x = if self.takes_mean { mean(hidden, texts)? } else { first(hidden, texts)? };
        if let Some((dense, activation)) = &self.dense {
            x = dense.forward(&x)?;
            x = match activation {
                HeadActivation::Tanh => ops::tanh(&x)?,
                HeadActivation::Other(activation) => activation.apply(&x)?,
            };
        }
        if let Some(norm) = &self.norm {
            x = norm.forward(&x)?;
        }
        self.output.forward(&x)?.reshape(&[-1])
    }
}

/// Whether the classifier at `weights` is there, and has one output.
pub(crate) fn gives_one(weights: &Weights<'_>) -> bool {
    weights.info("weight").is_ok_and(|info| info.shape.first() == Some(&1))
}

/// The vector of each text's first token: `[N, 1, size]` → `[texts, size]`.
fn first(hidden: &Array, texts: &PackedTokens) -> Result<Array> {
    let starts = Array::from_slice(&texts.starts(), &[texts.texts() as i32]);
    hidden.reshape(&[-1, hidden.dim(-1)])?.take_axis(&starts, 0)
}

/// The mean of each text's vectors: `[N, 1, size]` → `[texts, size]`.
fn mean(hidden: &Array, texts: &PackedTokens) -> Result<Array> {
    let size = hidden.dim(-1);
    let means = texts.groups().into_iter().map(|group| {
        let rows = group.of(hidden)?.reshape(&[group.texts as i32, group.length as i32, size])?;
        rows.mean_axis(1, false)
    });
    ops::concatenate(&means.collect::<Result<Vec<_>>>()?, 0)
}

impl<B: Block> Encoder<B> {
    /// The model of these parts. `dims` has the longest text as `max_position_embeddings`.
    pub(crate) fn new(
        weights: &Weights<'_>,
        dims: &Dimensions,
        embeddings: TextEmbeddings,
        layers: Vec<B>,
        norm: Option<LayerNorm>,
        head: Option<RelevanceHead>,
    ) -> Self {
        let config = ModelConfig {
            generates: false,
            encodes: true,
            scores: head.is_some(),
            ..dims.model_config(weights, Vec::new(), false)
        };
        Self { config, embeddings, layers, norm, head, registry: weights.registry().clone() }
    }
}

impl<B: Block> Architecture for Encoder<B> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn new_cache(&self) -> KvCache {
        KvCache::for_layers(&[])
    }

    fn hidden(&self, tokens: &Array, rows: Rows<'_>) -> Result<Array> {
        let Rows::Packed(texts) = rows else {
            return Err(Exception::custom("an encoder reads whole texts alone"));
        };
        let mut pass = ForwardPass::new(tokens, rows)?;
        let mut x = self.embeddings.forward(tokens, texts)?;
        for (layer, block) in self.layers.iter().enumerate() {
            x = block.forward(&x, &mut pass, layer)?;
        }
        pass.finish();
        match &self.norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }

    fn hidden_for_training(&self, _: &Array, _: &TrainMode<'_>) -> Result<Array> {
        Err(Exception::custom("an encoder is not trained here"))
    }

    fn registry(&self) -> &ParamRegistry {
        &self.registry
    }

    fn logits(&self, _: &Array) -> Result<Array> {
        Err(Exception::custom("an encoder generates no text"))
    }

    fn relevance(&self, hidden: &Array, texts: &PackedTokens) -> Result<Array> {
        match &self.head {
            Some(head) => head.forward(hidden, texts),
            None => Err(Exception::custom("the model has no head that scores a pair of texts")),
        }
    }
}
