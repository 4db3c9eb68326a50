//! Attention of new tokens to those before them and themselves.

use std::ops::Range;

use crate::{
    Floats, FloatsMut, Kernels, Result,
    element::{Element, Shared, narrow},
    error::Error,
    isa::Kernel,
    kept::KvView,
    operand::{length, product, with_slice},
    simd::{Simd, exp, tanh},
};

/// Keys and values that are widened at a time.
const KEYS: usize = 64;
/// Queries that share them, where there are so many.
const LINES: usize = 64;
/// Up to so many queries are multiplied with keys one by one.
const FEW: usize = 8;
/// Keys or values that are widened at a time for so few queries: they stay in the first cache.
const NEAR: usize = 16;

/// Vectors `[heads, tokens, head_dim]` of a larger memory, the elements of each next to each other.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    /// From the first element of the first vector on.
    pub data: Floats<'a>,
    /// Elements from a head to the next.
    pub head_stride: usize,
    /// Elements from a token to the next.
    pub token_stride: usize,
}

/// The queries of several rows, `[rows, heads, tokens, head_dim]`.
#[derive(Debug, Clone, Copy)]
pub struct Queries<'a> {
    /// Those of the first row, and the memory of the others.
    pub first: Heads<'a>,
    /// Elements from a row to the next.
    pub row_stride: usize,
    /// Queries of a row.
    pub tokens: usize,
}

/// The keys and values `[kv_heads, len, head_dim]` that one row attends to.
#[derive(Debug, Clone, Copy)]
pub struct KvCache<'a> {
    /// One for each position.
    pub keys: KvView<'a>,
    /// One for each position.
    pub values: KvView<'a>,
    /// Positions, at least as many as the row has queries: those are of the last of them.
    pub len: usize,
}

/// How tokens attend.
#[derive(Debug, Clone, Copy)]
pub struct AttentionParams<'a> {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values, which divide those of queries: neighbours share them.
    pub kv_heads: usize,
    /// Elements of a vector.
    pub head_dim: usize,
    /// What the products of queries and keys are multiplied by.
    pub scale: f32,
    /// Positions that a query sees, its own included; `None` is all before it.
    pub window: Option<usize>,
    /// Scores `s` become `cap · tanh(s / cap)`.
    pub softcap: Option<f32>,
    /// For each head a score that takes part in the softmax and has no value, `[heads]`.
    pub sinks: Option<Floats<'a>>,
}

impl AttentionParams<'_> {
    pub(crate) fn check(&self) -> Result<()> {
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a multiple of the {} heads of keys", self.kv_heads);
            return Err(Error::Invalid { name: "the number of heads", found: self.heads, expected });
        }
        if self.window == Some(0) {
            return Err(Error::Invalid { name: "the window", found: 0, expected: "at least 1".into() });
        }
        self.sinks.as_ref().map_or(Ok(()), |sinks| length("sinks", sinks.len(), self.heads))
    }
}

