//! Attention that puts new keys and values where they are kept.

use std::rc::Rc;

use cpu_kernels::{Floats, KvCache, KvView, QuantizedHeads, Queries};
use mlx_rs::{Array, Dtype, error::Result};

use super::{
    super::{attention_params::AttentionParams, exec::ExecMode, parameter::Weight},
    kernel::{KernelResult, kernel_result, kernels, promoted},
    operand::{FloatView, Vectors, floats_mut, span},
};
use crate::mlx::{
    QuantizationScheme,
    primitive::{Element, Input, Output, Shape, primitive},
};

/// Where an operation writes new keys and values of a row.
#[derive(Debug)]
pub(crate) struct KvSlot {
    /// The row's keys and values, `[1, kv_heads, capacity, ..]`: row-major and written in place, so no one else may own them.
    pub(crate) arrays: Vec<Array>,
    /// Computed after the last write to them.
    pub(crate) after: Option<Rc<Array>>,
    /// The slot of the first token; the others follow.
    pub(crate) slot: usize,
    /// Slots in use afterwards. The last token attends to all of them.
    pub(crate) held: usize,
}

/// Writes new keys and values to the slots of each row, and attends: queries `[B, heads, T, head_dim]` →
/// `[B, T, heads · head_dim]`, and an array that is computed after the write. A token attends to those before it and itself. `new`
/// are the keys and values as they are kept, `[B, kv_heads, T, ..]`.
pub(in crate::nn) fn attend_in_place(
    queries: &Array,
    new: &[Array],
    scheme: Option<QuantizationScheme>,
    slots: &[KvSlot],
    params: &AttentionParams,
) -> Option<Result<[Array; 2]>> {
    if ExecMode::current() != ExecMode::CpuKernels {
        return None;
    }
    let &[batch, heads, tokens, head_dim] = queries.shape() else { return None };
    // The scales of quantised ones have the type.
    let floats = new.iter().map(Array::dtype).filter(|dtype| *dtype != Dtype::Uint32);
    let dtype = promoted([queries.dtype()].into_iter().chain(floats))?;
    let alike = |slot: &KvSlot| slot.arrays.iter().map(Array::dtype).eq(new.iter().map(Array::dtype));
    let sinks = params.sinks.as_ref().map(Weight::bound);
    if !slots.iter().all(alike) || sinks.as_ref().is_some_and(|sinks| promoted([sinks.dtype()]).is_none()) {
        return None;
    }
    let kept = slots.iter().flat_map(|slot| &slot.arrays);
    let mut arrays: Vec<_> = [queries].into_iter().chain(new).chain(kept).chain(&sinks).collect();
    let run = InPlace {
        rows: slots.iter().map(|slot| (slot.slot, slot.held)).collect(),
        scheme,
        parts: new.len(),
        read: arrays.len(),
        has_sinks: sinks.is_some(),
        scale: params.scale,
        softcap: params.softcap,
    };
    // Only so that they are computed first.
    let mut known: Vec<&Rc<Array>> = Vec::new();
    for after in slots.iter().filter_map(|slot| slot.after.as_ref()) {
        if !known.iter().any(|known| Rc::ptr_eq(known, after)) {
            known.push(after);
            arrays.push(after);
        }
    }
    let sizes = [batch, tokens, heads * head_dim];
    let shapes = [
        Shape { sizes: &sizes, dtype, donor: None },
        Shape { sizes: &[1], dtype: Dtype::Uint8, donor: None },
    ];
    Some(primitive(c"attend_in_place", &arrays, shapes, move |inputs, outputs| run.run(inputs, outputs)))
}

/// What [`attend_in_place`] does once its inputs are computed.
struct InPlace {
    /// For each row its first slot and how many are in use afterwards.
    rows: Vec<(usize, usize)>,
    scheme: Option<QuantizationScheme>,
    /// Arrays of the new keys and values, and of each row.
    parts: usize,
    /// Inputs that are read: queries, new keys and values, those of the rows, sinks.
    read: usize,
    has_sinks: bool,
    scale: f32,
    softcap: Option<f32>,
}

