//! A decoder-only model: embedding, blocks, final norm, output layer.

use std::{cell::OnceCell, rc::Rc};

use inference_core::Result as LoadResult;
use mlx_rs::{Array, error::Result, ops};

use super::{
    architecture::{Architecture, ModelConfig, TrainMode},
    block::Block,
    cache::{KvCache, LayerState},
    cpu::{Recorded, Recording, Unrecorded, Value},
    cuda::{Description, SpecBuilder, Unsupported},
    dimensions::Dimensions,
    forward_pass::{ForwardPass, Rows},
    linear::{Embedding, Linear},
    norm::{Norm, RmsNorm},
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
    pub(crate) norm: Norm,
    /// `lm_head`, or the embedding if they are tied.
    pub(crate) lm_head: Linear,
    /// Factor of the logits.
    pub(crate) logit_scale: Option<f32>,
    /// Soft cap: logits `l` become `cap · tanh(l / cap)`.
    pub(crate) logit_cap: Option<f32>,
    /// What layers get besides the residual stream.
    pub(crate) layer_inputs: Option<LayerInputs>,
    /// What the blocks have instead of one residual stream.
    pub(crate) streams: Option<Box<dyn Streams>>,
    /// The trainable parameters.
    pub(crate) registry: Rc<ParamRegistry>,
    /// Why its passes are never one operation of the CPU, once that is known.
    pub(crate) unrecorded: OnceCell<Unrecorded>,
}

/// Several residual streams, which blocks take and give in one array.
pub(crate) trait Streams: std::fmt::Debug {
    /// The embeddings `[B, T, hidden]` → what the first block takes.
    fn open(&self, x: &Array) -> Result<Array>;

    /// What the last block gives → `[B, T, hidden]`.
    fn close(&self, x: &Array) -> Result<Array>;
}

/// Embeddings for each layer: of the token, and made of its embedding.
#[derive(Debug)]
pub(crate) struct LayerInputs {
    /// Token ids → `[.., layers · width]`
    embedding: Embedding,
    /// `[.., hidden_size]` → `[.., layers · width]`
    projection: Linear,
    norm: RmsNorm,
    layers: i32,
    width: i32,
    hidden_size: usize,
    /// Ids from here on have the embedding of the first one.
    vocab: i32,
}

impl LayerInputs {
    /// Those of the model at `weights`: `embed_tokens_per_layer`, `per_layer_model_projection` and `per_layer_projection_norm`.
    pub(crate) fn load(
        weights: &Weights<'_>,
        dims: &Dimensions,
        [vocab, width]: [usize; 2],
    ) -> LoadResult<Self> {
        let all = dims.num_hidden_layers.saturating_mul(width);
        Ok(Self {
            embedding: Embedding::load(&weights.at("embed_tokens_per_layer"), vocab, all)?,
            projection: Linear::load(
                &weights.at("per_layer_model_projection"),
                all,
                dims.hidden_size,
                false,
            )?,
            norm: RmsNorm::load(
                &weights.at("per_layer_projection_norm"),
                width,
                dims.rms_norm_eps,
                dims.norm_offset,
            )?,
            layers: dims.num_hidden_layers as i32,
            width: width as i32,
            hidden_size: dims.hidden_size,
            vocab: vocab as i32,
        })
    }

    /// Tokens `[B, T]` and their embeddings `[B, T, hidden_size]` → `[B, T, layers, width]`.
    fn forward(&self, tokens: &Array, x: &Array) -> Result<Array> {
        let number = |value: f32| scalar(value, x.dtype());
        let shape = [x.dim(0), x.dim(1), self.layers, self.width];
        let known = tokens.lt(Array::from_int(self.vocab).as_dtype(tokens.dtype())?)?;
        let tokens = ops::select(&known, tokens, Array::from_int(0).as_dtype(tokens.dtype())?)?;
        let own = self.embedding.forward(&tokens)?.reshape(&shape)?;
        let own = own.multiply(number((self.width as f32).sqrt())?)?;
        let made = self.projection.forward(x)?.multiply(number((self.hidden_size as f32).sqrt().recip())?)?;
        let made = self.norm.forward(&made.reshape(&shape)?)?;
        made.add(own)?.multiply(number(std::f32::consts::FRAC_1_SQRT_2)?)
    }
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
        let norm = Norm::Rms(dims.norm(&model.at("norm"))?);
        Self::load_named(weights, model, "embed_tokens", dims, layers, ropes, norm)
    }

    /// The same with another name of the embedding and another final norm.
    pub(crate) fn load_named(
        weights: &Weights<'_>,
        model: &Weights<'_>,
        embedding: &str,
        dims: &Dimensions,
        layers: Vec<B>,
        ropes: &[&Rope],
        norm: Norm,
    ) -> LoadResult<Self> {
        let embed_tokens = Embedding::load(&model.at(embedding), dims.vocab_size, dims.hidden_size)?;
        let lm_head = output_layer(weights, &model.at(embedding), dims, &embed_tokens)?;
        let states = layers.iter().map(Block::state).collect();
        let length_dependent = ropes.iter().any(|rope| rope.depends_on_length());
        // Without an output layer, what is made of the embedding computes no logits of use.
        let generates = lm_head.is_some();
        let lm_head = lm_head.unwrap_or_else(|| embed_tokens.as_linear());
        Ok(Self {
            config: ModelConfig { generates, ..dims.model_config(weights, states, length_dependent) },
            recompute_at: ropes.iter().find_map(|rope| rope.switch()),
            norm,
            embed_tokens,
            embed_scale: None,
            layers: layers.into_iter().map(Rc::new).collect(),
            lm_head,
            logit_scale: None,
            logit_cap: None,
            layer_inputs: None,
            streams: None,
            registry: weights.registry().clone(),
            unrecorded: OnceCell::new(),
        })
    }
}

