//! Blocks as groups of 32 whole numbers with a scale and a bias, which is how MLX quantises.

use half::f16;

use crate::{TensorType, blocks::half_at};

/// The form of MLX's that holds a type's elements without loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Packing {
    /// Floating-point numbers as they are: F32, F16 and BF16.
    Float,
    /// Groups of 32 whole numbers `q` of so many bits, each element `scale · q + bias`.
    Affine {
        /// Bits of one number.
        bits: u32,
        /// Whether scales and biases are products, which need single precision; else they are in half precision.
        wide: bool,
    },
    /// Four-bit floats with a power of two for each 32.
    Mxfp4,
    /// None: their groups are of 16 elements, where MLX has 32 at least. In single precision they lose nothing.
    Dense,
}

impl TensorType {
    /// The form of MLX's that holds its elements without loss. `None` where the type is not readable.
    #[must_use]
    pub fn packing(self) -> Option<Packing> {
        let affine = |bits, wide| Packing::Affine { bits, wide };
        Some(match self {
            Self::F32 | Self::F16 | Self::BF16 => Packing::Float,
            Self::Q4_0 | Self::Q4_1 => affine(4, false),
            Self::Q5_0 | Self::Q5_1 => affine(5, false),
            Self::Q8_0 => affine(8, false),
            Self::Q4_K => affine(4, true),
            Self::Q5_K => affine(5, true),
            Self::Q8_K => affine(8, true),
            Self::MXFP4 => Packing::Mxfp4,
            Self::Q2_K | Self::Q3_K | Self::Q6_K => Packing::Dense,
            _ => return None,
        })
    }
}

/// 32 elements: `scale · (value - zero) + bias`. `zero` is there for types without a bias, whose elements are exact without it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group {
    pub(crate) values: [u8; 32],
    pub(crate) scale: f32,
    pub(crate) zero: f32,
    pub(crate) bias: f32,
}

/// The groups of one block whose [`Packing`] is affine.
#[derive(Debug, Clone)]
pub struct Groups {
    groups: [Group; 8],
    len: usize,
}

const EMPTY: Group = Group { values: [0; 32], scale: 0.0, zero: 0.0, bias: 0.0 };