impl InPlace {
    fn run(&self, inputs: &[Input<'_>], outputs: &mut [Output<'_>]) -> KernelResult {
        let (new, kept) = inputs[1..self.read].split_at(self.parts);
        let (kept, sinks) = kept.split_at(kept.len() - usize::from(self.has_sinks));
        for (row, (kept, (slot, _))) in kept.chunks_exact(self.parts).zip(&self.rows).enumerate() {
            for (new, kept) in new.iter().zip(kept) {
                write(*new, row, *kept, *slot)?;
            }
        }
        let caches = kept.chunks_exact(self.parts).zip(&self.rows).map(|(kept, (_, len))| {
            let (keys, values) = kept.split_at(self.parts / 2);
            Ok(KvCache { keys: view(keys, self.scheme)?, values: view(values, self.scheme)?, len: *len })
        });
        let caches = caches.collect::<KernelResult<Vec<_>>>()?;
        let sinks = sinks.first().copied().map(FloatView::of).transpose()?;
        let queries = Vectors::of(inputs[0])?;
        let [_, heads, tokens, head_dim] = queries.sizes;
        let params = cpu_kernels::AttentionParams {
            heads,
            kv_heads: new[0].shape()[1] as usize,
            head_dim,
            scale: self.scale,
            // A layer keeps no more than its window.
            window: None,
            softcap: self.softcap,
            sinks: sinks.as_ref().map(FloatView::floats),
        };
        let queries = Queries { first: queries.heads(0)?, row_stride: queries.strides[0], tokens };
        kernel_result(kernels()?.attention(&queries, &caches, &params, floats_mut(&mut outputs[0])?))
    }
}

/// Keys or values as the kernels read them.
fn view<'a>(arrays: &[Input<'a>], scheme: Option<QuantizationScheme>) -> KernelResult<KvView<'a>> {
    match (arrays, scheme) {
        ([floats], None) => Ok(KvView::Floats(Vectors::of(*floats)?.heads(0)?)),
        ([words, scales, biases], Some(QuantizationScheme { bits, group_size, .. })) => {
            Ok(KvView::Quantized(QuantizedHeads {
                bits,
                group_size,
                words: words.span()?,
                scales: span(*scales)?,
                biases: span(*biases)?,
                capacity: words.shape()[2] as usize,
            }))
        }
        _ => Err("keys or values in an unexpected number of arrays".into()),
    }
}

/// Copies the vectors of one row of `new` `[rows, heads, tokens, width]` into the slots of `kept` `[1, heads, capacity, width]`
/// from `slot` on.
fn write(new: Input<'_>, row: usize, kept: Input<'_>, slot: usize) -> KernelResult {
    let &[_, heads, tokens, width] = new.shape() else {
        return Err("vectors that are not [rows, heads, tokens, head_dim]".into());
    };
    let sizes = [heads, tokens, width].map(|size| size as usize);
    match kept.dtype() {
        Some(Dtype::Float32) => copy::<f32>(&new.elements()?, sizes, row, kept, slot),
        Some(Dtype::Uint32) => copy::<u32>(&new.elements()?, sizes, row, kept, slot),
        Some(Dtype::Float16) => copy::<half::f16>(&new.elements()?, sizes, row, kept, slot),
        Some(Dtype::Bfloat16) => copy::<half::bf16>(&new.elements()?, sizes, row, kept, slot),
        other => Err(format!("keys and values are kept as {other:?}").into()),
    }
}

/// The same of floats: heads, tokens and width are `sizes`.
pub(super) fn keep(
    new: Floats<'_>,
    sizes: [usize; 3],
    row: usize,
    kept: Input<'_>,
    slot: usize,
) -> KernelResult {
    match new {
        Floats::F32(new) => copy(new, sizes, row, kept, slot),
        Floats::F16(new) => copy(new, sizes, row, kept, slot),
        Floats::Bf16(new) => copy(new, sizes, row, kept, slot),
    }
}

