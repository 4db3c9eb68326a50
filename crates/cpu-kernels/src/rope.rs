//! The rotary position embedding (RoPE), with the norm of queries and keys and the transposition to heads.

use crate::{
    element::{Element, to_f32_vec},
    error::{Error, Result},
    kernels::Kernels,
    kv::Queries,
    norm::{RmsNorm, inverse_rms},
    operand::{Floats, FloatsMut, length, product, with_slice},
    shared_slice::SharedSlice,
    simd::{Kernel, Simd},
};

/// The rotations of tokens by their position. Elements `i` and `i + pairs` of a vector are rotated together, or neighbours.
#[derive(Debug, Clone, Copy)]
pub struct RotaryTable<'a> {
    /// Pairs that are rotated. Elements from `2 · pairs` on stay as they are.
    pub pairs: usize,
    /// The cosines of each token, then its sines: `[rows, tokens, 2, pairs]`.
    pub cos_sin: &'a [f32],
    /// Whether pairs are neighbours.
    pub interleaved: bool,
}

impl Kernels {
    /// Normalises vectors (if there is a norm), rotates them (if there are angles) and writes them head by head: `x` of `rows` rows,
    /// with `heads` vectors of `head_dim` elements for each token → `out` `[rows, heads, tokens, head_dim]`.
    ///
    /// # Errors
    /// Operands whose sizes do not match.
    pub fn norm_rope(
        &self,
        x: &Queries<'_>,
        [rows, heads, head_dim]: [usize; 3],
        norm: Option<&RmsNorm<'_>>,
        angles: Option<&RotaryTable<'_>>,
        out: FloatsMut<'_>,
    ) -> Result<()> {
        let tokens = x.tokens;
        length("out", out.len(), product("out", &[rows, heads, tokens, head_dim])?)?;
        if out.is_empty() {
            return Ok(());
        }
        x.check("x", [rows, heads, head_dim])?;
        if let Some(norm) = norm {
            length("weight", norm.weight.len(), head_dim)?;
        }
        if let Some(RotaryTable { pairs, cos_sin, .. }) = angles {
            if pairs.checked_mul(2).is_none_or(|width| width > head_dim) {
                let expected = format!("at most half of the head dimension {head_dim}");
                return Err(Error::Invalid { name: "the number of rotated pairs", found: *pairs, expected });
            }
            length("cos_sin", cos_sin.len(), product("cos_sin", &[rows, tokens, 2, *pairs])?)?;
        }
        let weight = norm.map(|norm| (to_f32_vec(norm.weight), norm.eps));
        with_slice!(x.first.data, Floats, data => with_slice!(out, FloatsMut, out => {
            let out = SharedSlice::new(out);
            self.for_each_row(rows * heads * tokens, head_dim, &|index| {
                let (row, head, token) = (index / tokens / heads, index / tokens % heads, index % tokens);
                let start = x.start(row, head, token);
                let cos_sin = angles.map(|RotaryTable { pairs, cos_sin, .. }| {
                    cos_sin[(row * tokens + token) * 2 * pairs..][..2 * pairs].split_at(*pairs)
                });
                self.isa.run(RotateVector {
                    x: &data[start..][..head_dim],
                    norm: weight.as_ref().map(|(weight, eps)| (weight.as_slice(), *eps)),
                    cos_sin,
                    interleaved: angles.is_some_and(|angles| angles.interleaved),
                    // SAFETY: each vector belongs to one task.
                    out: unsafe { out.part(index * head_dim, head_dim) },
                });
            });
        }));
        Ok(())
    }
}

struct RotateVector<'a, X, O> {
    x: &'a [X],
    norm: Option<(&'a [f32], f32)>,
    cos_sin: Option<(&'a [f32], &'a [f32])>,
    interleaved: bool,
    out: &'a mut [O],
}

impl<X: Element, O: Element> Kernel for RotateVector<'_, X, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { x, norm, cos_sin, interleaved, out } = self;
        // Wider vectors than models have today need memory on the heap.
        let (mut stack, mut heap) = ([0.0_f32; 256], Vec::new());
        let buffer = if x.len() <= stack.len() {
            &mut stack[..x.len()]
        } else {
            heap.resize(x.len(), 0.0);
            heap.as_mut_slice()
        };
        for (to, from) in buffer.iter_mut().zip(x) {
            *to = from.widen();
        }
        if let Some((weight, eps)) = norm {
            let scale = inverse_rms(buffer, eps);
            for (x, weight) in buffer.iter_mut().zip(weight) {
                *x *= scale * weight;
            }
        }
        if let Some((cosines, sines)) = cos_sin {
            let rotate = |a: &mut f32, b: &mut f32, cosine: f32, sine: f32| {
                (*a, *b) = (*a * cosine - *b * sine, *a * sine + *b * cosine);
            };
            let angles = cosines.iter().zip(sines);
            if interleaved {
                for (pair, (cosine, sine)) in buffer.as_chunks_mut::<2>().0.iter_mut().zip(angles) {
                    let [a, b] = pair;
                    rotate(a, b, *cosine, *sine);
                }
            } else {
                let (first, second) = buffer.split_at_mut(cosines.len());
                for ((a, b), (cosine, sine)) in first.iter_mut().zip(second).zip(angles) {
                    rotate(a, b, *cosine, *sine);
                }
            }
        }
        for (to, from) in out.iter_mut().zip(&*buffer) {
            *to = O::round(*from);
        }
    }
}
