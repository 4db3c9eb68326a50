//! Attention of a block of queries to the keys and values that they see, a block of keys at a time.

use std::ops::Range;

use super::{
    params::AttentionParams,
    scores::{KEY_BLOCK, score, transpose_keys},
    softmax::OnlineSoftmax,
    weighted_sum::WeightedSum,
};
use crate::{
    element::{Element, narrow},
    kv::{KvCache, KvView, Queries},
    operand::{Floats, with_slice},
    scratch::Scratch,
    shared_slice::SharedSlice,
    simd::{Kernel, Simd},
};

/// Queries of a block, if there are as many.
pub(super) const QUERY_BLOCK: usize = 64;
/// Up to so many queries are multiplied with keys one by one. For more, keys are transposed.
const FEW_QUERIES: usize = 8;
/// Keys or values that are converted at a time for so few queries: they stay in the first-level cache.
const FEW_KEYS: usize = 16;

/// Attention of some tokens of a row, for the heads of queries that share a head of keys and values. A query here is that of a
/// token and a head.
pub(super) struct AttentionBlock<'a, E> {
    pub(super) queries: &'a Queries<'a>,
    pub(super) cache: &'a KvCache<'a>,
    pub(super) params: &'a AttentionParams<'a>,
    pub(super) row: usize,
    /// Where the row's first token is in the output, in tokens.
    pub(super) first_out: usize,
    /// Whether a query sees the positions behind its own, too: a window counts them on both sides.
    pub(super) both_ways: bool,
    pub(super) kv_head: usize,
    pub(super) heads: Range<usize>,
    pub(super) tokens: Range<usize>,
    pub(super) out: &'a SharedSlice<E>,
}

/// What a block computes with.
struct Buffers {
    /// `head_dim`, padded to pairs of vectors.
    width: usize,
    /// Keys of a block: as many as there are, padded to pairs of vectors, or `KEY_BLOCK`.
    block: usize,
    /// Scaled queries, `[queries, width]`.
    queries: Scratch,
    /// `[queries, block]`
    scores: Scratch,
    /// Sums of values, `[queries, width]`.
    sums: Scratch,
    /// Keys, then values, in `f32`: `[converted_keys, width]`.
    converted: Scratch,
    /// Keys or values that are converted at a time.
    converted_keys: usize,
    /// `[width, block]`, or empty for few queries.
    transposed_keys: Scratch,
}

impl<E: Element> Kernel for AttentionBlock<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let count = self.heads.len() * self.tokens.len();
        let mut softmax = OnlineSoftmax::new(self.sinks(), count);
        let (first, end) = (self.first_key(0), self.end_of_keys(count - 1));
        let mut buffers = self.buffers::<S>(end - first);
        let block = buffers.block;
        for start in (first..end).step_by(block) {
            let keys = start..end.min(start + block);
            self.score_keys::<S>(&mut buffers, keys.clone(), end);
            let Buffers { width, scores, sums, .. } = &mut buffers;
            for (query, scores) in scores.chunks_exact_mut(block).enumerate() {
                let seen = self.first_key(query).clamp(keys.start, keys.end) - start
                    ..self.end_of_keys(query).clamp(keys.start, keys.end) - start;
                let rescale = softmax.update::<S>(query, scores, seen, self.params.softcap);
                if rescale != 1.0 {
                    sums[query * *width..][..*width].iter_mut().for_each(|sum| *sum *= rescale);
                }
            }
            self.add_values::<S>(&mut buffers, keys);
        }
        let Buffers { width, sums, .. } = &mut buffers;
        for (query, sums) in sums.chunks_exact_mut(*width).enumerate() {
            let total = softmax.totals[query];
            sums.iter_mut().for_each(|sum| *sum /= total);
            self.write::<S>(query, sums);
        }
    }
}

