//! Rows of one batch, whose keys and values one operation writes and reads.

use std::{cell::RefCell, rc::Rc};

use mlx_rs::{Array, error::Result, ops};

use super::{
    buffers::{KvBuffer, LayerBuffers, dequantize_kv, quantize_kv},
    kv_cache::KvCache,
};
use crate::mlx::slice;

/// Groups the rows of a forward pass of so many tokens, in their order. The rows of a group share one buffer, which `batched` allows, or
/// hold nothing yet; a row that is a group of its own has a buffer that no other row shares. Returns the groups' sizes.
pub(crate) fn regroup(caches: &mut [&mut KvCache], tokens: usize, batched: bool) -> Result<Vec<usize>> {
    let alike = |a: &&mut KvCache, b: &&mut KvCache| match (a.len, b.len) {
        (0, 0) => a.can_begin_with(b),
        (0, _) | (_, 0) => false,
        _ => batched && a.can_batch_with(b, tokens),
    };
    let mut sizes = Vec::new();
    for group in caches.chunk_by_mut(alike) {
        sizes.push(group.len());
        if group.len() > 1 && group[0].len == 0 && batched && group[0].fits(tokens) {
            let layers = vec![LayerBuffers::default(); group[0].windows.len()];
            share(group, layers);
        } else if group.len() == 1 || group[0].len == 0 {
            group.iter_mut().try_for_each(|row| row.make_unique())?;
        } else if !is_whole(group, tokens) {
            join(group, tokens)?;
        }
    }
    Ok(sizes)
}

/// Gives the rows one buffer of these layers.
fn share(rows: &mut [&mut KvCache], layers: Vec<LayerBuffers>) {
    let buffer = Rc::new(RefCell::new(KvBuffer { rows: rows.len(), layers }));
    for (index, row) in rows.iter_mut().enumerate() {
        (row.buffer, row.row) = (buffer.clone(), index);
    }
}

/// Whether these are all rows of their buffer, in its order, with enough room.
fn is_whole(rows: &[&mut KvCache], tokens: usize) -> bool {
    let buffer = &rows[0].buffer;
    buffer.borrow().rows == rows.len()
        && Rc::strong_count(buffer) == rows.len()
        && rows.iter().enumerate().all(|(index, row)| row.row == index && Rc::ptr_eq(&row.buffer, buffer))
        && rows[0].has_capacity(rows[0].capacity_bucket(tokens))
}

/// Copies rows into one new buffer.
fn join(rows: &mut [&mut KvCache], tokens: usize) -> Result<()> {
    let bucket = rows[0].capacity_bucket(tokens);
    let mut layers = Vec::with_capacity(rows[0].windows.len());
    for (layer, window) in rows[0].windows.iter().enumerate() {
        let capacity = window.size.map_or(bucket, |size| size.min(bucket)) as i32;
        // Neighbours in one buffer are copied at once.
        let neighbours = |a: &&mut KvCache, b: &&mut KvCache| {
            Rc::ptr_eq(&a.buffer, &b.buffer) && a.row + 1 == b.row && a.has_capacity(bucket)
        };
        let parts = rows.chunk_by(neighbours).map(|rows| resized(rows, layer, capacity));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        let joined = |index: usize| {
            let parts: Vec<&Array> = parts.iter().map(|arrays| &arrays[index]).collect();
            ops::concatenate(&parts, 0)
        };
        let arrays = (0..parts[0].len()).map(joined).collect::<Result<_>>()?;
        layers.push(LayerBuffers::from_views(arrays));
    }
    share(rows, layers);
    Ok(())
}

/// The arrays of neighbouring rows in one layer, cut or padded to `capacity` positions.
fn resized(rows: &[&mut KvCache], layer: usize, capacity: i32) -> Result<Vec<Array>> {
    let buffer = rows[0].buffer.borrow();
    let start = rows[0].row as i32;
    let resize = |array: &Array| {
        let rows = slice(array, 0, start, start + rows.len() as i32)?;
        let held = array.dim(2).min(capacity);
        let mut parts = vec![slice(&rows, 2, 0, held)?];
        if held < capacity {
            let room = [rows.dim(0), rows.dim(1), capacity - held, rows.dim(3)];
            parts.push(ops::zeros_dtype(&room, rows.dtype())?);
        }
        ops::concatenate(&parts, 2)
    };
    buffer.layers[layer].ready()?.iter().map(resize).collect()
}

/// Sets the first tokens of a group of empty rows in a layer: keys and values `[rows, kv_heads, T, head_dim]`. `counts` says how many of
/// each row's tokens are not padding.
pub(crate) fn fill_batch(
    rows: &mut [&mut KvCache],
    layer: usize,
    new: &[Array; 2],
    counts: &[usize],
) -> Result<()> {
    let is_shared = rows[0].buffer.borrow().rows > 1;
    if is_shared {
        let bucket = rows[0].capacity_bucket(new[0].dim(2) as usize + 1);
        let capacity = rows[0].window(layer).size.map_or(bucket, |size| size.min(bucket));
        let filled = LayerBuffers::fresh(new, capacity)?;
        rows[0].buffer.borrow_mut().layers[rows[0].attention(layer)] = filled;
        return Ok(());
    }
    for ((index, row), count) in (0..).zip(rows).zip(counts) {
        let own = |x: &Array| slice(&slice(x, 0, index, index + 1)?, 2, 0, *count as i32);
        row.layer(&mut row.buffer.borrow_mut(), layer).fill([&own(&new[0])?, &own(&new[1])?])?;
    }
    Ok(())
}

