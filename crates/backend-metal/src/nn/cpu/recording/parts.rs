//! What is recorded: see the functions of the same names that build operations.

use std::{ops::Range, rc::Rc};

use cpu_kernels::{Floats, FloatsMut, GluInput, Heads, KvCache, KvView, Matrices, Queries};
use mlx_rs::{Array, Dtype};

use super::{
    super::{
        super::{
            activation::{Activation, Gating},
            attention_params::AttentionParams,
            linear::Linear,
            norm::{LayerNorm, Norm, RmsNorm},
            rope::Rope,
        },
        attention::{QkNormRope, RotaryTable},
        in_place::keep,
        kernel::{KernelResult, kernel_result, promoted},
        operand::{FloatView, Vectors, tail},
        product::{Layout, Operand, Stack},
        routing::Picking,
        vectors::{element_activation, gated_linear_unit},
    },
    call::{Context, NormInput, Sum, Value},
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
    pub(in crate::nn) gating: Gating,
    pub(in crate::nn) picking: Picking,
    /// What is added to scores for the choice.
    pub(in crate::nn) choice_bias: Option<&'a Array>,
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
    /// Whether what is computed of these types has the recording's.
    fn keeps_type(&self, dtypes: impl IntoIterator<Item = Dtype>) -> Option<()> {
        (promoted([self.dtype].into_iter().chain(dtypes))? == self.dtype).then_some(())
    }

    fn norm_input(&mut self, norm: &RmsNorm, width: usize) -> Option<NormInput> {
        let (weight, eps) = norm.parts().ok()?;
        (weight.shape() == [width as i32] && weight.dtype() == self.dtype).then_some(())?;
        Some((self.inputs([&weight]), eps))
    }

    pub(crate) fn rms_norm(&mut self, x: Value, norm: &RmsNorm) -> Option<Value> {
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
            return Some(normalised);
        }
        let [normalised] = self.call([x], [x.width], move |context, [x], [out]| {
            let norm = NormView::of(context, Some(&after))?.ok_or("a norm was expected")?;
            kernel_result(context.kernels.rms_norm(x, &norm.norm(), out))
        });
        Some(normalised)
    }

    /// A norm of the residual stream.
    pub(in crate::nn) fn norm(&mut self, x: Value, norm: &Norm) -> Option<Value> {
        match norm {
            Norm::Rms(norm) => self.rms_norm(x, norm),
            Norm::Layer(norm) => self.layer_norm(x, norm),
        }
    }

    pub(in crate::nn) fn layer_norm(&mut self, x: Value, norm: &LayerNorm) -> Option<Value> {
        let (Some(weight), bias, eps) = norm.parts().ok()? else { return None };
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
        Some(normalised)
    }

    /// x + y, where y may be normalised before.
    pub(crate) fn add(&mut self, x: Value, y: Value, before: Option<&RmsNorm>) -> Option<Value> {
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
        Some(sum)
    }

    fn matrix(&mut self, matrix: &Operand<'_>, inputs: usize) -> Option<MatrixInput> {
        let stack = Stack::of(matrix)?;
        self.keeps_type(stack.dtype)?;
        (stack.layout.inputs == inputs).then(|| MatrixInput(stack.layout, self.inputs(stack.arrays)))
    }

    pub(in crate::nn) fn linear(&mut self, x: Value, linear: &Linear) -> Option<Value> {
        let (matrix, bias) = linear.parts()?;
        let matrix = self.matrix(&matrix.operand().ok()?, x.width)?;
        let bias = match bias {
            Some(bias) => {
                let bias = bias.get().ok()?;
                self.keeps_type([bias.dtype()])?;
                Some(self.inputs([&bias]).start)
            }
            None => None,
        };
        if matrix.0.count != 1 {
            return None;
        }
        let [product] = self.call([x], [matrix.0.outputs], move |context, [x], [out]| {
            let bias = bias.map(|bias| FloatView::of(context.inputs[bias])).transpose()?;
            matrix.with(context, |w| context.kernels.matmul(x, w, bias.as_ref().map(FloatView::floats), out))
        });
        Some(product)
    }

    pub(in crate::nn) fn activate(&mut self, x: Value, activation: Activation) -> Option<Value> {
        let activation = element_activation(activation)?;
        let [activated] = self.call([x], [x.width], move |context, [x], [out]| {
            kernel_result(context.kernels.activate(x, activation, out))
        });
        Some(activated)
    }

    /// [`Gating`] of two halves that are one value, gates first.
    pub(in crate::nn) fn glu(&mut self, joined: Value, gating: Gating) -> Option<Value> {
        let (gating, size) = (gated_linear_unit(gating)?, joined.width / 2);
        let [gated] = self.call([joined], [size], move |context, [joined], [out]| {
            let halves = GluInput { gates: joined, ups: tail(joined, size), row_stride: 2 * size, step: 1 };
            kernel_result(context.kernels.glu(&halves, gating, size, out))
        });
        Some(gated)
    }

    pub(in crate::nn) fn rotary_table(&mut self, rope: &Rope) -> Option<RotaryTable> {
        self.pass.rotary_table(rope).ok()
    }

    /// Norms and rotary positions of queries, keys and values in one; the keys and values are written to the rows' caches of a layer, and
    /// attended to.
    pub(in crate::nn) fn attend(
        &mut self,
        layer: usize,
        qkv: Value,
        how: &QkNormRope<'_>,
        params: &AttentionParams,
    ) -> Option<Value> {
        let &QkNormRope { heads: sizes, ref norms, rotary, gated } = how;
        let [heads, kv_heads, head_dim] = sizes.map(|size| size as usize);
        if gated || params.both_ways || params.chunk.is_some() || params.bias.is_some() {
            return None;
        }
        if qkv.width != (heads + 2 * kv_heads) * head_dim {
            return None;
        }
        let norms = match norms {
            Some(norms) => {
                self.keeps_type(norms.iter().map(|(weight, _)| weight.dtype()))?;
                Some(norms.each_ref().map(|(weight, eps)| (self.inputs([weight]), *eps)))
            }
            None => None,
        };
        let slots = self.pass.slots(layer)?.ok()?;
        let kept = slots.iter().flat_map(|slot| &slot.arrays);
        if slots.iter().any(|slot| slot.arrays.len() != 2)
            || kept.clone().any(|kept| kept.dtype() != self.dtype)
        {
            return None;
        }
        let kept = self.inputs(kept);
        for after in slots.iter().filter_map(|slot| slot.after.as_ref()) {
            if !self.after.iter().any(|known| Rc::ptr_eq(known, after)) {
                self.after.push(after.clone());
            }
        }
        let sinks = match &params.sinks {
            Some(sinks) => {
                let sinks = sinks.get().ok()?;
                promoted([sinks.dtype()])?;
                Some(self.inputs([&sinks]).start)
            }
            None => None,
        };
        self.layers.push(layer);
        let attention = Attention {
            sizes: self.sizes,
            heads: [heads, kv_heads, head_dim],
            norms,
            rotary: rotary.cloned(),
            kept,
            slots: slots.iter().map(|slot| [slot.slot, slot.held]).collect(),
            sinks,
            scale: params.scale,
            softcap: params.softcap,
        };
        let widths = [heads, kv_heads, kv_heads, heads].map(|heads| heads * head_dim);
        let [_, _, _, attended] =
            self.call([qkv], widths, move |context, [qkv], out| attention.run(context, qkv, out));
        Some(attended)
    }

    fn gathered(
        &mut self,
        matrices: &Operand<'_>,
        bias: Option<&Array>,
        inputs: usize,
    ) -> Option<GatherInput> {
        let matrices = self.matrix(matrices, inputs)?;
        self.keeps_type(bias.map(Array::dtype))?;
        Some(GatherInput { matrices, bias: bias.map(|bias| self.inputs([bias]).start) })
    }

    /// What the experts that are picked by these scores give, weighted.
    pub(in crate::nn) fn experts(
        &mut self,
        x: Value,
        scores: Value,
        experts: &RecordedExperts<'_>,
    ) -> Option<Value> {
        let &RecordedExperts { ref matrices, ref biases, interleaved, gating, picking, choice_bias } =
            experts;
        let (gating, (down, inner)) = (gated_linear_unit(gating)?, matrices.split_last()?);
        let mut first = Vec::with_capacity(inner.len());
        for (place, matrices) in inner.iter().enumerate() {
            first.push(self.gathered(matrices, biases.get(place), x.width)?);
        }
        // Of one matrix both halves, of two one each.
        let outputs = first.first()?.matrices.0.outputs;
        let size = if first.len() == 1 { outputs / 2 } else { outputs };
        let down = self.gathered(down, biases.get(inner.len()), size)?;
        if choice_bias.is_some_and(|bias| bias.dtype() != Dtype::Float32)
            || down.matrices.0.outputs != x.width
            || first.iter().any(|first| first.matrices.0.outputs != outputs)
        {
            return None;
        }
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
            kernel_result(context.kernels.glu(&halves, gating, size, gated.reborrow()))?;
            down.run(context, gated.as_floats(), &places, each.reborrow())?;
            kernel_result(context.kernels.mix(each.as_floats(), &weights, mixed))
        });
        Some(mixed)
    }
}

