//! Rows that lie together, so that one operation serves them all.

use std::{cell::RefCell, rc::Rc};

use mlx_rs::{Array, error::Result, ops};

use super::{
    kv_cache::KvCache,
    shelf::{Buffers, Shelf, pack, unpack},
};
use crate::mlx::slice;

/// Puts the rows of a pass that are to be written by one operation together, in their order, and gives each of the others
/// memory of its own. How many caches each such group has: one where rows are not `joined`.
pub(crate) fn gather(caches: &mut [&mut KvCache], joined: bool) -> Result<Vec<usize>> {
    let alike = |a: &&mut KvCache, b: &&mut KvCache| joined && a.joins(b);
    let mut sizes = Vec::new();
    for group in caches.chunk_by_mut(alike) {
        sizes.push(group.len());
        match group {
            [row] => row.own()?,
            rows => {
                if !is_whole(rows) {
                    join(rows)?;
                }
            }
        }
    }
    Ok(sizes)
}

/// Whether the rows are all that there is on their shelf.
fn is_whole(rows: &[&mut KvCache]) -> bool {
    let shelf = &rows[0].shelf;
    shelf.borrow().rows == rows.len()
        && Rc::strong_count(shelf) == rows.len()
        && rows.iter().enumerate().all(|(index, row)| row.row == index && Rc::ptr_eq(&row.shelf, shelf))
        && rows[0].has_room(rows[0].capacity_bucket())
}

/// Puts rows on a shelf of their own.
fn join(rows: &mut [&mut KvCache]) -> Result<()> {
    let class = rows[0].capacity_bucket();
    let mut layers = Vec::with_capacity(rows[0].spans.len());
    for (layer, span) in rows[0].spans.iter().enumerate() {
        let capacity = span.window.map_or(class, |window| window.min(class)) as i32;
        // Neighbours that lie together already are moved together.
        let together = |a: &&mut KvCache, b: &&mut KvCache| {
            Rc::ptr_eq(&a.shelf, &b.shelf) && a.row + 1 == b.row && a.has_room(class)
        };
        let mut parts = Vec::new();
        for part in rows.chunk_by(together) {
            let shelf = part[0].shelf.borrow();
            let start = part[0].row as i32;
            let mut arrays = Vec::new();
            for array in shelf.layers[layer].settled()? {
                let rows = slice(array, 0, start, start + part.len() as i32)?;
                let held = array.dim(2).min(capacity);
                let mut parts = vec![slice(&rows, 2, 0, held)?];
                if held < capacity {
                    let room = [rows.dim(0), rows.dim(1), capacity - held, rows.dim(3)];
                    parts.push(ops::zeros_dtype(&room, rows.dtype())?);
                }
                arrays.push(if let [whole] = &parts[..] {
                    whole.clone()
                } else {
                    ops::concatenate(&parts, 2)?
                });
            }
            parts.push(arrays);
        }
        let joined = |index: usize| {
            let parts: Vec<&Array> = parts.iter().map(|arrays| &arrays[index]).collect();
            ops::concatenate(&parts, 0)
        };
        let arrays = (0..parts[0].len()).map(joined).collect::<Result<_>>()?;
        layers.push(Buffers { arrays, ..Buffers::default() });
    }
    let shelf = Rc::new(RefCell::new(Shelf { rows: rows.len(), layers }));
    for (index, row) in rows.iter_mut().enumerate() {
        (row.shelf, row.row) = (shelf.clone(), index);
    }
    Ok(())
}

/// Where the new token of each row of a group goes, and what it sees.
#[derive(Debug, Clone)]
pub(crate) struct Slots {
    /// The slots: `[rows, 1, 1, 1]`, i32.
    slots: Array,
    /// How many slots are in use afterwards, of the row that has most.
    held: usize,
    /// Those in use in each row, `[rows, 1, 1, held]`, true where they are; none where all rows use as many.
    pub(crate) mask: Option<Array>,
}

