//! What is recorded: see the functions of the same names that build operations.

use std::ops::Range;

use cpu_kernels::{ElementActivation, Floats, FloatsMut, Glu, GluInput, Matrices};
use mlx_rs::{Array, Dtype};

use super::{
    super::{
        super::{
            activation::{Activation, Gating},
            linear::{Linear, Projections},
            norm::{LayerNorm, Norm, RmsNorm},
        },
        kernel::{KernelResult, kernel_result},
        operand::{FloatView, part_mut, tail},
        product::{Layout, Operand, Stack},
        routing::Picking,
        vectors::{element_activation, gated_linear_unit},
    },
    call::{Context, NormInput, Part, Recorded, Sum, Unrecorded, Value, require},
    recorder::Recording,
};

/// A matrix, or a stack of them, and where it is among the inputs.
#[derive(Clone)]
struct MatrixInput(Layout, Range<usize>);

impl MatrixInput {
    fn with(
        &self,
        context: &Context<'_>,
        work: impl FnOnce(&Matrices<'_>) -> cpu_kernels::Result<()>,
    ) -> KernelResult {
        self.0.with(&context.inputs[self.1.clone()], |w| Ok(work(w)))
    }
}

/// Experts of equal sizes, and how they are picked by scores.
pub(in crate::nn) struct RecordedExperts<'a> {
    /// Gates and what they let through, from one matrix or from two; and down.
    pub(in crate::nn) matrices: Vec<Operand<'a>>,
    /// Those of the matrices, `[experts, outputs]` each, or none.
    pub(in crate::nn) biases: Vec<Array>,
    /// Whether gates and what they let through take turns in one matrix.
    pub(in crate::nn) interleaved: bool,
    pub(in crate::nn) inner: Inner,
    pub(in crate::nn) picking: Picking,
    /// What is added to scores for the choice.
    pub(in crate::nn) choice_bias: Option<&'a Array>,
}

/// What experts do between their matrices.
#[derive(Debug, Clone, Copy)]
pub(in crate::nn) enum Inner {
    Gated(Gating),
    Ungated(Activation),
}

/// A stack of matrices with biases, and where those are among the inputs.
struct GatherInput {
    matrices: MatrixInput,
    bias: Option<usize>,
}

impl GatherInput {
    fn run(&self, context: &Context<'_>, x: Floats<'_>, picks: &[u32], out: FloatsMut<'_>) -> KernelResult {
        let bias = self.bias.map(|bias| FloatView::of(context.inputs[bias])).transpose()?;
        let bias = bias.as_ref().map(FloatView::floats);
        self.matrices.with(context, |w| context.kernels.gather_matmul(x, w, bias, picks, out))
    }
}

impl Recording<'_, '_> {
    pub(super) fn norm_input(&mut self, norm: &RmsNorm, width: usize) -> Recorded<NormInput> {
        let (weight, eps) = norm.parts()?;
        require(weight.shape() == [width as i32], "a norm of another width")?;
        self.keeps_type([weight.dtype()])?;
        Ok((self.inputs([&weight]), eps))
    }

    pub(crate) fn rms_norm(&mut self, x: Value, norm: &RmsNorm) -> Recorded {
        let after = self.norm_input(norm, x.width)?;
        if let Some(Sum { terms, before, sum }) = self.sum.take_if(|sum| sum.sum == x) {
            // The sum and its norm are one call.
            self.calls.pop();
            let normalised = self.value(x.width);
            self.call_into(terms, [sum, normalised], move |context, terms, [sum, out]| {
                let (before, after) =
                    (NormView::of(context, before.as_ref())?, NormView::of(context, Some(&after))?);
                let after = after.as_ref().map(NormView::norm);
                let (before, after) =
                    (before.as_ref().map(NormView::norm), after.as_ref().map(|after| (after, out)));
                kernel_result(context.kernels.add_rms_norm(terms, x.width, before.as_ref(), sum, after))
            });
            return Ok(normalised);
        }
        let [normalised] = self.call([x], [x.width], move |context, [x], [out]| {
            let norm = NormView::of(context, Some(&after))?.ok_or("a norm was expected")?;
            kernel_result(context.kernels.rms_norm(x, &norm.norm(), out))
        });
        Ok(normalised)
    }

