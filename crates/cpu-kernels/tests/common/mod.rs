//! Operands of any element type and storage with seeded contents, and how far results may be from the truth.
#![allow(clippy::unwrap_used, reason = "a failed kernel fails the test")]
#![allow(dead_code, reason = "each test file uses its part")]

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod inlined;

use cpu_kernels::{Floats, FloatsMut, Isa, Kernels, Matrices, QuantMode, Quantization, Scales, Weights};
use half::{bf16, f16};
use proptest::{prelude::*, test_runner::TestCaseError};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

/// Element types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    F32,
    F16,
    Bf16,
}

pub(crate) fn kinds() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![Kind::F32, Kind::F16, Kind::Bf16])
}

/// Kernels of each instruction set that this machine has.
pub(crate) fn kernels() -> impl Strategy<Value = Kernels> {
    let all: Vec<_> = Isa::ALL.iter().filter_map(|isa| Kernels::with_isa(*isa).unwrap()).collect();
    prop::sample::select(all)
}

/// Elements of one of the types.
#[derive(Debug, Clone)]
pub(crate) enum Vector {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Vector {
    pub(crate) fn new(kind: Kind, values: impl Iterator<Item = f32>) -> Self {
        match kind {
            Kind::F32 => Self::F32(values.collect()),
            Kind::F16 => Self::F16(values.map(f16::from_f32).collect()),
            Kind::Bf16 => Self::Bf16(values.map(bf16::from_f32).collect()),
        }
    }

    pub(crate) fn get(&self, index: usize) -> f64 {
        match self {
            Self::F32(values) => values[index].into(),
            Self::F16(values) => values[index].into(),
            Self::Bf16(values) => values[index].into(),
        }
    }

    pub(crate) fn floats(&self) -> Floats<'_> {
        match self {
            Self::F32(values) => Floats::F32(values),
            Self::F16(values) => Floats::F16(values),
            Self::Bf16(values) => Floats::Bf16(values),
        }
    }

    pub(crate) fn floats_mut(&mut self) -> FloatsMut<'_> {
        match self {
            Self::F32(values) => FloatsMut::F32(values),
            Self::F16(values) => FloatsMut::F16(values),
            Self::Bf16(values) => FloatsMut::Bf16(values),
        }
    }
}

/// Numbers within ±1.
pub(crate) fn vector(kind: Kind, len: usize, seed: u64) -> Vector {
    let mut random = SmallRng::seed_from_u64(seed);
    Vector::new(kind, (0..len).map(|_| random.random_range(-1.0..1.0)))
}

/// What a matrix is stored as; `None` is dense, of the type that the seed picks.
pub(crate) fn schemes() -> impl Strategy<Value = Option<Quantization>> {
    let mut all = vec![
        Quantization { mode: QuantMode::Mxfp4, bits: 4, group_size: 32 },
        Quantization { mode: QuantMode::Nvfp4, bits: 4, group_size: 16 },
        Quantization { mode: QuantMode::Mxfp8, bits: 8, group_size: 32 },
    ];
    for bits in [2, 3, 4, 5, 6, 8] {
        all.extend([32, 64, 128].map(|group_size| Quantization {
            mode: QuantMode::Affine,
            bits,
            group_size,
        }));
    }
    prop_oneof![1 => Just(None), 3 => prop::sample::select(all).prop_map(Some)]
}

/// A stack of matrices with random contents.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(crate) count: usize,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    quantization: Option<Quantization>,
    words: Vec<u32>,
    bytes: Vec<u8>,
    /// The elements where they are dense, or else the scales.
    floats: Vector,
    biases: Vector,
}

