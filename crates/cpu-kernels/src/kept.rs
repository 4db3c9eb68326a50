//! Keys and values as they are kept.

use crate::{
    Floats, Result,
    attention::Heads,
    element::{Element, widen},
    error::Error,
    operand::{length, product, with_slice},
    simd::Simd,
};

/// The keys or the values of one row.
#[derive(Debug, Clone, Copy)]
pub enum KvView<'a> {
    /// As floats.
    Floats(Heads<'a>),
    /// Quantised.
    Quantized(QuantizedHeads<'a>),
}

/// Vectors `[heads, capacity, head_dim]` without gaps, as MLX quantises them: the elements of each group are whole numbers,
/// `number · scale + bias`.
#[derive(Debug, Clone, Copy)]
pub struct QuantizedHeads<'a> {
    /// Bits of a number: 4 or 8.
    pub bits: usize,
    /// Elements of a vector that share a scale and a bias: a multiple of 8 that divides its width.
    pub group_size: usize,
    /// The numbers, the first in the lowest bits: `[heads, capacity, head_dim · bits / 32]`.
    pub words: &'a [u32],
    /// `[heads, capacity, head_dim / group_size]`
    pub scales: Floats<'a>,
    /// As the scales.
    pub biases: Floats<'a>,
    /// Vectors of a head that there is room for.
    pub capacity: usize,
}

impl KvView<'_> {
    /// That vectors `[heads, tokens, head_dim]` are there.
    pub(crate) fn check(
        &self,
        name: &'static str,
        heads: usize,
        tokens: usize,
        head_dim: usize,
    ) -> Result<()> {
        match self {
            Self::Floats(floats) => floats.check(name, 0, heads, tokens, head_dim),
            Self::Quantized(packed) => packed.check(name, heads, tokens, head_dim),
        }
    }

    /// The vector of a head and a token.
    #[inline(always)]
    pub(crate) fn read<S: Simd>(&self, head: usize, token: usize, out: &mut [f32]) {
        match self {
            Self::Floats(floats) => floats.read::<S>(0, head, token, out),
            Self::Quantized(packed) => packed.read(head, token, out),
        }
    }
}

impl<'a> Heads<'a> {
    /// The memory from the vector of a head and a token on, and how far the next token's is.
    pub(crate) fn from(&self, head: usize, token: usize) -> (Floats<'a>, usize) {
        let start = head * self.head_stride + token * self.token_stride;
        let data = match self.data {
            Floats::F32(data) => Floats::F32(&data[start..]),
            Floats::F16(data) => Floats::F16(&data[start..]),
            Floats::Bf16(data) => Floats::Bf16(&data[start..]),
        };
        (data, self.token_stride)
    }

    /// That vectors `[heads, tokens, head_dim]` lie within their memory, `before` elements of which belong to others.
    pub(crate) fn check(
        &self,
        name: &'static str,
        before: usize,
        heads: usize,
        tokens: usize,
        head_dim: usize,
    ) -> Result<()> {
        if heads == 0 || tokens == 0 {
            return Ok(());
        }
        let end = product(name, &[heads - 1, self.head_stride])?
            .checked_add(product(name, &[tokens - 1, self.token_stride])?)
            .and_then(|end| end.checked_add(before)?.checked_add(head_dim));
        match end {
            Some(end) if end <= self.data.len() => Ok(()),
            end => Err(Error::Length {
                operand: name,
                found: self.data.len(),
                expected: end.unwrap_or(usize::MAX),
            }),
        }
    }

    /// The vector of a head and a token, which `before` elements precede.
    #[inline(always)]
    pub(crate) fn read<S: Simd>(&self, before: usize, head: usize, token: usize, out: &mut [f32]) {
        let start = before + head * self.head_stride + token * self.token_stride;
        with_slice!(self.data, Floats, data => widen::<_, S>(&data[start..][..out.len()], out));
    }
}

impl QuantizedHeads<'_> {
    fn check(&self, name: &'static str, heads: usize, tokens: usize, head_dim: usize) -> Result<()> {
        let Self { bits, group_size, words, scales, biases, capacity } = *self;
        if !matches!(bits, 4 | 8) {
            return Err(Error::Invalid {
                name: "the bits of kept vectors",
                found: bits,
                expected: "4 or 8".into(),
            });
        }
        if group_size == 0 || !group_size.is_multiple_of(8) || !head_dim.is_multiple_of(group_size) {
            let expected = format!("a multiple of 8 that divides {head_dim}");
            return Err(Error::Invalid {
                name: "the group size of kept vectors",
                found: group_size,
                expected,
            });
        }
        if tokens > capacity {
            let expected = format!("room for the {tokens} there are");
            return Err(Error::Invalid { name: "the capacity of kept vectors", found: capacity, expected });
        }
        length(name, words.len(), product(name, &[heads, capacity, head_dim * bits / 32])?)?;
        let groups = product(name, &[heads, capacity, head_dim / group_size])?;
        length("scales of kept vectors", scales.len(), groups)?;
        length("biases of kept vectors", biases.len(), groups)
    }

    #[inline(always)]
    fn read(&self, head: usize, token: usize, out: &mut [f32]) {
        let vector = head * self.capacity + token;
        let (count, groups) = (out.len() * self.bits / 32, out.len() / self.group_size);
        let words = &self.words[vector * count..][..count];
        let words = words.chunks_exact(self.group_size * self.bits / 32);
        for ((group, words), out) in (vector * groups..).zip(words).zip(out.chunks_exact_mut(self.group_size))
        {
            let number = |floats: Floats<'_>| with_slice!(floats, Floats, floats => floats[group].widen());
            let (scale, bias) = (number(self.scales), number(self.biases));
            if self.bits == 8 {
                numbers::<4>(words, scale, bias, out);
            } else {
                numbers::<8>(words, scale, bias, out);
            }
        }
    }
}

/// The elements of a group, `N` of them in each word.
#[inline(always)]
fn numbers<const N: usize>(words: &[u32], scale: f32, bias: f32, out: &mut [f32]) {
    for (word, out) in words.iter().zip(out.as_chunks_mut::<N>().0) {
        for (i, out) in out.iter_mut().enumerate() {
            let number = word >> (i * (32 / N)) & (u32::MAX >> (32 - 32 / N));
            *out = number as f32 * scale + bias;
        }
    }
}