/// A norm where its weights lie.
struct NormView<'a> {
    weight: FloatView<'a>,
    eps: f32,
}

impl<'a> NormView<'a> {
    fn of(context: &Context<'a>, norm: Option<&NormInput>) -> KernelResult<Option<Self>> {
        let Some((weight, eps)) = norm else { return Ok(None) };
        Ok(Some(Self { weight: FloatView::of(context.inputs[weight.start])?, eps: *eps }))
    }

    fn norm(&self) -> cpu_kernels::RmsNorm<'_> {
        cpu_kernels::RmsNorm { weight: self.weight.floats(), eps: self.eps }
    }
}

/// The attention of a layer, with what is done before it.
struct Attention {
    /// Rows, and tokens of each.
    sizes: [usize; 2],
    /// Of queries, of keys, and the width of one.
    heads: [usize; 3],
    norms: Option<[NormInput; 2]>,
    rotary: Option<RotaryTable>,
    /// Where keys and values of each row are among the inputs.
    kept: Range<usize>,
    /// Of each row, the slot of its first token, and slots in use afterwards.
    slots: Vec<[usize; 2]>,
    sinks: Option<usize>,
    scale: f32,
    softcap: Option<f32>,
}

impl Attention {
    fn run(&self, context: &Context<'_>, qkv: Floats<'_>, out: [FloatsMut<'_>; 4]) -> KernelResult {
        let ([rows, tokens], [heads, kv_heads, head_dim]) = (self.sizes, self.heads);
        let width = (heads + 2 * kv_heads) * head_dim;
        let [mut queries, mut keys, mut values, attended] = out;
        let parts = [
            (0, heads, &mut queries),
            (heads, kv_heads, &mut keys),
            (heads + kv_heads, kv_heads, &mut values),
        ];
        let angles = self.rotary.as_ref().map(RotaryTable::view);
        for (part, (first, heads, out)) in parts.into_iter().enumerate() {
            // Values are only put in order.
            let norm = self.norms.as_ref().and_then(|norms| norms.get(part));
            let norm = NormView::of(context, norm)?;
            let norm = norm.as_ref().map(NormView::norm);
            let data = tail(qkv, first * head_dim);
            let vectors = Heads { data, head_stride: head_dim, token_stride: width };
            let vectors = Queries { first: vectors, row_stride: tokens * width, tokens };
            let angles = angles.as_ref().filter(|_| part < 2);
            let sizes = [rows, heads, head_dim];
            kernel_result(context.kernels.norm_rope(&vectors, sizes, norm.as_ref(), angles, out.reborrow()))?;
        }
        let kept = &context.inputs[self.kept.clone()];
        let mut caches = Vec::with_capacity(rows);
        for (row, (kept, [slot, len])) in kept.chunks_exact(2).zip(&self.slots).enumerate() {
            keep(keys.as_floats(), [kv_heads, tokens, head_dim], row, kept[0], *slot)?;
            keep(values.as_floats(), [kv_heads, tokens, head_dim], row, kept[1], *slot)?;
            let [kept_keys, kept_values] = [Vectors::of(kept[0])?.heads(0)?, Vectors::of(kept[1])?.heads(0)?];
            let (keys, values) = (KvView::Floats(kept_keys), KvView::Floats(kept_values));
            caches.push(KvCache { keys, values, len: *len });
        }
        let sinks = self.sinks.map(|sinks| FloatView::of(context.inputs[sinks])).transpose()?;
        let params = cpu_kernels::AttentionParams {
            heads,
            kv_heads,
            head_dim,
            scale: self.scale,
            // A layer keeps no more than its window.
            window: None,
            softcap: self.softcap,
            sinks: sinks.as_ref().map(FloatView::floats),
        };
        let first =
            Heads { data: queries.as_floats(), head_stride: tokens * head_dim, token_stride: head_dim };
        let queries = Queries { first, row_stride: heads * tokens * head_dim, tokens };
        kernel_result(context.kernels.attention(&queries, &caches, &params, attended))
    }
}
