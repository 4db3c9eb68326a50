//! The vectors of attention: queries, and cached keys and values.

use std::ops::Range;

use crate::{
    element::{Element, widen},
    error::{Error, Result},
    operand::{Floats, length, product, with_slice},
    simd::Simd,
};

/// Vectors `[heads, tokens, head_dim]` in a larger memory. The elements of a vector are contiguous.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    /// The memory, from the first element of the first vector.
    pub data: Floats<'a>,
    /// Elements from one head to the next.
    pub head_stride: usize,
    /// Elements from one token to the next.
    pub token_stride: usize,
}

/// The queries of several rows, `[rows, heads, tokens, head_dim]`.
#[derive(Debug, Clone, Copy)]
pub struct Queries<'a> {
    /// The queries of the first row, and the memory of all rows.
    pub first: Heads<'a>,
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Queries of a row.
    pub tokens: usize,
}

impl Queries<'_> {
    /// Whether the memory holds vectors of `head_dim` elements of so many rows and heads, none of which is zero.
    pub(crate) fn check(&self, operand: &'static str, [rows, heads, head_dim]: [usize; 3]) -> Result<()> {
        let Heads { data, head_stride, token_stride } = &self.first;
        let last = [(rows, self.row_stride), (heads, *head_stride), (self.tokens, *token_stride)]
            .iter()
            .try_fold(head_dim, |end, (count, stride)| end.checked_add((count - 1).checked_mul(*stride)?))
            .unwrap_or(usize::MAX);
        if last > data.len() {
            return Err(Error::Length { operand, found: data.len(), expected: last });
        }
        Ok(())
    }

    /// Where a vector begins.
    pub(crate) fn start(&self, row: usize, head: usize, token: usize) -> usize {
        row * self.row_stride + head * self.first.head_stride + token * self.first.token_stride
    }
}

/// The KV cache of one row: keys and values `[kv_heads, len, head_dim]`.
#[derive(Debug, Clone, Copy)]
pub struct KvCache<'a> {
    /// The keys.
    pub keys: KvView<'a>,
    /// The values.
    pub values: KvView<'a>,
    /// Positions, at least as many as the row has queries. The queries are those of the last positions.
    pub len: usize,
}

/// The cached keys, or the cached values, of one row.
#[derive(Debug, Clone, Copy)]
pub enum KvView<'a> {
    /// Floats.
    Floats(Heads<'a>),
    /// Quantised vectors.
    Quantized(QuantizedHeads<'a>),
}

/// Contiguous vectors `[heads, capacity, head_dim]` in MLX's affine quantisation: an element is `integer · scale + bias` of its
/// group.
#[derive(Debug, Clone, Copy)]
pub struct QuantizedHeads<'a> {
    /// Bits of an integer: 4 or 8.
    pub bits: usize,
    /// Elements of a vector that share a scale and a bias: a multiple of 8 that divides `head_dim`.
    pub group_size: usize,
    /// The integers, the first in the lowest bits: `[heads, capacity, head_dim · bits / 32]`.
    pub words: &'a [u32],
    /// `[heads, capacity, head_dim / group_size]`
    pub scales: Floats<'a>,
    /// As the scales.
    pub biases: Floats<'a>,
    /// Vectors of a head that the memory has room for.
    pub capacity: usize,
}

/// Vectors that are read next, one for each key that is scored: they are fetched meanwhile.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    start: *const u8,
    count: usize,
    /// Bytes from one to the next.
    stride: usize,
    /// Bytes of one.
    bytes: usize,
}

impl Ahead {
    fn of<T>(start: *const T, count: usize, stride: usize, width: usize) -> Self {
        Self { start: start.cast(), count, stride: stride * size_of::<T>(), bytes: width * size_of::<T>() }
    }

    #[inline(always)]
    pub(crate) fn fetch<S: Simd>(&self, index: usize) {
        if index >= self.count {
            return;
        }
        for line in (0..self.bytes).step_by(64) {
            // SAFETY: see `Isa::run`; any address may be prefetched.
            unsafe { S::prefetch(self.start.wrapping_add(index * self.stride + line)) };
        }
    }
}

impl KvView<'_> {
    /// Checks that the memory holds vectors `[heads, tokens, head_dim]`.
    pub(crate) fn check(
        &self,
        name: &'static str,
        heads: usize,
        tokens: usize,
        head_dim: usize,
    ) -> Result<()> {
        match self {
            Self::Floats(floats) => floats.check(name, 0, heads, tokens, head_dim),
            Self::Quantized(quantized) => quantized.check(name, heads, tokens, head_dim),
        }
    }

    /// The vectors of `width` elements of a head and these tokens.
    pub(crate) fn ahead(&self, head: usize, tokens: Range<usize>, width: usize) -> Ahead {
        match self {
            Self::Floats(Heads { data, head_stride, token_stride }) => {
                let first = head * head_stride + tokens.start * token_stride;
                with_slice!(data, Floats, data => {
                    Ahead::of(data.as_ptr().wrapping_add(first), tokens.len(), *token_stride, width)
                })
            }
            Self::Quantized(_) => Ahead::of(std::ptr::null::<f32>(), 0, 0, 0),
        }
    }

    /// Reads the vector of a head and a token.
    #[inline(always)]
    pub(crate) fn read<S: Simd>(&self, head: usize, token: usize, out: &mut [f32]) {
        match self {
            Self::Floats(floats) => floats.read::<S>(0, head, token, out),
            Self::Quantized(quantized) => quantized.read(head, token, out),
        }
    }
}

