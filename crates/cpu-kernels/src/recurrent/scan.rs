//! Linear attention with decay, token by token: instead of keys and values, a matrix S for each head.
//!
//! With what is left of the state `a`, and `k`, `v`, `q` of a token, the gated delta rule is `S = a S; S = S + k ⊗ β (v − Sᵀk); o = Sᵀq`,
//! and a state space model with the time step Δ `S = a S + k ⊗ Δ v; o = Sᵀq + D v`. The columns of S do not depend on each other. So a
//! task takes some columns through all tokens of a block, and they stay in the first-level cache.

use super::sequences::{Block, Sequences};
use crate::{
    element::Element,
    error::{Error, Result},
    kernels::Kernels,
    operand::{Floats, length, product, with_slice},
    shared_slice::SharedSlice,
    simd::{Kernel, Simd},
};

/// Vectors of columns that go through the tokens together.
const COLUMNS: usize = 4;

/// Linear attention. Queries, keys and values are parts of the convolution's output: `[key_heads, key_dim]`, the same, and
/// `[heads, value_dim]`. Each head of keys serves as many neighbouring heads of values.
#[derive(Debug, Clone, Copy)]
pub struct LinearAttention<'a> {
    /// Heads of queries and keys.
    pub key_heads: usize,
    /// Heads of values.
    pub heads: usize,
    /// Elements of a key.
    pub key_dim: usize,
    /// Elements of a value.
    pub value_dim: usize,
    /// Where queries, keys and values begin.
    pub starts: [usize; 3],
    /// The time steps before their bias and softplus, `[rows, tokens, heads]`.
    pub steps: Sequences<'a>,
    /// The bias of time steps, `[heads]`.
    pub dt_bias: Floats<'a>,
    /// The logarithms of rates, `[heads]`: exp(−exp(`a_log`) · step) is left of a state.
    pub a_log: Floats<'a>,
    /// What becomes of a value.
    pub rule: Rule<'a>,
}

/// What becomes of a value.
#[derive(Debug, Clone, Copy)]
pub enum Rule<'a> {
    /// The gated delta rule. Queries and keys are made of length one, and queries are divided by √`key_dim`.
    Delta {
        /// β before its sigmoid, `[rows, tokens, heads]`.
        betas: Sequences<'a>,
    },
    /// A state space model: values are multiplied by the time step.
    StateSpace {
        /// The least and the greatest time step.
        limits: [f32; 2],
        /// The factors D of values in the output, `[heads]`.
        skip: Floats<'a>,
    },
}

impl LinearAttention<'_> {
    /// Checks the operands, and that the vectors are parts of `channels`; the width of the output.
    pub(super) fn check(&self, [rows, tokens]: [usize; 2], channels: usize) -> Result<usize> {
        let Self { key_heads, heads, key_dim, value_dim, starts, .. } = self;
        if *key_heads == 0 || !heads.is_multiple_of(*key_heads) {
            let expected = format!("a number that divides {heads}");
            return Err(Error::Invalid { name: "key_heads", found: *key_heads, expected });
        }
        let width = product("values", &[*heads, *value_dim])?;
        let keys = product("keys", &[*key_heads, *key_dim])?;
        for (start, size) in starts.iter().zip([keys, keys, width]) {
            if start.saturating_add(size) > channels {
                let expected = format!("at most {channels} channels less {size}");
                return Err(Error::Invalid { name: "starts", found: *start, expected });
            }
        }
        self.steps.check("steps", [rows, tokens, *heads])?;
        length("dt_bias", self.dt_bias.len(), *heads)?;
        length("a_log", self.a_log.len(), *heads)?;
        match &self.rule {
            Rule::Delta { betas } => betas.check("betas", [rows, tokens, *heads])?,
            Rule::StateSpace { skip, .. } => length("skip", skip.len(), *heads)?,
        }
        Ok(width)
    }

    /// What a head does with a token.
    fn token(&self, place: [usize; 2], head: usize) -> Token {
        let step = element(&self.steps, place, head) + at(self.dt_bias, head);
        // ln(1 + eˣ)
        let step = step.max(0.0) + (-step.abs()).exp().ln_1p();
        let rate = at(self.a_log, head).exp();
        match &self.rule {
            Rule::Delta { betas } => Token {
                kept: (-rate * step).exp(),
                factor: 1.0 / (1.0 + (-element(betas, place, head)).exp()),
            },
            Rule::StateSpace { limits: [low, high], .. } => {
                let step = step.max(*low).min(*high);
                Token { kept: (-rate * step).exp(), factor: step }
            }
        }
    }
}

fn at(floats: Floats<'_>, index: usize) -> f32 {
    with_slice!(floats, Floats, floats => floats[index].widen())
}

fn element(of: &Sequences<'_>, [row, token]: [usize; 2], index: usize) -> f32 {
    at(of.data, of.at(row, token) + index)
}

/// What is left of the state, and the factor of what is added to it.
#[derive(Debug, Clone, Copy)]
struct Token {
    kept: f32,
    factor: f32,
}