impl Kernels {
    /// What each query makes of the values it sees: `queries` of as many rows as `caches` → `out`
    /// `[rows, tokens, heads, head_dim]`, without gaps. A query sees its own position and those before it.
    ///
    /// # Errors
    /// Operands whose sizes do not go together.
    pub fn attention(
        &self,
        queries: &Queries<'_>,
        caches: &[KvCache<'_>],
        how: &AttentionParams<'_>,
        out: FloatsMut<'_>,
    ) -> Result<()> {
        how.check()?;
        let AttentionParams { heads, kv_heads, head_dim, .. } = *how;
        let tokens = queries.tokens;
        length("out", out.len(), product("out", &[caches.len(), tokens, heads, head_dim])?)?;
        for (row, cache) in caches.iter().enumerate() {
            let before = product("queries", &[row, queries.row_stride])?;
            queries.first.check("queries", before, heads, tokens, head_dim)?;
            cache.keys.check("keys", kv_heads, cache.len, head_dim)?;
            cache.values.check("values", kv_heads, cache.len, head_dim)?;
            if cache.len < tokens {
                let expected = format!("at least the {tokens} new ones");
                return Err(Error::Invalid { name: "the number of positions", found: cache.len, expected });
            }
        }
        let sharing = heads / kv_heads;
        let tokens_each = (LINES / sharing).max(1);
        let parts = tokens.div_ceil(tokens_each);
        // Where there are fewer tasks than threads, those that share keys and values part.
        let tasks = caches.len() * kv_heads * parts;
        let each = sharing.div_ceil(self.threads().div_ceil(tasks.max(1)));
        let shares = sharing.div_ceil(each);
        with_slice!(out, FloatsMut, out => {
            let out = Shared::new(out);
            self.pool.run(tasks * shares, &|task| {
                let (task, share) = (task / shares, task % shares);
                // The last tokens see most: they go first.
                let (part, rest) = (parts - 1 - task / (caches.len() * kv_heads), task % (caches.len() * kv_heads));
                let (row, kv_head) = (rest / kv_heads, rest % kv_heads);
                let tokens = part * tokens_each..tokens.min((part + 1) * tokens_each);
                let heads = kv_head * sharing + share * each..kv_head * sharing + sharing.min((share + 1) * each);
                self.isa.run(Block { queries, cache: &caches[row], how, row, kv_head, heads, tokens, out: &out });
            });
        });
        Ok(())
    }
}

/// Attention of a few tokens of a row, for heads of queries that share a head of keys and values. A token's query of one of them
/// is called a line here.
struct Block<'a, E> {
    queries: &'a Queries<'a>,
    cache: &'a KvCache<'a>,
    how: &'a AttentionParams<'a>,
    row: usize,
    kv_head: usize,
    heads: Range<usize>,
    tokens: Range<usize>,
    out: &'a Shared<E>,
}