impl<'a> Heads<'a> {
    /// The memory from the vector of a head and a token on, and the stride to the next token.
    pub(crate) fn from(&self, head: usize, token: usize) -> (Floats<'a>, usize) {
        let start = head * self.head_stride + token * self.token_stride;
        let data = match self.data {
            Floats::F32(data) => Floats::F32(&data[start..]),
            Floats::F16(data) => Floats::F16(&data[start..]),
            Floats::Bf16(data) => Floats::Bf16(&data[start..]),
        };
        (data, self.token_stride)
    }

    /// Checks that vectors `[heads, tokens, head_dim]` lie within the memory, behind `offset` elements.
    pub(crate) fn check(
        &self,
        name: &'static str,
        offset: usize,
        heads: usize,
        tokens: usize,
        head_dim: usize,
    ) -> Result<()> {
        if heads == 0 || tokens == 0 {
            return Ok(());
        }
        let end = product(name, &[heads - 1, self.head_stride])?
            .checked_add(product(name, &[tokens - 1, self.token_stride])?)
            .and_then(|end| end.checked_add(offset)?.checked_add(head_dim));
        match end {
            Some(end) if end <= self.data.len() => Ok(()),
            end => Err(Error::Length {
                operand: name,
                found: self.data.len(),
                expected: end.unwrap_or(usize::MAX),
            }),
        }
    }

    /// Reads the vector of a head and a token, behind `offset` elements.
    #[inline(always)]
    pub(crate) fn read<S: Simd>(&self, offset: usize, head: usize, token: usize, out: &mut [f32]) {
        let start = offset + head * self.head_stride + token * self.token_stride;
        with_slice!(self.data, Floats, data => widen::<_, S>(&data[start..][..out.len()], out));
    }
}

impl QuantizedHeads<'_> {
    fn check(&self, name: &'static str, heads: usize, tokens: usize, head_dim: usize) -> Result<()> {
        let Self { bits, group_size, words, scales, biases, capacity } = *self;
        if !matches!(bits, 4 | 8) {
            return Err(Error::Invalid {
                name: "the bits of the quantised KV cache",
                found: bits,
                expected: "4 or 8".into(),
            });
        }
        if group_size == 0 || !group_size.is_multiple_of(8) || !head_dim.is_multiple_of(group_size) {
            let name = "the group size of the quantised KV cache";
            let expected = format!("a multiple of 8 that divides the head dimension {head_dim}");
            return Err(Error::Invalid { name, found: group_size, expected });
        }
        if tokens > capacity {
            let name = "the capacity of the quantised KV cache";
            let expected = format!("at least the {tokens} positions");
            return Err(Error::Invalid { name, found: capacity, expected });
        }
        length(name, words.len(), product(name, &[heads, capacity, head_dim * bits / 32])?)?;
        let groups = product(name, &[heads, capacity, head_dim / group_size])?;
        length("scales of the quantised KV cache", scales.len(), groups)?;
        length("biases of the quantised KV cache", biases.len(), groups)
    }

    #[inline(always)]
    fn read(&self, head: usize, token: usize, out: &mut [f32]) {
        let vector = head * self.capacity + token;
        let (count, groups) = (out.len() * self.bits / 32, out.len() / self.group_size);
        let words = &self.words[vector * count..][..count];
        let words = words.chunks_exact(self.group_size * self.bits / 32);
        for ((group, words), out) in (vector * groups..).zip(words).zip(out.chunks_exact_mut(self.group_size))
        {
            let at_group = |floats: Floats<'_>| with_slice!(floats, Floats, floats => floats[group].widen());
            let (scale, bias) = (at_group(self.scales), at_group(self.biases));
            if self.bits == 8 {
                dequantize::<4>(words, scale, bias, out);
            } else {
                dequantize::<8>(words, scale, bias, out);
            }
        }
    }
}

/// The elements of a group, `N` of them in each word.
#[inline(always)]
fn dequantize<const N: usize>(words: &[u32], scale: f32, bias: f32, out: &mut [f32]) {
    for (word, out) in words.iter().zip(out.as_chunks_mut::<N>().0) {
        for (i, out) in out.iter_mut().enumerate() {
            let integer = word >> (i * (32 / N)) & (u32::MAX >> (32 - 32 / N));
            *out = integer as f32 * scale + bias;
        }
    }
}
