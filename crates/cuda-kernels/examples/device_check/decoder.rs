//! Small random decoders, and what they compute in double precision.

use cuda_kernels::{
    Activation, AttentionSpec, Buffer, DecoderSpec, Device, DevicePtr, Half, LayerSpec, Layout, Result,
    RopeSpec,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::{
    feed_forward::{Experts, FeedForward},
    matrix::{Matrix, Norm, narrow, widen},
};

/// The shape of a decoder.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) half: Half,
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) intermediate: usize,
    pub(crate) vocabulary: usize,
    pub(crate) layers: usize,
    /// Of q, k and v; o, gate, up and down; the head; the embedding.
    pub(crate) layouts: [Layout; 4],
    /// Another layout of v.
    pub(crate) v_layout: Option<Layout>,
    pub(crate) activation: Activation,
    /// Mixtures of experts, in every layer but the first of three.
    pub(crate) experts: Option<Experts>,
    pub(crate) bias: bool,
    pub(crate) qk_norm: bool,
    pub(crate) sandwich: bool,
    pub(crate) plus_one: bool,
    pub(crate) single_norms: bool,
    /// Of every second layer.
    pub(crate) window: Option<usize>,
    pub(crate) rotated: usize,
    pub(crate) interleaved: bool,
    pub(crate) cap: Option<f32>,
    pub(crate) logit_cap: Option<f32>,
    pub(crate) sinks: bool,
    pub(crate) capacity: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            half: Half::Bf16,
            hidden: 256,
            heads: 4,
            kv_heads: 2,
            head_dim: 64,
            intermediate: 512,
            vocabulary: 1024,
            layers: 2,
            layouts: [Layout::Dense; 4],
            v_layout: None,
            activation: Activation::Silu,
            experts: None,
            bias: false,
            qk_norm: false,
            sandwich: false,
            plus_one: false,
            single_norms: false,
            window: None,
            rotated: 64,
            interleaved: false,
            cap: None,
            logit_cap: None,
            sinks: false,
            capacity: 512,
        }
    }
}

struct Layer {
    input_norm: Norm,
    qkv: [Matrix; 3],
    output: Matrix,
    qk_norm: Option<[Norm; 2]>,
    mlp_norm: Norm,
    mlp: FeedForward,
    post_norms: Option<[Norm; 2]>,
    sinks: Option<(Vec<f64>, Buffer)>,
    window: Option<usize>,
    rope: usize,
}

/// A decoder in both places.
pub(crate) struct Decoder {
    pub(crate) shape: Shape,
    layers: Vec<Layer>,
    embedding: Matrix,
    head: Matrix,
    norm: Norm,
    ropes: Vec<RopeSpec>,
}

/// Where inputs of products are rounded to halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    None,
    /// Those that are normalised before they are multiplied by the root of the norm, which multiplies the product.
    BeforeRoots,
    BehindRoots,
}

/// Keys and values of one row: for each layer, for each position, all heads.
pub(crate) type Cache = Vec<LayerCache>;

/// Keys and values of one layer.
pub(crate) type LayerCache = Vec<[Vec<f64>; 2]>;

const EPS: f32 = 1e-6;
const EMBEDDING_SCALE: f32 = 2.5;
const LOGIT_SCALE: f32 = 1.5;

