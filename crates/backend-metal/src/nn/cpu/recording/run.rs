//! Running a recording.

use std::cell::RefCell;

use cpu_kernels::{Floats, FloatsMut};
use half::{bf16, f16};
use mlx_rs::Dtype;

use super::{
    super::kernel::{KernelResult, kernels},
    call::{Call, Context, Value},
};
use crate::mlx::primitive::{Element, Input, Output};

/// Calls in their order, and where their values are kept.
pub(super) struct Plan {
    calls: Vec<Call>,
    last: Value,
    vectors: usize,
    /// The buffer of each value. Values share one if the first is not read any more.
    buffers: Vec<usize>,
    /// The width of each buffer.
    widths: Vec<usize>,
}

/// Floats of one type.
trait Float: Element + Default {
    fn floats(slice: &[Self]) -> Floats<'_>;
    fn floats_mut(slice: &mut [Self]) -> FloatsMut<'_>;
}

macro_rules! float {
    ($($kind:ident of $float:ty),*) => {$(
        impl Float for $float {
            fn floats(slice: &[Self]) -> Floats<'_> {
                Floats::$kind(slice)
            }
            fn floats_mut(slice: &mut [Self]) -> FloatsMut<'_> {
                FloatsMut::$kind(slice)
            }
        }
    )*};
}

float!(F32 of f32, F16 of f16, Bf16 of bf16);

impl Plan {
    /// The plan of calls that compute `last` of these values, by their widths. The first is there before them.
    pub(super) fn new(calls: Vec<Call>, last: Value, values: &[usize], vectors: usize) -> Self {
        // The call after which a value is not needed.
        let mut last_use = vec![0; values.len()];
        for (place, call) in calls.iter().enumerate() {
            call.reads.iter().chain(&call.writes).for_each(|value| last_use[value.index] = place);
        }
        last_use[last.index] = calls.len();
        let (mut buffers, mut widths, mut free) = (vec![0; values.len()], vec![values[0]], Vec::new());
        for (place, call) in calls.iter().enumerate() {
            for value in &call.writes {
                let buffer = free.pop().unwrap_or_else(|| {
                    widths.push(0);
                    widths.len() - 1
                });
                widths[buffer] = value.width.max(widths[buffer]);
                buffers[value.index] = buffer;
            }
            let ended = call.reads.iter().chain(&call.writes).filter(|value| last_use[value.index] == place);
            let mut ended: Vec<_> = ended.map(|value| buffers[value.index]).collect();
            ended.sort_unstable();
            ended.dedup();
            free.extend(ended);
        }
        Self { calls, last, vectors, buffers, widths }
    }

    /// Computes the last value.
    pub(super) fn run(&self, inputs: &[Input<'_>], outputs: &mut [Output<'_>]) -> KernelResult {
        match outputs[0].dtype() {
            Some(Dtype::Float32) => self.run_as::<f32>(inputs, outputs),
            Some(Dtype::Float16) => self.run_as::<f16>(inputs, outputs),
            Some(Dtype::Bfloat16) => self.run_as::<bf16>(inputs, outputs),
            other => Err(format!("{other:?} where floats were expected").into()),
        }
    }

    fn run_as<T: Float>(&self, inputs: &[Input<'_>], outputs: &mut [Output<'_>]) -> KernelResult {
        // The second only says that the operation is done.
        let [output, _, others @ ..] = outputs else { return Err("two outputs were expected".into()) };
        let others = RefCell::new(others.iter_mut().map(Output::reborrow).collect());
        let context = Context { kernels: kernels()?, inputs, outputs: others };
        let mut memory: Vec<_> =
            self.widths.iter().map(|width| vec![T::default(); width * self.vectors]).collect();
        let x = inputs[0].elements::<T>()?;
        memory[self.buffers[0]].get_mut(..x.len()).ok_or("embeddings of another width")?.copy_from_slice(&x);
        for call in &self.calls {
            let buffer = |value: &Value| (self.buffers[value.index], value.width * self.vectors);
            // Nothing that a call reads is in a buffer that it writes.
            let mut written: Vec<_> =
                call.writes.iter().map(|value| std::mem::take(&mut memory[buffer(value).0])).collect();
            let reads = call.reads.iter().map(buffer).map(|(at, len)| T::floats(&memory[at][..len]));
            let writes = written.iter_mut().zip(&call.writes);
            let writes = writes.map(|(memory, value)| T::floats_mut(&mut memory[..buffer(value).1]));
            (call.run)(&context, reads.collect(), writes.collect())?;
            for (value, written) in call.writes.iter().zip(written) {
                memory[buffer(value).0] = written;
            }
        }
        let output = output.elements::<T>()?;
        let last = &memory[self.buffers[self.last.index]];
        output.copy_from_slice(last.get(..output.len()).ok_or("an output of another width")?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(reads: &[(usize, usize)], writes: &[(usize, usize)]) -> Call {
        let values =
            |of: &[(usize, usize)]| of.iter().map(|&(index, width)| Value { index, width }).collect();
        Call { reads: values(reads), writes: values(writes), run: Box::new(|_, _, _| Ok(())) }
    }

    #[test]
    fn values_share_buffers_only_one_after_the_other() {
        // A residual stream of width 4 beside branches: x, normalised, wide with a part for itself, down, sum, normalised.
        let calls = vec![
            call(&[(0, 4)], &[(1, 4)]),
            call(&[(1, 4)], &[(2, 16), (3, 8)]),
            call(&[(2, 16)], &[(4, 4)]),
            call(&[(0, 4), (4, 4)], &[(5, 4), (6, 4)]),
            call(&[(5, 4), (6, 4)], &[(7, 4)]),
        ];
        let widths = [4, 4, 16, 8, 4, 4, 4, 4];
        let plan = Plan::new(calls, Value { index: 7, width: 4 }, &widths, 1);
        let in_use = [vec![0, 1], vec![0, 1, 2, 3], vec![0, 2, 4], vec![0, 4, 5, 6], vec![5, 6, 7]];
        for values in in_use {
            let mut buffers: Vec<_> = values.iter().map(|value| plan.buffers[*value]).collect();
            buffers.sort_unstable();
            buffers.dedup();
            assert_eq!(buffers.len(), values.len(), "{values:?} of {:?}", plan.buffers);
        }
        assert!(widths.iter().zip(&plan.buffers).all(|(width, buffer)| plan.widths[*buffer] >= *width));
        assert!(plan.widths.len() < widths.len(), "{:?}", plan.buffers);
    }
}