/// The output layer: `lm_head`, or the embedding if the config ties them. A tied checkpoint may hold a head that differs from
/// the embedding, because it was trained: it is used, as transformers does. `None`: the checkpoint has none.
fn output_layer(
    weights: &Weights<'_>,
    embedding: &Weights<'_>,
    dims: &Dimensions,
    embed_tokens: &Embedding,
) -> LoadResult<Option<Linear>> {
    // Language towers of multimodal models have their head in their own scope or at the top.
    let own = weights.at("lm_head");
    let head = if own.has_any("") { own } else { weights.root().at("lm_head") };
    // A model that makes embeddings may be saved without its output layer: then nothing lies outside of its own scope.
    let headless = !head.has_any("") && embedding.name("") == "embed_tokens.";
    if !dims.tie_word_embeddings && headless {
        return Ok(None);
    }
    if !dims.tie_word_embeddings {
        return Linear::load(&head, dims.vocab_size, dims.hidden_size, dims.lm_head_bias).map(Some);
    }
    if head.has("weight") && !head.is_stored_like(embedding)? {
        tracing::warn!(
            model = %weights.manifest().path().display(),
            "tie_word_embeddings is true, but {} differs from {}: the output layer is not tied",
            head.name("weight"),
            embedding.name("weight"),
        );
        return Linear::load(&head, dims.vocab_size, dims.hidden_size, dims.lm_head_bias).map(Some);
    }
    // Some publishers store the embedding twice.
    let prefix = head.name("");
    weights.skip(|name| name.starts_with(&prefix));
    Ok(Some(embed_tokens.as_linear()))
}

