//! Products with matrices.

use std::slice;

use cpu_kernels::{Matrices, Scales, Weights};
use mlx_rs::{
    Array, Dtype,
    error::{Exception, Result},
};

use super::{
    super::exec::ExecMode,
    kernel::{KernelResult, kernel_result, kernels, promoted},
    operand::{FloatView, floats_mut},
};
use crate::mlx::{
    QuantizedMatrix, differentiated,
    primitive::{Input, primitive_one},
};

/// A matrix, or a stack of them.
#[derive(Debug)]
pub(in crate::nn) enum Operand<'a> {
    /// Transposed: `[.., in, out]`.
    Dense(Array),
    /// Quantised: `[.., out, in]`.
    Quantized(&'a QuantizedMatrix),
}

/// `x · wᵀ + bias`: `[.., in]`, `[out]` → `[.., out]`. Where gradients are traced, without a bias, which is the caller's to add.
pub(in crate::nn) fn matmul(x: &Array, matrix: &Operand<'_>, bias: Option<&Array>) -> Option<Result<Array>> {
    let mode = ExecMode::current();
    if !matches!(mode, ExecMode::CpuKernels | ExecMode::CpuKernelsDifferentiable) {
        return None;
    }
    let stack = Stack::of(matrix)?;
    let dtype = promoted([x.dtype()].into_iter().chain(stack.dtype).chain(bias.map(Array::dtype)))?;
    if stack.layout.count != 1 || x.dim(-1) as usize != stack.layout.inputs {
        return None;
    }
    if mode == ExecMode::CpuKernels {
        return Some(forward(x, &stack.arrays, bias, stack.layout, dtype));
    }
    match (matrix, bias) {
        (_, Some(_)) => None,
        (Operand::Dense(transposed), None) => Some(differentiable(x, transposed, dtype)),
        (Operand::Quantized(_), None) => {
            let (layout, arrays) = (stack.layout, stack.arrays.into_iter().cloned().collect::<Vec<_>>());
            let weights = arrays.clone();
            let run = move |inputs: &[Array]| {
                forward(&inputs[0], &weights.iter().collect::<Vec<_>>(), None, layout, dtype)
            };
            Some(differentiated(slice::from_ref(x), run, move |inputs, g| {
                Ok(vec![backward(g, &arrays.iter().collect::<Vec<_>>(), &inputs[0], layout)?])
            }))
        }
    }
}

/// `x · w`, both traced: `[.., in]`, `[in, out]` → `[.., out]`.
pub(in crate::nn) fn matmul_differentiable(x: &Array, w: &Array) -> Option<Result<Array>> {
    let dtype = promoted([x.dtype(), w.dtype()])?;
    let fits = w.ndim() == 2 && x.dim(-1) == w.dim(0);
    (ExecMode::current() == ExecMode::CpuKernelsDifferentiable && fits).then(|| differentiable(x, w, dtype))
}

/// `x · w` of floats, with a gradient by both.
fn differentiable(x: &Array, w: &Array, dtype: Dtype) -> Result<Array> {
    let layout = Layout { count: 1, outputs: w.dim(1) as usize, inputs: w.dim(0) as usize, scheme: None };
    let run = move |inputs: &[Array]| forward(&inputs[0], &[&inputs[1]], None, layout, dtype);
    differentiated(&[x.clone(), w.clone()], run, move |inputs, g| {
        let [x, w] = inputs else { return Err(Exception::custom("a product of two")) };
        Ok(vec![backward(g, &[w], x, layout)?, weight_grad(x, g, w, layout)?])
    })
}

