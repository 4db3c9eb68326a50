//! Products of the published shapes of small models: bytes of weights a second for one row, operations a second for many.

use cpu_kernels::{Floats, FloatsMut, Kernels, Matrices, QuantMode, Quantization, Scales, Weights};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;

/// What the weights are stored as.
#[derive(Debug, Clone, Copy)]
enum Storage {
    F32,
    Bf16,
    Affine(usize),
    Mxfp4,
}

/// Outputs and inputs: the layers and the table of Qwen3 0.6B, and a layer of Llama 3.2 1B.
const SHAPES: [(usize, usize); 4] = [(6144, 1024), (1024, 3072), (151_936, 1024), (16_384, 2048)];

struct Matrix {
    outputs: usize,
    inputs: usize,
    storage: Storage,
    f32: Vec<f32>,
    bf16: Vec<bf16>,
    words: Vec<u32>,
    bytes: Vec<u8>,
}

impl Matrix {
    fn new((outputs, inputs): (usize, usize), storage: Storage) -> Self {
        let elements = outputs * inputs;
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state
        };
        let mut matrix = Self {
            outputs,
            inputs,
            storage,
            f32: Vec::new(),
            bf16: Vec::new(),
            words: Vec::new(),
            bytes: Vec::new(),
        };
        match storage {
            Storage::F32 => {
                matrix.f32 = (0..elements).map(|_| next() as f32 / u32::MAX as f32 - 0.5).collect();
            }
            Storage::Bf16 => {
                matrix.bf16 =
                    (0..elements).map(|_| bf16::from_bits(0x3c00 | (next() >> 16) as u16 & 0x80ff)).collect();
            }
            Storage::Affine(bits) => {
                matrix.words = (0..elements * bits / 32).map(|_| next()).collect();
                matrix.bf16 = vec![bf16::from_f32(0.01); elements / 64];
            }
            Storage::Mxfp4 => {
                matrix.words = (0..elements / 8).map(|_| next()).collect();
                matrix.bytes = vec![120; elements / 32];
            }
        }
        matrix
    }

    fn matrices(&self) -> Matrices<'_> {
        let scales = Floats::Bf16(&self.bf16);
        let weights = match self.storage {
            Storage::F32 => Weights::Dense(Floats::F32(&self.f32)),
            Storage::Bf16 => Weights::Dense(Floats::Bf16(&self.bf16)),
            Storage::Affine(bits) => Weights::Quantized {
                quantization: Quantization { mode: QuantMode::Affine, bits, group_size: 64 },
                words: &self.words,
                scales: Scales::Affine { scales, biases: scales },
            },
            Storage::Mxfp4 => Weights::Quantized {
                quantization: Quantization { mode: QuantMode::Mxfp4, bits: 4, group_size: 32 },
                words: &self.words,
                scales: Scales::Bytes(&self.bytes),
            },
        };
        Matrices { count: 1, outputs: self.outputs, inputs: self.inputs, weights }
    }

    fn bytes(&self) -> usize {
        self.f32.len() * 4
            + self.bf16.len() * (2 + 2 * usize::from(!self.words.is_empty()))
            + self.words.len() * 4
            + self.bytes.len()
    }
}

/// `rows` of x in bf16.
fn multiply(c: &mut Criterion, name: &str, rows: usize) {
    let Ok(kernels) = Kernels::new() else { return };
    let mut group = c.benchmark_group(name);
    for storage in [
        Storage::Affine(4),
        Storage::Affine(8),
        Storage::Affine(6),
        Storage::Mxfp4,
        Storage::Bf16,
        Storage::F32,
    ] {
        for shape in SHAPES {
            let matrix = Matrix::new(shape, storage);
            let x: Vec<_> =
                (0..rows * shape.1).map(|i| bf16::from_f32((i % 17) as f32 / 16.0 - 0.5)).collect();
            let mut out = vec![bf16::ZERO; rows * shape.0];
            group.throughput(if rows == 1 {
                Throughput::Bytes(matrix.bytes() as u64)
            } else {
                Throughput::Elements((2 * rows * shape.0 * shape.1) as u64)
            });
            let id = BenchmarkId::new(format!("{storage:?}"), format!("{}x{}", shape.0, shape.1));
            group.bench_function(id, |b| {
                b.iter(|| {
                    kernels.matmul(Floats::Bf16(&x), &matrix.matrices(), None, FloatsMut::Bf16(&mut out))
                });
            });
        }
    }
}

fn products(c: &mut Criterion) {
    multiply(c, "decode", 1);
    multiply(c, "batch of 8", 8);
    multiply(c, "prefill", 512);
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(std::time::Duration::from_millis(100))
        .measurement_time(std::time::Duration::from_millis(300));
    targets = products
}
criterion_main!(benches);
