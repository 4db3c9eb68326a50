//! Embeddings and relevance: forward passes over whole texts, sorted by length.
//!
//! Encoders compute the texts of a batch one after the other in one pass, without padding. Decoders compute them as rows of nearly one
//! length, padded on the right. Nothing is kept.

use std::{collections::VecDeque, mem};

use inference_core::{CancellationToken, Error, Pooling, TextProgress, backend::TextObserver};
use mlx_rs::{
    Array,
    error::{Exception, Result},
    ops, transforms,
};
use tokio::sync::oneshot;

use super::sampler::NOT_FINITE;
use crate::{
    mlx::{exception, on_cpu, slice},
    nn::{Architecture, DenseLayer, ModelConfig, PackedTokens, Rows},
};

/// Tokens in one forward pass.
const BATCH_TOKENS: usize = 16 * 1024;

/// The same on the CPU, where what a pass makes should stay in the caches.
const CPU_BATCH_TOKENS: usize = 2048;

/// Logits computed in one forward pass: 256 MiB of f32.
const BATCH_LOGITS: usize = 1 << 26;

/// Padding of a batch of rows: one part in so many of the shortest.
const PADDING: usize = 16;

/// A call over many texts, as the caller hands it over.
#[derive(Debug)]
pub(crate) struct EmbedRequest {
    /// The texts: none empty, every id within the vocabulary, short enough for the context.
    pub(crate) texts: Vec<EmbedText>,
    pub(crate) wanted: Wanted,
    pub(crate) observer: Option<TextObserver>,
    pub(crate) cancel: CancellationToken,
    pub(crate) reply: oneshot::Sender<inference_core::Result<Vec<Vec<f32>>>>,
}

/// A text, or a pair as one.
#[derive(Debug, Clone, Default)]
pub(crate) struct EmbedText {
    pub(crate) ids: Vec<u32>,
    /// Which text of a pair each id belongs to.
    pub(crate) token_types: Option<Vec<u32>>,
}

/// What is wanted of each text.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted {
    /// One vector, made in this way of those of its tokens.
    Vector(Pooling),
    /// The logit of the model's head, alone in a vector.
    Relevance,
    /// By how much the logit of the first token exceeds that of the second behind the text, alone in a vector.
    Difference([u32; 2]),
}

/// A call under way.
#[derive(Debug)]
pub(super) struct EmbedJob {
    request: EmbedRequest,
    /// The texts that are left by their index, shortest first.
    left: VecDeque<usize>,
    /// The batch that the device computes, and what is wanted of it: `[texts, ..]`, f32.
    submitted: Option<(Vec<usize>, Array)>,
    results: Vec<Vec<f32>>,
}

impl EmbedJob {
    pub(super) fn new(request: EmbedRequest) -> Self {
        let mut left: Vec<usize> = (0..request.texts.len()).collect();
        left.sort_by_key(|text| request.texts[*text].ids.len());
        let results = vec![Vec::new(); left.len()];
        Self { request, left: left.into(), submitted: None, results }
    }

    /// Submits one batch, and reads the one before it; whether that was the last. A cancelled job has nothing left.
    pub(super) fn advance(&mut self, model: &dyn Architecture, dense: &[DenseLayer]) -> Result<bool> {
        if self.request.cancel.is_cancelled() || self.request.reply.is_closed() {
            return Ok(true);
        }
        let batch = self.next_batch(model.config());
        let mut next = None;
        if !batch.is_empty() {
            let vectors = self.compute(model, dense, &batch)?.as_type::<f32>()?;
            transforms::async_eval([&vectors])?;
            next = Some((batch, vectors));
        }
        if let Some((batch, vectors)) = mem::replace(&mut self.submitted, next) {
            self.read(&batch, &vectors)?;
        }
        Ok(self.submitted.is_none())
    }

    fn read(&mut self, batch: &[usize], vectors: &Array) -> Result<()> {
        let size = vectors.dim(-1) as usize;
        let values = vectors.to_vec_exact::<f32>().map_err(exception)?;
        if values.iter().any(|value| !value.is_finite()) {
            return Err(Exception::custom(NOT_FINITE));
        }
        for (text, vector) in batch.iter().zip(values.chunks_exact(size.max(1))) {
            self.results[*text] = vector.to_vec();
        }
        let submitted = self.submitted.as_ref().map_or(0, |(batch, _)| batch.len());
        let (total, left) = (self.results.len(), self.left.len() + submitted);
        self.request.observer.iter().for_each(|seen| seen.report(TextProgress::new(total - left, total)));
        Ok(())
    }

    /// Answers the caller.
    pub(super) fn finish(mut self) {
        let results = mem::take(&mut self.results);
        let cancelled = self.request.cancel.is_cancelled();
        self.end(if cancelled { Err(Error::Cancelled) } else { Ok(results) });
    }

    /// Answers the caller with this result.
    pub(super) fn end(self, result: inference_core::Result<Vec<Vec<f32>>>) {
        // A caller that has gone needs no answer.
        let _ = self.request.reply.send(result);
    }

