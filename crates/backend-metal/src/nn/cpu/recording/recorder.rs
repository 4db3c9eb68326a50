//! What is recorded so far, and the operation that it becomes.

use std::{ops::Range, rc::Rc};

use cpu_kernels::{Floats, FloatsMut};
use mlx_rs::{
    Array, Dtype,
    error::{Exception, Result},
};

use super::{
    super::{
        super::{exec::ExecMode, forward_pass::ForwardPass},
        kernel::{KernelResult, promoted},
    },
    call::{Call, Context, Recorded, Sum, Unrecorded, Value, require},
    run::Plan,
};
use crate::mlx::primitive::{Input, Output, Shape, primitive_of};

/// Rows and tokens of each that are recorded at most: decode steps, and drafts that are verified. The time between kernels is nothing beside
/// that of larger passes, and a prompt's layers are computed some at a time, so that it can be given up.
const MAX_SIZES: [usize; 2] = [32, 8];

/// What a pass computes, so far.
pub(crate) struct Recording<'p, 'a> {
    /// `None`: nothing is to be computed, but to find out whether it could be.
    pub(super) pass: Option<&'p mut ForwardPass<'a>>,
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
    /// What is computed besides the last value.
    pub(super) outputs: Vec<Besides>,
    /// Layers whose states are among those, and where.
    pub(super) states: Vec<(usize, Range<usize>)>,
}

/// What an operation computes besides its last value.
pub(super) struct Besides {
    pub(super) sizes: Vec<i32>,
    pub(super) dtype: Dtype,
    /// The input that it is an updated copy of.
    pub(super) donor: Option<usize>,
}

impl<'p, 'a> Recording<'p, 'a> {
    /// A recording of this pass over the embeddings `[B, T, hidden]`, which are its first value. Without a pass nothing is computed:
    /// blocks only say whether they could be recorded.
    pub(in crate::nn) fn new(x: &Array, pass: Option<&'p mut ForwardPass<'a>>) -> Recorded<(Self, Value)> {
        let &[rows, tokens, hidden] = x.shape() else {
            return Err(Unrecorded::Now("embeddings of another shape"));
        };
        let (sizes, dtype) = ([rows as usize, tokens as usize], promoted([x.dtype()]));
        if ExecMode::current() != ExecMode::CpuKernels || sizes[0] > MAX_SIZES[0] || sizes[1] > MAX_SIZES[1] {
            return Err(Unrecorded::Now("passes of so many tokens"));
        }
        let dtype = dtype.ok_or(Unrecorded::Never("embeddings of another type"))?;
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
            outputs: Vec::new(),
            states: Vec::new(),
        };
        let x = recording.value(hidden as usize);
        Ok((recording, x))
    }

    /// Whether what is computed of these types has the recording's.
    pub(super) fn keeps_type(&self, dtypes: impl IntoIterator<Item = Dtype>) -> Recorded<()> {
        let dtype = promoted([self.dtype].into_iter().chain(dtypes));
        require(dtype == Some(self.dtype), "weights of another type")
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
        let mut shapes = vec![
            Shape { sizes: &sizes, dtype: self.dtype, donor: None },
            Shape { sizes: &[1], dtype: Dtype::Uint8, donor: None },
        ];
        for Besides { sizes, dtype, donor } in &self.outputs {
            shapes.push(Shape { sizes, dtype: *dtype, donor: *donor });
        }
        let run = move |inputs: &[Input<'_>], outputs: &mut [Output<'_>]| plan.run(inputs, outputs);
        let mut outputs = primitive_of(c"forward_pass", &arrays, &shapes, run)?;
        let states = outputs.split_off(2);
        let (Some(written), Some(output), Some(pass)) = (outputs.pop(), outputs.pop(), self.pass) else {
            return Err(Exception::custom("a recording of no pass"));
        };
        let written = Rc::new(written);
        self.layers.iter().for_each(|layer| pass.mark_written(*layer, &written));
        self.states.into_iter().for_each(|(layer, of)| pass.set_states(layer, states[of].to_vec()));
        Ok(output)
    }
}
