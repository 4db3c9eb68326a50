//! The index of the largest element.

use crate::{
    element::Element,
    error::Result,
    kernels::Kernels,
    operand::{Floats, length, with_slice},
    shared_slice::SharedSlice,
    simd::{Kernel, Simd},
};

/// Maxima that are computed side by side, so that the compiler keeps them in vectors.
const LANES: usize = 16;

impl Kernels {
    /// The index of the largest element of each row of `x` `[rows, size]`, the first of equal ones → `out` `[rows]`. NaN is
    /// larger than any number.
    ///
    /// # Errors
    /// Operands whose sizes do not match.
    pub fn argmax(&self, x: Floats<'_>, out: &mut [u32]) -> Result<()> {
        let size = x.len().checked_div(out.len()).unwrap_or(0);
        length("x", x.len(), out.len() * size)?;
        let (rows, out) = (out.len(), SharedSlice::new(out));
        with_slice!(x, Floats, x => self.for_each_row(rows, size, &|row| {
            // SAFETY: each row belongs to one task.
            let out = unsafe { out.part(row, 1) };
            out[0] = self.isa.run(ArgmaxRow(&x[row * size..][..size]));
        }));
        Ok(())
    }
}

struct ArgmaxRow<'a, E>(&'a [E]);

impl<E: Element> Kernel for ArgmaxRow<'_, E> {
    type Output = u32;

    #[inline(always)]
    fn run<S: Simd>(self) -> u32 {
        // First finds the part that holds it, several elements at a time, then the element. 0 · x is summed, too: it is NaN if x is
        // not finite.
        const PART: usize = 64 * LANES;
        let (mut part, mut max) = (0, f32::NEG_INFINITY);
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
            let part_max = lanes.into_iter().chain(rest).fold(f32::NEG_INFINITY, f32::max);
            if part_max > max {
                (part, max) = (index, part_max);
            }
        }
        if zeros.iter().any(|zero| zero.is_nan())
            && let Some(place) = self.0.iter().position(|x| x.widen().is_nan())
        {
            return place as u32;
        }
        let elements = self.0.get(part * PART..).unwrap_or_default();
        (part * PART + elements.iter().position(|x| x.widen() == max).unwrap_or(0)) as u32
    }
}
