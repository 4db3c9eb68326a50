//! The norm of what a recurrent layer computes, and its gate.

use super::sequences::{Block, Sequences};
use crate::{
    element::{Element, to_f32_vec},
    error::{Error, Result},
    glu::sigmoid,
    kernels::Kernels,
    norm::{RmsNorm, inverse_rms},
    operand::{Floats, FloatsMut, with_slice},
    shared_slice::SharedSlice,
    simd::{Kernel, Simd},
};

/// A gate, x · g · σ(g), with a root mean square norm before or after it.
#[derive(Debug, Clone, Copy)]
pub struct GatedNorm<'a> {
    /// The norm, if there is one. If it has fewer weights than a vector has elements, they are used again.
    pub norm: Option<RmsNorm<'a>>,
    /// Elements that are normalised together.
    pub group: usize,
    /// Whether the norm is that of what was gated.
    pub gate_first: bool,
}

impl GatedNorm<'_> {
    /// Checks that vectors of so many elements can be normalised.
    pub(super) fn check(&self, width: usize) -> Result<()> {
        let Some(norm) = &self.norm else { return Ok(()) };
        let weights = norm.weight.len();
        let fits = |whole: usize, part: usize| part > 0 && whole.is_multiple_of(part);
        if !fits(width, self.group) || !fits(weights, self.group) || weights > width {
            let expected = format!("a size that divides {width} and {weights}");
            return Err(Error::Invalid { name: "group", found: self.group, expected });
        }
        Ok(())
    }
}

impl Kernels {
    /// Normalises and gates a block of vectors → its place in `out` `[rows, tokens, width]`. `x` has the block's own, and is memory
    /// to work in.
    pub(super) fn gate(
        &self,
        gated: &GatedNorm<'_>,
        gates: &Sequences<'_>,
        block: &Block,
        x: &mut [f32],
        [tokens, width]: [usize; 2],
        out: &mut FloatsMut<'_>,
    ) {
        let weight = gated.norm.map(|norm| (to_f32_vec(norm.weight), norm.eps));
        with_slice!(gates.data, Floats, all_gates => with_slice!(out, FloatsMut, out => {
            let (x, out) = (SharedSlice::new(x), SharedSlice::new(out));
            self.for_each_row(block.len(), width, &|index| {
                let [row, token] = block.place(index);
                // SAFETY: each vector belongs to one task.
                let (x, out) = unsafe { (x.part(index * width, width), out.part((row * tokens + token) * width, width)) };
                self.isa.run(Vector {
                    x,
                    gates: &all_gates[gates.at(row, token)..][..width],
                    norm: weight.as_ref().map(|(weight, eps)| (weight.as_slice(), *eps)),
                    group: gated.group,
                    gate_first: gated.gate_first,
                    out,
                });
            });
        }));
    }
}

struct Vector<'a, G, O> {
    x: &'a mut [f32],
    gates: &'a [G],
    norm: Option<(&'a [f32], f32)>,
    group: usize,
    gate_first: bool,
    out: &'a mut [O],
}

impl<G: Element, O: Element> Kernel for Vector<'_, G, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { x, gates, norm, group, gate_first, out } = self;
        let opened = |x: f32, gate: &G| x * (gate.widen() * sigmoid(gate.widen()));
        let Some((weight, eps)) = norm else {
            for ((out, x), gate) in out.iter_mut().zip(x).zip(gates) {
                *out = O::round(opened(*x, gate));
            }
            return;
        };
        if gate_first {
            for (x, gate) in x.iter_mut().zip(gates) {
                *x = opened(*x, gate);
            }
        }
        let groups = out.chunks_exact_mut(group).zip(x.chunks_exact(group)).zip(gates.chunks_exact(group));
        for (((out, x), gates), weight) in groups.zip(weight.chunks_exact(group).cycle()) {
            let scale = inverse_rms(x, eps);
            let terms = out.iter_mut().zip(x).zip(weight);
            if gate_first {
                for ((out, x), weight) in terms {
                    *out = O::round(x * scale * weight);
                }
            } else {
                for (((out, x), weight), gate) in terms.zip(gates) {
                    *out = O::round(opened(x * scale * weight, gate));
                }
            }
        }
    }
}
