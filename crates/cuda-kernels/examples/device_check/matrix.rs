//! Random matrices: on the host as numbers, on the GPU as MLX stores them.

use cuda_kernels::{Buffer, Device, DevicePtr, Half, Layout, NormWeight, Result, Weight};
use half::{bf16, f16};
use rand::{RngExt as _, rngs::StdRng};

/// The half nearest to a number, as bits.
pub(crate) fn narrow(half: Half, value: f64) -> u16 {
    match half {
        Half::Bf16 => bf16::from_f64(value).to_bits(),
        Half::F16 => f16::from_f64(value).to_bits(),
    }
}

/// The number that a half is.
pub(crate) fn widen(half: Half, bits: u16) -> f64 {
    match half {
        Half::Bf16 => bf16::from_bits(bits).to_f64(),
        Half::F16 => f16::from_bits(bits).to_f64(),
    }
}

/// The value of a float of 4 bits.
fn e2m1(code: u8) -> f64 {
    let magnitude = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(code & 7)];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

/// The value of a float of 8 bits; the code of NaN is 480.
fn e4m3(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let magnitude = match exponent {
        0 => mantissa * 2_f64.powi(-9),
        _ => (8.0 + mantissa) * 2_f64.powi(exponent - 10),
    };
    if code & 128 == 0 { magnitude } else { -magnitude }
}

/// The code of the nearest float of 8 bits to a number that is not negative, above 0.
fn nearest_e4m3(value: f64) -> u8 {
    let apart = |code: &u8| (e4m3(*code) - value).abs();
    (1..127).min_by(|a, b| apart(a).total_cmp(&apart(b))).unwrap_or(1)
}

/// A matrix in both places.
pub(crate) struct Matrix {
    pub(crate) values: Vec<f64>,
    pub(crate) columns: usize,
    pub(crate) bias: Vec<f64>,
    pub(crate) weight: Weight,
    _buffers: Vec<Buffer>,
}

impl Matrix {
    /// A random matrix, which takes vectors to others of about the same length.
    pub(crate) fn random(
        device: &Device,
        rng: &mut StdRng,
        half: Half,
        layout: Layout,
        [rows, columns]: [usize; 2],
        with_bias: bool,
    ) -> Result<Self> {
        let spread = 1.7 / (columns as f64).sqrt();
        let mut buffers = Vec::new();
        let mut keep = |buffer: Buffer| {
            buffers.push(buffer);
            buffers.last().map(Buffer::ptr).unwrap_or_default()
        };
        let mut values = Vec::with_capacity(rows * columns);
        let (data, scales, biases);
        match layout {
            Layout::Dense => {
                let bits: Vec<u16> =
                    (0..rows * columns).map(|_| narrow(half, rng.random_range(-spread..spread))).collect();
                values.extend(bits.iter().map(|&bits| widen(half, bits)));
                data = keep(Buffer::of(device, &bits)?);
                (scales, biases) = (DevicePtr::NULL, DevicePtr::NULL);
            }
            Layout::Affine { bits, group } => {
                let top = f64::from((1_u32 << bits) - 1);
                let mut packed = vec![0_u8; rows * columns * bits as usize / 8];
                let (mut all_scales, mut all_biases) = (Vec::new(), Vec::new());
                for i in 0..rows * columns {
                    if i % group as usize == 0 {
                        let scale = 2.0 * spread / top * rng.random_range(0.5..1.0) * [1.0, -1.0][i / 7 % 2];
                        all_scales.push(narrow(half, scale));
                        all_biases.push(narrow(half, -scale * top * rng.random_range(0.4..0.6)));
                    }
                    let q = rng.random_range(0..1_u32 << bits);
                    for bit in 0..bits as usize {
                        let at = i * bits as usize + bit;
                        packed[at / 8] |= ((q >> bit & 1) as u8) << (at % 8);
                    }
                    let last = all_scales.len() - 1;
                    values.push(f64::from(q) * widen(half, all_scales[last]) + widen(half, all_biases[last]));
                }
                data = keep(Buffer::of(device, &packed)?);
                scales = keep(Buffer::of(device, &all_scales)?);
                biases = keep(Buffer::of(device, &all_biases)?);
            }
            Layout::Mxfp4 | Layout::Mxfp8 | Layout::Nvfp4 => {
                let (bits, group) = if layout == Layout::Mxfp8 { (8, 32) } else { (4, 32) };
                let group = if layout == Layout::Nvfp4 { 16 } else { group };
                let top = if bits == 4 { 6.0 } else { 448.0 };
                let mut packed = vec![0_u8; rows * columns * bits / 8];
                let mut all_scales = Vec::new();
                for i in 0..rows * columns {
                    if i % group == 0 {
                        let scale = 2.0 * spread / top * rng.random_range(0.5..1.0);
                        all_scales.push(match layout {
                            // In E4M3 scales of such matrices are below 1, and often subnormal.
                            Layout::Nvfp4 => nearest_e4m3(scale),
                            _ => (scale.log2().round() + 127.0) as u8,
                        });
                    }
                    let code: u8 = rng.random_range(0..=u8::MAX) & if bits == 4 { 15 } else { 255 };
                    packed[i * bits / 8] |= code << (i * bits % 8);
                    let byte = all_scales[all_scales.len() - 1];
                    let scale =
                        if layout == Layout::Nvfp4 { e4m3(byte) } else { 2_f64.powi(i32::from(byte) - 127) };
                    values.push(scale * if bits == 4 { e2m1(code) } else { e4m3(code) });
                }
                data = keep(Buffer::of(device, &packed)?);
                scales = keep(Buffer::of(device, &all_scales)?);
                biases = DevicePtr::NULL;
            }
        }
        let mut bias = vec![0.0; rows];
        let mut bias_ptr = DevicePtr::NULL;
        if with_bias {
            let bits: Vec<u16> = (0..rows).map(|_| narrow(half, rng.random_range(-0.5..0.5))).collect();
            bias = bits.iter().map(|&bits| widen(half, bits)).collect();
            bias_ptr = keep(Buffer::of(device, &bits)?);
        }
        let weight = Weight { layout, rows, columns, data, scales, biases, bias: bias_ptr };
        Ok(Self { values, columns, bias, weight, _buffers: buffers })
    }

