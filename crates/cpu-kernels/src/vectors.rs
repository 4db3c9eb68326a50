//! What is done to vectors between products: norms, rotations by position, gates.

use crate::{
    Floats, FloatsMut, Kernels, Queries, Result,
    element::{Element, Shared},
    error::Error,
    isa::Kernel,
    operand::{length, product, with_slice},
    simd::Simd,
};

/// Elements that one task is given at least: fewer take less time than to share them.
const TASK: usize = 1 << 14;

/// Sums that are taken side by side, which a compiler can keep in vectors.
const LANES: usize = 16;

/// What stands between the two halves of a feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Glu {
    /// gate · σ(gate) · up
    Silu,
    /// gate · Φ(gate) · up, with tanh in place of the error function.
    GeluTanh,
    /// gate · σ(alpha · gate) · (up + 1), of halves held within ±limit; the gate from above only.
    Clamped {
        /// The steepness of the sigmoid.
        alpha: f32,
        /// The limit.
        limit: f32,
    },
}

/// Where the gates `[rows, size]` and what they let through lie.
#[derive(Debug, Clone, Copy)]
pub struct GluInput<'a> {
    /// From the first gate on.
    pub gates: Floats<'a>,
    /// From the first of the others on.
    pub ups: Floats<'a>,
    /// Elements from a row to the next, in both.
    pub row_stride: usize,
    /// Elements from one to the next within a row, in both.
    pub step: usize,
}

/// Root mean square normalisation.
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm<'a> {
    /// What the elements of a vector are multiplied by.
    pub weight: Floats<'a>,
    /// What is added to the mean of their squares.
    pub eps: f32,
}

/// Rotations by position: elements `i` and `i + pairs` of a vector are the two sides of an angle.
#[derive(Debug, Clone, Copy)]
pub struct RotaryTable<'a> {
    /// Pairs that are rotated; what is behind `2 · pairs` stays as it is.
    pub pairs: usize,
    /// The cosines and behind them the sines of each token, `[rows, tokens, 2, pairs]`.
    pub cos_sin: &'a [f32],
}

impl Kernels {
    /// Normalises the rows of `x` `[rows, size]`, where `norm` has `size` weights → `out`, the same.
    ///
    /// # Errors
    /// Operands whose sizes do not go together.
    pub fn rms_norm(&self, x: Floats<'_>, norm: &RmsNorm<'_>, out: FloatsMut<'_>) -> Result<()> {
        let size = norm.weight.len();
        let rows = x.len().checked_div(size).unwrap_or(0);
        length("x", x.len(), rows * size)?;
        length("out", out.len(), x.len())?;
        let weight = widened(norm.weight);
        with_slice!(x, Floats, x => with_slice!(out, FloatsMut, out => {
            let out = Shared::new(out);
            self.in_parts(rows, size, &|row| {
                // SAFETY: each row is given to one task.
                let out = unsafe { out.part(row * size, size) };
                self.isa.run(NormRow { x: &x[row * size..][..size], weight: &weight, eps: norm.eps, out });
            });
        }));
        Ok(())
    }