impl<'a, E: Element> Kernel for Block<'a, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let AttentionParams { heads, head_dim, scale, .. } = *self.how;
        let sharing = self.heads.len();
        let lines = self.tokens.len() * sharing;
        let width = head_dim.next_multiple_of(2 * S::LANES);
        let head = |line: usize| self.heads.start + line % sharing;
        let token = |line: usize| self.tokens.start + line / sharing;
        let mut queries = vec![0.0_f32; lines * width];
        for (line, query) in queries.chunks_exact_mut(width).enumerate() {
            let before = self.row * self.queries.row_stride;
            self.queries.first.read::<S>(before, head(line), token(line), &mut query[..head_dim]);
            query.iter_mut().for_each(|query| *query *= scale);
        }
        let sinks = self.how.sinks.map(|sinks| {
            let all = |line| with_slice!(sinks, Floats, sinks => sinks[head(line)].widen());
            (0..lines).map(all).collect::<Vec<_>>()
        });
        let mut softmax = Softmax {
            totals: vec![if sinks.is_some() { 1.0 } else { 0.0 }; lines],
            largest: sinks.unwrap_or_else(|| vec![f32::NEG_INFINITY; lines]),
        };
        // Query `t` of the row is at position `len - tokens + t`.
        let position = |line: usize| self.cache.len - self.queries.tokens + token(line);
        let first =
            |line: usize| self.how.window.map_or(0, |window| (position(line) + 1).saturating_sub(window));
        let mut mixed = vec![0.0_f32; lines * width];
        // What is widened at a time: keys, and values after them.
        let near = if lines > FEW { KEYS } else { NEAR };
        let mut wide = vec![0.0_f32; near * width];
        let mut turned = vec![0.0_f32; if lines > FEW { KEYS * width } else { 0 }];
        let mut scores = vec![0.0_f32; lines * KEYS];
        // Vectors are read where they lie, if they are whole registers.
        let in_place = |kept: &KvView<'a>, token: usize| match kept {
            KvView::Floats(heads) if lines <= FEW && head_dim == width => {
                Some(heads.from(self.kv_head, token))
            }
            _ => None,
        };
        let end = position(lines - 1) + 1;
        for start in (first(0)..end).step_by(KEYS) {
            let count = KEYS.min(end - start);
            if let Some((keys, stride)) = in_place(&self.cache.keys, start) {
                with_slice!(keys, Floats, keys => dots::<S, _>(&queries, width, keys, stride, &mut scores, 0..count));
            } else {
                for at in (0..count).step_by(near) {
                    let wide = &mut wide[..near.min(count - at) * width];
                    for (i, key) in wide.chunks_exact_mut(width).enumerate() {
                        self.cache.keys.read::<S>(self.kv_head, start + at + i, &mut key[..head_dim]);
                    }
                    if lines <= FEW {
                        dots::<S, _>(&queries, width, wide, width, &mut scores, at..count.min(at + near));
                    }
                }
            }
            if lines > FEW {
                turn::<S>(&wide, width, &mut turned);
                scores.fill(0.0);
                let turned = &turned[..];
                Outer {
                    a: &queries,
                    a_width: width,
                    b: turned,
                    b_stride: KEYS,
                    b_width: KEYS,
                    depth: head_dim,
                }
                .add::<S>(&mut scores);
            }
            for (line, scores) in scores.chunks_exact_mut(KEYS).enumerate() {
                let seen = first(line).clamp(start, start + count) - start
                    ..(position(line) + 1).clamp(start, start + count) - start;
                let kept = softmax.step::<S>(line, scores, seen, self.how.softcap);
                if kept != 1.0 {
                    mixed[line * width..][..width].iter_mut().for_each(|mixed| *mixed *= kept);
                }
            }
            if let Some((values, b_stride)) = in_place(&self.cache.values, start) {
                let (a, a_width, b_width) = (&scores[..], KEYS, width);
                with_slice!(values, Floats, b => {
                    Outer { a, a_width, b, b_stride, b_width, depth: count }.add::<S>(&mut mixed);
                });
                continue;
            }
            for at in (0..count).step_by(near) {
                let wide = &mut wide[..near.min(count - at) * width];
                for (i, value) in wide.chunks_exact_mut(width).enumerate() {
                    self.cache.values.read::<S>(self.kv_head, start + at + i, &mut value[..head_dim]);
                }
                let (a, depth) = (&scores[at..], wide.len() / width);
                Outer { a, a_width: KEYS, b: &*wide, b_stride: width, b_width: width, depth }
                    .add::<S>(&mut mixed);
            }
        }
        for (line, mixed) in mixed.chunks_exact_mut(width).enumerate() {
            let total = softmax.totals[line];
            mixed.iter_mut().for_each(|mixed| *mixed /= total);
            let place = ((self.row * self.queries.tokens + token(line)) * heads + head(line)) * head_dim;
            // SAFETY: each task has tokens and heads of its own.
            narrow::<E, S>(&mixed[..head_dim], unsafe { self.out.part(place, head_dim) });
        }
    }
}

/// Softmax of scores that come a few at a time: what was summed before is made smaller when a larger score turns up.
struct Softmax {
    /// The largest score of each line so far.
    largest: Vec<f32>,
    /// The sum of what scores became.
    totals: Vec<f32>,
}