impl Kernels {
    /// For the delta rule, makes queries and keys of length one, `x / √(Σ x² + 1e-6)`, and divides queries by √`key_dim`. `mixed` is
    /// `[.., channels]`.
    pub(super) fn make_unit(&self, attention: &LinearAttention<'_>, mixed: &mut [f32], channels: usize) {
        let LinearAttention { key_heads, key_dim, starts, rule: Rule::Delta { .. }, .. } = *attention else {
            return;
        };
        let shrink = 1.0 / (key_dim as f32).sqrt();
        let all = mixed.len() / channels.max(1);
        let mixed = SharedSlice::new(mixed);
        self.for_each_row(all, 2 * key_heads * key_dim, &|index| {
            for (start, factor) in starts.into_iter().zip([shrink, 1.0]) {
                // SAFETY: each vector belongs to one task.
                let heads = unsafe { mixed.part(index * channels + start, key_heads * key_dim) };
                self.isa.run(Unit { heads, key_dim, factor });
            }
        });
    }

    /// Takes a block of tokens through the states of all heads: `mixed` and `out` are the block's own, `state` that of all rows.
    pub(super) fn scan(
        &self,
        attention: &LinearAttention<'_>,
        lengths: Option<&[i32]>,
        block: &Block,
        mixed: &[f32],
        state: &mut [f32],
        out: &mut [f32],
    ) {
        let LinearAttention { key_heads, heads, key_dim, value_dim, starts, .. } = *attention;
        let (tokens, width) = (block.tokens.len(), heads * value_dim);
        let channels = mixed.len() / block.len().max(1);
        let (state, out) = (SharedSlice::new(state), SharedSlice::new(out));
        self.pool.run(block.rows.len() * heads, &|task| {
            let (index, head) = (task / heads, task % heads);
            let row = block.rows.start + index;
            let size = key_dim * value_dim;
            let seen = lengths.map_or(tokens, |lengths| {
                tokens.min((lengths[row].max(0) as usize).saturating_sub(block.tokens.start))
            });
            let key = head / (heads / key_heads) * key_dim;
            let mixed = &mixed[index * tokens * channels..][..tokens * channels];
            let place = index * tokens * width + head * value_dim;
            for token in seen..tokens {
                // SAFETY: each token's part of this head belongs to one task.
                unsafe { out.part(place + token * width, value_dim) }.fill(0.0);
            }
            self.isa.run(HeadScan {
                mixed,
                channels,
                starts: [starts[0] + key, starts[1] + key, starts[2] + head * value_dim],
                tokens: (0..seen)
                    .map(|token| attention.token([row, block.tokens.start + token], head))
                    .collect(),
                skip: match attention.rule {
                    Rule::Delta { .. } => None,
                    Rule::StateSpace { skip, .. } => Some(at(skip, head)),
                },
                // SAFETY: each state belongs to one task.
                state: unsafe { state.part((row * heads + head) * size, size) },
                value_dim,
                // SAFETY: each token's part of this head belongs to one task.
                out: |token: usize| unsafe { out.part(place + token * width, value_dim) },
            });
        });
    }
}

struct Unit<'a> {
    heads: &'a mut [f32],
    key_dim: usize,
    factor: f32,
}

impl Kernel for Unit<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for vector in self.heads.chunks_exact_mut(self.key_dim) {
            let whole = vector.len() - vector.len() % S::LANES;
            // SAFETY: see `Isa::run`; `LANES` elements begin at each place.
            let mut squares = unsafe {
                let mut squares = S::splat(0.0);
                for i in (0..whole).step_by(S::LANES) {
                    let x = S::load(vector.as_ptr().add(i));
                    squares = S::fma(x, x, squares);
                }
                S::reduce_add(squares)
            };
            for x in &vector[whole..] {
                squares += x * x;
            }
            let scale = self.factor / (squares + 1e-6).sqrt();
            for x in vector {
                *x *= scale;
            }
        }
    }
}

/// Tokens of one head of a row.
struct HeadScan<'a, F> {
    /// `[tokens, channels]`
    mixed: &'a [f32],
    channels: usize,
    /// Where this head's query, key and value begin.
    starts: [usize; 3],
    tokens: Vec<Token>,
    /// The factor of values in the output of a state space model; `None` is the delta rule.
    skip: Option<f32>,
    /// `[key_dim, value_dim]`
    state: &'a mut [f32],
    value_dim: usize,
    /// Where the output of a token goes.
    out: F,
}

impl<'a, F: Fn(usize) -> &'a mut [f32]> Kernel for HeadScan<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let mut column = 0;
        while column + COLUMNS * S::LANES <= self.value_dim {
            self.columns::<S, COLUMNS>(column);
            column += COLUMNS * S::LANES;
        }
        while column + S::LANES <= self.value_dim {
            self.columns::<S, 1>(column);
            column += S::LANES;
        }
        for column in column..self.value_dim {
            self.one_column(column);
        }
    }
}