    /// `x + y`, where `y` may be normalised before → `sum`, and that normalised, where it is wanted → the other. All are
    /// `[rows, size]` of one type, and what is normalised before is rounded to it.
    ///
    /// # Errors
    /// Operands whose sizes or types do not go together.
    pub fn add_rms_norm(
        &self,
        [x, y]: [Floats<'_>; 2],
        size: usize,
        before: Option<&RmsNorm<'_>>,
        sum: FloatsMut<'_>,
        after: Option<(&RmsNorm<'_>, FloatsMut<'_>)>,
    ) -> Result<()> {
        let rows = x.len().checked_div(size).unwrap_or(0);
        length("x", x.len(), rows * size)?;
        for (operand, found) in [("y", y.len()), ("sum", sum.len())] {
            length(operand, found, x.len())?;
        }
        if let Some((_, out)) = &after {
            length("out", out.len(), x.len())?;
        }
        for norm in before.into_iter().chain(after.as_ref().map(|(norm, _)| *norm)) {
            length("weight", norm.weight.len(), size)?;
        }
        let weighted = |norm: &RmsNorm<'_>| (widened(norm.weight), norm.eps);
        let (before, (after, out)) =
            (before.map(weighted), after.map(|(norm, out)| (weighted(norm), out)).unzip());
        let norms = [before, after];
        macro_rules! of_one_type {
            ($($kind:ident),*) => {
                match (x, y, sum, out) {
                    $((Floats::$kind(x), Floats::$kind(y), FloatsMut::$kind(sum), None) => {
                        self.add_as([x, y], size, &norms, sum, None);
                    }
                    (Floats::$kind(x), Floats::$kind(y), FloatsMut::$kind(sum), Some(FloatsMut::$kind(out))) => {
                        self.add_as([x, y], size, &norms, sum, Some(out));
                    })*
                    _ => return Err(Error::Invalid { name: "the number of types", found: 2, expected: "1".into() }),
                }
            };
        }
        of_one_type!(F32, F16, Bf16);
        Ok(())
    }

    fn add_as<E: Element>(
        &self,
        [x, y]: [&[E]; 2],
        size: usize,
        [before, after]: &[Option<(Vec<f32>, f32)>; 2],
        sum: &mut [E],
        out: Option<&mut [E]>,
    ) {
        let rows = x.len() / size.max(1);
        let (sum, out) = (Shared::new(sum), out.map(Shared::new));
        self.in_parts(rows, size, &|row| {
            // SAFETY: each row is given to one task.
            let (sum, out) =
                unsafe { (sum.part(row * size, size), out.as_ref().map(|out| out.part(row * size, size))) };
            let after = after.as_ref().zip(out);
            self.isa.run(AddRow {
                x: &x[row * size..][..size],
                y: &y[row * size..][..size],
                before: before.as_ref().map(|(weight, eps)| (weight.as_slice(), *eps)),
                sum,
                after: after.map(|((weight, eps), out)| (weight.as_slice(), *eps, out)),
            });
        });
    }

    /// The index of the largest element of each row of `x` `[rows, size]`, the first where some are alike → `out` `[rows]`. NaN
    /// is larger than any number.
    ///
    /// # Errors
    /// Operands whose sizes do not go together.
    pub fn argmax(&self, x: Floats<'_>, out: &mut [u32]) -> Result<()> {
        let size = x.len().checked_div(out.len()).unwrap_or(0);
        length("x", x.len(), out.len() * size)?;
        let (rows, out) = (out.len(), Shared::new(out));
        with_slice!(x, Floats, x => self.in_parts(rows, size, &|row| {
            // SAFETY: each row is given to one task.
            let out = unsafe { out.part(row, 1) };
            out[0] = self.isa.run(Largest(&x[row * size..][..size]));
        }));
        Ok(())
    }

    /// Normalises vectors, rotates them, and lays them out: `x` of `rows` rows, `heads` vectors of `head_dim` for each token →
    /// `out` `[rows, heads, tokens, head_dim]`.
    ///
    /// # Errors
    /// Operands whose sizes do not go together.
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
        let last = [(rows, x.row_stride), (heads, x.first.head_stride), (tokens, x.first.token_stride)]
            .iter()
            .try_fold(head_dim, |end, (count, stride)| end.checked_add((count - 1).checked_mul(*stride)?))
            .unwrap_or(usize::MAX);
        if last > x.first.data.len() {
            return Err(Error::Length { operand: "x", found: x.first.data.len(), expected: last });
        }
        if let Some(norm) = norm {
            length("weight", norm.weight.len(), head_dim)?;
        }
        if let Some(RotaryTable { pairs, cos_sin }) = angles {
            if pairs.checked_mul(2).is_none_or(|width| width > head_dim) {
                let expected = format!("at most half of {head_dim}");
                return Err(Error::Invalid { name: "the number of pairs", found: *pairs, expected });
            }
            length("cos_sin", cos_sin.len(), product("cos_sin", &[rows, tokens, 2, *pairs])?)?;
        }
        let weight = norm.map(|norm| (widened(norm.weight), norm.eps));
        with_slice!(x.first.data, Floats, data => with_slice!(out, FloatsMut, out => {
            let out = Shared::new(out);
            self.in_parts(rows * heads * tokens, head_dim, &|index| {
                let (row, head, token) = (index / tokens / heads, index / tokens % heads, index % tokens);
                let start = row * x.row_stride + head * x.first.head_stride + token * x.first.token_stride;
                let cos_sin = angles.map(|RotaryTable { pairs, cos_sin }| {
                    cos_sin[(row * tokens + token) * 2 * pairs..][..2 * pairs].split_at(*pairs)
                });
                self.isa.run(RotateOne {
                    x: &data[start..][..head_dim],
                    norm: weight.as_ref().map(|(weight, eps)| (weight.as_slice(), *eps)),
                    cos_sin,
                    // SAFETY: each vector is given to one task.
                    out: unsafe { out.part(index * head_dim, head_dim) },
                });
            });
        }));
        Ok(())
    }