impl Matrix {
    /// Quantised ones have `groups` groups in a row, and dense ones `odd` elements.
    pub(crate) fn new(
        quantization: Option<Quantization>,
        count: usize,
        outputs: usize,
        groups: usize,
        odd: usize,
        seed: u64,
    ) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let kind = [Kind::F32, Kind::F16, Kind::Bf16][random.random_range(0..3)];
        let inputs = quantization.map_or(odd, |quantization| groups * quantization.group_size);
        let bits = quantization.map_or(0, |quantization| quantization.bits);
        let floats = count * outputs * quantization.map_or(inputs, |_| groups);
        // Scales near one: powers of two around 2⁰, and floats around 1.
        let bytes = match quantization.map(|quantization| quantization.mode) {
            Some(QuantMode::Nvfp4) => 0x30..0x44_u8,
            _ => 120..130,
        };
        Self {
            count,
            outputs,
            inputs,
            quantization,
            words: (0..count * outputs * inputs * bits / 32).map(|_| random.random()).collect(),
            bytes: (0..floats).map(|_| random.random_range(bytes.clone())).collect(),
            floats: vector(kind, floats, random.random()),
            biases: vector(kind, floats, random.random()),
        }
    }

    /// Makes the scales of a row of the first matrix infinite, or no numbers where the format has no infinity.
    pub(crate) fn spoil(&mut self, output: usize) {
        let groups = self.floats.floats().len() / (self.count * self.outputs);
        for group in output * groups..(output + 1) * groups {
            match &mut self.floats {
                Vector::F32(scales) => scales[group] = f32::INFINITY,
                Vector::F16(scales) => scales[group] = f16::INFINITY,
                Vector::Bf16(scales) => scales[group] = bf16::INFINITY,
            }
            let is_e4m3 = self.quantization.is_some_and(|scheme| scheme.mode == QuantMode::Nvfp4);
            self.bytes[group] = if is_e4m3 { 0x7f } else { 0xff };
        }
    }

    pub(crate) fn matrices(&self) -> Matrices<'_> {
        let weights = match self.quantization {
            None => Weights::Dense(self.floats.floats()),
            Some(quantization) => {
                let scales = match quantization.mode {
                    QuantMode::Affine => {
                        Scales::Affine { scales: self.floats.floats(), biases: self.biases.floats() }
                    }
                    _ => Scales::Bytes(&self.bytes),
                };
                Weights::Quantized { quantization, words: &self.words, scales }
            }
        };
        Matrices { count: self.count, outputs: self.outputs, inputs: self.inputs, weights }
    }

    /// An element, by the storage's definition.
    pub(crate) fn get(&self, matrix: usize, output: usize, input: usize) -> f64 {
        let index = (matrix * self.outputs + output) * self.inputs + input;
        let Some(Quantization { mode, bits, group_size }) = self.quantization else {
            return self.floats.get(index);
        };
        let bit = |at: usize| self.words[at / 32] >> (at % 32) & 1;
        let code = (0..bits).map(|i| bit(index * bits + i) << i).sum::<u32>();
        let group = index / group_size;
        let small = |exponent: u32, mantissa: u32, width: i32, bias: i32| {
            let steps = 2_f64.powi(-width);
            match exponent {
                0 => f64::from(mantissa) * steps * 2_f64.powi(1 - bias),
                _ => (1.0 + f64::from(mantissa) * steps) * 2_f64.powi(exponent as i32 - bias),
            }
        };
        let e4m3 = |byte: u32| {
            let magnitude = small(byte >> 3 & 15, byte & 7, 3, 7);
            if byte & 128 == 0 { magnitude } else { -magnitude }
        };
        let e2m1 = |code: u32| {
            let magnitude = small(code >> 1 & 3, code & 1, 1, 1);
            if code & 8 == 0 { magnitude } else { -magnitude }
        };
        match mode {
            QuantMode::Affine => f64::from(code) * self.floats.get(group) + self.biases.get(group),
            QuantMode::Mxfp4 => e2m1(code) * 2_f64.powi(i32::from(self.bytes[group]) - 127),
            QuantMode::Nvfp4 => e2m1(code) * e4m3(self.bytes[group].into()),
            QuantMode::Mxfp8 => e4m3(code) * 2_f64.powi(i32::from(self.bytes[group]) - 127),
        }
    }
}

/// That `found` is the sum of `terms` up to the rounding of single-precision sums and one rounding to `kind`.
pub(crate) fn check(found: f64, terms: impl Iterator<Item = f64>, kind: Kind) -> Result<(), TestCaseError> {
    let (mut sum, mut size) = (0.0, 0.0);
    for term in terms {
        sum += term;
        size += term.abs();
    }
    close(found, sum, size, kind)
}

/// That `found` is `expected` up to single-precision rounding of terms of this `size` in all, and one rounding to `kind`.
pub(crate) fn close(found: f64, expected: f64, size: f64, kind: Kind) -> Result<(), TestCaseError> {
    let last_place = match kind {
        Kind::F32 => 0.0,
        Kind::F16 => 2_f64.powi(-11),
        Kind::Bf16 => 2_f64.powi(-8),
    };
    // Half-precision numbers near zero are as far from each other as the smallest one from zero. For half-precision results
    // kernels may keep 16 bits of each factor.
    let term = if kind == Kind::F32 { 2e-6 } else { 2_f64.powi(-16) };
    let tolerance = term * size + last_place * expected.abs() + 1e-7;
    prop_assert!((found - expected).abs() <= tolerance, "{found} for {expected} ± {tolerance}");
    Ok(())
}