    /// A norm of the residual stream.
    pub(in crate::nn) fn norm(&mut self, x: Value, norm: &Norm) -> Recorded {
        match norm {
            Norm::Rms(norm) => self.rms_norm(x, norm),
            Norm::Layer(norm) => self.layer_norm(x, norm),
        }
    }

    pub(in crate::nn) fn layer_norm(&mut self, x: Value, norm: &LayerNorm) -> Recorded {
        let (weight, bias, eps) = norm.parts()?;
        let weight = weight.ok_or(Unrecorded::Never("a norm without weights"))?;
        self.keeps_type([&weight].into_iter().chain(&bias).map(Array::dtype))?;
        let weights = self.inputs([&weight].into_iter().chain(&bias));
        let [normalised] = self.call([x], [x.width], move |context, [x], [out]| {
            let weights = context.inputs[weights.clone()].iter().map(|input| FloatView::of(*input));
            let weights = weights.collect::<KernelResult<Vec<_>>>()?;
            let [weight, bias @ ..] = weights.as_slice() else { return Err("weights were expected".into()) };
            let bias = bias.first().map(FloatView::floats);
            let norm = cpu_kernels::LayerNorm { weight: weight.floats(), bias, eps };
            kernel_result(context.kernels.layer_norm(x, None, &norm, out))
        });
        Ok(normalised)
    }

    /// x + y, where y may be normalised before.
    pub(crate) fn add(&mut self, x: Value, y: Value, before: Option<&RmsNorm>) -> Recorded {
        let before = match before {
            Some(norm) => Some(self.norm_input(norm, y.width)?),
            None => None,
        };
        let of_call = before.clone();
        let [sum] = self.call([x, y], [x.width], move |context, terms, [sum]| {
            let before = NormView::of(context, of_call.as_ref())?;
            let before = before.as_ref().map(NormView::norm);
            kernel_result(context.kernels.add_rms_norm(terms, x.width, before.as_ref(), sum, None))
        });
        self.sum = Some(Sum { terms: [x, y], before, sum });
        Ok(sum)
    }

    fn matrix(&mut self, matrix: &Operand<'_>, inputs: usize) -> Recorded<MatrixInput> {
        let stack = Stack::of(matrix).ok_or(Unrecorded::Never("a matrix of another shape"))?;
        self.keeps_type(stack.dtype)?;
        require(stack.layout.inputs == inputs, "a matrix of another width")?;
        Ok(MatrixInput(stack.layout, self.inputs(stack.arrays)))
    }

    /// The products with matrices of one input, as parts of one value or of several.
    pub(in crate::nn) fn project<const N: usize>(
        &mut self,
        x: Value,
        projections: &Projections,
    ) -> Recorded<[Part; N]> {
        let (linears, cuts) = projections.parts();
        let mut parts = Vec::with_capacity(N);
        for linear in linears {
            parts.push(Part { value: self.linear(x, linear)?, start: 0 });
        }
        let joined = parts.first().copied().filter(|_| linears.len() == 1);
        parts.extend(
            cuts.iter()
                .zip(joined.into_iter().cycle())
                .map(|(cut, Part { value, .. })| Part { value, start: *cut as usize }),
        );
        parts.try_into().map_err(|_| Unrecorded::Never("another number of projections"))
    }

    pub(crate) fn linear(&mut self, x: Value, linear: &Linear) -> Recorded {
        let (matrix, bias) = linear.parts().ok_or(Unrecorded::Now("an adapter"))?;
        let matrix = self.matrix(&matrix.operand()?, x.width)?;
        let bias = match bias {
            Some(bias) => {
                let bias = bias.get()?;
                self.keeps_type([bias.dtype()])?;
                Some(self.inputs([&bias]).start)
            }
            None => None,
        };
        require(matrix.0.count == 1, "a stack of matrices")?;
        let [product] = self.call([x], [matrix.0.outputs], move |context, [x], [out]| {
            let bias = bias.map(|bias| FloatView::of(context.inputs[bias])).transpose()?;
            matrix.with(context, |w| context.kernels.matmul(x, w, bias.as_ref().map(FloatView::floats), out))
        });
        Ok(product)
    }

    pub(in crate::nn) fn activate(&mut self, x: Value, activation: Activation) -> Recorded {
        Ok(self.each(x, element_activation(activation)))
    }

