//! Recurrent layers and convolutions against double precision: every element type and instruction set, at odd shapes.
#![allow(clippy::unwrap_used, reason = "a failed kernel fails the test")]

mod common;

use common::{Kind, Vector, kernels, kinds, vector};
use cpu_kernels::{
    CausalConv, GatedNorm, Kernels, LinearAttention, RecurrentLayer, RmsNorm, Rule, Sequences,
};
use proptest::{prelude::*, test_runner::TestCaseError};

/// Vectors `[rows, tokens, width]`, with other vectors between those of two tokens.
struct Strided {
    data: Vector,
    tokens: usize,
    stride: usize,
}

impl Strided {
    fn new(kind: Kind, [rows, tokens, width]: [usize; 3], seed: u64) -> Self {
        let stride = width + 3;
        Self { data: vector(kind, rows * tokens * stride, seed), tokens, stride }
    }

    fn sequences(&self) -> Sequences<'_> {
        let row_stride = self.tokens * self.stride;
        Sequences { data: self.data.floats(), row_stride, token_stride: self.stride }
    }

    fn get(&self, row: usize, token: usize, index: usize) -> f64 {
        self.data.get((row * self.tokens + token) * self.stride + index)
    }
}

/// A convolution with its operands.
struct Conv {
    channels: usize,
    kernel: usize,
    x: Strided,
    window: Vector,
    weight: Vector,
    bias: Option<Vector>,
    silu: bool,
}

impl Conv {
    fn new(
        kind: Kind,
        [rows, tokens, channels, kernel]: [usize; 4],
        [biased, silu]: [bool; 2],
        seed: u64,
    ) -> Self {
        Self {
            channels,
            kernel,
            x: Strided::new(kind, [rows, tokens, channels], seed),
            window: vector(kind, rows * (kernel - 1) * channels, seed ^ 1),
            weight: vector(kind, channels * kernel, seed ^ 2),
            bias: biased.then(|| vector(kind, channels, seed ^ 3)),
            silu,
        }
    }