fn copy<T: Element>(
    new: &[T],
    [heads, tokens, width]: [usize; 3],
    row: usize,
    kept: Input<'_>,
    slot: usize,
) -> KernelResult {
    let &[1, _, capacity, _] = kept.shape() else {
        return Err("keys or values that are not [1, heads, capacity, head_dim]".into());
    };
    // SAFETY: the memory is the row's alone, and what reads it later runs after this function on the stream: see `KvSlot`.
    let kept = unsafe { kept.elements_mut::<T>()? };
    for head in 0..heads {
        let from = (row * heads + head) * tokens * width;
        let to = (head * capacity as usize + slot) * width;
        let (Some(from), Some(to)) =
            (new.get(from..from + tokens * width), kept.get_mut(to..to + tokens * width))
        else {
            return Err("a slot beyond the end".into());
        };
        to.copy_from_slice(from);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Device, ops, transforms, with_device};

    use super::*;
    use crate::{
        mlx::slice,
        nn::cpu::kernel::testing::{FLOATS, check, drawn, wide},
    };

    #[test]
    fn a_pass_that_is_given_up_halfway_leaves_what_was_before_it() {
        use crate::nn::KvCache;

        let pass = |cache: &mut KvCache, seed: u64, tokens: i32| {
            for layer in 0..2 {
                let drawn =
                    |part: u64, heads| drawn(seed + 10 * part, &[1, heads, tokens, 16], Dtype::Float32);
                let new = [drawn(layer as u64, 2), drawn(2 + layer as u64, 2)];
                let slots = [cache.slot(layer, tokens as usize, &new).unwrap()];
                let params = AttentionParams::full(0.25);
                let computed = attend_in_place(&drawn(4, 6), &new, None, &slots, &params).unwrap();
                cache.mark_written(layer, Rc::new(computed.unwrap()[1].clone()));
            }
            cache.advance(tokens as usize);
        };
        with_device(Device::cpu(), || {
            // The pass fits the buffers, or they grow with it.
            for tokens in [7, 300] {
                let [mut cache, mut expected] = [(); 2].map(|()| KvCache::new([None, None]));
                for cache in [&mut cache, &mut expected] {
                    pass(cache, 1, 5);
                    cache.evaluate().unwrap();
                }
                pass(&mut cache, 2, tokens);
                transforms::eval(&cache.layer_arrays(0..1)).unwrap();
                assert!(cache.abandon_pass(5, 1));
                for cache in [&mut cache, &mut expected] {
                    pass(cache, 3, 4);
                    cache.evaluate().unwrap();
                }
                assert_eq!(cache.len(), 9);
                let exported = [&cache, &expected].map(|cache| cache.export().unwrap().concat());
                for (found, expected) in exported[0].iter().zip(&exported[1]) {
                    assert!(found.eq_values(expected).unwrap(), "a pass of {tokens} tokens");
                }
            }
            // MLX's operations make new arrays: they cannot go back without the whole pass.
            let mut cache = KvCache::new([None]);
            let new = drawn(1, &[1, 2, 3, 16], Dtype::Float32);
            cache.update(0, [&new, &new], 3).unwrap();
            cache.advance(3);
            assert!(!cache.abandon_pass(0, 0) && cache.len() == 3);
        });
    }

    /// What the other row still asks for is written to memory that the row has left.
    #[test]
    fn a_row_whose_pass_is_given_up_beside_another_goes_its_own_way() {
        use crate::nn::KvCache;

        let pass = |caches: &mut [&mut KvCache], seed: u64, tokens: i32| {
            for layer in 0..2 {
                let shape = |heads| [caches.len() as i32, heads, tokens, 16];
                let [keys, values, queries] = [(layer, 2), (2 + layer, 2), (4, 6)]
                    .map(|(part, heads)| drawn(seed + 10 * part as u64, &shape(heads), Dtype::Float32));
                let new = [keys, values];
                let slots: Vec<_> = caches
                    .iter_mut()
                    .map(|cache| cache.slot(layer, tokens as usize, &new).unwrap())
                    .collect();
                let params = AttentionParams::full(0.25);
                let computed = attend_in_place(&queries, &new, None, &slots, &params).unwrap();
                let written = Rc::new(computed.unwrap()[1].clone());
                caches.iter_mut().for_each(|cache| cache.mark_written(layer, written.clone()));
            }
            caches.iter_mut().for_each(|cache| cache.advance(tokens as usize));
        };
        with_device(Device::cpu(), || {
            let [mut row, mut other, mut expected, mut third] = [(); 4].map(|()| KvCache::new([None, None]));
            pass(&mut [&mut row, &mut other], 1, 5);
            pass(&mut [&mut expected, &mut third], 1, 5);
            [&row, &expected].iter().for_each(|cache| cache.evaluate().unwrap());
            pass(&mut [&mut row, &mut other], 2, 7);
            transforms::eval(&row.layer_arrays(0..1)).unwrap();
            assert!(row.abandon_pass(5, 1));
            for row in [&mut row, &mut expected] {
                pass(&mut [row], 3, 4);
                row.evaluate().unwrap();
            }
            other.evaluate().unwrap();
            let exported = [&row, &expected].map(|cache| cache.export().unwrap().concat());
            for (found, expected) in exported[0].iter().zip(&exported[1]) {
                assert!(found.eq_values(expected).unwrap());
            }
        });
    }

    #[test]
    fn rows_attend_each_to_its_own_and_keep_what_is_new() {
        with_device(Device::cpu(), || {
            for dtype in FLOATS {
                // Tokens, and where each row's go: behind those before, or round and round in a full window.
                for (tokens, places) in [(1, vec![(6, 7), (0, 1), (32, 33), (3, 40)]), (5, vec![(11, 16)])] {
                    let rows = places.len() as i32;
                    let new = [1, 2, 3].map(|seed| {
                        let heads = if seed == 1 { 6 } else { 2 };
                        drawn(seed, &[rows, tokens, heads, 16], dtype).swap_axes(1, 2).unwrap()
                    });
                    let held = |row: usize, part: u64| {
                        let drawn = drawn(10 + 2 * row as u64 + part, &[1, 2, 39, 16], dtype);
                        ops::concatenate(&[&drawn, &slice(&drawn, 2, 0, 1).unwrap()], 2).unwrap()
                    };
                    let kept: Vec<_> = places
                        .iter()
                        .enumerate()
                        .map(|(row, (slot, held_after))| KvSlot {
                            arrays: [0, 1].map(|part| held(row, part)).into(),
                            after: None,
                            slot: *slot,
                            held: *held_after,
                        })
                        .collect();
                    let how = AttentionParams::full(0.25);
                    let ours = attend_in_place(&new[0], &new[1..], None, &kept, &how).unwrap().unwrap();
                    ours[0].eval().unwrap();
                    for (row, KvSlot { arrays, slot, held: len, .. }) in kept.iter().enumerate() {
                        let of = |x: &Array| slice(x, 0, row as i32, row as i32 + 1).unwrap();
                        let mut seen = Vec::new();
                        for part in 0..2 {
                            let before = held(row, part as u64);
                            let after =
                                crate::mlx::slice_update(before, &of(&new[1 + part]), 2, *slot as i32);
                            let after = after.unwrap();
                            assert!(arrays[part].eq_values(&after).unwrap(), "{dtype:?}, row {row}");
                            seen.push(wide(&slice(&after, 2, 0, *len as i32).unwrap()));
                        }
                        let queries = wide(&of(&new[0]));
                        let mlx = crate::nn::sdpa::plain([&queries, &seen[0], &seen[1]], &how).unwrap();
                        check(&of(&ours[0]), &mlx, dtype, &format!("{dtype:?}, row {row} of {rows}"));
                    }
                }
            }
        });
    }
}