impl<'a, F: Fn(usize) -> &'a mut [f32]> HeadScan<'_, F> {
    /// Query, key and value of a token.
    #[inline(always)]
    fn vectors(&self, token: usize) -> [&[f32]; 3] {
        let (key_dim, mixed) = (self.state.len() / self.value_dim, &self.mixed[token * self.channels..]);
        let [query, key, value] = self.starts;
        [&mixed[query..][..key_dim], &mixed[key..][..key_dim], &mixed[value..][..self.value_dim]]
    }

    /// Takes `N` vectors of columns, from `column` on, through all tokens.
    #[inline(always)]
    fn columns<S: Simd, const N: usize>(&mut self, column: usize) {
        let width = self.value_dim;
        let state = self.state.as_mut_ptr();
        for (index, token) in self.tokens.iter().enumerate() {
            let [query, key, value] = self.vectors(index);
            let out = (self.out)(index);
            assert!(column + N * S::LANES <= width && out.len() == width, "columns beyond the end");
            // SAFETY: see `Isa::run`. `N · LANES` columns from `column` on are within a row of the state, the value and the output, by
            // the assertion; the state has as many rows as key and query have elements.
            unsafe {
                let kept = S::splat(token.kept);
                let mut added = [S::splat(0.0); N];
                for (n, added) in added.iter_mut().enumerate() {
                    *added = S::load(value.as_ptr().add(column + n * S::LANES));
                }
                if self.skip.is_none() {
                    let seen = seen_by_key::<S, N>(state.add(column), width, key);
                    for (added, seen) in added.iter_mut().zip(seen) {
                        *added = S::sub(*added, S::mul(kept, seen));
                    }
                }
                for added in &mut added {
                    *added = S::mul(*added, S::splat(token.factor));
                }
                let mut sums = [S::splat(0.0); N];
                for (row, (key, query)) in key.iter().zip(query).enumerate() {
                    let (key, query) = (S::splat(*key), S::splat(*query));
                    let row = state.add(row * width + column);
                    for (n, (added, sum)) in added.iter().zip(&mut sums).enumerate() {
                        let at = row.add(n * S::LANES);
                        let new = S::fma(key, *added, S::mul(kept, S::load(at)));
                        S::store(at, new);
                        *sum = S::fma(query, new, *sum);
                    }
                }
                for (n, sum) in sums.iter().enumerate() {
                    let at = column + n * S::LANES;
                    let skipped = S::mul(S::splat(self.skip.unwrap_or(0.0)), S::load(value.as_ptr().add(at)));
                    S::store(out.as_mut_ptr().add(at), S::add(*sum, skipped));
                }
            }
        }
    }

    /// The same for one column.
    #[inline(always)]
    fn one_column(&mut self, column: usize) {
        let width = self.value_dim;
        for (index, token) in self.tokens.iter().enumerate() {
            let mixed = &self.mixed[index * self.channels..];
            let [query, key, value] = self.starts;
            let value = mixed[value + column];
            let mut added = value;
            if self.skip.is_none() {
                let rows = self.state[column..].iter().step_by(width).zip(&mixed[key..]);
                added -= token.kept * rows.map(|(state, key)| state * key).sum::<f32>();
            }
            added *= token.factor;
            let mut sum = self.skip.unwrap_or(0.0) * value;
            let rows = self.state[column..].iter_mut().step_by(width);
            for ((state, key), query) in rows.zip(&mixed[key..]).zip(&mixed[query..]) {
                *state = token.kept * *state + key * added;
                sum += query * *state;
            }
            (self.out)(index)[column] = sum;
        }
    }
}

/// Sᵀk of `N` vectors of columns, of the state before it decays. Even and odd rows are summed apart, so that additions do not wait for each other.
///
/// # Safety
/// The machine has the instruction set; at `state` begin as many rows as the key has elements, `width` apart, of `N · LANES` columns.
#[inline(always)]
unsafe fn seen_by_key<S: Simd, const N: usize>(state: *const f32, width: usize, key: &[f32]) -> [S::F; N] {
    // SAFETY: the caller's.
    unsafe {
        let (mut even, mut odd) = ([S::splat(0.0); N], [S::splat(0.0); N]);
        let pairs = key.chunks_exact(2);
        let last = pairs.remainder();
        for (pair, keys) in pairs.enumerate() {
            let row = state.add(2 * pair * width);
            let (first, second) = (S::splat(keys[0]), S::splat(keys[1]));
            for (n, (even, odd)) in even.iter_mut().zip(&mut odd).enumerate() {
                *even = S::fma(first, S::load(row.add(n * S::LANES)), *even);
                *odd = S::fma(second, S::load(row.add(width + n * S::LANES)), *odd);
            }
        }
        if let [last] = last {
            let row = state.add((key.len() - 1) * width);
            for (n, even) in even.iter_mut().enumerate() {
                *even = S::fma(S::splat(*last), S::load(row.add(n * S::LANES)), *even);
            }
        }
        for (even, odd) in even.iter_mut().zip(odd) {
            *even = S::add(*even, odd);
        }
        even
    }
}
