//! The elements of blocks in single precision, by the formulas that ggml publishes with its formats.
//!
//! `d` is the scale of a block, `m` or `dmin` what is added or taken away, `q` whole numbers. All scales are in half precision, and
//! numbers little-endian.

use half::bf16;

use crate::{TensorType, affine::Groups, blocks::half_at};

/// Elements of the long blocks.
const LONG: usize = 256;

impl TensorType {
    /// The elements of whole blocks, as many as `elements` holds. `None` where the type is not readable, or the lengths do not
    /// belong together.
    pub fn dequantize(self, blocks: &[u8], elements: &mut [f32]) -> Option<()> {
        let (len, bytes) = (self.block_len(), self.block_bytes());
        let fits = elements.len().is_multiple_of(len) && blocks.len() == elements.len() / len * bytes;
        if !fits || !self.is_readable() {
            return None;
        }
        for (block, out) in blocks.chunks_exact(bytes).zip(elements.chunks_exact_mut(len)) {
            self.dequantize_block(block, out);
        }
        Some(())
    }

    fn dequantize_block(self, block: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
            Self::F16 => out[0] = half_at(block, 0),
            Self::BF16 => out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32(),
            Self::MXFP4 => mxfp4(block, out),
            Self::Q2_K => q2_k(block, out),
            Self::Q3_K => q3_k(block, out),
            Self::Q6_K => q6_k(block, out),
            _ => {
                let groups = Groups::of(self, block);
                for (group, out) in groups.iter().zip(out.chunks_exact_mut(32)) {
                    for (q, out) in group.values.iter().zip(out) {
                        *out = group.scale * (f32::from(*q) - group.zero) + group.bias;
                    }
                }
            }
        }
    }
}

/// `e`, `q[16]`: e2m1 floats, the lower half of bytes first, times `2^(e - 127)`.
fn mxfp4(block: &[u8], out: &mut [f32]) {
    // Doubled, so that they are whole; the scale is halved in turn.
    const DOUBLED: [f32; 8] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0];
    let half_scale = match block[0] {
        0 => f32::from_bits(0x0020_0000),
        1 => f32::from_bits(0x0040_0000),
        e => f32::from_bits((u32::from(e) - 1) << 23),
    };
    let value = |code: u8| {
        let size = DOUBLED[usize::from(code & 7)] * half_scale;
        // The format has a negative zero, too; ggml reads it as zero.
        if code & 8 == 0 || size == 0.0 { size } else { -size }
    };
    for (i, byte) in block[1..].iter().enumerate() {
        (out[i], out[i + 16]) = (value(byte & 15), value(byte >> 4));
    }
}

/// `scales[16]`, `q[64]`, `d`, `dmin`: each of 16 groups is `d · (scale & 15) · q - dmin · (scale >> 4)`, with two bits for each q.
fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, q) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for (i, out) in out.iter_mut().enumerate() {
        let scale = scales[i / 16];
        let value = bits(q, i) & 3;
        *out = d * f32::from(scale & 15) * f32::from(value) - dmin * f32::from(scale >> 4);
    }
}

/// `high[32]`, `q[64]`, `scales[12]`, `d`: each of 16 groups is `d · (scale - 32) · q`, where q is two bits, and four less where its
/// bit of `high` is not set.
fn q3_k(block: &[u8], out: &mut [f32]) {
    let (high, q, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    // Six bits: the lower four in the first eight bytes, the upper two in the last four.
    let scale = |group: usize| {
        let low = (scales[group % 8] >> (4 * (group / 8))) & 15;
        let high = (scales[8 + group % 4] >> (2 * (group / 4))) & 3;
        f32::from((low | (high << 4)) as i8 - 32)
    };
    for (i, out) in out.iter_mut().enumerate() {
        let is_set = (high[i % 32] >> (i / 32)) & 1 == 1;
        let value = (bits(q, i) & 3) as i8 - if is_set { 0 } else { 4 };
        *out = d * scale(i / 16) * f32::from(value);
    }
}

/// `low[128]`, `high[64]`, `scales[16]`, `d`: each of 16 groups is `d · scale · (q - 32)`, with four lower and two upper bits for each q.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for (i, out) in out.iter_mut().enumerate().take(LONG) {
        let (part, within) = (i / 128, i % 128);
        let low = (low[part * 64 + within % 64] >> (4 * (within / 64))) & 15;
        let high = (high[part * 32 + within % 32] >> (2 * (within / 32))) & 3;
        let value = (low | (high << 4)) as i8 - 32;
        *out = d * f32::from(scales[i / 16] as i8) * f32::from(value);
    }
}

/// The byte of element i shifted so that its two bits are lowest: 128 elements in 32 bytes, of which each has every 32nd element.
fn bits(q: &[u8], i: usize) -> u8 {
    q[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32))
}