fn forward(
    x: &Array,
    weights: &[&Array],
    bias: Option<&Array>,
    layout: Layout,
    dtype: Dtype,
) -> Result<Array> {
    let sizes = resized(x, layout.outputs);
    let arrays: Vec<_> = [x].into_iter().chain(weights.iter().copied()).chain(bias).collect();
    let has_bias = bias.is_some();
    primitive_one(c"matmul", &arrays, &sizes, dtype, move |inputs, output| {
        let (x, weights) = inputs.split_first().ok_or("no inputs")?;
        let (weights, bias) =
            if has_bias { weights.split_at(weights.len() - 1) } else { (weights, [].as_slice()) };
        let bias = bias.first().copied().map(FloatView::of).transpose()?;
        let x = FloatView::of(*x)?;
        layout.with(weights, |w| {
            Ok(kernels()?.matmul(x.floats(), w, bias.as_ref().map(FloatView::floats), floats_mut(output)?))
        })
    })
}

/// The gradient by x, like it, of the gradient by the product: `g · w`.
fn backward(g: &Array, weights: &[&Array], x: &Array, layout: Layout) -> Result<Array> {
    let arrays: Vec<_> = [g].into_iter().chain(weights.iter().copied()).collect();
    primitive_one(c"matmul_grad", &arrays, x.shape(), x.dtype(), move |inputs, output| {
        let (g, weights) = inputs.split_first().ok_or("no inputs")?;
        let g = FloatView::of(*g)?;
        layout.with(weights, |w| Ok(kernels()?.matmul_grad(g.floats(), w, floats_mut(output)?)))
    })
}

/// The gradient by `w` `[in, out]`, like it: `(gᵀ · x)ᵀ`. Its rows lie as those of a checkpoint do.
fn weight_grad(x: &Array, g: &Array, w: &Array, layout: Layout) -> Result<Array> {
    let Layout { outputs, inputs: width, .. } = layout;
    let (x, g) = (x.reshape(&[-1, width as i32])?, g.reshape(&[-1, outputs as i32])?);
    let sizes = [outputs as i32, width as i32];
    let turned =
        primitive_one(c"matmul_weight_grad", &[&x, &g], &sizes, w.dtype(), move |inputs, output| {
            let (x, turned) = (FloatView::of(inputs[0])?, FloatView::transposed(inputs[1])?);
            let rows = inputs[0].shape()[0] as usize;
            let x = Matrices { count: 1, outputs: rows, inputs: width, weights: Weights::Dense(x.floats()) };
            kernel_result(kernels()?.matmul_grad(turned.floats(), &x, floats_mut(output)?))
        })?;
    turned.swap_axes(-1, -2)
}

/// The sizes of x with another last one.
fn resized(x: &Array, last: usize) -> Vec<i32> {
    let rows = &x.shape()[..x.ndim().saturating_sub(1)];
    [rows, &[last as i32]].concat()
}

/// Of a stack: `x · w[i]ᵀ` with one `i` of `indices` (u32) for each row of the result: `[.., 1, in]`, `[..]` → `[.., 1, out]`. The
/// rows of x are as many as the indices, or as the last axis of indices goes into them.
pub(in crate::nn) fn gather_matmul(
    x: &Array,
    matrix: &Operand<'_>,
    indices: &Array,
) -> Option<Result<Array>> {
    if ExecMode::current() != ExecMode::CpuKernels {
        return None;
    }
    let stack = Stack::of(matrix)?;
    let dtype = promoted([x.dtype()].into_iter().chain(stack.dtype))?;
    let &[ref rows @ .., 1, width] = x.shape() else { return None };
    let fits = match (rows, indices.shape()) {
        (rows, indices) if rows == indices => true,
        ([rows @ .., 1], [indices @ .., _]) => rows == indices,
        _ => false,
    };
    if !fits || width as usize != stack.layout.inputs || indices.dtype() != Dtype::Uint32 {
        return None;
    }
    let sizes = [indices.shape(), &[1, stack.layout.outputs as i32]].concat();
    let arrays: Vec<_> = [x, indices].into_iter().chain(stack.arrays).collect();
    let layout = stack.layout;
    Some(primitive_one(c"gather_matmul", &arrays, &sizes, dtype, move |inputs, output| {
        let [x, picks, weights @ ..] = inputs else { return Err("no inputs".into()) };
        let (x, picks) = (FloatView::of(*x)?, picks.elements::<u32>()?);
        layout
            .with(weights, |w| Ok(kernels()?.gather_matmul(x.floats(), w, None, &picks, floats_mut(output)?)))
    }))
}