impl<E: Element> AttentionBlock<'_, E> {
    #[inline(always)]
    fn head(&self, query: usize) -> usize {
        self.heads.start + query % self.heads.len()
    }

    #[inline(always)]
    fn token(&self, query: usize) -> usize {
        self.tokens.start + query / self.heads.len()
    }

    /// Token `t` of the row is at position `len - tokens + t`.
    #[inline(always)]
    fn position(&self, query: usize) -> usize {
        self.cache.len - self.queries.tokens + self.token(query)
    }

    /// The first key that a query sees.
    #[inline(always)]
    fn first_key(&self, query: usize) -> usize {
        self.params.window.map_or(0, |window| (self.position(query) + 1).saturating_sub(window))
    }

    /// The end of the keys that a query sees.
    #[inline(always)]
    fn end_of_keys(&self, query: usize) -> usize {
        let (position, len) = (self.position(query), self.cache.len);
        match (self.both_ways, self.params.window) {
            (false, _) => position + 1,
            (true, None) => len,
            (true, Some(window)) => position.saturating_add(window).min(len),
        }
    }

    /// The sink of each query.
    #[inline(always)]
    fn sinks(&self) -> Option<Vec<f32>> {
        let sinks = self.params.sinks?;
        let queries = 0..self.heads.len() * self.tokens.len();
        let sink = |query| with_slice!(sinks, Floats, sinks => sinks[self.head(query)].widen());
        Some(queries.map(sink).collect())
    }

    #[inline(always)]
    fn buffers<S: Simd>(&self, keys: usize) -> Buffers {
        let AttentionParams { head_dim, scale, .. } = *self.params;
        let count = self.heads.len() * self.tokens.len();
        let width = head_dim.next_multiple_of(2 * S::LANES);
        let block = KEY_BLOCK.min(keys.next_multiple_of(2 * S::LANES));
        let mut queries = Scratch::zeroed(count * width);
        let offset = self.row * self.queries.row_stride;
        for (index, query) in queries.chunks_exact_mut(width).enumerate() {
            let (head, token) = (self.head(index), self.token(index));
            self.queries.first.read::<S>(offset, head, token, &mut query[..head_dim]);
            query.iter_mut().for_each(|query| *query *= scale);
        }
        let few = count <= FEW_QUERIES;
        let converted_keys = if few { FEW_KEYS } else { block };
        Buffers {
            width,
            block,
            queries,
            scores: Scratch::new(count * block),
            sums: Scratch::zeroed(count * width),
            converted: Scratch::zeroed(converted_keys * width),
            converted_keys,
            transposed_keys: Scratch::new(if few { 0 } else { block * width }),
        }
    }

    /// The vectors of a token and those after it, and their stride, if they can be used in place: whole vectors of floats, and
    /// few queries, as many would convert them again and again.
    #[inline(always)]
    fn in_place<'b>(&self, view: &KvView<'b>, token: usize, width: usize) -> Option<(Floats<'b>, usize)> {
        match view {
            KvView::Floats(heads) if self.is_few() && self.params.head_dim == width => {
                Some(heads.from(self.kv_head, token))
            }
            _ => None,
        }
    }

    /// Whether there are so few queries that keys are not transposed for them.
    #[inline(always)]
    fn is_few(&self) -> bool {
        self.heads.len() * self.tokens.len() <= FEW_QUERIES
    }

    /// Converts vectors of these tokens to `f32`.
    #[inline(always)]
    fn convert<S: Simd>(&self, view: &KvView<'_>, first: usize, width: usize, out: &mut [f32]) {
        for (i, vector) in out.chunks_exact_mut(width).enumerate() {
            view.read::<S>(self.kv_head, first + i, &mut vector[..self.params.head_dim]);
        }
    }

    /// Computes the scores of all queries for these keys, of keys up to `end`.
    #[inline(always)]
    fn score_keys<S: Simd>(&self, buffers: &mut Buffers, keys: Range<usize>, end: usize) {
        let Buffers { width, block, queries, scores, converted, converted_keys, transposed_keys, .. } =
            buffers;
        let (width, block, view) = (*width, *block, &self.cache.keys);
        if let Some((keys_in_place, stride)) = self.in_place(view, keys.start, width) {
            with_slice!(keys_in_place, Floats, data => {
                // The keys of the next block, and the values of this one.
                let next = keys.end..end.min(keys.end + block);
                let next = view.ahead(self.kv_head, next, width);
                let ahead = [next, self.cache.values.ahead(self.kv_head, keys.clone(), width)];
                score::<S, _>(queries, width, (data, stride), (scores, block), 0..keys.len(), &ahead);
            });
            return;
        }
        let few = transposed_keys.is_empty();
        for at in (0..keys.len()).step_by(*converted_keys) {
            let end = keys.len().min(at + *converted_keys);
            let converted = &mut converted[..(end - at) * width];
            self.convert::<S>(view, keys.start + at, width, converted);
            if few {
                score::<S, _>(queries, width, (converted, width), (scores, block), at..end, &[]);
            }
        }
        if !few {
            transpose_keys::<S>(converted, width, transposed_keys, block);
            scores.fill(0.0);
            WeightedSum {
                weights: queries,
                weights_stride: width,
                vectors: &transposed_keys[..],
                stride: block,
                width: block,
                count: self.params.head_dim,
            }
            .add_to::<S>(scores);
        }
    }

    /// Adds the values of these keys, weighted by their scores, to the sums.
    #[inline(always)]
    fn add_values<S: Simd>(&self, buffers: &mut Buffers, keys: Range<usize>) {
        let Buffers { width, block, scores, sums, converted, converted_keys, .. } = buffers;
        let (width, block, view) = (*width, *block, &self.cache.values);
        if let Some((values, stride)) = self.in_place(view, keys.start, width) {
            with_slice!(values, Floats, vectors => {
                WeightedSum { weights: scores, weights_stride: block, vectors, stride, width, count: keys.len() }
                    .add_to::<S>(sums);
            });
            return;
        }
        for at in (0..keys.len()).step_by(*converted_keys) {
            let count = (*converted_keys).min(keys.len() - at);
            let converted = &mut converted[..count * width];
            self.convert::<S>(view, keys.start + at, width, converted);
            let (weights, vectors) = (&scores[at..], &*converted);
            WeightedSum { weights, weights_stride: block, vectors, stride: width, width, count }
                .add_to::<S>(sums);
        }
    }

    /// Writes the result of a query.
    #[inline(always)]
    fn write<S: Simd>(&self, query: usize, values: &[f32]) {
        let AttentionParams { heads, head_dim, .. } = *self.params;
        let token = self.first_out + self.token(query);
        let place = (token * heads + self.head(query)) * head_dim;
        // SAFETY: each task has tokens and heads of its own.
        narrow::<E, S>(&values[..head_dim], unsafe { self.out.part(place, head_dim) });
    }
}
