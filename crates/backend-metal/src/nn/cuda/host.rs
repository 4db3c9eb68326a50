//! What a description computes, on the host in double precision, for tests: weights are read where it says that they are, as the kernels
//! read them.

use std::ptr;

use cuda_kernels::{
    Activation, AttentionSpec, DecoderSpec, DevicePtr, ExpertsSpec, FeedForwardSpec, Gating, Half, Layout,
    MlpSpec, NormWeight, RopeSpec, RoutingSpec, Scoring, Stack, Weight,
};

use super::spec::Description;

/// Keys and values of a layer, for each position.
type Cache = Vec<[Vec<f64>; 2]>;

/// The logits of every token of a text, where arrays lie in the memory of the host.
pub(crate) fn logits(description: &Description, tokens: &[u32]) -> Vec<Vec<f64>> {
    let spec = &description.spec;
    let mut caches = vec![Cache::new(); spec.layers.len()];
    tokens.iter().map(|token| Host(spec).step(*token as usize, &mut caches)).collect()
}

/// An element of what lies at an address.
fn read<T: Copy>(address: DevicePtr, index: usize) -> T {
    // SAFETY: the description's arrays are alive, and as large as it says; a test wants to know whether the latter is so.
    unsafe { ptr::read_unaligned((address.0 as *const T).add(index)) }
}

/// A float of 4 bits.
fn e2m1(code: u8) -> f64 {
    let magnitude = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(code & 7)];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

/// A float of 8 bits.
fn e4m3(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let magnitude =
        if exponent == 0 { mantissa / 512.0 } else { (8.0 + mantissa) * 2_f64.powi(exponent - 10) };
    if code & 128 == 0 { magnitude } else { -magnitude }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn softmax(scores: &[f64], sink: Option<f64>) -> Vec<f64> {
    let top = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().copied().chain(sink).map(|score| (score - top).exp()).sum();
    scores.iter().map(|score| (score - top).exp() / total).collect()
}

fn capped(x: f64, cap: Option<f32>) -> f64 {
    cap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh())
}

fn add(x: &mut [f64], y: &[f64], factor: f64) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += factor * y);
}

fn rotate(rope: &RopeSpec, head: &mut [f64], position: usize) {
    let half = rope.frequencies.len();
    for (i, frequency) in rope.frequencies.iter().enumerate() {
        let (a, b) = if rope.interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
        let (sin, cos) = (position as f64 * f64::from(*frequency)).sin_cos();
        let [x, y] = [head[a], head[b]].map(|value| value * f64::from(rope.magnitude));
        (head[a], head[b]) = (x * cos - y * sin, x * sin + y * cos);
    }
}

fn gated(gating: Gating, gate: f64, up: f64) -> f64 {
    match gating {
        Gating::Glu(Activation::Silu) => gate * sigmoid(gate) * up,
        Gating::Glu(Activation::GeluTanh) => {
            let z = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044_715 * gate.powi(3));
            0.5 * gate * (1.0 + z.tanh()) * up
        }
        Gating::Glu(Activation::Gelu) => panic!("no test model has the error function"),
        Gating::Clamped { alpha, limit } => {
            let limit = f64::from(limit);
            let (gate, up) = (gate.min(limit), up.clamp(-limit, limit));
            gate * sigmoid(f64::from(alpha) * gate) * (up + 1.0)
        }
    }
}

struct Host<'a>(&'a DecoderSpec);

