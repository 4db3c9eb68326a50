//! The elements of matrices, one row at a time: the meaning of every storage, in plain code.

use crate::{Floats, Matrices, Mode, Scales, Scheme, Weights, element::Element, operand::with_slice};

/// The values of the four-bit floats.
pub(crate) const FP4: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Row `row` of the stack, counted through all matrices, in `out`, which has `inputs` elements.
pub(crate) fn row(w: &Matrices<'_>, row: usize, out: &mut [f32]) {
    let inputs = w.inputs;
    match &w.weights {
        Weights::Dense(floats) => {
            with_slice!(floats, Floats, floats => {
                for (out, value) in out.iter_mut().zip(&floats[row * inputs..][..inputs]) {
                    *out = value.widen();
                }
            });
        }
        Weights::Packed { scheme, words, scales } => {
            let (per_row, groups) = (inputs * scheme.bits / 32, inputs / scheme.group_size);
            let words = &words[row * per_row..][..per_row];
            for (group, out) in out.chunks_exact_mut(scheme.group_size).enumerate() {
                let (scale, bias) = scale_and_bias(*scheme, scales, row * groups + group);
                for (index, out) in out.iter_mut().enumerate() {
                    let code = code(words, group * scheme.group_size + index, scheme.bits);
                    *out = value(scheme.mode, code).mul_add(scale, bias);
                }
            }
        }
    }
}

/// Scale and bias of a group, counted through all rows.
pub(crate) fn scale_and_bias(scheme: Scheme, scales: &Scales<'_>, group: usize) -> (f32, f32) {
    match scales {
        Scales::Affine { scales, biases } => {
            let get = |floats: &Floats<'_>| with_slice!(floats, Floats, floats => floats[group].widen());
            (get(scales), get(biases))
        }
        Scales::Bytes(bytes) if scheme.mode == Mode::Nvfp4 => (e4m3(bytes[group]), 0.0),
        Scales::Bytes(bytes) => (e8m0(bytes[group]), 0.0),
    }
}

/// The float with four bits of exponent and three of mantissa. It has no infinity; what would be NaN is 480, as in MLX.
#[inline]
pub(crate) fn e4m3(byte: u8) -> f32 {
    let magnitude = u32::from(byte & 0x7f) << 20;
    let sign = u32::from(byte & 0x80) << 24;
    // The exponent's bias is 7 here and 127 there; small numbers come out right, too.
    f32::from_bits(magnitude) * f32::from_bits((127 + 120) << 23) * f32::from_bits(sign | 1.0_f32.to_bits())
}

/// The power of two with this biased exponent.
#[inline]
pub(crate) fn e8m0(byte: u8) -> f32 {
    f32::from_bits(if byte == 0 { 1 << 22 } else { u32::from(byte) << 23 })
}

fn code(words: &[u32], index: usize, bits: usize) -> u32 {
    let (word, shift) = (index * bits / 32, index * bits % 32);
    let mut pair = u64::from(words[word]);
    if shift + bits > 32 {
        pair |= u64::from(words[word + 1]) << 32;
    }
    (pair >> shift) as u32 & ((1 << bits) - 1)
}

fn value(mode: Mode, code: u32) -> f32 {
    match mode {
        Mode::Affine => code as f32,
        Mode::Mxfp4 | Mode::Nvfp4 => FP4[code as usize],
        Mode::Mxfp8 => e4m3(code as u8),
    }
}
