//! Calls of kernels, and the values that they read and write.

use std::{cell::RefCell, fmt, ops::Range};

use cpu_kernels::{Floats, FloatsMut, Kernels};
use mlx_rs::error::Exception;

use super::super::{kernel::KernelResult, operand::tail};
use crate::mlx::primitive::{Input, Output};

/// Why something is not recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unrecorded {
    /// It never can be.
    Never(&'static str),
    /// It cannot be in this pass.
    Now(&'static str),
}

impl fmt::Display for Unrecorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Never(why) | Self::Now(why)) = self;
        f.write_str(why)
    }
}

impl From<Exception> for Unrecorded {
    /// Whoever builds the operations meets the error again.
    fn from(_: Exception) -> Self {
        Self::Now("an error of MLX")
    }
}

/// What is recorded, or why it is not.
pub(crate) type Recorded<T = Value> = Result<T, Unrecorded>;

/// Fails for good, unless this is so.
pub(super) fn require(is_so: bool, otherwise: &'static str) -> Recorded<()> {
    if is_so { Ok(()) } else { Err(Unrecorded::Never(otherwise)) }
}

/// Vectors `[rows · tokens, width]` of the recording's type, which one of its kernels computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Value {
    pub(super) index: usize,
    pub(super) width: usize,
}

/// Some neighbours of each vector of a value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    pub(super) value: Value,
    pub(super) start: usize,
}

impl Part {
    /// The part of memory that holds the value: from its first element on.
    pub(super) fn of<'a>(&self, value: Floats<'a>) -> Floats<'a> {
        tail(value, self.start)
    }
}

impl Value {
    /// The elements of a vector.
    pub(crate) fn width(self) -> usize {
        self.width
    }
}

/// What a call is given.
pub(super) struct Context<'a> {
    pub(super) kernels: Kernels,
    pub(super) inputs: &'a [Input<'a>],
    /// What the operation computes besides its last value.
    pub(super) outputs: RefCell<Vec<Output<'a>>>,
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