impl<B: Block + 'static> Decoder<B> {
    fn embed(&self, tokens: &Array) -> Result<Array> {
        let x = self.embed_tokens.forward(tokens)?;
        match self.embed_scale {
            Some(scale) => x.multiply(scalar(scale, x.dtype())?),
            None => Ok(x),
        }
    }

    /// The embeddings of the tokens, and what layers get besides.
    fn begin(&self, tokens: &Array, pass: &mut ForwardPass<'_>) -> Result<Array> {
        let x = self.embed(tokens)?;
        if let Some(inputs) = &self.layer_inputs {
            pass.set_layer_inputs(inputs.forward(tokens, &x)?);
        }
        match &self.streams {
            Some(streams) => streams.open(&x),
            None => Ok(x),
        }
    }

    /// What the last block gives → hidden states.
    fn end(&self, x: &Array) -> Result<Array> {
        match &self.streams {
            Some(streams) => self.norm.forward(&streams.close(x)?),
            None => self.norm.forward(x),
        }
    }

    /// A training step of blocks that need more of each other than the residual stream: none is recomputed.
    fn connected_for_training(&self, tokens: &Array, mode: &TrainMode<'_>) -> Result<Array> {
        let mut pass = ForwardPass::new(tokens, Rows::Uncached)?;
        let mut x = self.begin(tokens, &mut pass)?;
        for (layer, block) in self.layers.iter().enumerate() {
            let y = block.forward(&x, &mut pass, layer)?;
            x = match &mode.dropout {
                Some((rate, keys)) => x.add(drop_out(&y.subtract(&x)?, *rate, &keys[layer])?)?,
                None => y,
            };
        }
        self.end(&x)
    }

    fn pass(&self, tokens: &Array, rows: Rows<'_>) -> Result<Array> {
        let mut pass = ForwardPass::new(tokens, rows)?;
        let mut x = self.begin(tokens, &mut pass)?;
        if let Some(hidden) = self.record(&x, &mut pass) {
            pass.finish();
            return hidden;
        }
        for (layer, block) in self.layers.iter().enumerate() {
            x = block.forward(&x, &mut pass, layer)?;
        }
        pass.finish();
        self.end(&x)
    }

    /// The hidden states of these embeddings as one operation, where that can be.
    fn record(&self, x: &Array, pass: &mut ForwardPass<'_>) -> Option<Result<Array>> {
        if self.unrecorded.get().is_some() {
            return None;
        }
        match self.record_layers(x, Some(pass)) {
            Ok((recording, last)) => Some(recording.finish(last)),
            Err(why) => {
                self.note(why);
                None
            }
        }
    }

    /// Keeps why nothing is ever recorded, so that it is not tried again.
    fn note(&self, why: Unrecorded) {
        if let Unrecorded::Never(_) = why {
            let _ = self.unrecorded.set(why);
        }
    }

    /// A recording of all layers, and what it comes to.
    fn record_layers<'p, 'a>(
        &self,
        x: &Array,
        pass: Option<&'p mut ForwardPass<'a>>,
    ) -> Recorded<(Recording<'p, 'a>, Value)> {
        let (mut recording, mut x) = Recording::new(x, pass)?;
        if self.layer_inputs.is_some() || self.streams.is_some() {
            return Err(Unrecorded::Never("inputs of single layers"));
        }
        for (layer, block) in self.layers.iter().enumerate() {
            x = block.record(x, &mut recording, layer)?;
        }
        x = recording.norm(x, &self.norm)?;
        Ok((recording, x))
    }

    /// Recomputes the texts that `tokens` take past [`recompute_at`](Self::recompute_at), and pushes the tokens to the caches.
    fn recompute(
        &self,
        tokens: &Array,
        caches: &mut [&mut KvCache],
        lengths: Option<&[usize]>,
    ) -> Result<()> {
        let limit = self.recompute_at.unwrap_or(usize::MAX);
        for (row, cache) in caches.iter_mut().enumerate() {
            let count = lengths.map_or(tokens.dim(-1) as usize, |lengths| lengths[row]);
            let length = cache.length_with(count);
            if cache.len() > 0 && cache.length() <= limit && length > limit {
                let text = cache.tokens()?;
                let mut fresh = cache.empty_like();
                fresh.set_expected_len(length);
                self.pass(&text, Rows::cached(&mut [&mut fresh]))?;
                fresh.push_tokens(text);
                **cache = fresh;
            }
            let own = slice(tokens, 0, row as i32, row as i32 + 1)?;
            cache.push_tokens(slice(&own, 1, 0, count as i32)?);
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
        // All fields, so that none is forgotten.
        let Self {
            config,
            recompute_at: _,
            embed_tokens,
            embed_scale,
            layers,
            norm,
            lm_head,
            logit_scale,
            logit_cap,
            layer_inputs,
            streams,
            registry: _,
            unrecorded: _,
        } = self;
        let mut builder = SpecBuilder::new(&config.dtype, config.hidden_size)?;
        if config.length_dependent {
            return Err(Unsupported("positions that depend on the length of the text".to_owned()));
        }
        let Norm::Rms(norm) = norm else { return Err(Unsupported("norms of mean and variance".to_owned())) };
        if layer_inputs.is_some() || streams.is_some() {
            return Err(Unsupported("inputs of single layers".to_owned()));
        }
        let layers = layers.iter().map(|block| block.describe(&mut builder));
        let layers = layers.collect::<std::result::Result<_, _>>()?;
        let (embedding, head) = (builder.embedding(embed_tokens)?, builder.linear(lm_head)?);
        let norm = builder.norm(norm)?;
        let scales = [embed_scale, logit_scale].map(|scale| scale.unwrap_or(1.0));
        builder.finish(layers, [embedding, head], norm, scales, *logit_cap)
    }

    fn records(&self) -> Recorded<()> {
        let x = self.embed(&Array::from_slice(&[0_u32], &[1, 1]))?;
        let found = self.record_layers(&x, None).map(drop);
        found.inspect_err(|why| self.note(*why))
    }

    fn new_cache(&self) -> KvCache {
        KvCache::for_layers(&self.config.states)
    }

    fn hidden(&self, tokens: &Array, mut rows: Rows<'_>) -> Result<Array> {
        if let (true, Rows::Cached { caches, lengths }) = (self.config.length_dependent, &mut rows) {
            self.recompute(tokens, caches, *lengths)?;
        }
        self.pass(tokens, rows)
    }

    fn hidden_for_training(&self, tokens: &Array, mode: &TrainMode<'_>) -> Result<Array> {
        if self.layer_inputs.is_some()
            || self.streams.is_some()
            || self.layers.iter().any(|block| block.state() == LayerState::default())
        {
            return self.connected_for_training(tokens, mode);
        }
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