    /// The whole value of a part, cut to ± `limit`.
    pub(in crate::nn) fn clip(&mut self, part: Part, limit: f32) -> Part {
        Part { value: self.each(part.value, ElementActivation::Clip(limit)), ..part }
    }

    fn each(&mut self, x: Value, activation: ElementActivation) -> Value {
        let [activated] = self.call([x], [x.width], move |context, [x], [out]| {
            kernel_result(context.kernels.activate(x, activation, out))
        });
        activated
    }

    /// A value times a factor.
    pub(crate) fn scale(&mut self, x: Value, factor: f32) -> Value {
        if factor.to_bits() == 1.0_f32.to_bits() {
            return x;
        }
        let factors = vec![factor; self.sizes[0] * self.sizes[1]];
        let [scaled] = self.call([x], [x.width], move |context, [x], [out]| {
            kernel_result(context.kernels.mix(x, &factors, out))
        });
        scaled
    }

    /// The product of two parts, `width` elements of each.
    pub(crate) fn multiply(&mut self, [a, b]: [Part; 2], width: usize) -> Value {
        let [multiplied] = self.call([a.value, b.value], [width], move |context, [x, y], [mut out]| {
            let (x, y) = (a.of(x), b.of(y));
            for token in 0..out.len() / width {
                let (gates, ups) = (tail(x, token * a.value.width), tail(y, token * b.value.width));
                let (pair, start) = (GluInput { gates, ups, row_stride: width, step: 1 }, token * width);
                let out = part_mut(out.reborrow(), start..start + width);
                kernel_result(context.kernels.glu(&pair, Glu::Product, width, out))?;
            }
            Ok(())
        });
        multiplied
    }

    /// A value times factors of its elements.
    pub(in crate::nn) fn multiply_by(&mut self, x: Value, factors: &Array) -> Recorded {
        require(
            factors.dtype() == Dtype::Float32 && factors.shape() == [x.width as i32],
            "factors of another shape",
        )?;
        let (factors, width) = (self.inputs([factors]).start, x.width);
        let [multiplied] = self.call([x], [width], move |context, [x], [mut out]| {
            let factors = FloatView::of(context.inputs[factors])?;
            for start in (0..out.len()).step_by(width) {
                let pair =
                    GluInput { gates: tail(x, start), ups: factors.floats(), row_stride: width, step: 1 };
                let out = part_mut(out.reborrow(), start..start + width);
                kernel_result(context.kernels.glu(&pair, Glu::Product, width, out))?;
            }
            Ok(())
        });
        Ok(multiplied)
    }

    /// A value times σ of a score of each token.
    pub(in crate::nn) fn scale_by_score(&mut self, x: Value, score: Value) -> Recorded {
        require(score.width == 1, "more than one score")?;
        let [scaled] = self.call([x, score], [x.width], move |context, [x, scores], [out]| {
            let opened: Vec<_> = widened(scores).map(|score| 1.0 / (1.0 + (-score).exp())).collect();
            kernel_result(context.kernels.mix(x, &opened, out))
        });
        Ok(scaled)
    }

    /// [`Gating`] of gates and what they let through.
    pub(crate) fn glu(&mut self, [gates, ups]: [Part; 2], gating: Gating) -> Recorded {
        let gating = gated_linear_unit(gating).ok_or(Unrecorded::Never("gates of another activation"))?;
        let (row_stride, size) = (gates.value.width, ups.value.width - ups.start);
        require(ups.value.width == row_stride, "gates of another width")?;
        let [gated] = self.call([gates.value, ups.value], [size], move |context, [gate, up], [out]| {
            let halves = GluInput { gates: gates.of(gate), ups: ups.of(up), row_stride, step: 1 };
            kernel_result(context.kernels.glu(&halves, gating, size, out))
        });
        Ok(gated)
    }

    fn gathered(
        &mut self,
        matrices: &Operand<'_>,
        bias: Option<&Array>,
        inputs: usize,
    ) -> Recorded<GatherInput> {
        let matrices = self.matrix(matrices, inputs)?;
        self.keeps_type(bias.map(Array::dtype))?;
        Ok(GatherInput { matrices, bias: bias.map(|bias| self.inputs([bias]).start) })
    }