/// A matrix or a stack of them as the graph has it.
pub(super) struct Stack<'a> {
    pub(super) layout: Layout,
    /// The elements, and the scales and biases of quantised ones.
    pub(super) arrays: Vec<&'a Array>,
    /// The type of its elements, or of its groups' scales where those are floats that products take part of.
    pub(super) dtype: Option<Dtype>,
}

/// How the arrays of a [`Stack`] are to be read.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) count: usize,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    scheme: Option<cpu_kernels::Quantization>,
}

impl<'a> Stack<'a> {
    pub(super) fn of(matrix: &'a Operand<'a>) -> Option<Self> {
        match matrix {
            Operand::Dense(transposed) => {
                let (count, inputs, outputs) = sizes(transposed)?;
                let layout = Layout { count, outputs, inputs, scheme: None };
                Some(Self { layout, arrays: vec![transposed], dtype: Some(transposed.dtype()) })
            }
            Operand::Quantized(QuantizedMatrix { weight, scales, biases, scheme }) => {
                let (count, outputs, words) = sizes(weight)?;
                let quantization = cpu_kernels::Quantization::from(*scheme);
                let layout =
                    Layout { count, outputs, inputs: words * 32 / scheme.bits, scheme: Some(quantization) };
                let dtype = biases.is_some().then(|| scales.dtype());
                Some(Self { layout, arrays: [weight, scales].into_iter().chain(biases).collect(), dtype })
            }
        }
    }
}

/// The matrices of `[.., rows, columns]`, their rows and columns.
fn sizes(stack: &Array) -> Option<(usize, usize, usize)> {
    match *stack.shape() {
        [rows, columns] => Some((1, rows as usize, columns as usize)),
        [count, rows, columns] => Some((count as usize, rows as usize, columns as usize)),
        _ => None,
    }
}

