//! A decoder-only model: embedding, blocks, final norm, output layer.

use std::rc::Rc;

use inference_core::Result as LoadResult;
use mlx_rs::{Array, error::Result, ops};

use super::{
    architecture::{Architecture, ModelConfig, TrainMode},
    block::Block,
    cache::KvCache,
    cuda::{Description, SpecBuilder, Unsupported},
    dimensions::Dimensions,
    forward_pass::{ForwardPass, Rows},
    linear::{Embedding, Linear},
    norm::RmsNorm,
    parameter::{ParamOverride, drop_out},
    registry::ParamRegistry,
    rope::Rope,
    weights::Weights,
};
use crate::mlx::{recomputed, scalar, slice};

/// A decoder-only model whose blocks are of one type.
#[derive(Debug)]
pub(crate) struct Decoder<B> {
    /// What the engine needs to know.
    pub(crate) config: ModelConfig,
    /// Longrope: a text that grows past this many tokens is recomputed, because all its positions are encoded differently.
    pub(crate) recompute_at: Option<usize>,
    /// `embed_tokens`
    pub(crate) embed_tokens: Embedding,
    /// Factor of the embeddings.
    pub(crate) embed_scale: Option<f32>,
    /// `layers`
    pub(crate) layers: Vec<Rc<B>>,
    /// `norm`
    pub(crate) norm: RmsNorm,
    /// `lm_head`, or the embedding if they are tied.
    pub(crate) lm_head: Linear,
    /// Factor of the logits.
    pub(crate) logit_scale: Option<f32>,
    /// Soft cap: logits `l` become `cap · tanh(l / cap)`.
    pub(crate) logit_cap: Option<f32>,
    /// The trainable parameters.
    pub(crate) registry: Rc<ParamRegistry>,
}

impl<B: Block> Decoder<B> {
    /// The model around `layers`: `weights` has the output layer, `model` the other tensors, `ropes` are those of the layers.
    pub(crate) fn load(
        weights: &Weights<'_>,
        model: &Weights<'_>,
        dims: &Dimensions,
        layers: Vec<B>,
        ropes: &[&Rope],
    ) -> LoadResult<Self> {
        let embed_tokens = Embedding::load(&model.at("embed_tokens"), dims.vocab_size, dims.hidden_size)?;
        let lm_head = output_layer(weights, &model.at("embed_tokens"), dims, &embed_tokens)?;
        let windows = layers.iter().map(Block::window).collect();
        Ok(Self {
            config: dims.model_config(weights, windows, ropes.iter().any(|rope| rope.depends_on_length())),
            recompute_at: ropes.iter().find_map(|rope| rope.switch()),
            norm: dims.norm(&model.at("norm"))?,
            embed_tokens,
            embed_scale: None,
            layers: layers.into_iter().map(Rc::new).collect(),
            lm_head,
            logit_scale: None,
            logit_cap: None,
            registry: weights.registry().clone(),
        })
    }
}

/// The output layer: `lm_head`, or the embedding if the config ties them. A tied checkpoint may hold a head that differs from
/// the embedding, because it was trained: it is used, as transformers does.
fn output_layer(
    weights: &Weights<'_>,
    embedding: &Weights<'_>,
    dims: &Dimensions,
    embed_tokens: &Embedding,
) -> LoadResult<Linear> {
    // Language towers of multimodal models have their head in their own scope or at the top.
    let own = weights.at("lm_head");
    let head = if own.has_any("") { own } else { weights.root().at("lm_head") };
    if !dims.tie_word_embeddings {
        return Linear::load(&head, dims.vocab_size, dims.hidden_size, false);
    }
    if head.has("weight") && !head.is_stored_like(embedding)? {
        tracing::warn!(
            model = %weights.manifest().path().display(),
            "tie_word_embeddings is true, but {} differs from {}: the output layer is not tied",
            head.name("weight"),
            embedding.name("weight"),
        );
        return Linear::load(&head, dims.vocab_size, dims.hidden_size, false);
    }
    // Some publishers store the embedding twice.
    let prefix = head.name("");
    weights.skip(|name| name.starts_with(&prefix));
    Ok(embed_tokens.as_linear())
}

