//! The backward pass.

use super::params::AttentionParams;
use crate::{
    element::Element,
    error::{Error, Result},
    kernels::Kernels,
    operand::{Floats, FloatsMut, Matrices, Weights, length, product},
    shared_slice::SharedSlice,
    simd::{Kernel, Simd, exp},
};

/// Queries whose scores are kept at a time.
const QUERY_BLOCK: usize = 64;

/// The operands of attention of the tokens of each row to each other, and the gradient by its output. All are of one type.
#[derive(Debug, Clone, Copy)]
pub struct AttentionBackward<'a> {
    /// `[rows, heads, tokens, head_dim]`
    pub queries: Floats<'a>,
    /// `[rows, kv_heads, tokens, head_dim]`
    pub keys: Floats<'a>,
    /// `[rows, kv_heads, tokens, head_dim]`
    pub values: Floats<'a>,
    /// `[rows, tokens, heads, head_dim]`
    pub gradient: Floats<'a>,
    /// Tokens of a row.
    pub tokens: usize,
}

impl Kernels {
    /// The gradients by queries, keys and values, in their shapes. Scores are recomputed.
    ///
    /// # Errors
    /// Operands whose sizes or types do not match. A soft cap, or sinks: they have no gradient here.
    pub fn attention_backward(
        &self,
        x: &AttentionBackward<'_>,
        params: &AttentionParams<'_>,
        by: [FloatsMut<'_>; 3],
    ) -> Result<()> {
        params.check()?;
        if params.softcap.is_some() || params.sinks.is_some() {
            let expected = "0: they have no backward pass".to_owned();
            return Err(Error::Invalid { name: "the number of soft caps and sinks", found: 1, expected });
        }
        let width = product("queries", &[params.heads, x.tokens, params.head_dim])?;
        let rows = x.queries.len().checked_div(width).unwrap_or(0);
        let shared = product("keys", &[rows, params.kv_heads, x.tokens, params.head_dim])?;
        let [queries, keys, values] = by;
        for (operand, found, expected) in [
            ("queries", x.queries.len(), rows * width),
            ("keys", x.keys.len(), shared),
            ("values", x.values.len(), shared),
            ("gradient", x.gradient.len(), rows * width),
            ("the gradient by queries", queries.len(), rows * width),
            ("the gradient by keys", keys.len(), shared),
            ("the gradient by values", values.len(), shared),
        ] {
            length(operand, found, expected)?;
        }
        macro_rules! typed {
            ($($kind:ident),*) => {
                match (x.queries, x.keys, x.values, x.gradient, queries, keys, values) {
                    $((
                        Floats::$kind(q), Floats::$kind(k), Floats::$kind(v), Floats::$kind(g),
                        FloatsMut::$kind(dq), FloatsMut::$kind(dk), FloatsMut::$kind(dv),
                    ) => self.backward_of_type([q, k, v, g], [rows, x.tokens], params, [dq, dk, dv]),)*
                    _ => Err(Error::Invalid { name: "the number of types", found: 2, expected: "1".into() }),
                }
            };
        }
        typed!(F32, F16, Bf16)
    }

    fn backward_of_type<E: Element>(
        &self,
        [queries, keys, values, gradient]: [&[E]; 4],
        [rows, tokens]: [usize; 2],
        params: &AttentionParams<'_>,
        by: [&mut [E]; 3],
    ) -> Result<()> {
        let AttentionParams { heads, kv_heads, head_dim, .. } = *params;
        let size = tokens * head_dim;
        let [by_queries, by_keys, by_values] = by.map(SharedSlice::new);
        let failures = std::sync::Mutex::new(Ok(()));
        self.pool.run(rows * kv_heads, &|task| {
            let (row, group) = (task / kv_heads, heads / kv_heads);
            let vectors = |of: &[E], index: usize| -> Vec<f32> {
                of[index * size..][..size].iter().map(|x| x.widen()).collect()
            };
            let write = |to: &SharedSlice<E>, index: usize, values: &[f32]| {
                // SAFETY: each task has its own head of keys and values, and the heads of queries that share it.
                let to = unsafe { to.part(index * size, size) };
                to.iter_mut().zip(values).for_each(|(to, value)| *to = E::round(*value));
            };
            let (k, v) = (vectors(keys, task), vectors(values, task));
            let (mut dk, mut dv) = (vec![0.0; size], vec![0.0; size]);
            for member in 0..group {
                let head = task % kv_heads * group + member;
                let q = vectors(queries, row * heads + head);
                let mut g = Vec::with_capacity(size);
                for token in 0..tokens {
                    let start = ((row * tokens + token) * heads + head) * head_dim;
                    g.extend(gradient[start..][..head_dim].iter().map(|x| x.widen()));
                }
                let mut dq = vec![0.0; size];
                let done = self.backward_head([&q, &k, &v, &g], params, [&mut dq, &mut dk, &mut dv]);
                if let (Err(error), Ok(mut failures)) = (done, failures.lock()) {
                    *failures = Err(error);
                    return;
                }
                write(&by_queries, row * heads + head, &dq);
            }
            write(&by_keys, task, &dk);
            write(&by_values, task, &dv);
        });
        failures.into_inner().unwrap_or(Ok(()))
    }

    /// The gradients of one head of queries: sets `dq`, and adds to `dk` and `dv`, all `[tokens, head_dim]`.
    fn backward_head(
        &self,
        [q, k, v, g]: [&[f32]; 4],
        params: &AttentionParams<'_>,
        [dq, dk, dv]: [&mut [f32]; 3],
    ) -> Result<()> {
        let width = params.head_dim;
        let tokens = q.len().checked_div(width).unwrap_or(0);
        let matrix = |elements| Matrices {
            count: 1,
            outputs: <[f32]>::len(elements) / width,
            inputs: width,
            weights: Weights::Dense(Floats::F32(elements)),
        };
        for start in (0..tokens).step_by(QUERY_BLOCK) {
            let end = (start + QUERY_BLOCK).min(tokens);
            let queries = start * width..end * width;
            // Keys from the first that the first query sees to the last that the last query sees.
            let first = params.window.map_or(0, |window| (start + 1).saturating_sub(window));
            let (seen, count) = (first * width..end * width, end - first);
            let mut weights = vec![0.0; (end - start) * count];
            let mut scores = weights.clone();
            self.matmul(
                Floats::F32(&q[queries.clone()]),
                &matrix(&k[seen.clone()]),
                None,
                FloatsMut::F32(&mut weights),
            )?;
            self.matmul(
                Floats::F32(&g[queries.clone()]),
                &matrix(&v[seen.clone()]),
                None,
                FloatsMut::F32(&mut scores),
            )?;
            for (query, (weights, scores)) in
                weights.chunks_exact_mut(count).zip(scores.chunks_exact_mut(count)).enumerate()
            {
                let last = start + query - first;
                let from = params.window.map_or(0, |window| (last + 1).saturating_sub(window));
                self.isa.run(QueryGradient { weights, scores, seen: from..last + 1, scale: params.scale });
            }
            self.matmul_grad(
                Floats::F32(&scores),
                &matrix(&k[seen.clone()]),
                FloatsMut::F32(&mut dq[queries.clone()]),
            )?;
            for (by, of, sums) in [(&scores, q, &mut *dk), (&weights, g, &mut *dv)] {
                let mut part = vec![0.0; count * width];
                let of = matrix(&of[queries.clone()]);
                self.matmul_grad(Floats::F32(&transposed(by, count)), &of, FloatsMut::F32(&mut part))?;
                sums[seen.clone()].iter_mut().zip(&part).for_each(|(sum, part)| *sum += part);
            }
        }
        Ok(())
    }
}

/// Transposes rows of `columns` elements.
fn transposed(rows: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| rows[column..].iter().step_by(columns).copied()).collect()
}