impl Softmax {
    /// Turns the scores of a line that are seen into weights, and the others into zeros. Returns what sums so far must be
    /// multiplied by.
    #[inline(always)]
    fn step<S: Simd>(
        &mut self,
        line: usize,
        scores: &mut [f32],
        seen: Range<usize>,
        softcap: Option<f32>,
    ) -> f32 {
        let (start, end) = (seen.start / S::LANES * S::LANES, seen.end.next_multiple_of(S::LANES));
        if seen.is_empty() {
            scores.fill(0.0);
            return 1.0;
        }
        assert!(end <= scores.len(), "whole vectors of scores");
        let vectors = || (start..end).step_by(S::LANES);
        let at = scores.as_mut_ptr();
        // SAFETY: vectors lie within the scores, by the assertion; the machine has the instructions, or this were not run.
        unsafe {
            if let Some(cap) = softcap {
                for i in vectors() {
                    let part = S::mul(S::load(at.add(i)), S::splat(1.0 / cap));
                    S::store(at.add(i), S::mul(tanh::<S>(part), S::splat(cap)));
                }
            }
            scores[start..seen.start].fill(f32::NEG_INFINITY);
            scores[seen.end..end].fill(f32::NEG_INFINITY);
            let at = scores.as_mut_ptr();
            let mut largest = S::splat(self.largest[line]);
            for i in vectors() {
                largest = S::max(largest, S::load(at.add(i)));
            }
            let largest = S::largest(largest);
            for i in vectors() {
                S::store(at.add(i), exp::<S>(S::sub(S::load(at.add(i)), S::splat(largest))));
            }
            scores[..seen.start].fill(0.0);
            scores[seen.end..].fill(0.0);
            let at = scores.as_ptr();
            let total = vectors().fold(S::splat(0.0), |total, i| S::add(total, S::load(at.add(i))));
            let kept = (self.largest[line] - largest).exp();
            self.totals[line] = self.totals[line] * kept + S::sum(total);
            self.largest[line] = largest;
            kept
        }
    }
}

/// A sum of products of columns of `a` with rows of `b`.
struct Outer<'a, B> {
    /// `[lines, a_width]`
    a: &'a [f32],
    a_width: usize,
    /// `[depth or more, b_width]`, each row `b_stride` behind the one before it.
    b: &'a [B],
    b_stride: usize,
    /// Pairs of vectors.
    b_width: usize,
    depth: usize,
}

impl<B: Element> Outer<'_, B> {
    /// Adds it to `sums` `[lines, b_width]`.
    #[inline(always)]
    fn add<S: Simd>(&self, sums: &mut [f32]) {
        let lines = self.a.len().div_ceil(self.a_width);
        let last = self.depth.saturating_sub(1) * self.b_stride;
        assert!(self.depth <= self.a_width && last + self.b_width <= self.b.len(), "as deep");
        assert!((lines - 1) * self.a_width + self.depth <= self.a.len(), "as long");
        assert!(sums.len() == lines * self.b_width && self.b_width.is_multiple_of(2 * S::LANES), "as wide");
        let mut line = 0;
        // SAFETY: lines lie within `a` and the sums, by the assertions; the machine has the instructions.
        unsafe {
            while S::REGISTERS >= 32 && line + 8 <= lines {
                self.across::<S, 8, 2>(sums, line);
                line += 8;
            }
            while line + 4 <= lines {
                self.across::<S, 4, 2>(sums, line);
                line += 4;
            }
            while line + 2 <= lines {
                self.across::<S, 2, 4>(sums, line);
                line += 2;
            }
            if line < lines {
                self.across::<S, 1, 4>(sums, line);
            }
        }
    }

    /// `M` lines, `N` vectors at a time, and two where fewer are left.
    ///
    /// # Safety
    /// The lines lie within `a` and the sums, and the machine has the instructions.
    #[inline(always)]
    unsafe fn across<S: Simd, const M: usize, const N: usize>(&self, sums: &mut [f32], line: usize) {
        let mut column = 0;
        // SAFETY: the caller's; vectors lie within lines.
        unsafe {
            while column + N * S::LANES <= self.b_width {
                self.tile::<S, M, N>(sums, line, column);
                column += N * S::LANES;
            }
            while column < self.b_width {
                self.tile::<S, M, 2>(sums, line, column);
                column += 2 * S::LANES;
            }
        }
    }

    /// `M` lines and `N` vectors.
    ///
    /// # Safety
    /// They lie within `a`, `b` and the sums, and the machine has the instructions.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const N: usize>(
        &self,
        sums: &mut [f32],
        line: usize,
        column: usize,
    ) {
        // SAFETY: the caller's.
        unsafe {
            let at = |m: usize, i: usize| (line + m) * self.b_width + column + i * S::LANES;
            let mut parts: [[S::F; N]; M] =
                std::array::from_fn(|m| std::array::from_fn(|i| S::load(sums.as_ptr().add(at(m, i)))));
            let a = self.a.as_ptr().add(line * self.a_width);
            let mut b = self.b.as_ptr().add(column);
            for k in 0..self.depth {
                let row: [S::F; N] = std::array::from_fn(|i| B::load::<S>(b.add(i * S::LANES)));
                for (m, parts) in parts.iter_mut().enumerate() {
                    let factor = S::splat(*a.add(m * self.a_width + k));
                    for (part, row) in parts.iter_mut().zip(row) {
                        *part = S::fma(factor, row, *part);
                    }
                }
                b = b.wrapping_add(self.b_stride);
            }
            for (m, parts) in parts.into_iter().enumerate() {
                for (i, part) in parts.into_iter().enumerate() {
                    S::store(sums.as_mut_ptr().add(at(m, i)), part);
                }
            }
        }
    }
}