    fn conv(&self) -> CausalConv<'_> {
        CausalConv {
            channels: self.channels,
            kernel: self.kernel,
            weight: self.weight.floats(),
            bias: self.bias.as_ref().map(Vector::floats),
            silu: self.silu,
        }
    }

    /// The input of a token, counted from the first of the window.
    fn input(&self, row: usize, place: usize, channel: usize) -> f64 {
        let before = self.kernel - 1;
        match place.checked_sub(before) {
            None => self.window.get((row * before + place) * self.channels + channel),
            Some(token) => self.x.get(row, token, channel),
        }
    }

    fn output(&self, row: usize, token: usize, channel: usize) -> f64 {
        let taps = (0..self.kernel)
            .map(|tap| self.input(row, token + tap, channel) * self.weight.get(channel * self.kernel + tap));
        let sum = taps.sum::<f64>() + self.bias.as_ref().map_or(0.0, |bias| bias.get(channel));
        if self.silu { sum * sigmoid(sum) } else { sum }
    }

    fn check_window(&self, after: &Vector, lengths: &[i32]) -> Result<(), TestCaseError> {
        let before = self.kernel - 1;
        for (row, length) in lengths.iter().enumerate() {
            for place in 0..before {
                for channel in 0..self.channels {
                    let found = after.get((row * before + place) * self.channels + channel);
                    prop_assert_eq!(found, self.input(row, *length as usize + place, channel));
                }
            }
        }
        Ok(())
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// That a value is right but for rounding: to the type's precision, and single precision's in sums.
fn near(kind: Kind, found: f64, exact: f64) -> Result<(), TestCaseError> {
    let unit = match kind {
        Kind::F32 => 0.0,
        Kind::F16 => 2.0_f64.powi(-11),
        Kind::Bf16 => 2.0_f64.powi(-8),
    };
    let tolerance = unit * exact.abs() + 3e-5 * exact.abs().max(1.0);
    prop_assert!((found - exact).abs() <= tolerance, "{kind:?}: {found}, expected {exact}");
    Ok(())
}

/// Lengths of rows of so many tokens.
fn lengths(rows: usize, tokens: usize, seed: u64) -> Vec<i32> {
    (0..rows).map(|row| ((seed >> (8 * (row % 8))) as usize % (tokens + 1)) as i32).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn convolution([rows, tokens, kernel] in [1..4_usize, 1..20, 1..6], channels in 1..1200_usize, flags in any::<[bool; 2]>(),
                   padded in any::<bool>(), seed in any::<u64>(), kind in kinds(), kernels in kernels()) {
        let conv = Conv::new(kind, [rows, tokens, channels, kernel], flags, seed);
        let seen = if padded { lengths(rows, tokens, seed) } else { vec![tokens as i32; rows] };
        let mut out = vector(kind, rows * tokens * channels, 0);
        let mut after = vector(kind, rows * (kernel - 1) * channels, 0);
        let outputs = [out.floats_mut(), after.floats_mut()];
        kernels.causal_conv([rows, tokens], padded.then_some(&seen[..]), &conv.x.sequences(), &conv.conv(), conv.window.floats(), outputs)
            .unwrap();
        for index in 0..rows * tokens * channels {
            let (row, token, channel) = (index / channels / tokens, index / channels % tokens, index % channels);
            near(kind, out.get(index), conv.output(row, token, channel))?;
        }
        conv.check_window(&after, &seen)?;
    }

    /// All sizes of a layer, and both rules, with every kind of norm; tokens of more than one block.
    #[test]
    fn layer([rows, key_heads, group] in [1..4_usize, 1..3, 1..4], tokens in prop_oneof![Just(1_usize), 2..90_usize],
             key_dim in 1..40_usize, value_dim in 1..150_usize, kernel in 1..5_usize, delta in any::<bool>(), norm in 0..4_usize,
             padded in any::<bool>(), seed in any::<u64>(), kind in kinds(), kernels in kernels()) {
        let case = Case { sizes: [rows, tokens], key_heads, heads: key_heads * group, key_dim, value_dim, delta, norm, kind };
        case.check(kernel, padded.then(|| lengths(rows, tokens, seed)), seed, kernels)?;
    }
}

/// A layer's sizes.
struct Case {
    sizes: [usize; 2],
    key_heads: usize,
    heads: usize,
    key_dim: usize,
    value_dim: usize,
    delta: bool,
    /// None; of each head after the gate's; of each head, before the gate; of a group of heads.
    norm: usize,
    kind: Kind,
}

/// What a head reads besides its vectors.
struct Inputs {
    steps: Strided,
    betas: Strided,
    dt_bias: Vector,
    a_log: Vector,
    skip: Vector,
    gates: Strided,
    weight: Vector,
}

const LIMITS: [f32; 2] = [0.2, 1.5];
const EPS: f32 = 1e-3;

impl Case {
    /// Elements that are normalised together, and those of the weights.
    fn groups(&self) -> [usize; 2] {
        let width = self.heads * self.value_dim;
        if self.norm == 3 { [width / self.key_heads, width] } else { [self.value_dim, self.value_dim] }
    }

    fn starts(&self) -> [usize; 3] {
        let keys = self.key_heads * self.key_dim;
        if self.delta {
            [0, keys, 2 * keys]
        } else {
            [self.heads * self.value_dim + keys, self.heads * self.value_dim, 0]
        }
    }

    fn check(
        &self,
        kernel: usize,
        lengths: Option<Vec<i32>>,
        seed: u64,
        kernels: Kernels,
    ) -> Result<(), TestCaseError> {
        let Self { sizes: [rows, tokens], key_heads, heads, key_dim, value_dim, kind, .. } = *self;
        let (width, channels) = (heads * value_dim, 2 * key_heads * key_dim + heads * value_dim);
        let conv = Conv::new(kind, [rows, tokens, channels, kernel], [seed & 1 == 0, true], seed);
        let own = |width, seed| Strided::new(kind, [rows, tokens, width], seed);
        let inputs = Inputs {
            steps: own(heads, seed ^ 4),
            betas: own(heads, seed ^ 5),
            dt_bias: vector(kind, heads, seed ^ 6),
            a_log: vector(Kind::F32, heads, seed ^ 7),
            skip: vector(Kind::F32, heads, seed ^ 8),
            gates: own(width, seed ^ 9),
            weight: vector(kind, self.groups()[1], seed ^ 10),
        };
        let rule = if self.delta {
            Rule::Delta { betas: inputs.betas.sequences() }
        } else {
            Rule::StateSpace { limits: LIMITS, skip: inputs.skip.floats() }
        };
        let layer = RecurrentLayer {
            sizes: [rows, tokens],
            lengths: lengths.as_deref(),
            x: conv.x.sequences(),
            conv: conv.conv(),
            attention: LinearAttention {
                key_heads,
                heads,
                key_dim,
                value_dim,
                starts: self.starts(),
                steps: inputs.steps.sequences(),
                dt_bias: inputs.dt_bias.floats(),
                a_log: inputs.a_log.floats(),
                rule,
            },
            gates: inputs.gates.sequences(),
            norm: GatedNorm {
                norm: (self.norm > 0).then(|| RmsNorm { weight: inputs.weight.floats(), eps: EPS }),
                group: self.groups()[0],
                gate_first: self.norm != 2,
            },
        };
        let Vector::F32(before) = vector(Kind::F32, rows * width * key_dim, seed ^ 11) else {
            unreachable!()
        };
        let mut state = before.clone();
        let mut out = vector(kind, rows * tokens * width, 0);
        let mut after = vector(kind, rows * (kernel - 1) * channels, 0);
        let outputs = [out.floats_mut(), after.floats_mut()];
        kernels.recurrent_layer(&layer, conv.window.floats(), &mut state, outputs).unwrap();
        let lengths = lengths.unwrap_or_else(|| vec![tokens as i32; rows]);
        conv.check_window(&after, &lengths)?;
        for (row, length) in lengths.iter().enumerate() {
            let own = row * width * key_dim..(row + 1) * width * key_dim;
            let mut exact: Vec<f64> = before[own.clone()].iter().map(|state| f64::from(*state)).collect();
            for token in 0..*length as usize {
                let output =
                    self.gated(&self.token(&conv, &inputs, [row, token], &mut exact), &inputs, [row, token]);
                for (index, exact) in output.into_iter().enumerate() {
                    near(kind, out.get((row * tokens + token) * width + index), exact)?;
                }
            }
            for (found, exact) in state[own].iter().zip(exact) {
                near(Kind::F32, (*found).into(), exact)?;
            }
        }
        Ok(())
    }

    /// The output of all heads for a token, before its norm.
    fn token(&self, conv: &Conv, inputs: &Inputs, [row, token]: [usize; 2], states: &mut [f64]) -> Vec<f64> {
        let Self { key_heads, heads, key_dim, value_dim, delta, .. } = *self;
        let [queries, keys, values] = self.starts();
        let part = |start: usize, size: usize| {
            (0..size).map(|i| conv.output(row, token, start + i)).collect::<Vec<_>>()
        };
        let unit = |x: Vec<f64>, factor: f64| {
            let length = (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
            if delta { x.iter().map(|x| x / length * factor).collect() } else { x }
        };
        let mut outputs = Vec::new();
        for head in 0..heads {
            let key_head = head / (heads / key_heads);
            let query = unit(part(queries + key_head * key_dim, key_dim), 1.0 / (key_dim as f64).sqrt());
            let key = unit(part(keys + key_head * key_dim, key_dim), 1.0);
            let value = part(values + head * value_dim, value_dim);
            let state = &mut states[head * key_dim * value_dim..][..key_dim * value_dim];
            let step = (inputs.steps.get(row, token, head) + inputs.dt_bias.get(head)).exp().ln_1p();
            let step = if delta { step } else { step.clamp(LIMITS[0].into(), LIMITS[1].into()) };
            let kept = (-inputs.a_log.get(head).exp() * step).exp();
            state.iter_mut().for_each(|state| *state *= kept);
            for column in 0..value_dim {
                let seen: f64 = (0..key_dim).map(|row| key[row] * state[row * value_dim + column]).sum();
                let added = if delta {
                    (value[column] - seen) * sigmoid(inputs.betas.get(row, token, head))
                } else {
                    value[column] * step
                };
                let mut sum = if delta { 0.0 } else { inputs.skip.get(head) * value[column] };
                for row in 0..key_dim {
                    state[row * value_dim + column] += key[row] * added;
                    sum += query[row] * state[row * value_dim + column];
                }
                outputs.push(sum);
            }
        }
        outputs
    }

    /// The output with its norm and gate.
    fn gated(&self, x: &[f64], inputs: &Inputs, [row, token]: [usize; 2]) -> Vec<f64> {
        let gate = |i: usize| inputs.gates.get(row, token, i) * sigmoid(inputs.gates.get(row, token, i));
        let gated: Vec<f64> = x.iter().enumerate().map(|(i, x)| x * gate(i)).collect();
        if self.norm == 0 {
            return gated;
        }
        let ([group, weights], gate_first) = (self.groups(), self.norm != 2);
        let from = if gate_first { &gated[..] } else { x };
        let normalised = from.chunks(group).flat_map(|part| {
            let mean = part.iter().map(|x| x * x).sum::<f64>() / group as f64;
            part.iter().map(move |x| x / (mean + f64::from(EPS)).sqrt())
        });
        let weighted = normalised.enumerate().map(|(i, x)| x * inputs.weight.get(i % weights));
        weighted.enumerate().map(|(i, x)| if gate_first { x } else { x * gate(i) }).collect()
    }
}

#[test]
fn operands_that_do_not_go_together_are_errors() {
    let (conv, kernels) = (Conv::new(Kind::F32, [1, 2, 6, 3], [true, true], 1), Kernels::new().unwrap());
    let run = |x: &Sequences<'_>, conv: &CausalConv<'_>, window: &Vector, lengths: Option<&[i32]>| {
        let (mut out, mut after) = (vector(Kind::F32, 12, 0), vector(window_kind(window), 12, 0));
        kernels.causal_conv([1, 2], lengths, x, conv, window.floats(), [out.floats_mut(), after.floats_mut()])
    };
    let x = conv.x.sequences();
    run(&x, &conv.conv(), &conv.window, Some(&[1])).unwrap();
    assert!(run(&x, &conv.conv(), &conv.window, Some(&[1, 1])).is_err());
    assert!(run(&x, &CausalConv { kernel: 2, ..conv.conv() }, &conv.window, None).is_err());
    assert!(run(&x, &CausalConv { kernel: 0, ..conv.conv() }, &conv.window, None).is_err());
    assert!(run(&Sequences { token_stride: 100, ..x }, &conv.conv(), &conv.window, None).is_err());
    assert!(run(&x, &conv.conv(), &vector(Kind::Bf16, 12, 0), None).is_err());
}

fn window_kind(window: &Vector) -> Kind {
    match window {
        Vector::F32(_) => Kind::F32,
        Vector::F16(_) => Kind::F16,
        Vector::Bf16(_) => Kind::Bf16,
    }
}
