//! Attention: what is done to queries, keys and values before it, and the keys and values that are kept.

use std::{ops::Range, rc::Rc};

use cpu_kernels::{Floats, FloatsMut, Heads, KvCache, KvView, Queries};
use half::{bf16, f16};
use mlx_rs::Dtype;

use super::{
    super::{
        super::{attention_params::AttentionParams, norm::RmsNorm, rope::Rope},
        attention::RotaryTable,
        in_place::keep,
        kernel::{KernelResult, kernel_result, promoted},
        operand::{FloatView, Vectors, part_mut, tail},
    },
    call::{Context, NormInput, Part, Recorded, Unrecorded, require},
    parts::NormView,
    recorder::Recording,
};

/// The attention of a layer, from the projections to the output of the heads.
pub(in crate::nn) struct RecordedAttention<'a> {
    /// Heads of queries, heads of keys and of values, the width of one.
    pub(in crate::nn) heads: [usize; 3],
    /// Whether gates of each head of queries lie behind it.
    pub(in crate::nn) gated: bool,
    /// Norms of each head of queries and of keys.
    pub(in crate::nn) norms: Option<[&'a RmsNorm; 2]>,
    pub(in crate::nn) rope: Option<&'a Rope>,
    /// Whether positions are applied before the norms.
    pub(in crate::nn) rope_first: bool,
    /// Factors of the queries of each token, `[rows · tokens]`.
    pub(in crate::nn) query_factors: Option<Vec<f32>>,
    pub(in crate::nn) params: &'a AttentionParams,
}

impl Recording<'_, '_> {
    /// Where each token is in its text, `[rows · tokens]`.
    pub(in crate::nn) fn positions(&self) -> Recorded<Vec<usize>> {
        Ok(match &self.pass {
            Some(pass) => pass.positions()?,
            None => Vec::new(),
        })
    }

    /// A part by itself, normalised as one vector of `width` elements.
    pub(in crate::nn) fn norm_of_part(&mut self, part: Part, norm: &RmsNorm, width: usize) -> Recorded<Part> {
        let norm = self.norm_input(norm, width)?;
        let ([rows, tokens], stride) = (self.sizes, part.value.width);
        let [value] = self.call([part.value], [width], move |context, [x], [out]| {
            let norm = NormView::of(context, Some(&norm))?;
            let first = Heads { data: part.of(x), head_stride: width, token_stride: stride };
            let vectors = Queries { first, row_stride: tokens * stride, tokens };
            let norm = norm.as_ref().map(NormView::norm);
            kernel_result(context.kernels.norm_rope(&vectors, [rows, 1, width], norm.as_ref(), None, out))
        });
        Ok(Part { value, start: 0 })
    }

    fn rotary_table(&mut self, rope: &Rope) -> Recorded<RotaryTable> {
        Ok(match &mut self.pass {
            Some(pass) => pass.rotary_table(rope)?,
            None => RotaryTable { pairs: 0, cos_sin: [].into(), interleaved: false },
        })
    }

    /// Where the rows' keys and values of a layer are among the inputs, and of each row the slot of its first token and the slots in use
    /// afterwards.
    fn kept(&mut self, layer: usize) -> Recorded<(Range<usize>, Vec<[usize; 2]>)> {
        let Some(pass) = &mut self.pass else { return Ok((0..0, Vec::new())) };
        let slots = pass.slots(layer).ok_or(Unrecorded::Now("nothing is kept yet, or not as floats"))??;
        let kept = slots.iter().flat_map(|slot| &slot.arrays);
        if slots.iter().any(|slot| slot.arrays.len() != 2)
            || kept.clone().any(|kept| kept.dtype() != self.dtype)
        {
            return Err(Unrecorded::Now("keys and values of another type"));
        }
        let kept = self.inputs(kept);
        for after in slots.iter().filter_map(|slot| slot.after.as_ref()) {
            if !self.after.iter().any(|known| Rc::ptr_eq(known, after)) {
                self.after.push(after.clone());
            }
        }
        self.layers.push(layer);
        Ok((kept, slots.iter().map(|slot| [slot.slot, slot.held]).collect()))
    }