impl Host<'_> {
    fn half(&self, address: DevicePtr, index: usize) -> f64 {
        let bits = read(address, index);
        match self.0.half {
            Half::Bf16 => half::bf16::from_bits(bits).to_f64(),
            Half::F16 => half::f16::from_bits(bits).to_f64(),
        }
    }

    fn element(&self, weight: &Weight, row: usize, column: usize) -> f64 {
        let at = row * weight.columns + column;
        let code = |bits: usize| {
            let bit = |i: usize| {
                u32::from(read::<u8>(weight.data, (at * bits + i) / 8) >> ((at * bits + i) % 8) & 1)
            };
            (0..bits).map(|i| bit(i) << i).sum::<u32>()
        };
        let scale = |group: usize| read::<u8>(weight.scales, at / group);
        match weight.layout {
            Layout::Dense => self.half(weight.data, at),
            Layout::Affine { bits, group } => {
                let [scale, bias] =
                    [weight.scales, weight.biases].map(|of| self.half(of, at / group as usize));
                f64::from(code(bits as usize)) * scale + bias
            }
            Layout::Mxfp4 => e2m1(code(4) as u8) * 2_f64.powi(i32::from(scale(32)) - 127),
            Layout::Mxfp8 => e4m3(code(8) as u8) * 2_f64.powi(i32::from(scale(32)) - 127),
            Layout::Nvfp4 => e2m1(code(4) as u8) * e4m3(scale(16)),
        }
    }

    fn row(&self, weight: &Weight, row: usize) -> Vec<f64> {
        (0..weight.columns).map(|column| self.element(weight, row, column)).collect()
    }

    /// Some rows of a matrix, and of others behind it, times x.
    fn rows(&self, weight: &Weight, rows: impl Iterator<Item = usize>, x: &[f64]) -> Vec<f64> {
        assert_eq!(weight.columns, x.len(), "{weight:?}");
        let product = |row| {
            let bias = if weight.bias == DevicePtr::NULL { 0.0 } else { self.half(weight.bias, row) };
            self.row(weight, row).iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + bias
        };
        rows.map(product).collect()
    }

    fn product(&self, weight: &Weight, x: &[f64]) -> Vec<f64> {
        self.rows(weight, 0..weight.rows, x)
    }

    fn expert(&self, Stack { first, stride, step }: &Stack, expert: usize, x: &[f64]) -> Vec<f64> {
        self.rows(first, (0..first.rows).map(|row| expert * stride + row * step), x)
    }

    fn norm(&self, norm: &NormWeight, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let root = (mean + f64::from(self.0.eps)).sqrt();
        let weight = |i| match norm.single {
            true => f64::from(read::<f32>(norm.data, i)),
            false => self.half(norm.data, i),
        };
        x.iter().enumerate().map(|(i, x)| x / root * (weight(i) + f64::from(norm.offset))).collect()
    }

    fn step(&self, token: usize, caches: &mut [Cache]) -> Vec<f64> {
        let spec = self.0;
        let scale = f64::from(spec.embedding_scale);
        let mut x: Vec<f64> = self.row(&spec.embedding, token).iter().map(|w| w * scale).collect();
        for (layer, cache) in spec.layers.iter().zip(caches) {
            let post = |i: usize, y: Vec<f64>| match &layer.post_norms {
                Some(norms) => self.norm(&norms[i], &y),
                None => y,
            };
            let attended = self.attend(&layer.attention, &self.norm(&layer.input_norm, &x), cache);
            add(&mut x, &post(0, self.product(&layer.attention.output, &attended)), 1.0);
            let h = self.norm(&layer.mlp_norm, &x);
            let y = match &layer.mlp {
                FeedForwardSpec::Dense(mlp) => self.mlp(mlp, &h),
                FeedForwardSpec::Experts(experts) => self.mixture(experts, &h),
            };
            add(&mut x, &post(1, y), 1.0);
        }
        let logits = self.product(&spec.head, &self.norm(&spec.norm, &x));
        logits.iter().map(|logit| capped(logit * f64::from(spec.logit_scale), spec.logit_cap)).collect()
    }

    fn attend(&self, attention: &AttentionSpec, h: &[f64], cache: &mut Cache) -> Vec<f64> {
        let DecoderSpec { heads, kv_heads, head_dim, .. } = *self.0;
        let [mut queries, mut keys, values] = attention.qkv.map(|weight| self.product(&weight, h));
        for (vectors, which) in [(&mut queries, 0), (&mut keys, 1)] {
            for head in vectors.chunks_exact_mut(head_dim) {
                if let Some(norms) = &attention.qk_norm {
                    head.copy_from_slice(&self.norm(&norms[which], head));
                }
                if let Some(rope) = attention.rope {
                    rotate(&self.0.ropes[rope], head, cache.len());
                }
            }
        }
        cache.push([keys, values]);
        let seen = &cache[attention.window.map_or(0, |window| cache.len().saturating_sub(window))..];
        let one = |(head, query): (usize, &[f64])| {
            let kv = head / (heads / kv_heads) * head_dim;
            let score = |[keys, _]: &[Vec<f64>; 2]| {
                let score: f64 = query.iter().zip(&keys[kv..]).map(|(q, k)| q * k).sum();
                capped(score * f64::from(attention.scale), attention.cap)
            };
            let sink =
                (attention.sinks != DevicePtr::NULL).then(|| f64::from(read::<f32>(attention.sinks, head)));
            let weights = softmax(&seen.iter().map(score).collect::<Vec<_>>(), sink);
            let mut sum = vec![0.0; head_dim];
            weights
                .iter()
                .zip(seen)
                .for_each(|(w, [_, values])| add(&mut sum, &values[kv..][..head_dim], *w));
            sum
        };
        queries.chunks_exact(head_dim).enumerate().flat_map(one).collect()
    }

    fn mlp(&self, mlp: &MlpSpec, h: &[f64]) -> Vec<f64> {
        let [gate, up] = mlp.gate_up.map(|weight| self.product(&weight, h));
        let gating = Gating::Glu(mlp.activation);
        let gated: Vec<f64> = gate.iter().zip(up).map(|(&gate, up)| gated(gating, gate, up)).collect();
        self.product(&mlp.down, &gated)
    }

    fn mixture(&self, experts: &ExpertsSpec, h: &[f64]) -> Vec<f64> {
        let RoutingSpec { scoring, bias, top_k, normalize, scale } = experts.routing;
        let scores = self.product(&experts.router, h);
        let shares = match scoring {
            Scoring::Softmax => softmax(&scores, None),
            Scoring::Sigmoid => scores.iter().map(|score| sigmoid(*score)).collect(),
        };
        let bias = |i: usize| if bias == DevicePtr::NULL { 0.0 } else { f64::from(read::<f32>(bias, i)) };
        let mut picks: Vec<usize> = (0..shares.len()).collect();
        picks.sort_by(|&a, &b| (shares[b] + bias(b)).total_cmp(&(shares[a] + bias(a))));
        picks.truncate(top_k);
        let sum: f64 = picks.iter().map(|pick| shares[*pick]).sum();
        let factor = f64::from(scale) / normalize.map_or(1.0, |epsilon| sum + f64::from(epsilon));
        let mut y = vec![0.0; h.len()];
        for pick in picks {
            let [gate, up] = experts.gate_up.each_ref().map(|stack| self.expert(stack, pick, h));
            let gated: Vec<f64> =
                gate.iter().zip(up).map(|(&gate, up)| gated(experts.gating, gate, up)).collect();
            add(&mut y, &self.expert(&experts.down, pick, &gated), shares[pick] * factor);
        }
        if let Some(shared) = &experts.shared {
            let share = shared.gate.map_or(1.0, |gate| sigmoid(self.product(&gate, h)[0]));
            add(&mut y, &self.mlp(&shared.mlp, h), share);
        }
        y
    }
}