/// Of one query: turns products with keys into weights, and gradients by weights into gradients by products.
struct QueryGradient<'a> {
    weights: &'a mut [f32],
    scores: &'a mut [f32],
    seen: std::ops::Range<usize>,
    scale: f32,
}

impl Kernel for QueryGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { weights, scores, seen, scale } = self;
        for all in [&mut *weights, &mut *scores] {
            all[..seen.start].fill(0.0);
            all[seen.end..].fill(0.0);
        }
        let (weights, scores) = (&mut weights[seen.clone()], &mut scores[seen]);
        let max = weights.iter().fold(f32::MIN, |max, weight| max.max(weight * scale));
        for weights in weights.chunks_mut(S::LANES) {
            // The last part may be shorter than a vector: what is beyond is not copied back.
            let mut lanes = [0.0; 16];
            lanes[..weights.len()].copy_from_slice(weights);
            // SAFETY: see `Isa::run`; a vector has at most 16 lanes.
            unsafe {
                let scaled = S::fma(S::load(lanes.as_ptr()), S::splat(scale), S::splat(-max));
                S::store(lanes.as_mut_ptr(), exp::<S>(scaled));
            }
            weights.copy_from_slice(&lanes[..weights.len()]);
        }
        let norm = sum(weights, |_, weight| weight).recip();
        weights.iter_mut().for_each(|weight| *weight *= norm);
        let mean = sum(weights, |at, weight| weight * scores[at]);
        for (score, weight) in scores.iter_mut().zip(&*weights) {
            *score = (*score - mean) * weight * scale;
        }
    }
}

/// The sum of `each` of all elements, in lanes.
#[inline(always)]
fn sum(of: &[f32], each: impl Fn(usize, f32) -> f32) -> f32 {
    let mut lanes = [0.0; 16];
    for (chunk, elements) in of.chunks(16).enumerate() {
        for (lane, (at, element)) in lanes.iter_mut().zip((chunk * 16..).zip(elements)) {
            *lane += each(at, *element);
        }
    }
    lanes.iter().sum()
}