    /// Attention of these queries, keys and values of a layer, which are written to the rows' caches. Norms and rotary positions are part of
    /// the call.
    pub(in crate::nn) fn attend(
        &mut self,
        layer: usize,
        parts: [Part; 3],
        how: &RecordedAttention<'_>,
    ) -> Recorded {
        let AttentionParams { scale, both_ways, window: _, chunk, softcap, ref sinks, ref bias } =
            *how.params;
        require(!both_ways && chunk.is_none() && bias.is_none(), "attention of another kind")?;
        let [heads, kv_heads, head_dim] = how.heads;
        let norms = match how.norms {
            Some([q_norm, k_norm]) => {
                Some([self.norm_input(q_norm, head_dim)?, self.norm_input(k_norm, head_dim)?])
            }
            None => None,
        };
        let rotary = how.rope.map(|rope| self.rotary_table(rope)).transpose()?;
        let sinks = match sinks {
            Some(sinks) => {
                let sinks = sinks.get()?;
                require(promoted([sinks.dtype()]).is_some(), "sinks of another type")?;
                Some(self.inputs([&sinks]).start)
            }
            None => None,
        };
        let factors = how.query_factors.as_ref().map(|factors| {
            let factors = factors.iter().map(|factor| rounded(*factor, self.dtype));
            factors.collect::<Vec<_>>()
        });
        let (kept, slots) = self.kept(layer)?;
        let attention = Attention {
            sizes: self.sizes,
            heads: how.heads,
            gated: how.gated,
            parts,
            norms,
            rotary,
            rope_first: how.rope_first,
            factors: factors.map(|factors| self.for_each_query(&factors, heads)),
            kept,
            slots,
            sinks,
            scale,
            softcap,
        };
        let width = |heads: usize, is_there: bool| if is_there { heads * head_dim } else { 0 };
        let is_twofold = attention.rope_first || attention.factors.is_some();
        let widths = [
            width(heads, true),
            width(kv_heads, true),
            width(kv_heads, true),
            width(heads, is_twofold),
            width(heads, true),
            width(heads, how.gated),
        ];
        let reads = parts.map(|part| part.value);
        let [.., attended, gated] =
            self.call(reads, widths, move |context, parts, out| attention.run(context, parts, out));
        Ok(if how.gated { gated } else { attended })
    }

    /// Factors of tokens, as factors of `[rows, heads, tokens]`.
    fn for_each_query(&self, factors: &[f32], heads: usize) -> Vec<f32> {
        let rows = factors.chunks(self.sizes[1].max(1));
        rows.flat_map(|row| std::iter::repeat_n(row, heads).flatten().copied()).collect()
    }
}