    /// One row.
    pub(crate) fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.columns..][..self.columns]
    }

    /// W · x + bias
    pub(crate) fn multiply(&self, x: &[f64]) -> Vec<f64> {
        self.multiply_rows(x, (0..self.bias.len()).collect())
    }

    /// The same of some rows.
    pub(crate) fn multiply_rows(&self, x: &[f64], rows: Vec<usize>) -> Vec<f64> {
        assert_eq!(x.len(), self.columns);
        let product = |row| self.row(row).iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
        rows.into_iter().map(|row| product(row) + self.bias[row]).collect()
    }
}

/// The weights of a norm in both places.
pub(crate) struct Norm {
    pub(crate) values: Vec<f64>,
    pub(crate) weight: NormWeight,
    _buffer: Buffer,
}

impl Norm {
    /// Random weights around 1, stored less `offset`.
    pub(crate) fn random(
        device: &Device,
        rng: &mut StdRng,
        half: Half,
        size: usize,
        [single, plus_one]: [bool; 2],
    ) -> Result<Self> {
        let offset = if plus_one { 1.0 } else { 0.0 };
        let stored: Vec<f64> = (0..size).map(|_| rng.random_range(0.5..1.5) - offset).collect();
        let (buffer, values): (_, Vec<f64>) = if single {
            let stored: Vec<f32> = stored.iter().map(|&value| value as f32).collect();
            (Buffer::of(device, &stored)?, stored.iter().map(|&value| f64::from(value) + offset).collect())
        } else {
            let stored: Vec<u16> = stored.iter().map(|&value| narrow(half, value)).collect();
            (Buffer::of(device, &stored)?, stored.iter().map(|&bits| widen(half, bits) + offset).collect())
        };
        let weight = NormWeight { data: buffer.ptr(), single, offset: offset as f32 };
        Ok(Self { values, weight, _buffer: buffer })
    }

    /// x / rms(x) · weights
    pub(crate) fn apply(&self, x: &[f64], eps: f64) -> Vec<f64> {
        self.apply_with(x, eps, &|weighted| weighted)
    }

    /// The same with something done to x · weights before it is divided.
    pub(crate) fn apply_with(&self, x: &[f64], eps: f64, change: &impl Fn(Vec<f64>) -> Vec<f64>) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let root = (mean + eps).sqrt().recip();
        let weighted = change(x.iter().zip(&self.values).map(|(x, w)| x * w).collect());
        weighted.into_iter().map(|value| value * root).collect()
    }
}
