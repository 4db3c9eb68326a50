//! What is done to vectors between products: norms and gates.

use cpu_kernels::{Gates, Norm};
use mlx_rs::{Array, error::Result};

use super::{
    super::{
        custom::{custom_one, native},
        mlp::{Activation, Gating},
    },
    kernels,
    operand::{Held, floats_mut},
    promoted, to_reason,
};

/// Root mean square normalisation of the last axis.
pub(in crate::nn) fn rms_norm(x: &Array, weight: &Array, eps: f32) -> Option<Result<Array>> {
    if !native() {
        return None;
    }
    let dtype = promoted([x.dtype(), weight.dtype()])?;
    if weight.shape() != &x.shape()[x.ndim().checked_sub(1)?..] {
        return None;
    }
    Some(custom_one(c"rms_norm", &[x, weight], x.shape(), dtype, move |inputs, output| {
        let (x, weight) = (Held::of(inputs[0])?, Held::of(inputs[1])?);
        let norm = Norm { weight: weight.floats(), eps };
        to_reason(kernels()?.rms_norm(x.floats(), &norm, floats_mut(output)?))
    }))
}

/// Where the two halves of a feed-forward block are.
#[derive(Debug, Clone, Copy)]
pub(in crate::nn) enum Halves<'a> {
    /// In two arrays alike, `[.., size]`.
    Apart(&'a Array, &'a Array),
    /// In one, `[.., 2 · size]`, gates first.
    Joined(&'a Array),
    /// In one, taking turns.
    Interleaved(&'a Array),
}

/// [`Gating`] of two halves → `[.., size]`.
pub(in crate::nn) fn gate(halves: Halves<'_>, gating: Gating) -> Option<Result<Array>> {
    if !native() {
        return None;
    }
    let gating = match gating {
        Gating::Plain(Activation::Silu) => cpu_kernels::Gating::Silu,
        Gating::Plain(Activation::GeluTanh) => cpu_kernels::Gating::GeluTanh,
        Gating::Plain(Activation::Gelu) => return None,
        Gating::Clamped { alpha, limit } => cpu_kernels::Gating::Clamped { alpha, limit },
    };
    let (arrays, share) = match halves {
        Halves::Apart(gates, ups) if gates.shape() == ups.shape() => (vec![gates, ups], 1),
        Halves::Joined(joined) | Halves::Interleaved(joined) if joined.dim(-1) % 2 == 0 => (vec![joined], 2),
        _ => return None,
    };
    let dtype = promoted(arrays.iter().map(|array| array.dtype()))?;
    let mut sizes = arrays[0].shape().to_vec();
    *sizes.last_mut()? /= share;
    let size = *sizes.last()? as usize;
    let (offset, step) = if matches!(halves, Halves::Interleaved(_)) { (1, 2) } else { (size, 1) };
    Some(custom_one(c"gate", &arrays, &sizes, dtype, move |inputs, output| {
        let first = Held::of(inputs[0])?;
        let second = inputs.get(1).copied().map(Held::of).transpose()?;
        let ups = second.as_ref().map_or_else(|| first.from(offset), Held::floats);
        let gates = Gates { gates: first.floats(), ups, row_stride: size * share as usize, step };
        to_reason(kernels()?.gate(&gates, gating, size, floats_mut(output)?))
    }))
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Device, Dtype, ops, with_device};

    use super::*;
    use crate::nn::{
        custom::tracing,
        native::testing::{FLOATS, check, drawn, wide},
    };

    #[test]
    fn norms_and_gates_are_those_of_mlx() {
        with_device(Device::cpu(), || {
            for dtype in FLOATS {
                for shape in [vec![3, 1, 40], vec![2, 300, 256]] {
                    let (x, other) = (drawn(1, &shape, dtype), drawn(2, &shape, dtype));
                    let weight = drawn(3, &shape[2..], dtype);
                    let ours = rms_norm(&x, &weight, 1e-5).unwrap().unwrap();
                    let mlx = mlx_rs::fast::rms_norm(wide(&x), Some(&wide(&weight)), 1e-5).unwrap();
                    check(&ours, &mlx, dtype, &format!("rms_norm {dtype:?} {shape:?}"));
                    for gating in [
                        Gating::Plain(Activation::Silu),
                        Gating::Plain(Activation::GeluTanh),
                        Gating::Clamped { alpha: 1.7, limit: 0.5 },
                    ] {
                        let mlx = tracing(|| gating.apply(&wide(&x), &wide(&other)).unwrap());
                        let joined = ops::concatenate(&[&x, &other], -1).unwrap();
                        let turns = ops::stack(&[&x, &other], -1).unwrap();
                        let turns = turns.reshape(joined.shape()).unwrap();
                        for halves in
                            [Halves::Apart(&x, &other), Halves::Joined(&joined), Halves::Interleaved(&turns)]
                        {
                            let ours = gate(halves, gating).unwrap().unwrap();
                            check(&ours, &mlx, dtype, &format!("{gating:?} {dtype:?} {shape:?}"));
                        }
                    }
                }
            }
            assert!(
                gate(Halves::Joined(&drawn(1, &[4], Dtype::Float32)), Gating::Plain(Activation::Gelu))
                    .is_none()
            );
        });
    }
}