impl Layout {
    /// Runs `work` on the matrices in these arrays.
    pub(super) fn with(
        self,
        arrays: &[Input<'_>],
        work: impl FnOnce(&Matrices<'_>) -> KernelResult<cpu_kernels::Result<()>>,
    ) -> KernelResult {
        let Self { count, outputs, inputs, scheme } = self;
        let run = |weights| kernel_result(work(&Matrices { count, outputs, inputs, weights })?);
        match (scheme, arrays) {
            (None, [transposed]) => run(Weights::Dense(FloatView::transposed(*transposed)?.floats())),
            (Some(scheme), [words, scales, biases]) => {
                let (words, scales, biases) =
                    (words.elements()?, FloatView::of(*scales)?, FloatView::of(*biases)?);
                let scales = Scales::Affine { scales: scales.floats(), biases: biases.floats() };
                run(Weights::Quantized { quantization: scheme, words: &words, scales })
            }
            (Some(scheme), [words, scales]) => {
                let (words, scales) = (words.elements()?, scales.elements()?);
                run(Weights::Quantized {
                    quantization: scheme,
                    words: &words,
                    scales: Scales::Bytes(&scales),
                })
            }
            _ => Err("a matrix in an unexpected number of arrays".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Device, ops, with_device};

    use super::*;
    use crate::{
        mlx::{QuantizationMode, QuantizationScheme, dequantize, quantize},
        nn::{
            cpu::kernel::testing::{FLOATS, check, drawn, wide},
            exec::ExecMode,
        },
    };

    fn schemes() -> impl Iterator<Item = QuantizationScheme> {
        let affine = [2, 3, 4, 5, 6, 8].into_iter().flat_map(|bits| {
            [32, 64, 128].map(|group_size| QuantizationScheme {
                mode: QuantizationMode::Affine,
                bits,
                group_size,
            })
        });
        let floats = [
            (QuantizationMode::Mxfp4, 4, 32),
            (QuantizationMode::Nvfp4, 4, 16),
            (QuantizationMode::Mxfp8, 8, 32),
        ];
        affine.chain(floats.map(|(mode, bits, group_size)| QuantizationScheme { mode, bits, group_size }))
    }

    enum Stored {
        Dense(Array),
        Quantized(QuantizedMatrix),
    }

    impl Stored {
        fn operand(&self) -> Operand<'_> {
            match self {
                Self::Dense(transposed) => Operand::Dense(transposed.clone()),
                Self::Quantized(packed) => Operand::Quantized(packed),
            }
        }
    }

    /// Each form of a stack of these sizes, and the same in full, `[.., out, in]`.
    fn matrices(sizes: &[i32], dtype: Dtype) -> impl Iterator<Item = (String, Stored, Array)> {
        let full = drawn(1, sizes, dtype);
        let dense = Stored::Dense(full.swap_axes(-1, -2).unwrap());
        let packed = {
            let full = full.clone();
            schemes().map(move |scheme| {
                let packed = quantize(&full, scheme).unwrap();
                let restored = dequantize(&packed, Dtype::Float32).unwrap();
                (format!("{scheme:?} {dtype:?}"), Stored::Quantized(packed), restored)
            })
        };
        [(format!("dense {dtype:?}"), dense, wide(&full))].into_iter().chain(packed)
    }

    #[test]
    fn products_are_those_of_mlx() {
        with_device(Device::cpu(), || {
            for dtype in FLOATS {
                for (what, matrix, full) in matrices(&[24, 256], dtype) {
                    for rows in [1, 2, 7, 40] {
                        let x = drawn(2, &[1, rows, 256], dtype);
                        let bias = drawn(3, &[24], dtype);
                        let ours = matmul(&x, &matrix.operand(), Some(&bias)).unwrap().unwrap();
                        let mlx = wide(&x).matmul(full.swap_axes(-1, -2).unwrap()).unwrap();
                        check(&ours, &mlx.add(wide(&bias)).unwrap(), dtype, &format!("{what}, {rows} rows"));
                    }
                }
            }
        });
    }

    #[test]
    fn gathered_products_are_those_of_mlx() {
        with_device(Device::cpu(), || {
            for dtype in FLOATS {
                for (what, matrix, full) in matrices(&[5, 24, 256], dtype) {
                    let full = full.swap_axes(-1, -2).unwrap();
                    let shared = Array::from_slice(&[4_u32, 0, 2, 2, 3, 1, 0, 4, 1, 3, 2, 0], &[2, 2, 3]);
                    let sorted = Array::from_slice(&[0_u32, 0, 1, 3, 3, 3, 4], &[7]);
                    for (rows, picks) in [
                        (vec![2, 2, 1, 1, 256], &shared),
                        (vec![2, 2, 3, 1, 256], &shared),
                        (vec![7, 1, 256], &sorted),
                    ] {
                        let x = drawn(2, &rows, dtype);
                        let ours = gather_matmul(&x, &matrix.operand(), picks).unwrap().unwrap();
                        let mlx = ops::gather_mm(wide(&x), &full, None, picks, false).unwrap();
                        check(&ours, &mlx, dtype, &format!("{what}, {rows:?}"));
                    }
                }
            }
        });
    }

    #[test]
    fn what_the_kernels_do_not_know_is_left_to_mlx() {
        with_device(Device::cpu(), || {
            let matrix = Operand::Dense(drawn(1, &[4, 8], Dtype::Float32));
            let x = drawn(2, &[2, 4], Dtype::Float32);
            assert!(matmul(&x, &matrix, None).is_some());
            assert!(ExecMode::CpuKernelsDifferentiable.scope(|| matmul(&x, &matrix, None)).is_some());
            assert!(ExecMode::Mlx.scope(|| matmul(&x, &matrix, None)).is_none());
            assert!(ExecMode::MlxDifferentiable.scope(|| matmul(&x, &matrix, None)).is_none());
            let whole = x.as_dtype(Dtype::Int32).unwrap();
            assert!(matmul(&whole, &matrix, None).is_none());
        });
    }
}