/// The products of each query with each key, `width` wide, as scores `[lines, KEYS]` at these places.
#[inline(always)]
fn dots<S: Simd, E: Element>(
    queries: &[f32],
    width: usize,
    keys: &[E],
    stride: usize,
    scores: &mut [f32],
    places: Range<usize>,
) {
    let last = places.len().saturating_sub(1) * stride;
    assert!(last + width <= keys.len() && width.is_multiple_of(2 * S::LANES), "whole vectors");
    assert!(places.end <= KEYS && queries.len() / width * KEYS == scores.len(), "as many scores");
    for (queries, scores) in queries.chunks(2 * width).zip(scores.chunks_mut(2 * KEYS)) {
        for (index, place) in places.clone().enumerate() {
            // SAFETY: keys and queries are whole vectors, `width` long; the machine has the instructions, or this were not run.
            unsafe {
                let key = keys.as_ptr().add(index * stride);
                if queries.len() == width {
                    [scores[place]] = products::<S, E, 1>(queries.as_ptr(), key, width);
                } else {
                    [scores[place], scores[KEYS + place]] = products::<S, E, 2>(queries.as_ptr(), key, width);
                }
            }
        }
    }
}

/// The products of `M` queries with a key, each `width` long.
///
/// # Safety
/// They are there, pairs of vectors, and the machine has the instructions.
#[inline(always)]
unsafe fn products<S: Simd, E: Element, const M: usize>(
    queries: *const f32,
    key: *const E,
    width: usize,
) -> [f32; M] {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[S::splat(0.0); 2]; M];
        for i in (0..width).step_by(2 * S::LANES) {
            let key = [E::load::<S>(key.add(i)), E::load::<S>(key.add(i + S::LANES))];
            for (m, sums) in sums.iter_mut().enumerate() {
                let query = queries.add(m * width + i);
                *sums = [
                    S::fma(S::load(query), key[0], sums[0]),
                    S::fma(S::load(query.add(S::LANES)), key[1], sums[1]),
                ];
            }
        }
        let mut products = [0.0; M];
        for (product, sums) in products.iter_mut().zip(sums) {
            *product = S::sum(S::add(sums[0], sums[1]));
        }
        products
    }
}

/// Keys `[KEYS, width]` as `[width, KEYS]`.
#[inline(always)]
fn turn<S: Simd>(keys: &[f32], width: usize, out: &mut [f32]) {
    assert!(keys.len() == KEYS * width && out.len() == keys.len(), "as many");
    assert!(width.is_multiple_of(S::LANES) && KEYS.is_multiple_of(S::LANES), "whole vectors");
    for first in (0..KEYS).step_by(S::LANES) {
        for i in (0..width).step_by(S::LANES) {
            let (from, to) = (&keys[first * width + i..], &mut out[i * KEYS + first..]);
            // SAFETY: as many keys and elements are left, by the assertions; the machine has the instructions, or this were
            // not run.
            unsafe { S::transpose(from.as_ptr(), width, to.as_mut_ptr(), KEYS) };
        }
    }
}