/// The slots of the new tokens of each row of a group.
#[derive(Debug, Clone)]
pub(crate) struct BatchSlots {
    /// The slots: `[rows, 1, T, 1]`, i32.
    slots: Array,
    /// How many slots are in use afterwards, of the row that has most.
    held: usize,
    /// Which slots each token attends to: `[rows, 1, T, held]`. `None` if it is all of them.
    pub(crate) mask: Option<Array>,
}

impl BatchSlots {
    /// The slots in this layer.
    pub(crate) fn new(rows: &[&mut KvCache], layer: usize, tokens: usize) -> Result<Self> {
        let column = |numbers: &[i32]| Array::from_slice(numbers, &[rows.len() as i32, 1, tokens as i32, 1]);
        let window = rows[0].window(layer);
        let positions = || rows.iter().flat_map(|row| row.len..row.len + tokens);
        let slots: Vec<_> = positions().map(|position| window.slot(position) as i32).collect();
        let held: Vec<_> = positions().map(|position| window.held(position + 1) as i32).collect();
        let most = held.iter().copied().max().unwrap_or(0);
        let mask = if held.iter().all(|held| *held == most) {
            None
        } else {
            Some(ops::arange::<_, i32>(0, most, None)?.lt(column(&held))?)
        };
        Ok(Self { slots: column(&slots), held: most as usize, mask })
    }
}

/// Adds keys and values `[rows, kv_heads, T, head_dim]` of each row of a group to a layer. Returns what the rows attend to,
/// `[rows, kv_heads, S, head_dim]`, together with [`BatchSlots::mask`].
pub(crate) fn update_batch(
    rows: &[&mut KvCache],
    layer: usize,
    slots: &BatchSlots,
    new: [&Array; 2],
) -> Result<[Array; 2]> {
    let mut buffer = rows[0].buffer.borrow_mut();
    let buffers = &mut buffer.layers[rows[0].attention(layer)];
    buffers.scatter(&slots.slots, &quantize_kv(new, rows[0].scheme)?)?;
    dequantize_kv(&buffers.read(0, slots.held)?, rows[0].scheme)
}

impl KvCache {
    /// Whether the two rows can share a buffer, which takes `tokens` more.
    fn can_batch_with(&self, other: &Self, tokens: usize) -> bool {
        (self.capacity_bucket(tokens), &self.windows, self.scheme)
            == (other.capacity_bucket(tokens), &other.windows, other.scheme)
            && self.fits(tokens)
            && other.fits(tokens)
    }

    /// Whether `tokens` more wrap around no window.
    fn fits(&self, tokens: usize) -> bool {
        self.windows.iter().all(|window| window.fits_contiguously(self.len, tokens))
    }

    /// Whether the two rows, which hold nothing, see no more of their first tokens than those themselves.
    fn can_begin_with(&self, other: &Self) -> bool {
        self.windows == other.windows
            && [self, other].iter().all(|row| row.rotation().is_none() && row.scheme.is_none())
    }

    /// Whether the layers have exactly the capacity of a batch with this bucket.
    fn has_capacity(&self, bucket: usize) -> bool {
        let buffer = self.buffer.borrow();
        let mut layers = buffer.layers.iter().zip(&self.windows);
        layers.all(|(layer, window)| layer.capacity() == window.size.map_or(bucket, |size| size.min(bucket)))
    }

    /// How many share the bytes of the buffer: of a batch, those of its rows that are still there.
    pub(super) fn owners(&self) -> usize {
        if self.buffer.borrow().rows == 1 { 1 } else { Rc::strong_count(&self.buffer) }
    }

    /// Whether the row is in a batch of whose rows fewer than half are left.
    pub(super) fn is_in_sparse_batch(&self) -> bool {
        2 * self.owners() < self.buffer.borrow().rows
    }

    /// Gives the row a buffer that no other cache shares. What a clone still refers to is copied before it is written.
    pub(super) fn make_unique(&mut self) -> Result<()> {
        self.detach_buffer()?;
        if Rc::strong_count(&self.buffer) > 1 {
            let shared = self.buffer.borrow_mut().share();
            self.buffer = Rc::new(RefCell::new(shared));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use mlx_rs::Device;

    use super::*;
    use crate::nn::cache::{kv_cache::Rotation, window::Window};

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
            for layer in 0..cache.windows.len() {
                cache.update(layer, [&key, &value], 1).unwrap();
            }
            cache.advance(1);
        }
        cache
    }

    /// One more token for each row, together: what each then sees in a layer, by groups and in order.
    fn step(rows: &mut [&mut KvCache], names: &[usize]) -> (Vec<usize>, Vec<Vec<Vec<f32>>>) {
        let sizes = regroup(rows, 1, true).unwrap();
        let mut seen = vec![Vec::new(); rows[0].windows.len()];
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
                    let [keys, _] = row.update(layer, [&joined[0], &joined[1]], 1).unwrap();
                    seen.push(numbers(&keys));
                    continue;
                }
                let slots = BatchSlots::new(group, layer, 1).unwrap();
                let [keys, values] = update_batch(group, layer, &slots, [&joined[0], &joined[1]]).unwrap();
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
        let Window { size: window, keep } = cache.windows[layer];
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