impl<B: Block + 'static> Decoder<B> {
    fn embed(&self, tokens: &Array) -> Result<Array> {
        let x = self.embed_tokens.forward(tokens)?;
        match self.embed_scale {
            Some(scale) => x.multiply(scalar(scale, x.dtype())?),
            None => Ok(x),
        }
    }

    fn pass(&self, tokens: &Array, rows: Rows<'_>) -> Result<Array> {
        let mut pass = ForwardPass::new(tokens, rows)?;
        let mut x = self.embed(tokens)?;
        for (layer, block) in self.layers.iter().enumerate() {
            x = block.forward(&x, &mut pass, layer)?;
        }
        pass.finish();
        self.norm.forward(&x)
    }

    /// Recomputes the texts that `tokens` take past [`recompute_at`](Self::recompute_at), and pushes the tokens to the caches.
    fn recompute(&self, tokens: &Array, caches: &mut [&mut KvCache]) -> Result<()> {
        let limit = self.recompute_at.unwrap_or(usize::MAX);
        let count = tokens.dim(-1) as usize;
        for (row, cache) in caches.iter_mut().enumerate() {
            let length = cache.length_with(count);
            if cache.len() > 0 && cache.length() <= limit && length > limit {
                let text = cache.tokens()?;
                let mut fresh = cache.empty_like();
                fresh.set_expected_len(length);
                self.pass(&text, Rows::Cached(&mut [&mut fresh]))?;
                fresh.push_tokens(text);
                **cache = fresh;
            }
            cache.push_tokens(slice(tokens, 0, row as i32, row as i32 + 1)?);
        }
        Ok(())
    }
}

impl<B: Block + 'static> Architecture for Decoder<B> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn registry(&self) -> &ParamRegistry {
        &self.registry
    }

    fn describe(&self) -> std::result::Result<Description, Unsupported> {
        let mut builder = SpecBuilder::new(&self.config)?;
        let layers = self.layers.iter().map(|block| block.describe(&mut builder));
        let layers = layers.collect::<std::result::Result<_, _>>()?;
        let (embedding, head) = (builder.embedding(&self.embed_tokens)?, builder.linear(&self.lm_head)?);
        let norm = builder.norm(&self.norm)?;
        let scales = [self.embed_scale, self.logit_scale].map(|scale| scale.unwrap_or(1.0));
        builder.finish(layers, [embedding, head], norm, scales, self.logit_cap)
    }

    fn new_cache(&self) -> KvCache {
        KvCache::new(self.config.windows.iter().copied())
    }

    fn hidden(&self, tokens: &Array, mut rows: Rows<'_>) -> Result<Array> {
        if let (true, Rows::Cached(caches)) = (self.config.length_dependent, &mut rows) {
            self.recompute(tokens, caches)?;
        }
        self.pass(tokens, rows)
    }

    fn hidden_for_training(&self, tokens: &Array, mode: &TrainMode<'_>) -> Result<Array> {
        let mut x = self.embed(tokens)?;
        for (layer, block) in self.layers.iter().enumerate() {
            let dropout = mode.dropout.as_ref().map(|(rate, keys)| (*rate, keys[layer].clone()));
            let (block, tokens) = (block.clone(), tokens.clone());
            let forward = move |x: &Array| {
                let y = block.forward(x, &mut ForwardPass::new(&tokens, Rows::Uncached)?, layer)?;
                match &dropout {
                    Some((rate, key)) => x.add(drop_out(&y.subtract(x)?, *rate, key)?),
                    None => Ok(y),
                }
            };
            x = match mode.recompute.map(|params| params[layer].clone()) {
                None => forward(&x)?,
                Some(params) => {
                    let mut inputs = vec![x];
                    for param in &params {
                        inputs.push(param.get()?);
                    }
                    recomputed(&inputs, move |inputs| {
                        let _override = ParamOverride::new(&params, &inputs[1..]);
                        forward(&inputs[0])
                    })?
                }
            };
        }
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