    /// The shortest texts that are left, as many as one pass takes.
    fn next_batch(&mut self, config: &ModelConfig) -> Vec<usize> {
        let length = |text: &usize| self.request.texts[*text].ids.len();
        let Some(shortest) = self.left.front().map(length) else { return Vec::new() };
        let most = if on_cpu() { CPU_BATCH_TOKENS } else { BATCH_TOKENS };
        let longest = match (config.length_dependent, config.encodes) {
            (true, _) => shortest,
            (false, true) => usize::MAX,
            (false, false) => shortest + shortest / PADDING,
        };
        let (mut texts, mut packed) = (0, 0);
        for text in &self.left {
            let length = length(text);
            (texts, packed) = (texts + 1, packed + length);
            let tokens = if config.encodes { packed } else { texts * length };
            let logits = match self.request.wanted {
                Wanted::Difference(_) => texts * config.vocab_size,
                Wanted::Vector(_) | Wanted::Relevance => 0,
            };
            if texts > 1 && (length > longest || tokens > most || logits > BATCH_LOGITS) {
                texts -= 1;
                break;
            }
        }
        self.left.drain(..texts).collect()
    }

    /// What is wanted of these texts: `[texts, ..]`.
    fn compute(&self, model: &dyn Architecture, dense: &[DenseLayer], batch: &[usize]) -> Result<Array> {
        let texts = batch.iter().map(|text| &self.request.texts[*text]);
        if !model.config().encodes {
            return self.compute_rows(model, dense, batch);
        }
        let packed = PackedTokens::new(texts.map(|text| (&text.ids[..], text.token_types.as_deref())));
        let hidden = model.hidden(&packed.rows(), Rows::Packed(&packed))?;
        match self.request.wanted {
            Wanted::Vector(pooling) => {
                let spans =
                    packed.starts().into_iter().zip(packed.lengths()).map(|(start, length)| (start, *length));
                DenseLayer::forward_all(dense, pool(&hidden, &spans.collect::<Vec<_>>(), pooling)?)
            }
            Wanted::Relevance => model.relevance(&hidden, &packed)?.expand_dims(1),
            Wanted::Difference(_) => Err(Exception::custom("an encoder has no logits")),
        }
    }

    /// The same of a decoder: as rows, padded on the right.
    fn compute_rows(&self, model: &dyn Architecture, dense: &[DenseLayer], batch: &[usize]) -> Result<Array> {
        let texts: Vec<&[u32]> = batch.iter().map(|text| &self.request.texts[*text].ids[..]).collect();
        let width = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        let mut tokens = vec![0; texts.len() * width];
        let mut spans = Vec::with_capacity(texts.len());
        for (row, text) in texts.iter().enumerate() {
            tokens[row * width..][..text.len()].copy_from_slice(text);
            spans.push(((row * width) as u32, text.len()));
        }
        let tokens = Array::from_slice(&tokens, &[texts.len() as i32, width as i32]);
        let hidden = model.hidden(&tokens, Rows::Uncached)?;
        match self.request.wanted {
            Wanted::Vector(pooling) => DenseLayer::forward_all(dense, pool(&hidden, &spans, pooling)?),
            Wanted::Relevance => Err(Exception::custom("a decoder has no head that scores pairs")),
            Wanted::Difference([first, second]) => {
                let last = pool(&hidden, &spans, Pooling::Last)?;
                let logits = model
                    .logits(&last.as_dtype(hidden.dtype())?.expand_dims(0)?)?
                    .reshape(&[spans.len() as i32, -1])?;
                let wanted =
                    logits.take_axis(Array::from_slice(&[first, second], &[2]), 1)?.as_type::<f32>()?;
                slice(&wanted, 1, 0, 1)?.subtract(slice(&wanted, 1, 1, 2)?)
            }
        }
    }
}

/// One vector of each text, `[texts, size]` in single precision, of the vectors `[.., size]` of its tokens: where they begin and how many
/// they are.
fn pool(hidden: &Array, spans: &[(u32, usize)], pooling: Pooling) -> Result<Array> {
    let size = hidden.dim(-1);
    let rows = hidden.reshape(&[-1, size])?;
    let place = |(start, length): &(u32, usize)| match pooling {
        Pooling::Last => start + *length as u32 - 1,
        _ => *start,
    };
    if matches!(pooling, Pooling::Cls | Pooling::Last) {
        let places: Vec<u32> = spans.iter().map(place).collect();
        return rows.take_axis(Array::from_slice(&places, &[places.len() as i32]), 0)?.as_type::<f32>();
    }
    // Texts of one length that lie one after the other are reduced together.
    let alike = spans.chunk_by(|a, b| a.1 == b.1 && a.0 as usize + a.1 == b.0 as usize);
    let pooled = alike.map(|texts| {
        let (start, length) = (texts[0].0 as i32, texts[0].1 as i32);
        let end = start + texts.len() as i32 * length;
        let vectors =
            slice(&rows, 0, start, end)?.as_type::<f32>()?.reshape(&[texts.len() as i32, length, size])?;
        let sum_by = |factor: f32| vectors.sum_axis(1, false)?.multiply(Array::from_f32(factor));
        match pooling {
            Pooling::Max => vectors.max_axis(1, false),
            Pooling::MeanSqrtLen => sum_by((length as f32).sqrt().recip()),
            Pooling::WeightedMean => {
                let total = length as f32 * (length as f32 + 1.0) / 2.0;
                let weights: Vec<f32> = (1..=length).map(|place| place as f32 / total).collect();
                vectors.multiply(Array::from_slice(&weights, &[length, 1]))?.sum_axis(1, false)
            }
            _ => sum_by((length as f32).recip()),
        }
    });
    let pooled = pooled.collect::<Result<Vec<_>>>()?;
    if let [whole] = &pooled[..] { Ok(whole.clone()) } else { ops::concatenate(&pooled, 0) }
}