impl Slots {
    /// Those of one more token in each row of a group, in this layer.
    pub(crate) fn new(rows: &[&mut KvCache], layer: usize) -> Result<Self> {
        let column = |numbers: &[i32]| Array::from_slice(numbers, &[numbers.len() as i32, 1, 1, 1]);
        let slots: Vec<_> = rows.iter().map(|row| row.spans[layer].slot(row.len) as i32).collect();
        let held: Vec<_> = rows.iter().map(|row| row.spans[layer].held(row.len + 1) as i32).collect();
        let most = held.iter().copied().max().unwrap_or(0);
        let mask = if held.iter().all(|held| *held == most) {
            None
        } else {
            Some(ops::arange::<_, i32>(0, most, None)?.lt(column(&held))?)
        };
        Ok(Self { slots: column(&slots), held: most as usize, mask })
    }
}

/// Adds keys and values `[rows, kv_heads, 1, head_dim]` of one token of each row of a group to a layer, and returns all that
/// any of them sees, `[rows, kv_heads, S, head_dim]`: [`Slots::mask`] says which.
pub(crate) fn update(
    rows: &[&mut KvCache],
    layer: usize,
    slots: &Slots,
    new: [&Array; 2],
) -> Result<[Array; 2]> {
    let mut shelf = rows[0].shelf.borrow_mut();
    let buffers = &mut shelf.layers[layer];
    buffers.scatter(&slots.slots, &pack(new, rows[0].scheme)?)?;
    unpack(&buffers.read(0, slots.held)?, rows[0].scheme)
}

impl KvCache {
    /// Whether the rows can lie together.
    fn joins(&self, other: &Self) -> bool {
        let some = |row: &Self| row.len > 0;
        (self.capacity_bucket(), &self.spans, self.scheme)
            == (other.capacity_bucket(), &other.spans, other.scheme)
            && some(self)
            && some(other)
    }

    /// Whether its layers have the room that rows of a class have together.
    fn has_room(&self, class: usize) -> bool {
        let shelf = self.shelf.borrow();
        let room = |(buffers, window): (&Buffers, Option<usize>)| {
            buffers.capacity() == window.map_or(class, |window| window.min(class))
        };
        let windows = self.spans.iter().map(|span| span.window);
        shelf.layers.iter().zip(windows).all(room)
    }