impl Groups {
    /// Those of a block of this type, which has the type's bytes. There are none where the type has none.
    pub(crate) fn of(kind: TensorType, block: &[u8]) -> Self {
        let mut groups = [EMPTY; 8];
        let len = kind.block_len() / 32;
        let first = &mut groups[0];
        let scale = || half_at(block, 0);
        match kind {
            // d, q[16]
            TensorType::Q4_0 => *first = signed(nibbles(&block[2..18]), scale(), 8.0),
            // d, m, q[16]
            TensorType::Q4_1 => *first = biased(nibbles(&block[4..20]), scale(), half_at(block, 2)),
            // d, high[4], q[16]
            TensorType::Q5_0 => *first = signed(fifths(&block[6..22], &block[2..6]), scale(), 16.0),
            // d, m, high[4], q[16]
            TensorType::Q5_1 => {
                *first = biased(fifths(&block[8..24], &block[4..8]), scale(), half_at(block, 2));
            }
            // d, q[32], signed
            TensorType::Q8_0 => *first = signed(raised(&block[2..34]), scale(), 128.0),
            // d, dmin, scales[12], q[128]; Q5_K has high[32] before q
            TensorType::Q4_K => long(block, &[0; 32], &block[16..144], &mut groups),
            TensorType::Q5_K => long(block, &block[16..48], &block[48..176], &mut groups),
            // d in single precision, q[256], signed; then sums, which only products use
            TensorType::Q8_K => {
                let d = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
                for (group, q) in groups.iter_mut().zip(block[4..260].chunks_exact(32)) {
                    *group = signed(raised(q), d, 128.0);
                }
            }
            _ => return Self { groups, len: 0 },
        }
        Self { groups, len }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Group> {
        self.groups[..self.len].iter()
    }

    /// Writes the values of whole blocks as strings of `bits` bits, the first value lowest: `blocks.len()` in blocks times the
    /// values' bits. `None` where the type has no such form or the lengths do not belong together.
    pub fn pack_values(kind: TensorType, blocks: &[u8], packed: &mut [u8]) -> Option<()> {
        let Some(Packing::Affine { bits, .. }) = kind.packing() else { return None };
        let bytes = 4 * bits as usize;
        write_groups(kind, blocks, bytes, packed, |group, out| {
            let (mut word, mut filled, mut place) = (0_u64, 0, 0);
            for value in group.values {
                word |= u64::from(value) << filled;
                filled += bits;
                while filled >= 8 {
                    out[place] = word as u8;
                    (word, filled, place) = (word >> 8, filled - 8, place + 1);
                }
            }
            true
        })
    }

    /// Writes the scale of each group of whole blocks, in the precision that the type's [`Packing`] names. `None` as for
    /// [`pack_values`](Self::pack_values), and where a scale is no finite number.
    pub fn scales(kind: TensorType, blocks: &[u8], out: &mut [u8]) -> Option<()> {
        write_floats(kind, blocks, out, |group| group.scale)
    }

    /// Writes the bias of each group, as [`scales`](Self::scales). `None` also where half precision cannot hold it.
    pub fn biases(kind: TensorType, blocks: &[u8], out: &mut [u8]) -> Option<()> {
        // Powers of two times a scale: exact.
        write_floats(kind, blocks, out, |group| group.bias - group.scale * group.zero)
    }
}

/// The four-bit floats of whole blocks of MXFP4 in the order of their elements, the first in the lower half of the first byte.
/// `None` where the lengths do not belong together.
pub fn mxfp4_codes(blocks: &[u8], out: &mut [u8]) -> Option<()> {
    let bytes = TensorType::MXFP4.block_bytes();
    if !blocks.len().is_multiple_of(bytes) || out.len() != blocks.len() / bytes * 16 {
        return None;
    }
    for (block, out) in blocks.chunks_exact(bytes).zip(out.chunks_exact_mut(16)) {
        let codes = nibbles(&block[1..]);
        for (byte, pair) in out.iter_mut().zip(codes.chunks_exact(2)) {
            *byte = pair[0] | pair[1] << 4;
        }
    }
    Some(())
}

/// The scales of whole blocks of MXFP4: `e` means `2^(e - 127)`. `None` where the lengths do not belong together.
pub fn mxfp4_scales(blocks: &[u8], out: &mut [u8]) -> Option<()> {
    let bytes = TensorType::MXFP4.block_bytes();
    if blocks.len() != out.len() * bytes {
        return None;
    }
    for (block, out) in blocks.chunks_exact(bytes).zip(out) {
        *out = block[0];
    }
    Some(())
}

fn write_floats(kind: TensorType, blocks: &[u8], out: &mut [u8], of: impl Fn(&Group) -> f32) -> Option<()> {
    let Some(Packing::Affine { wide, .. }) = kind.packing() else { return None };
    write_groups(kind, blocks, if wide { 4 } else { 2 }, out, |group, out| {
        let number = of(group);
        if wide {
            out.copy_from_slice(&number.to_le_bytes());
            return number.is_finite();
        }
        let half = f16::from_f32(number);
        out.copy_from_slice(&half.to_le_bytes());
        half.is_finite()
    })
}

/// Runs `write` for each group with its `bytes` of `out`, until it says no.
fn write_groups(
    kind: TensorType,
    blocks: &[u8],
    bytes: usize,
    out: &mut [u8],
    write: impl Fn(&Group, &mut [u8]) -> bool,
) -> Option<()> {
    let (block_bytes, per_block) = (kind.block_bytes(), kind.block_len() / 32 * bytes);
    let fits =
        blocks.len().is_multiple_of(block_bytes) && out.len() == blocks.len() / block_bytes * per_block;
    if !fits {
        return None;
    }
    for (block, out) in blocks.chunks_exact(block_bytes).zip(out.chunks_exact_mut(per_block)) {
        let groups = Groups::of(kind, block);
        let all = groups.iter().zip(out.chunks_exact_mut(bytes)).all(|(group, out)| write(group, out));
        all.then_some(())?;
    }
    Some(())
}

/// A group without a bias, whose values are `zero` too large.
fn signed(values: [u8; 32], scale: f32, zero: f32) -> Group {
    Group { values, scale, zero, bias: 0.0 }
}

fn biased(values: [u8; 32], scale: f32, bias: f32) -> Group {
    Group { values, scale, zero: 0.0, bias }
}

/// The lower halves of 16 bytes, then the upper ones.
fn nibbles(bytes: &[u8]) -> [u8; 32] {
    std::array::from_fn(|i| (bytes[i % 16] >> (4 * (i / 16))) & 15)
}

/// As [`nibbles`], with a fifth bit of each from `high`, lowest first.
fn fifths(bytes: &[u8], high: &[u8]) -> [u8; 32] {
    let low = nibbles(bytes);
    std::array::from_fn(|i| low[i] | ((high[i / 8] >> (i % 8)) & 1) << 4)
}

/// Signed bytes, raised by 128.
fn raised(bytes: &[u8]) -> [u8; 32] {
    std::array::from_fn(|i| bytes[i] ^ 0x80)
}

/// The eight groups of Q4_K and Q5_K: `d · scale · q - dmin · min`, where scale and min have six bits each.
fn long(block: &[u8], high: &[u8], low: &[u8], groups: &mut [Group; 8]) {
    let (d, dmin, scales) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
    for (i, group) in groups.iter_mut().enumerate() {
        let (scale, min) = match i {
            0..4 => (scales[i] & 63, scales[i + 4] & 63),
            _ => (
                (scales[i + 4] & 15) | (scales[i - 4] >> 6) << 4,
                (scales[i + 4] >> 4) | (scales[i] >> 6) << 4,
            ),
        };
        let values = std::array::from_fn(|k| {
            let low = (low[i / 2 * 32 + k] >> (4 * (i % 2))) & 15;
            low | ((high[k] >> i) & 1) << 4
        });
        *group = biased(values, d * f32::from(scale), -(dmin * f32::from(min)));
    }
}
