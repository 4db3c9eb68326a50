//! Attention that puts new keys and values where they are kept.

use std::rc::Rc;

use cpu_kernels::{Cache, Heads, Queries};
use mlx_rs::{Array, Dtype, error::Result};

use super::{
    super::{
        custom::{Element, Input, Shape, custom, native},
        pass::Attend,
    },
    Done, kernels,
    operand::{Held, Vectors, floats_mut},
    promoted, to_reason,
};

/// Where new tokens of a row go, and what they see.
#[derive(Debug)]
pub(crate) struct Place {
    /// Keys and values `[1, kv_heads, capacity, head_dim]`, this row's alone and row-major: they are written in place.
    pub(crate) arrays: Vec<Array>,
    /// What is computed once everything is there that was put into them before.
    pub(crate) after: Option<Rc<Array>>,
    /// The slot of the first token; the others follow.
    pub(crate) slot: usize,
    /// Slots in use afterwards, all of which the last token sees.
    pub(crate) held: usize,
}

/// Puts keys and values `[B, kv_heads, T, head_dim]` in their places, one for each row, and attends to what is there: queries
/// `[B, heads, T, head_dim]` → `[B, T, heads · head_dim]`, and what is computed once they are in their places. Of several
/// tokens each sees those up to its own.
pub(in crate::nn) fn attend_in_place(
    [queries, keys, values]: [&Array; 3],
    places: &[Place],
    how: &Attend,
) -> Option<Result<[Array; 2]>> {
    if !native() || places.iter().any(|place| place.arrays.len() != 2) {
        return None;
    }
    let &[batch, heads, tokens, head_dim] = queries.shape() else { return None };
    let kept = places.iter().flat_map(|place| &place.arrays);
    let dtype = promoted([queries.dtype(), keys.dtype(), values.dtype()])?;
    let same =
        kept.clone().zip([keys, values].into_iter().cycle()).all(|(kept, new)| kept.dtype() == new.dtype());
    if !same || how.sinks.as_ref().is_some_and(|sinks| promoted([sinks.dtype()]).is_none()) {
        return None;
    }
    let mut arrays: Vec<_> =
        [queries, keys, values].into_iter().chain(kept).chain(how.sinks.as_deref()).collect();
    let read = arrays.len();
    for (index, after) in
        places.iter().enumerate().filter_map(|(index, place)| Some((index, place.after.as_ref()?)))
    {
        let known = places[..index].iter().filter_map(|place| place.after.as_ref());
        if !known.into_iter().any(|known| Rc::ptr_eq(known, after)) {
            arrays.push(after);
        }
    }
    let rows: Vec<_> = places.iter().map(|place| (place.slot, place.held)).collect();
    let (scale, softcap, has_sinks) = (how.scale, how.softcap, how.sinks.is_some());
    let sizes = [batch, tokens, heads * head_dim];
    let shapes = [
        Shape { sizes: &sizes, dtype, donor: None },
        Shape { sizes: &[1], dtype: Dtype::Uint8, donor: None },
    ];
    Some(custom(c"attend_in_place", &arrays, shapes, move |inputs, outputs| {
        let [queries, keys, values, kept @ ..] = &inputs[..read] else { return Err("no inputs".into()) };
        let (kept, sinks) = kept.split_at(2 * rows.len());
        for (row, (pair, (slot, _))) in kept.chunks_exact(2).zip(&rows).enumerate() {
            put(*keys, row, pair[0], *slot)?;
            put(*values, row, pair[1], *slot)?;
        }
        let caches = kept.chunks_exact(2).zip(&rows).map(|(pair, (_, held))| {
            let [keys, values]: [Heads<'_>; 2] =
                [Vectors::of(pair[0])?.heads(0)?, Vectors::of(pair[1])?.heads(0)?];
            Ok(Cache { keys, values, len: *held })
        });
        let caches = caches.collect::<Done<Vec<_>>>()?;
        let sinks = sinks.first().filter(|_| has_sinks).copied().map(Held::of).transpose()?;
        let queries = Vectors::of(*queries)?;
        let [_, heads, tokens, head_dim] = queries.sizes;
        let how = cpu_kernels::Attend {
            heads,
            kv_heads: keys.shape()[1] as usize,
            head_dim,
            scale,
            // No more is kept than is seen.
            window: None,
            softcap,
            sinks: sinks.as_ref().map(Held::floats),
        };
        let queries = Queries { first: queries.heads(0)?, row_stride: queries.strides[0], tokens };
        to_reason(kernels()?.attend(&queries, &caches, &how, floats_mut(&mut outputs[0])?))
    }))
}

/// Copies the vectors of one row of `new` `[rows, heads, tokens, width]` into the slots of `kept` `[1, heads, capacity, width]`
/// from `slot` on.
fn put(new: Input<'_>, row: usize, kept: Input<'_>, slot: usize) -> Done {
    match kept.dtype() {
        Some(Dtype::Float32) => put_as::<f32>(new, row, kept, slot),
        Some(Dtype::Float16) => put_as::<half::f16>(new, row, kept, slot),
        Some(Dtype::Bfloat16) => put_as::<half::bf16>(new, row, kept, slot),
        other => Err(format!("keys and values are kept as {other:?}").into()),
    }
}

fn put_as<T: Element>(new: Input<'_>, row: usize, kept: Input<'_>, slot: usize) -> Done {
    let (&[_, heads, tokens, width], &[1, _, capacity, _]) = (new.shape(), kept.shape()) else {
        return Err("vectors that are not [rows, heads, tokens, head_dim]".into());
    };
    let [heads, tokens, width, capacity] = [heads, tokens, width, capacity].map(|size| size as usize);
    let vectors = new.elements::<T>()?;
    // SAFETY: the memory is the row's alone, and who reads it later comes after this function on the stream, see `Place`.
    let kept = unsafe { kept.elements_mut::<T>()? };
    for head in 0..heads {
        let from = (row * heads + head) * tokens * width;
        let to = (head * capacity + slot) * width;
        let (Some(from), Some(to)) =
            (vectors.get(from..from + tokens * width), kept.get_mut(to..to + tokens * width))
        else {
            return Err("a slot beyond the end".into());
        };
        to.copy_from_slice(from);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Device, ops, with_device};

    use super::*;
    use crate::nn::{
        native::testing::{FLOATS, check, drawn, wide},
        ops::slice,
    };

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
                        .map(|(row, (slot, held_after))| Place {
                            arrays: [0, 1].map(|part| held(row, part)).into(),
                            after: None,
                            slot: *slot,
                            held: *held_after,
                        })
                        .collect();
                    let how = Attend::all(0.25);
                    let ours = attend_in_place([&new[0], &new[1], &new[2]], &kept, &how).unwrap().unwrap();
                    ours[0].eval().unwrap();
                    for (row, Place { arrays, slot, held: len, .. }) in kept.iter().enumerate() {
                        let of = |x: &Array| slice(x, 0, row as i32, row as i32 + 1).unwrap();
                        let mut seen = Vec::new();
                        for part in 0..2 {
                            let before = held(row, part as u64);
                            let after =
                                crate::nn::ops::slice_update(before, &of(&new[1 + part]), 2, *slot as i32);
                            let after = after.unwrap();
                            assert!(arrays[part].eq_values(&after).unwrap(), "{dtype:?}, row {row}");
                            seen.push(wide(&slice(&after, 2, 0, *len as i32).unwrap()));
                        }
                        let queries = wide(&of(&new[0]));
                        let mlx = crate::nn::pass::plain([&queries, &seen[0], &seen[1]], &how).unwrap();
                        check(&of(&ours[0]), &mlx, dtype, &format!("{dtype:?}, row {row} of {rows}"));
                    }
                }
            }
        });
    }
}