    /// Makes the memory its own, which is written in place.
    fn own(&mut self) -> Result<()> {
        self.detach()?;
        if Rc::strong_count(&self.shelf) > 1 {
            let shelf = self.shelf.borrow().borrowed();
            self.shelf = Rc::new(RefCell::new(shelf));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use mlx_rs::Device;

    use super::*;
    use crate::nn::cache::{kv_cache::Rotation, span::Span};

    /// Keys and values of one token: numbers that say which row and position they are of.
    fn token(row: usize, position: usize) -> [Array; 2] {
        let key = Array::from_slice(&[(1000 * row + position) as f32], &[1, 1, 1, 1]);
        let value = key.negative().unwrap();
        [key, value]
    }

    fn numbers(array: &Array) -> Vec<f32> {
        array.contiguous().unwrap().to_vec_exact().unwrap()
    }

    /// A row of so many tokens, computed by itself.
    fn alone(cache: KvCache, row: usize, len: usize) -> KvCache {
        let mut cache = cache;
        for position in 0..len {
            let [key, value] = token(row, position);
            for layer in 0..cache.spans.len() {
                cache.update(layer, [&key, &value]).unwrap();
            }
            cache.advance(1);
        }
        cache
    }

    /// One more token for each row, together: what each then sees in a layer, by groups and in order.
    fn step(rows: &mut [&mut KvCache], names: &[usize]) -> (Vec<usize>, Vec<Vec<Vec<f32>>>) {
        let sizes = gather(rows, true).unwrap();
        let mut seen = vec![Vec::new(); rows[0].spans.len()];
        let mut start = 0;
        for size in &sizes {
            let group = &mut rows[start..start + size];
            let new: Vec<_> =
                group.iter().zip(&names[start..]).map(|(row, name)| token(*name, row.len())).collect();
            let joined = [0, 1].map(|part| {
                ops::concatenate(&new.iter().map(|new| &new[part]).collect::<Vec<_>>(), 0).unwrap()
            });
            for (layer, seen) in seen.iter_mut().enumerate() {
                if let [row] = group {
                    let [keys, _] = row.update(layer, [&joined[0], &joined[1]]).unwrap();
                    seen.push(numbers(&keys));
                    continue;
                }
                let slots = Slots::new(group, layer).unwrap();
                let [keys, values] = update(group, layer, &slots, [&joined[0], &joined[1]]).unwrap();
                assert!(values.eq_values(keys.negative().unwrap()).unwrap());
                let width = keys.dim(2) as usize;
                let masked =
                    slots.mask.as_ref().map(|mask| mask.contiguous().unwrap().to_vec_exact::<bool>());
                let mask = masked.map_or(vec![true; group.len() * width], |mask| mask.unwrap());
                for (keys, mask) in numbers(&keys).chunks(width).zip(mask.chunks(width)) {
                    seen.push(
                        keys.iter().zip(mask).filter(|(_, seen)| **seen).map(|(key, _)| *key).collect(),
                    );
                }
            }
            group.iter_mut().for_each(|row| row.advance(1));
            start += size;
        }
        for seen in seen.iter_mut().flatten() {
            seen.sort_by(f32::total_cmp);
        }
        (sizes, seen)
    }

    /// What the token that came last sees: all before it, the last `w`, or those and the first `keep`.
    fn expected(cache: &KvCache, layer: usize, name: usize) -> Vec<f32> {
        let Span { window, keep } = cache.spans[layer];
        let sees = |position: &usize| {
            *position < keep || window.is_none_or(|window| position + window - keep >= cache.len)
        };
        (0..cache.len).filter(sees).map(|position| (1000 * name + position) as f32).collect()
    }

    #[test]
    fn rows_that_lie_together_see_what_each_sees_alone() {
        Device::set_default(&Device::cpu());
        let new = || KvCache::new([None, Some(4)]);
        let mut caches: Vec<_> =
            [3, 7, 1, 254].into_iter().enumerate().map(|(row, len)| alone(new(), row, len)).collect();
        caches.push(alone(new().rotating(Rotation { keep: 2, size: 6 }), 4, 9));
        // Which rows take part in each step: all, one that waits, one that leaves for good, one that outgrows its class.
        for names in [
            vec![0, 1, 2, 3, 4],
            vec![0, 1, 2, 3, 4],
            vec![0, 2, 3, 4],
            vec![0, 1, 2, 3, 4],
            vec![1, 2, 4],
            vec![2],
        ] {
            for (name, cache) in caches.iter_mut().enumerate() {
                if !names.contains(&name) {
                    cache.detach().unwrap();
                }
            }
            let mut rows: Vec<_> = caches
                .iter_mut()
                .enumerate()
                .filter(|(name, _)| names.contains(name))
                .map(|(_, row)| row)
                .collect();
            let (sizes, seen) = step(&mut rows, &names);
            assert!(names.len() == 1 || sizes[0] > 1, "{names:?}: {sizes:?}");
            for (layer, seen) in seen.iter().enumerate() {
                for ((row, name), seen) in rows.iter().zip(&names).zip(seen) {
                    assert_eq!(*seen, expected(row, layer, *name), "row {name} of {names:?}, layer {layer}");
                }
            }
        }
        // By itself again it takes no more room than before.
        caches[0].detach().unwrap();
        assert_eq!(caches[0].bytes(), 2 * 4 * (256 + 5));
        let [keys, _] = &caches[0].export().unwrap()[0][..] else { panic!("keys and values") };
        assert_eq!(numbers(keys), (0..7).map(|position| position as f32).collect::<Vec<_>>());
    }

    #[test]
    fn a_clone_goes_its_own_way() {
        Device::set_default(&Device::cpu());
        let mut caches: Vec<_> = (0..2).map(|row| alone(KvCache::new([Some(4)]), row, 6)).collect();
        step(&mut caches.iter_mut().collect::<Vec<_>>(), &[0, 1]);
        let mut clone = caches[0].clone();
        // The clone in a group of its own, then the ones that it was cloned from.
        let mut other = alone(KvCache::new([Some(4)]), 2, 5);
        let (sizes, seen) = step(&mut [&mut clone, &mut other], &[5, 2]);
        assert_eq!((sizes, &seen[0][0]), (vec![2], &vec![4.0, 5.0, 6.0, 5007.0]));
        let (sizes, seen) = step(&mut caches.iter_mut().collect::<Vec<_>>(), &[0, 1]);
        assert_eq!((sizes, &seen[0][0]), (vec![2], &vec![4.0, 5.0, 6.0, 7.0]));
    }
}