    /// What the gates let through: `x` of `out`'s rows → `out` `[rows, size]`.
    ///
    /// # Errors
    /// Operands whose sizes do not go together.
    pub fn glu(&self, x: &GluInput<'_>, gating: Glu, size: usize, out: FloatsMut<'_>) -> Result<()> {
        let rows = out.len().checked_div(size).unwrap_or(0);
        length("out", out.len(), rows * size)?;
        if out.is_empty() {
            return Ok(());
        }
        let last = product("gates", &[rows - 1, x.row_stride])?
            .saturating_add(product("gates", &[size - 1, x.step])?)
            .saturating_add(1);
        for (operand, found) in [("gates", x.gates.len()), ("ups", x.ups.len())] {
            if last > found {
                return Err(Error::Length { operand, found, expected: last });
            }
        }
        let (stride, step) = (x.row_stride, x.step.max(1));
        with_slice!(x.gates, Floats, gates => with_slice!(x.ups, Floats, ups => with_slice!(out, FloatsMut, out => {
            let out = Shared::new(out);
            self.in_parts(rows, size, &|row| {
                // SAFETY: each row is given to one task.
                let out = unsafe { out.part(row * size, size) };
                self.isa.run(GateRow { gates: &gates[row * stride..], ups: &ups[row * stride..], step, gating, out });
            });
        })));
        Ok(())
    }

    /// Runs `work` for each of `count` vectors of `size` elements, shared among the threads where they are many.
    fn in_parts(&self, count: usize, size: usize, work: &(dyn Fn(usize) + Sync)) {
        let each = (TASK / size.max(1)).max(1);
        self.pool
            .run(count.div_ceil(each), &|task| (task * each..count.min((task + 1) * each)).for_each(work));
    }
}

struct NormRow<'a, X, O> {
    x: &'a [X],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [O],
}

impl<X: Element, O: Element> Kernel for NormRow<'_, X, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let scale = inverse_root(self.x, self.eps);
        for ((out, x), weight) in self.out.iter_mut().zip(self.x).zip(self.weight) {
            *out = O::round(x.widen() * scale * weight);
        }
    }
}

struct AddRow<'a, E> {
    x: &'a [E],
    y: &'a [E],
    before: Option<(&'a [f32], f32)>,
    sum: &'a mut [E],
    after: Option<(&'a [f32], f32, &'a mut [E])>,
}

impl<E: Element> Kernel for AddRow<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { x, y, before, sum, after } = self;
        let terms = sum.iter_mut().zip(x).zip(y);
        if let Some((weight, eps)) = before {
            let scale = inverse_root(y, eps);
            for (((sum, x), y), weight) in terms.zip(weight) {
                *sum = E::round(x.widen() + E::round(y.widen() * scale * weight).widen());
            }
        } else {
            for ((sum, x), y) in terms {
                *sum = E::round(x.widen() + y.widen());
            }
        }
        if let Some((weight, eps, out)) = after {
            NormRow { x: sum, weight, eps, out }.run::<S>();
        }
    }
}

/// The index of the first of the largest elements.
struct Largest<'a, E>(&'a [E]);

impl<E: Element> Kernel for Largest<'_, E> {
    type Output = u32;

    #[inline(always)]
    fn run<S: Simd>(self) -> u32 {
        // First the part that has it, many at a time, then the element. Zeros are summed, too: 0 · x is NaN where x is no finite number.
        const PART: usize = 64 * LANES;
        let (mut part, mut largest) = (0, f32::NEG_INFINITY);
        let mut zeros = [0.0; LANES];
        for (index, elements) in self.0.chunks(PART).enumerate() {
            let mut lanes = [f32::NEG_INFINITY; LANES];
            let chunks = elements.chunks_exact(LANES);
            let rest = chunks.remainder().iter().map(|x| x.widen());
            zeros[0] += rest.clone().map(|x| 0.0 * x).sum::<f32>();
            for chunk in chunks {
                for ((lane, zero), x) in lanes.iter_mut().zip(&mut zeros).zip(chunk) {
                    let x = x.widen();
                    *lane = if x > *lane { x } else { *lane };
                    *zero += 0.0 * x;
                }
            }
            let here = lanes.into_iter().chain(rest).fold(f32::NEG_INFINITY, f32::max);
            if here > largest {
                (part, largest) = (index, here);
            }
        }
        if zeros.iter().any(|zero| zero.is_nan())
            && let Some(place) = self.0.iter().position(|x| x.widen().is_nan())
        {
            return place as u32;
        }
        let elements = self.0.get(part * PART..).unwrap_or_default();
        (part * PART + elements.iter().position(|x| x.widen() == largest).unwrap_or(0)) as u32
    }
}

