//! Gated linear units: the activation between the two halves of a feed-forward block.

use crate::{
    element::Element,
    error::{Error, Result},
    kernels::Kernels,
    kv::Queries,
    operand::{Floats, FloatsMut, length, product, with_slice},
    shared_slice::SharedSlice,
    simd::{Kernel, Simd},
};

/// The gated linear units that models use. σ is the logistic function.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Glu {
    /// SwiGLU: gate · σ(gate) · up
    Silu,
    /// GeGLU: GELU(gate) · up, with the error function.
    Gelu,
    /// GeGLU: GELU(gate) · up, with the tanh approximation of GELU.
    GeluTanh,
    /// gate · σ(alpha · gate) · (up + 1), as in gpt-oss. `up` is clamped to ±limit, and `gate` from above.
    Clamped {
        /// The factor of the gate in σ.
        alpha: f32,
        /// The limit.
        limit: f32,
    },
    /// σ(gate) · up
    Sigmoid,
    /// gate · up
    Product,
}

/// The two halves, `[rows, size]` each, in a larger memory.
#[derive(Debug, Clone, Copy)]
pub struct GluInput<'a> {
    /// The memory from the first gate on.
    pub gates: Floats<'a>,
    /// The memory from the first element of the other half on.
    pub ups: Floats<'a>,
    /// Elements from one row to the next, in both halves.
    pub row_stride: usize,
    /// Elements from one element of a row to the next, in both halves.
    pub step: usize,
}

impl Kernels {
    /// The gated linear unit of two halves → `out` `[rows, size]`.
    ///
    /// # Errors
    /// Operands whose sizes do not match.
    pub fn glu(&self, x: &GluInput<'_>, glu: Glu, size: usize, out: FloatsMut<'_>) -> Result<()> {
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
            let out = SharedSlice::new(out);
            self.for_each_row(rows, size, &|row| {
                // SAFETY: each row belongs to one task.
                let out = unsafe { out.part(row * size, size) };
                self.isa.run(GluRow { gates: &gates[row * stride..], ups: &ups[row * stride..], step, glu, out });
            });
        })));
        Ok(())
    }

    /// Heads `x` `[rows, tokens, heads, head_dim]`, each times σ of its gates → `out`, of the same sizes.
    ///
    /// # Errors
    /// Operands whose sizes do not match.
    pub fn gate_heads(
        &self,
        gates: &Queries<'_>,
        [rows, heads, head_dim]: [usize; 3],
        x: Floats<'_>,
        out: FloatsMut<'_>,
    ) -> Result<()> {
        let tokens = gates.tokens;
        length("out", out.len(), product("out", &[rows, tokens, heads, head_dim])?)?;
        length("x", x.len(), out.len())?;
        if out.is_empty() {
            return Ok(());
        }
        gates.check("gates", [rows, heads, head_dim])?;
        with_slice!(gates.first.data, Floats, data => with_slice!(x, Floats, x => with_slice!(out, FloatsMut, out => {
            let out = SharedSlice::new(out);
            self.for_each_row(rows * tokens * heads, head_dim, &|index| {
                let start = gates.start(index / heads / tokens, index % heads, index / heads % tokens);
                let ups = &x[index * head_dim..][..head_dim];
                // SAFETY: each vector belongs to one task.
                let out = unsafe { out.part(index * head_dim, head_dim) };
                self.isa.run(GluRow { gates: &data[start..], ups, step: 1, glu: Glu::Sigmoid, out });
            });
        })));
        Ok(())
    }
}

struct GluRow<'a, G, U, O> {
    gates: &'a [G],
    ups: &'a [U],
    step: usize,
    glu: Glu,
    out: &'a mut [O],
}

impl<G: Element, U: Element, O: Element> Kernel for GluRow<'_, G, U, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        match self.glu {
            Glu::Silu => self.each(|gate, up| gate * sigmoid(gate) * up),
            Glu::Gelu => self.each(|gate, up| gelu(gate) * up),
            // (1 + tanh(z)) / 2 is σ(2z).
            Glu::GeluTanh => self.each(|gate, up| {
                let double = 2.0 * 0.797_884_6;
                gate * sigmoid(double * gate * (1.0 + 0.044_715 * gate * gate)) * up
            }),
            Glu::Clamped { alpha, limit } => self.each(|gate, up| {
                let gate = gate.min(limit);
                gate * sigmoid(alpha * gate) * (up.clamp(-limit, limit) + 1.0)
            }),
            Glu::Sigmoid => self.each(|gate, up| sigmoid(gate) * up),
            Glu::Product => self.each(|gate, up| gate * up),
        }
    }
}

impl<G: Element, U: Element, O: Element> GluRow<'_, G, U, O> {
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

#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// eˣ within two units in the last place, without branches, so that the compiler vectorises loops over it.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // The range with normal results. Adding 1.5 · 2²³ rounds to an integer.
    let x = x.clamp(-87.0, 88.0);
    const ROUND: f32 = 12_582_912.0;
    let power = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    // ln 2 in two parts. The first has few bits, so that its product is exact.
    let rest = (x - power * 0.693_359_4) + power * 2.121_944_4e-4;
    // A minimax polynomial (Cephes).
    let mut series = 1.987_569_1e-4_f32;
    for term in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        series = series * rest + term;
    }
    let series = series * rest * rest + rest + 1.0;
    series * f32::from_bits(((power as i32 + 127) << 23) as u32)
}

/// x · Φ(x)
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// The error function within 4e-7, without branches: beyond ±4 it is ±1 in single precision, and within, a quotient of polynomials
/// (the minimax approximation that Eigen and XLA use).
#[inline(always)]
fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let square = x * x;
    let mut above = -2.726_142_4e-10_f32;
    for term in
        [2.770_681_4e-8, -2.101_024e-6, -5.692_506_4e-5, -7.349_906_3e-4, -2.954_6e-3, -1.609_603_4e-2]
    {
        above = above * square + term;
    }
    let mut below = -1.456_607_2e-5_f32;
    for term in [-2.133_740_5e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2] {
        below = below * square + term;
    }
    x * above / below
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_that_of_the_standard_library() {
        for step in -8700..8800 {
            let x = step as f32 / 100.0 + 0.003;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours / exact - 1.0).abs() < 2.5e-7, "{x}: {ours} {exact}");
        }
    }

    /// Its Taylor series, in double precision.
    fn exact(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn erf_is_that_of_its_series() {
        for step in -4000..=4000 {
            let x = step as f32 / 1000.0;
            let (ours, exact) = (f64::from(erf(x)), exact(f64::from(x)));
            assert!((ours - exact).abs() < 4e-7, "{x}: {ours} {exact}");
        }
        assert_eq!((erf(9.0), erf(-9.0)), (erf(4.0), erf(-4.0)));
    }
}