    /// What the experts that are picked by these scores give, weighted.
    pub(in crate::nn) fn experts(
        &mut self,
        x: Value,
        scores: Value,
        experts: &RecordedExperts<'_>,
    ) -> Recorded {
        let &RecordedExperts { ref matrices, ref biases, interleaved, inner, picking, choice_bias } = experts;
        // `Err`: there are no gates.
        let gating = match inner {
            Inner::Gated(gating) => {
                Ok(gated_linear_unit(gating).ok_or(Unrecorded::Never("gates of another activation"))?)
            }
            Inner::Ungated(activation) => Err(element_activation(activation)),
        };
        let (down, inner) = matrices.split_last().ok_or(Unrecorded::Never("experts without matrices"))?;
        let mut first = Vec::with_capacity(inner.len());
        for (place, matrices) in inner.iter().enumerate() {
            first.push(self.gathered(matrices, biases.get(place), x.width)?);
        }
        // Of one matrix both halves, of two one each.
        let outputs = first.first().map_or(0, |first| first.matrices.0.outputs);
        let size = if first.len() == 1 && gating.is_ok() { outputs / 2 } else { outputs };
        let down = self.gathered(down, biases.get(inner.len()), size)?;
        let fits = choice_bias.is_none_or(|bias| bias.dtype() == Dtype::Float32)
            && down.matrices.0.outputs == x.width
            && first.iter().all(|first| first.matrices.0.outputs == outputs);
        require(fits, "experts of other sizes")?;
        let choice_bias = choice_bias.map(|bias| self.inputs([bias]).start);
        let (picks, top_k) = (self.sizes[0] * self.sizes[1] * picking.top_k, picking.top_k);
        let second_width = if first.len() == 1 { 0 } else { size };
        let widths = [outputs * top_k, second_width * top_k, size * top_k, x.width * top_k, x.width];
        let [.., mixed] = self.call([x, scores], widths, move |context, [x, by], out| {
            let (mut places, mut weights) = (vec![0; picks], vec![0.0; picks]);
            let choice_bias = choice_bias.map(|bias| context.inputs[bias].elements::<f32>()).transpose()?;
            let routing = picking.routing(choice_bias.as_deref());
            kernel_result(context.kernels.route(by, scores.width, &routing, &mut places, &mut weights))?;
            let [mut gates, mut ups, mut gated, mut each, mixed] = out;
            first[0].run(context, x, &places, gates.reborrow())?;
            if let Some(second) = first.get(1) {
                second.run(context, x, &places, ups.reborrow())?;
            }
            let (gates, ups) = (gates.as_floats(), ups.as_floats());
            let halves = match (first.len(), interleaved) {
                (1, true) => GluInput { gates, ups: tail(gates, 1), row_stride: outputs, step: 2 },
                (1, false) => GluInput { gates, ups: tail(gates, size), row_stride: outputs, step: 1 },
                _ => GluInput { gates, ups, row_stride: outputs, step: 1 },
            };
            kernel_result(match gating {
                Ok(gating) => context.kernels.glu(&halves, gating, size, gated.reborrow()),
                Err(activation) => context.kernels.activate(gates, activation, gated.reborrow()),
            })?;
            down.run(context, gated.as_floats(), &places, each.reborrow())?;
            kernel_result(context.kernels.mix(each.as_floats(), &weights, mixed))
        });
        Ok(mixed)
    }
}

/// Numbers in single precision.
fn widened(floats: Floats<'_>) -> Box<dyn Iterator<Item = f32> + '_> {
    match floats {
        Floats::F32(floats) => Box::new(floats.iter().copied()),
        Floats::F16(floats) => Box::new(floats.iter().map(|x| x.to_f32())),
        Floats::Bf16(floats) => Box::new(floats.iter().map(|x| x.to_f32())),
    }
}

/// A norm where its weights lie.
pub(super) struct NormView<'a> {
    weight: FloatView<'a>,
    eps: f32,
}

impl<'a> NormView<'a> {
    pub(super) fn of(context: &Context<'a>, norm: Option<&NormInput>) -> KernelResult<Option<Self>> {
        let Some((weight, eps)) = norm else { return Ok(None) };
        Ok(Some(Self { weight: FloatView::of(context.inputs[weight.start])?, eps: *eps }))
    }

    pub(super) fn norm(&self) -> cpu_kernels::RmsNorm<'_> {
        cpu_kernels::RmsNorm { weight: self.weight.floats(), eps: self.eps }
    }
}