/// A number as one of a type.
fn rounded(value: f32, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::Float16 => f16::from_f32(value).to_f32(),
        Dtype::Bfloat16 => bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

/// The attention of a layer, with what is done before it.
struct Attention {
    /// Rows, and tokens of each.
    sizes: [usize; 2],
    /// Of queries, of keys, and the width of one.
    heads: [usize; 3],
    gated: bool,
    /// Queries, keys and values.
    parts: [Part; 3],
    norms: Option<[NormInput; 2]>,
    rotary: Option<RotaryTable>,
    rope_first: bool,
    /// Of queries, `[rows, heads, tokens]`.
    factors: Option<Vec<f32>>,
    /// Where keys and values of each row are among the inputs.
    kept: Range<usize>,
    /// Of each row, the slot of its first token, and slots in use afterwards.
    slots: Vec<[usize; 2]>,
    sinks: Option<usize>,
    scale: f32,
    softcap: Option<f32>,
}

impl Attention {
    fn run(&self, context: &Context<'_>, parts: [Floats<'_>; 3], out: [FloatsMut<'_>; 6]) -> KernelResult {
        let [mut queries, mut keys, mut values, mut twofold, mut attended, gated] = out;
        for (index, out) in [&mut queries, &mut keys, &mut values].into_iter().enumerate() {
            self.prepare(context, index, parts[index], [out.reborrow(), twofold.reborrow()])?;
        }
        let queries = match &self.factors {
            Some(factors) => {
                kernel_result(context.kernels.mix(queries.as_floats(), factors, twofold.reborrow()))?;
                twofold.as_floats()
            }
            None => queries.as_floats(),
        };
        self.attend(context, queries, [keys.as_floats(), values.as_floats()], attended.reborrow())?;
        if !self.gated {
            return Ok(());
        }
        let ([rows, tokens], [heads, _, head_dim], part) = (self.sizes, self.heads, &self.parts[0]);
        let (data, token_stride) = (tail(part.of(parts[0]), head_dim), part.value.width);
        let first = Heads { data, head_stride: 2 * head_dim, token_stride };
        let gates = Queries { first, row_stride: tokens * token_stride, tokens };
        let sizes = [rows, heads, head_dim];
        kernel_result(context.kernels.gate_heads(&gates, sizes, attended.as_floats(), gated))
    }

    /// Norms and rotates the queries, 0, or the keys, 1; puts them, or the values, 2, in the order `[rows, heads, tokens, head_dim]`.
    fn prepare(
        &self,
        context: &Context<'_>,
        index: usize,
        data: Floats<'_>,
        [out, twofold]: [FloatsMut<'_>; 2],
    ) -> KernelResult {
        let ([rows, tokens], [heads, kv_heads, head_dim]) = (self.sizes, self.heads);
        let (part, heads) = (&self.parts[index], if index == 0 { heads } else { kv_heads });
        let head_stride = if self.gated && index == 0 { 2 * head_dim } else { head_dim };
        let (token_stride, sizes) = (part.value.width, [rows, heads, head_dim]);
        let first = Heads { data: part.of(data), head_stride, token_stride };
        let vectors = Queries { first, row_stride: tokens * token_stride, tokens };
        let norm = NormView::of(context, self.norms.as_ref().and_then(|norms| norms.get(index)))?;
        let norm = norm.as_ref().map(NormView::norm);
        let angles = self.rotary.as_ref().filter(|_| index < 2).map(RotaryTable::view);
        let kernels = context.kernels;
        if !self.rope_first || norm.is_none() {
            return kernel_result(kernels.norm_rope(&vectors, sizes, norm.as_ref(), angles.as_ref(), out));
        }
        let mut twofold = part_mut(twofold, 0..rows * tokens * heads * head_dim);
        kernel_result(kernels.norm_rope(&vectors, sizes, None, angles.as_ref(), twofold.reborrow()))?;
        let first =
            Heads { data: twofold.as_floats(), head_stride: tokens * head_dim, token_stride: head_dim };
        let vectors = Queries { first, row_stride: heads * tokens * head_dim, tokens };
        kernel_result(kernels.norm_rope(&vectors, sizes, norm.as_ref(), None, out))
    }

    /// Keeps the keys and values, and attends to all that are kept.
    fn attend(
        &self,
        context: &Context<'_>,
        queries: Floats<'_>,
        [keys, values]: [Floats<'_>; 2],
        out: FloatsMut<'_>,
    ) -> KernelResult {
        let ([rows, tokens], [heads, kv_heads, head_dim]) = (self.sizes, self.heads);
        let kept = &context.inputs[self.kept.clone()];
        let mut caches = Vec::with_capacity(rows);
        for (row, (kept, [slot, len])) in kept.chunks_exact(2).zip(&self.slots).enumerate() {
            keep(keys, [kv_heads, tokens, head_dim], row, kept[0], *slot)?;
            keep(values, [kv_heads, tokens, head_dim], row, kept[1], *slot)?;
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
        let first = Heads { data: queries, head_stride: tokens * head_dim, token_stride: head_dim };
        let queries = Queries { first, row_stride: heads * tokens * head_dim, tokens };
        kernel_result(context.kernels.attention(&queries, &caches, &params, out))
    }
}
