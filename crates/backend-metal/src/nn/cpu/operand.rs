//! Arrays of the graph as the kernels' operands.

use std::{borrow::Cow, ops::Range};

use cpu_kernels::{Floats, FloatsMut, Heads, Sequences};
use half::{bf16, f16};
use mlx_rs::Dtype;

use super::kernel::KernelResult;
use crate::mlx::primitive::{Input, Output};

/// Floats in row-major order, where they lie or copied.
pub(super) enum FloatView<'a> {
    F32(Cow<'a, [f32]>),
    F16(Cow<'a, [f16]>),
    Bf16(Cow<'a, [bf16]>),
}

/// `$held::<type>` of the type of `$input`, in the variant of `$kind` for it.
macro_rules! by_type {
    ($kind:ident, $input:expr, $read:path) => {
        match $input.dtype() {
            Some(Dtype::Float32) => $kind::F32($read($input)?),
            Some(Dtype::Float16) => $kind::F16($read($input)?),
            Some(Dtype::Bfloat16) => $kind::Bf16($read($input)?),
            other => return Err(format!("{other:?} where floats were expected").into()),
        }
    };
}

impl<'a> FloatView<'a> {
    pub(super) fn of(input: Input<'a>) -> KernelResult<Self> {
        Ok(by_type!(FloatView, input, Input::elements))
    }

    pub(super) fn transposed(input: Input<'a>) -> KernelResult<Self> {
        Ok(by_type!(FloatView, input, Input::transposed))
    }

    /// Those from element `start` on.
    pub(super) fn from(&self, start: usize) -> Floats<'_> {
        tail(self.floats(), start)
    }

    pub(super) fn floats(&self) -> Floats<'_> {
        match self {
            Self::F32(floats) => Floats::F32(floats),
            Self::F16(floats) => Floats::F16(floats),
            Self::Bf16(floats) => Floats::Bf16(floats),
        }
    }
}

/// Those from element `start` on.
pub(super) fn tail(floats: Floats<'_>, start: usize) -> Floats<'_> {
    match floats {
        Floats::F32(floats) => Floats::F32(floats.get(start..).unwrap_or_default()),
        Floats::F16(floats) => Floats::F16(floats.get(start..).unwrap_or_default()),
        Floats::Bf16(floats) => Floats::Bf16(floats.get(start..).unwrap_or_default()),
    }
}

/// The elements of a range, or as many of them as there are.
pub(super) fn part_mut(floats: FloatsMut<'_>, range: Range<usize>) -> FloatsMut<'_> {
    let end = range.end.min(floats.len());
    let range = range.start.min(end)..end;
    match floats {
        FloatsMut::F32(floats) => FloatsMut::F32(&mut floats[range]),
        FloatsMut::F16(floats) => FloatsMut::F16(&mut floats[range]),
        FloatsMut::Bf16(floats) => FloatsMut::Bf16(&mut floats[range]),
    }
}

pub(super) fn floats_mut<'a>(output: &'a mut Output<'_>) -> KernelResult<FloatsMut<'a>> {
    Ok(by_type!(FloatsMut, output, Output::elements))
}

/// Floats where they lie, and all that lies between.
pub(super) fn span(input: Input<'_>) -> KernelResult<Floats<'_>> {
    Ok(by_type!(Floats, input, Input::span))
}

/// Vectors `[rows, tokens, width]` where they lie.
pub(super) fn sequences(input: Input<'_>) -> KernelResult<Sequences<'_>> {
    let (&[_, _, width], &[row_stride, token_stride, stride]) = (input.shape(), input.strides()) else {
        return Err("vectors that are not [rows, tokens, width]".into());
    };
    if stride != 1 && width != 1 {
        return Err("vectors whose elements lie apart".into());
    }
    let [row_stride, token_stride] = [row_stride, token_stride].map(|stride| stride as usize);
    Ok(Sequences { data: span(input)?, row_stride, token_stride })
}

/// Vectors `[rows, heads, tokens, head_dim]` where they lie.
pub(super) struct Vectors<'a> {
    data: Floats<'a>,
    pub(super) sizes: [usize; 4],
    pub(super) strides: [usize; 4],
}

impl<'a> Vectors<'a> {
    pub(super) fn of(input: Input<'a>) -> KernelResult<Self> {
        let data = span(input)?;
        let (sizes, strides) = (input.shape(), input.strides());
        let (Ok(sizes), Ok(strides)) = (<[i32; 4]>::try_from(sizes), <[i64; 4]>::try_from(strides)) else {
            return Err("vectors that are not [rows, heads, tokens, head_dim]".into());
        };
        if strides[3] != 1 && sizes[3] != 1 {
            return Err("vectors whose elements lie apart".into());
        }
        Ok(Self {
            data,
            sizes: sizes.map(|size| size as usize),
            strides: strides.map(|stride| stride as usize),
        })
    }

    /// Those of one row.
    pub(super) fn heads(&self, row: usize) -> KernelResult<Heads<'a>> {
        let start = row * self.strides[0];
        if start > self.data.len() {
            return Err("a row beyond the end".into());
        }
        let data = tail(self.data, start);
        Ok(Heads { data, head_stride: self.strides[1], token_stride: self.strides[2] })
    }
}
