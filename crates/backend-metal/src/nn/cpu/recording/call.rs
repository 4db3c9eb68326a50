//! Calls of kernels, and the values that they read and write.

use std::ops::Range;

use cpu_kernels::{Floats, FloatsMut, Kernels};

use super::super::kernel::KernelResult;
use crate::mlx::primitive::Input;

/// Vectors `[rows · tokens, width]` of the recording's type, which one of its kernels computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Value {
    pub(super) index: usize,
    pub(super) width: usize,
}

/// What a call is given.
pub(super) struct Context<'a> {
    pub(super) kernels: Kernels,
    pub(super) inputs: &'a [Input<'a>],
}

pub(super) type Run = dyn Fn(&Context<'_>, Vec<Floats<'_>>, Vec<FloatsMut<'_>>) -> KernelResult + Send;

/// A call of kernels: it reads values and writes others.
pub(super) struct Call {
    pub(super) reads: Vec<Value>,
    pub(super) writes: Vec<Value>,
    pub(super) run: Box<Run>,
}

/// A sum x + y, where y may be normalised before: the last call.
#[derive(Debug, Clone)]
pub(super) struct Sum {
    pub(super) terms: [Value; 2],
    /// Where the weights of the norm are, and its epsilon.
    pub(super) before: Option<NormInput>,
    pub(super) sum: Value,
}

/// Where the weights of a norm are among the inputs, and its epsilon.
pub(super) type NormInput = (Range<usize>, f32);
