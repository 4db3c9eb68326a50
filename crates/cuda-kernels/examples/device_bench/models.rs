//! Shapes of models, filled with random numbers.

use cuda_kernels::{
    Activation, AttentionSpec, Buffer, DecoderSpec, Device, DevicePtr, ExpertsSpec, FeedForwardSpec, Gating,
    Half, LayerSpec, Layout, MlpSpec, NormWeight, Result, RopeSpec, RoutingSpec, Scoring, Stack, Weight,
};
use half::bf16;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// Positions of a cache.
pub(crate) const CAPACITY: usize = 2560;

/// A model.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) name: String,
    layout: Layout,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    intermediate: usize,
    vocabulary: usize,
    layers: usize,
    tied: bool,
    qk_norm: bool,
    /// Experts, and how many of them a token has.
    experts: Option<[usize; 2]>,
    /// Windows of five layers of six, norms after blocks.
    gemma: bool,
}

/// The models.
pub(crate) fn all() -> Vec<Model> {
    let qwen = Model {
        name: "Qwen3-0.6B".to_owned(),
        layout: Layout::Dense,
        hidden: 1024,
        heads: 16,
        kv_heads: 8,
        head_dim: 128,
        intermediate: 3072,
        vocabulary: 151_936,
        layers: 28,
        tied: true,
        qk_norm: true,
        experts: None,
        gemma: false,
    };
    let gemma = Model {
        name: "Gemma3-1B".to_owned(),
        hidden: 1152,
        heads: 4,
        kv_heads: 1,
        head_dim: 256,
        intermediate: 6912,
        vocabulary: 262_144,
        layers: 26,
        gemma: true,
        ..qwen.clone()
    };
    let llama = Model {
        name: "Llama-3.1-8B".to_owned(),
        hidden: 4096,
        heads: 32,
        intermediate: 14_336,
        vocabulary: 128_256,
        layers: 32,
        tied: false,
        qk_norm: false,
        ..qwen.clone()
    };
    // Its shape, with a quarter of its layers.
    let qwen_moe = Model {
        name: "Qwen3-30B-A3B, 12 layers,".to_owned(),
        hidden: 2048,
        heads: 32,
        kv_heads: 4,
        intermediate: 768,
        layers: 12,
        tied: false,
        experts: Some([128, 8]),
        ..qwen.clone()
    };
    let four = Layout::Affine { bits: 4, group: 64 };
    let mut models = Vec::new();
    for model in [qwen, gemma, llama, qwen_moe] {
        for (layout, suffix) in [(Layout::Dense, "bf16"), (four, "4-bit"), (Layout::Mxfp4, "MXFP4")] {
            models.push(Model { name: format!("{} {suffix}", model.name), layout, ..model.clone() });
        }
    }
    models
}

/// Blocks of random numbers that weights are copied from.
pub(crate) struct Random {
    halves: Vec<u16>,
    words: Vec<u32>,
}

impl Random {
    pub(crate) fn new() -> Self {
        let mut rng = StdRng::seed_from_u64(7);
        // An odd number, so that rows differ.
        let halves = (0..(8 << 20) + 24).map(|_| bf16::from_f32(rng.random_range(-0.03..0.03)).to_bits());
        let halves = halves.collect();
        let words = (0..(4 << 20) + 12).map(|_| rng.random_range(0..=u32::MAX)).collect();
        Self { halves, words }
    }
}

/// A buffer of as many elements, filled with repetitions.
fn filled<T: cuda_kernels::Plain>(device: &Device, elements: usize, block: &[T]) -> Result<Buffer> {
    let mut buffer = Buffer::zeroed(device, elements * size_of::<T>())?;
    let mut done = 0;
    while done < elements {
        let count = block.len().min(elements - done);
        buffer.write(done, &block[..count])?;
        done += count;
    }
    Ok(buffer)
}

/// Bits of an element and the size of a group of a layout with floats of 4 or 8 bits.
fn float_sizes(layout: Layout) -> (usize, usize) {
    match layout {
        Layout::Mxfp8 => (8, 32),
        Layout::Nvfp4 => (4, 16),
        _ => (4, 32),
    }
}

struct Builder<'a> {
    device: &'a Device,
    random: &'a Random,
    layout: Layout,
    buffers: Vec<Buffer>,
}

impl Builder<'_> {
    fn keep(&mut self, buffer: Result<Buffer>) -> Result<DevicePtr> {
        let buffer = buffer?;
        let ptr = buffer.ptr();
        self.buffers.push(buffer);
        Ok(ptr)
    }

    fn weight(&mut self, rows: usize, columns: usize) -> Result<Weight> {
        let none = DevicePtr::NULL;
        let (data, scales, biases) = match self.layout {
            Layout::Dense => {
                (self.keep(filled(self.device, rows * columns, &self.random.halves))?, none, none)
            }
            Layout::Affine { bits, group } => {
                let words = rows * columns * bits as usize / 32;
                let groups = rows * columns / group as usize;
                let scale = vec![bf16::from_f32(0.004).to_bits(); 1 << 20];
                let bias = vec![bf16::from_f32(-0.03).to_bits(); 1 << 20];
                (
                    self.keep(filled(self.device, words, &self.random.words))?,
                    self.keep(filled(self.device, groups, &scale))?,
                    self.keep(filled(self.device, groups, &bias))?,
                )
            }
            Layout::Mxfp4 | Layout::Mxfp8 | Layout::Nvfp4 => {
                let (bits, group) = float_sizes(self.layout);
                // 2⁻⁷ as a power of two, and a small number in E4M3.
                let scale = if self.layout == Layout::Nvfp4 { 4 } else { 120 };
                let words = self.keep(filled(self.device, rows * columns * bits / 32, &self.random.words))?;
                let groups = rows * columns / group;
                (words, self.keep(filled(self.device, groups, &vec![scale; 1 << 20]))?, none)
            }
        };
        Ok(Weight { layout: self.layout, rows, columns, data, scales, biases, bias: none })
    }

    fn norm(&mut self, size: usize) -> Result<NormWeight> {
        let ones = vec![bf16::ONE.to_bits(); size];
        Ok(NormWeight { data: self.keep(Buffer::of(self.device, &ones))?, single: false, offset: 0.0 })
    }
}