struct RotateOne<'a, X, O> {
    x: &'a [X],
    norm: Option<(&'a [f32], f32)>,
    cos_sin: Option<(&'a [f32], &'a [f32])>,
    out: &'a mut [O],
}

impl<X: Element, O: Element> Kernel for RotateOne<'_, X, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { x, norm, cos_sin, out } = self;
        // Vectors of other widths than models have today are laid out in memory.
        let (mut near, mut far) = ([0.0_f32; 256], Vec::new());
        let buffer = if x.len() <= near.len() {
            &mut near[..x.len()]
        } else {
            far.resize(x.len(), 0.0);
            far.as_mut_slice()
        };
        for (to, from) in buffer.iter_mut().zip(x) {
            *to = from.widen();
        }
        if let Some((weight, eps)) = norm {
            let scale = inverse_root(buffer, eps);
            for (x, weight) in buffer.iter_mut().zip(weight) {
                *x *= scale * weight;
            }
        }
        if let Some((cosines, sines)) = cos_sin {
            let (first, second) = buffer.split_at_mut(cosines.len());
            for (((a, b), cosine), sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
                (*a, *b) = (*a * cosine - *b * sine, *a * sine + *b * cosine);
            }
        }
        for (to, from) in out.iter_mut().zip(&*buffer) {
            *to = O::round(*from);
        }
    }
}

struct GateRow<'a, G, U, O> {
    gates: &'a [G],
    ups: &'a [U],
    step: usize,
    gating: Glu,
    out: &'a mut [O],
}

impl<G: Element, U: Element, O: Element> Kernel for GateRow<'_, G, U, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        match self.gating {
            Glu::Silu => self.each(|gate, up| gate * sigmoid(gate) * up),
            // (1 + tanh(z)) / 2 is σ(2z).
            Glu::GeluTanh => self.each(|gate, up| {
                let double = 2.0 * 0.797_884_6;
                gate * sigmoid(double * gate * (1.0 + 0.044_715 * gate * gate)) * up
            }),
            Glu::Clamped { alpha, limit } => self.each(|gate, up| {
                let gate = gate.min(limit);
                gate * sigmoid(alpha * gate) * (up.clamp(-limit, limit) + 1.0)
            }),
        }
    }
}

impl<G: Element, U: Element, O: Element> GateRow<'_, G, U, O> {
    #[inline(always)]
    fn each(self, of: impl Fn(f32, f32) -> f32) {
        let Self { gates, ups, step, out, .. } = self;
        if step == 1 {
            for ((out, gate), up) in out.iter_mut().zip(gates).zip(ups) {
                *out = O::round(of(gate.widen(), up.widen()));
            }
        } else {
            for ((out, gate), up) in
                out.iter_mut().zip(gates.iter().step_by(step)).zip(ups.iter().step_by(step))
            {
                *out = O::round(of(gate.widen(), up.widen()));
            }
        }
    }
}

/// One over the root of the mean of squares.
#[inline(always)]
fn inverse_root<X: Element>(x: &[X], eps: f32) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|x| x.widen() * x.widen()).sum();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x.widen() * x.widen();
        }
    }
    1.0 / ((sums.iter().sum::<f32>() + rest) / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// eˣ to two units in the last place, in steps that a compiler can do for many at once.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Where the result still is a normal number; adding 1.5 · 2²³ rounds to a whole number.
    let x = x.clamp(-87.0, 88.0);
    const ROUND: f32 = 12_582_912.0;
    let power = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    // ln 2 in two parts: the first has few bits, so that its product is exact.
    let rest = (x - power * 0.693_359_4) + power * 2.121_944_4e-4;
    // The series, its last terms bent to the interval (Cephes).
    let mut series = 1.987_569_1e-4_f32;
    for term in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        series = series * rest + term;
    }
    let series = series * rest * rest + rest + 1.0;
    series * f32::from_bits(((power as i32 + 127) << 23) as u32)
}

fn widened(x: Floats<'_>) -> Vec<f32> {
    with_slice!(x, Floats, x => x.iter().map(|x| x.widen()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_that_of_the_library() {
        for step in -8700..8800 {
            let x = step as f32 / 100.0 + 0.003;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours / exact - 1.0).abs() < 2.5e-7, "{x}: {ours} {exact}");
        }
    }
}