impl Decoder {
    pub(crate) fn random(device: &Device, shape: Shape, seed: u64) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let rng = &mut rng;
        let Shape { half, hidden, heads, kv_heads, head_dim, vocabulary, .. } = shape;
        let kinds = [shape.single_norms, shape.plus_one];
        let mut layers = Vec::new();
        for i in 0..shape.layers {
            let mut matrix =
                |layout, size, bias| Matrix::random(device, rng, half, layout, size, bias && shape.bias);
            let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
            let qkv = [
                matrix(shape.layouts[0], [queries, hidden], true)?,
                matrix(shape.layouts[0], [keys, hidden], true)?,
                matrix(shape.v_layout.unwrap_or(shape.layouts[0]), [keys, hidden], true)?,
            ];
            let output = matrix(shape.layouts[1], [hidden, queries], true)?;
            let experts = shape.experts.filter(|_| i > 0 || shape.layers < 3);
            let mlp = FeedForward::random(device, rng, &shape, experts)?;
            let mut norm = |size| Norm::random(device, rng, half, size, kinds);
            let input_norm = norm(hidden)?;
            let mlp_norm = norm(hidden)?;
            let qk_norm = shape.qk_norm.then(|| Ok([norm(head_dim)?, norm(head_dim)?])).transpose()?;
            let post_norms = shape.sandwich.then(|| Ok([norm(hidden)?, norm(hidden)?])).transpose()?;
            let sinks = shape.sinks.then(|| {
                let values: Vec<f32> = (0..heads).map(|_| rng.random_range(-2.0..2.0)).collect();
                let buffer = Buffer::of(device, &values)?;
                Ok((values.into_iter().map(f64::from).collect(), buffer))
            });
            let sinks = sinks.transpose()?;
            let window = shape.window.filter(|_| i % 2 == 0);
            let rope = i % 2;
            layers.push(Layer {
                input_norm,
                qkv,
                output,
                qk_norm,
                mlp_norm,
                mlp,
                post_norms,
                sinks,
                window,
                rope,
            });
        }
        let ropes = [10_000_f64, 1e6].map(|base| RopeSpec {
            frequencies: (0..shape.rotated / 2)
                .map(|i| base.powf(-2.0 * i as f64 / shape.rotated as f64) as f32)
                .collect(),
            magnitude: if shape.bias { 1.25 } else { 1.0 },
            interleaved: shape.interleaved,
        });
        Ok(Self {
            layers,
            embedding: Matrix::random(device, rng, half, shape.layouts[3], [vocabulary, hidden], false)?,
            head: Matrix::random(device, rng, half, shape.layouts[2], [vocabulary, hidden], false)?,
            norm: Norm::random(device, rng, half, hidden, kinds)?,
            ropes: ropes.into(),
            shape,
        })
    }

    /// Positions that a layer's cache holds.
    pub(crate) fn capacity(&self, layer: usize) -> usize {
        // A window's cache is a ring that is hardly larger.
        self.layers[layer].window.map_or(self.shape.capacity, |window| window + 3)
    }

    pub(crate) fn spec(&self) -> DecoderSpec {
        let shape = &self.shape;
        let layers = self.layers.iter().map(|layer| LayerSpec {
            input_norm: layer.input_norm.weight,
            attention: AttentionSpec {
                qkv: layer.qkv.each_ref().map(|matrix| matrix.weight),
                output: layer.output.weight,
                qk_norm: layer.qk_norm.as_ref().map(|norms| norms.each_ref().map(|norm| norm.weight)),
                rope: Some(layer.rope),
                window: layer.window,
                scale: self.scale() as f32,
                cap: shape.cap,
                sinks: layer.sinks.as_ref().map_or(DevicePtr::NULL, |(_, buffer)| buffer.ptr()),
            },
            mlp_norm: layer.mlp_norm.weight,
            mlp: layer.mlp.spec(shape),
            post_norms: layer.post_norms.as_ref().map(|norms| norms.each_ref().map(|norm| norm.weight)),
        });
        DecoderSpec {
            half: shape.half,
            hidden: shape.hidden,
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            eps: EPS,
            embedding: self.embedding.weight,
            embedding_scale: EMBEDDING_SCALE,
            layers: layers.collect(),
            ropes: self.ropes.clone(),
            norm: self.norm.weight,
            head: self.head.weight,
            logit_scale: LOGIT_SCALE,
            logit_cap: shape.logit_cap,
        }
    }

    /// Attention is sharper than usual, so that a wrong position shows.
    fn scale(&self) -> f64 {
        f64::from(4.0 / (self.shape.head_dim as f32).sqrt())
    }

    /// A random token at the end of what both caches hold, of which rounding does not decide which experts are picked, and its logits,
    /// exact and rounded.
    pub(crate) fn certain_step(
        &self,
        rng: &mut StdRng,
        caches: [&mut Cache; 2],
        rounding: Rounding,
    ) -> (u32, [Vec<f64>; 2]) {
        let lengths = caches.each_ref().map(|cache| cache.iter().map(Vec::len).collect::<Vec<_>>());
        let [exact, rounded] = caches;
        loop {
            let token = rng.random_range(0..self.shape.vocabulary as u32);
            let step = |cache: &mut Cache, rounding| self.step(token as usize, cache, rounding);
            let found = [step(&mut *exact, Rounding::None), step(&mut *rounded, rounding)];
            if let [Some(exact), Some(rounded)] = found {
                return (token, [exact, rounded]);
            }
            for (cache, lengths) in [&mut *exact, &mut *rounded].into_iter().zip(&lengths) {
                cache.iter_mut().zip(lengths).for_each(|(layer, len)| layer.truncate(*len));
            }
        }
    }

    /// Where steps of so many rows round. `gemv` rounds before the root of a norm in bf16; `pack` and `plain`, which serve other rows and
    /// widths, round behind it.
    pub(crate) fn rounding(&self, rows: usize) -> Rounding {
        let by_gemv = rows <= 8 && self.shape.hidden.is_multiple_of(64);
        if self.shape.half == Half::Bf16 && by_gemv { Rounding::BeforeRoots } else { Rounding::BehindRoots }
    }

    /// The logits of the token at the end of what `cache` holds. `rounding` says whether, and where, halves are rounded as a step on the
    /// GPU does: inputs of products, and what is cached. `None` where that may decide which experts are picked.
    fn step(&self, token: usize, cache: &mut Cache, rounding: Rounding) -> Option<Vec<f64>> {
        let eps = f64::from(EPS);
        let half = self.shape.half;
        let round = |mut values: Vec<f64>| {
            if rounding != Rounding::None {
                values.iter_mut().for_each(|value| *value = widen(half, narrow(half, *value)));
            }
            values
        };
        // What the first product of a block multiplies.
        let normed = |norm: &Norm, x: &[f64]| match rounding {
            Rounding::BeforeRoots => norm.apply_with(x, eps, &round),
            Rounding::None | Rounding::BehindRoots => round(norm.apply(x, eps)),
        };
        let mut x: Vec<f64> =
            self.embedding.row(token).iter().map(|w| w * f64::from(EMBEDDING_SCALE)).collect();
        for (layer, cache) in self.layers.iter().zip(cache) {
            let h = normed(&layer.input_norm, &x);
            let y = layer.output.multiply(&round(self.attend(layer, &h, cache, &round)));
            add(&mut x, &y, layer.post_norms.as_ref().map(|norms| &norms[0]));
            let h = [normed(&layer.mlp_norm, &x), round(layer.mlp_norm.apply(&x, eps))];
            let y = layer.mlp.apply(&self.shape, h.each_ref().map(Vec::as_slice), &round)?;
            add(&mut x, &y, layer.post_norms.as_ref().map(|norms| &norms[1]));
        }
        let logits = self.head.multiply(&normed(&self.norm, &x));
        let cap = |z: f64| self.shape.logit_cap.map_or(z, |cap| f64::from(cap) * (z / f64::from(cap)).tanh());
        Some(logits.into_iter().map(|z| cap(z * f64::from(LOGIT_SCALE))).collect())
    }

    fn attend(
        &self,
        layer: &Layer,
        h: &[f64],
        cache: &mut LayerCache,
        round: &impl Fn(Vec<f64>) -> Vec<f64>,
    ) -> Vec<f64> {
        let Shape { heads, kv_heads, head_dim, cap, .. } = self.shape;
        let [mut q, mut k, v] = layer.qkv.each_ref().map(|matrix| matrix.multiply(h));
        let position = cache.len();
        for (vectors, norm) in [(&mut q, 0), (&mut k, 1)] {
            for head in vectors.chunks_exact_mut(head_dim) {
                if let Some(norms) = &layer.qk_norm {
                    head.copy_from_slice(&norms[norm].apply(head, f64::from(EPS)));
                }
                rotate(&self.ropes[layer.rope], head, position);
            }
        }
        cache.push([round(k), round(v)]);
        let start = layer.window.map_or(0, |window| cache.len().saturating_sub(window));
        let seen = &cache[start..];
        let mut out = Vec::with_capacity(heads * head_dim);
        for (i, query) in q.chunks_exact(head_dim).enumerate() {
            let kv = i / (heads / kv_heads) * head_dim;
            let scores: Vec<f64> = seen
                .iter()
                .map(|[key, _]| {
                    let score: f64 = query.iter().zip(&key[kv..]).map(|(q, k)| q * k).sum();
                    let score = score * self.scale();
                    cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                })
                .collect();
            let sink = layer.sinks.as_ref().map(|(sinks, _)| sinks[i]);
            let top = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
            let total = weights.iter().sum::<f64>() + sink.map_or(0.0, |sink| (sink - top).exp());
            out.extend((0..head_dim).map(|d| {
                let sum: f64 = weights.iter().zip(seen).map(|(w, [_, value])| w * value[kv + d]).sum();
                sum / total
            }));
        }
        out
    }
}

fn add(x: &mut [f64], y: &[f64], norm: Option<&Norm>) {
    let y = norm.map_or_else(|| y.to_vec(), |norm| norm.apply(y, f64::from(EPS)));
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

fn rotate(rope: &RopeSpec, head: &mut [f64], position: usize) {
    let half = rope.frequencies.len();
    let magnitude = f64::from(rope.magnitude);
    for (i, &frequency) in rope.frequencies.iter().enumerate() {
        let (a, b) = if rope.interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
        let (sin, cos) = (position as f64 * f64::from(frequency)).sin_cos();
        let (x, y) = (head[a] * magnitude, head[b] * magnitude);
        (head[a], head[b]) = (x * cos - y * sin, x * sin + y * cos);
    }
}
