//! What is recorded so far, and the operation that it becomes.

use std::{ops::Range, rc::Rc};

use cpu_kernels::{Floats, FloatsMut};
use mlx_rs::{Array, Dtype, error::Result};

use super::{
    super::{
        super::{exec::ExecMode, forward_pass::ForwardPass},
        kernel::{KernelResult, promoted},
    },
    call::{Call, Context, Sum, Value},
    run::Plan,
};
use crate::mlx::primitive::{Shape, primitive};

/// Rows and tokens of each that are recorded at most: decode steps, and drafts that are verified. The time between kernels is nothing beside
/// that of larger passes, and a prompt's layers are computed some at a time, so that it can be given up.
const MAX_SIZES: [usize; 2] = [32, 8];

/// What a pass computes, so far.
pub(crate) struct Recording<'p, 'a> {
    pub(super) pass: &'p mut ForwardPass<'a>,
    pub(super) sizes: [usize; 2],
    pub(super) dtype: Dtype,
    /// The inputs of the operation: embeddings, weights, caches.
    pub(super) arrays: Vec<Array>,
    /// Arrays that are computed before the operation, because it writes what they read or wrote.
    pub(super) after: Vec<Rc<Array>>,
    pub(super) calls: Vec<Call>,
    /// Of each value.
    pub(super) widths: Vec<usize>,
    /// Layers whose keys and values the operation writes.
    pub(super) layers: Vec<usize>,
    /// The sum that the last call computes, if it computes one and nothing else.
    pub(super) sum: Option<Sum>,
}

impl<'p, 'a> Recording<'p, 'a> {
    /// A recording of this pass over the embeddings `[B, T, hidden]`, which are its first value.
    pub(in crate::nn) fn new(x: &Array, pass: &'p mut ForwardPass<'a>) -> Option<(Self, Value)> {
        let &[rows, tokens, hidden] = x.shape() else { return None };
        let (sizes, dtype) = ([rows as usize, tokens as usize], promoted([x.dtype()])?);
        if ExecMode::current() != ExecMode::CpuKernels || sizes[0] > MAX_SIZES[0] || sizes[1] > MAX_SIZES[1] {
            return None;
        }
        let mut recording = Self {
            pass,
            sizes,
            dtype,
            arrays: vec![x.clone()],
            after: Vec::new(),
            calls: Vec::new(),
            widths: Vec::new(),
            layers: Vec::new(),
            sum: None,
        };
        let x = recording.value(hidden as usize);
        Some((recording, x))
    }

    pub(super) fn value(&mut self, width: usize) -> Value {
        self.widths.push(width);
        Value { index: self.widths.len() - 1, width }
    }

    /// Where these arrays are among the inputs.
    pub(super) fn inputs<'w>(&mut self, arrays: impl IntoIterator<Item = &'w Array>) -> Range<usize> {
        let start = self.arrays.len();
        self.arrays.extend(arrays.into_iter().cloned());
        start..self.arrays.len()
    }

    /// Adds a call that computes values of these widths; what it needs for itself are values, too.
    pub(super) fn call<const R: usize, const N: usize>(
        &mut self,
        reads: [Value; R],
        widths: [usize; N],
        run: impl Fn(&Context<'_>, [Floats<'_>; R], [FloatsMut<'_>; N]) -> KernelResult + Send + 'static,
    ) -> [Value; N] {
        let writes = widths.map(|width| self.value(width));
        self.call_into(reads, writes, run);
        writes
    }

    /// The same with values that are there.
    pub(super) fn call_into<const R: usize, const N: usize>(
        &mut self,
        reads: [Value; R],
        writes: [Value; N],
        run: impl Fn(&Context<'_>, [Floats<'_>; R], [FloatsMut<'_>; N]) -> KernelResult + Send + 'static,
    ) {
        let run = move |context: &Context<'_>, x: Vec<Floats<'_>>, out: Vec<FloatsMut<'_>>| {
            let (Ok(x), Ok(out)) = (x.try_into(), out.try_into()) else {
                return Err("other values than were recorded".into());
            };
            run(context, x, out)
        };
        self.calls.push(Call { reads: reads.to_vec(), writes: writes.to_vec(), run: Box::new(run) });
        self.sum = None;
    }

    /// The operation: `x` → `[B, T, width]`. Keys and values are written with it.
    pub(in crate::nn) fn finish(self, x: Value) -> Result<Array> {
        let [rows, tokens] = self.sizes;
        let plan = Plan::new(self.calls, x, &self.widths, rows * tokens);
        let arrays: Vec<_> = self.arrays.iter().chain(self.after.iter().map(|after| &**after)).collect();
        let sizes = [rows, tokens, x.width].map(|size| size as i32);
        let shapes = [
            Shape { sizes: &sizes, dtype: self.dtype, donor: None },
            Shape { sizes: &[1], dtype: Dtype::Uint8, donor: None },
        ];
        let [output, written] =
            primitive(c"forward_pass", &arrays, shapes, move |inputs, outputs| plan.run(inputs, outputs))?;
        let written = Rc::new(written);
        self.layers.iter().for_each(|layer| self.pass.mark_written(*layer, &written));
        Ok(output)
    }
}