impl Model {
    fn feed_forward(&self, b: &mut Builder<'_>) -> Result<FeedForwardSpec> {
        let width = self.intermediate;
        let activation = if self.gemma { Activation::GeluTanh } else { Activation::Silu };
        let count = self.experts.map_or(1, |[count, _]| count);
        // Joined as loaders join them.
        let gate_up = b.weight(count * 2 * width, self.hidden)?;
        let gate_up = [gate_up.slice(0, width), gate_up.slice(width, width)];
        let down = b.weight(count * self.hidden, width)?.slice(0, self.hidden);
        let Some([count, top_k]) = self.experts else {
            return Ok(FeedForwardSpec::Dense(MlpSpec { gate_up, down, activation }));
        };
        Ok(FeedForwardSpec::Experts(Box::new(ExpertsSpec {
            router: b.weight(count, self.hidden)?,
            routing: RoutingSpec {
                scoring: Scoring::Softmax,
                bias: DevicePtr::NULL,
                top_k,
                normalize: Some(0.0),
                scale: 1.0,
            },
            gate_up: gate_up.map(|first| Stack { first, stride: 2 * width, step: 1 }),
            down: Stack { first: down, stride: self.hidden, step: 1 },
            gating: Gating::Glu(activation),
            shared: None,
        })))
    }

    fn window(&self, layer: usize) -> Option<usize> {
        (self.gemma && layer % 6 != 5).then_some(512)
    }

    pub(crate) fn build(&self, device: &Device, random: &Random) -> Result<(DecoderSpec, Vec<Buffer>)> {
        let mut b = Builder { device, random, layout: self.layout, buffers: Vec::new() };
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut layers = Vec::new();
        for i in 0..self.layers {
            // Joined as loaders join them.
            let qkv = b.weight(queries + 2 * keys, self.hidden)?;
            let attention = AttentionSpec {
                qkv: [qkv.slice(0, queries), qkv.slice(queries, keys), qkv.slice(queries + keys, keys)],
                output: b.weight(self.hidden, queries)?,
                qk_norm: if self.qk_norm {
                    Some([b.norm(self.head_dim)?, b.norm(self.head_dim)?])
                } else {
                    None
                },
                rope: Some(0),
                window: self.window(i),
                scale: (self.head_dim as f32).sqrt().recip(),
                cap: None,
                sinks: DevicePtr::NULL,
            };
            layers.push(LayerSpec {
                input_norm: b.norm(self.hidden)?,
                attention,
                mlp_norm: b.norm(self.hidden)?,
                mlp: self.feed_forward(&mut b)?,
                post_norms: if self.gemma {
                    Some([b.norm(self.hidden)?, b.norm(self.hidden)?])
                } else {
                    None
                },
            });
        }
        let embedding = b.weight(self.vocabulary, self.hidden)?;
        let head = if self.tied { embedding } else { b.weight(self.vocabulary, self.hidden)? };
        let frequencies =
            (0..self.head_dim / 2).map(|i| 1e6_f32.powf(-2.0 * i as f32 / self.head_dim as f32));
        let spec = DecoderSpec {
            half: Half::Bf16,
            hidden: self.hidden,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            eps: 1e-6,
            embedding,
            embedding_scale: 1.0,
            layers,
            ropes: vec![RopeSpec { frequencies: frequencies.collect(), magnitude: 1.0, interleaved: false }],
            norm: b.norm(self.hidden)?,
            head,
            logit_scale: 1.0,
            logit_cap: None,
        };
        Ok((spec, b.buffers))
    }

    /// The layers' keys and values of one row.
    pub(crate) fn caches(&self, device: &Device, random: &Random) -> Result<Vec<[Buffer; 2]>> {
        let size = self.kv_heads * CAPACITY * self.head_dim;
        let one = || filled(device, size, &random.halves);
        (0..self.layers).map(|_| Ok([one()?, one()?])).collect()
    }

    /// Bytes that a step reads: weights once (experts of each row, as if rows shared none), and what rows of `length` positions have cached.
    pub(crate) fn bytes(&self, rows: usize, length: usize) -> usize {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let feed_forward = match self.experts {
            None => 3 * self.intermediate,
            Some([count, top_k]) => count + 3 * (rows * top_k).min(count) * self.intermediate,
        };
        let layer = self.hidden * (2 * queries + 2 * keys + feed_forward);
        let elements = self.layers * layer + self.vocabulary * self.hidden;
        let weights = match self.layout {
            Layout::Dense => 2 * elements,
            Layout::Affine { bits, group } => elements * bits as usize / 8 + 4 * elements / group as usize,
            floats => {
                let (bits, group) = float_sizes(floats);
                elements * bits / 8 + elements / group
            }
        };
        let seen = |i: usize| self.window(i).map_or(length, |window| window.min(length));
        let cached: usize = (0..self.layers).map(|i| seen(i) * 2 * keys * 2).sum();
        weights + rows * cached
    }
}
