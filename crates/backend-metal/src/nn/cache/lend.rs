//! Keys and values that are lent to whoever computes beside MLX.

use mlx_rs::{
    Array,
    error::{Exception, Result},
};

use super::{buffers::Layer, kv_cache::KvCache};

/// What a row lends of a layer.
#[derive(Debug)]
pub(crate) struct Lent {
    /// Keys and values, `[rows, kv_heads, capacity, head_dim]`.
    pub(crate) arrays: [Array; 2],
    /// The row's place in them.
    pub(crate) row: usize,
}

impl KvCache {
    /// Whether keys and values may be lent: there are some, as they were computed, each in the slot of its position or of its position
    /// modulo the window.
    pub(crate) fn can_lend(&self) -> bool {
        self.len > 0 && self.scheme.is_none() && self.rotation().is_none() && self.tokens.is_empty()
    }

    /// Makes room for one token more, and lends the memory to whoever computes beside MLX: keys and values of each layer. Who borrows
    /// writes in place, to this row alone, and counts tokens with [`advance`](Self::advance). MLX may read or write them again once
    /// those writes are done and the arrays that are returned are dropped.
    pub(crate) fn lend(&mut self) -> Result<Vec<Lent>> {
        debug_assert!(self.can_lend(), "such a cache is not lent");
        if !self.lends_in_place() {
            self.make_unique()?;
            let mut buffer = self.buffer.borrow_mut();
            for index in 0..self.windows.len() {
                let like = buffer.layers[index].arrays.clone();
                let (window, scheme) = (self.windows[index], self.scheme);
                let mut layer = Layer { window, scheme, buffers: &mut buffer.layers[index] };
                layer.make_room(self.len, 1, &like, true)?;
            }
        }
        let buffer = self.buffer.borrow();
        let lent = buffer.layers.iter().map(|layer| match layer.arrays.as_slice() {
            [keys, values] => Ok(Lent { arrays: [keys.clone(), values.clone()], row: self.row }),
            _ => Err(Exception::custom("a layer has no keys and values to lend")),
        });
        lent.collect()
    }

    /// Whether the row may be written where it is in a batch.
    fn lends_in_place(&self) -> bool {
        let buffer = self.buffer.borrow();
        let is_writable = buffer.layers.iter().all(|layer| layer.writable);
        buffer.rows > 1 && is_writable && self.room() > self.len && !self.is_in_sparse_batch()
    }

    /// Tokens that the buffers have room for.
    pub(crate) fn room(&self) -> usize {
        let buffer = self.buffer.borrow();
        let layers = buffer.layers.iter().zip(&self.windows);
        // A window's buffer is used again and again once it holds the window.
        let room = layers.filter(|(layer, window)| window.size.is_none_or(|size| size > layer.capacity()));
        room.map(|(layer, _)| layer.capacity()).min().unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Device, with_device};

    use super::*;
    use crate::{
        mlx::slice,
        nn::cache::{fill_batch, regroup},
    };

    const LENGTHS: [usize; 5] = [4, 2, 3, 1, 4];

    /// Rows whose prompts were computed together: keys are row · 10 + position, values their negatives.
    fn rows() -> Vec<KvCache> {
        let keys: Vec<f32> = (0..5).flat_map(|row| (0..4).map(move |at| (row * 10 + at) as f32)).collect();
        let keys = Array::from_slice(&keys, &[5, 1, 4, 1]);
        let new = [keys.clone(), keys.negative().unwrap()];
        let mut caches = vec![KvCache::new([None, Some(300)]); 5];
        let mut rows: Vec<&mut KvCache> = caches.iter_mut().collect();
        assert_eq!(regroup(&mut rows, 4, true).unwrap(), [5]);
        (0..2).for_each(|layer| fill_batch(&mut rows, layer, &new, &LENGTHS).unwrap());
        rows.iter_mut().zip(LENGTHS).for_each(|(row, length)| row.advance(length));
        caches
    }

    /// The first `held` keys of what was lent, and what the next ones have room for.
    fn keys(lent: &Lent, held: usize) -> (Vec<f32>, usize) {
        let [keys, _] = &lent.arrays;
        let own = slice(keys, 0, lent.row as i32, lent.row as i32 + 1).unwrap();
        let own = slice(&own, 2, 0, held as i32).unwrap().contiguous().unwrap();
        (own.to_vec_exact().unwrap(), keys.dim(2) as usize)
    }

    #[test]
    fn rows_of_a_batch_are_lent_where_they_are_until_few_are_left() {
        with_device(Device::cpu(), || {
            let mut rows = rows();
            for (index, row) in rows.iter_mut().enumerate() {
                assert!(row.can_lend());
                let lent = row.lend().unwrap();
                assert_eq!((lent.len(), lent[0].arrays[0].dim(0), lent[0].row), (2, 5, index));
                let expected: Vec<f32> = (0..LENGTHS[index]).map(|at| (index * 10 + at) as f32).collect();
                assert_eq!(keys(&lent[1], LENGTHS[index]), (expected, 256));
                assert_eq!(row.room(), 256);
            }
            // Ends of texts leave the batch where it is, sessions do not stay in it.
            let bytes = rows[4].bytes();
            rows[4].leave_sparse_batch().unwrap();
            assert_eq!(rows[4].lend().unwrap()[0].arrays[0].dim(0), 5);
            rows.drain(1..4);
            assert!(rows[0].bytes() > bytes, "the rows that are left share the bytes");
            rows[1].leave_sparse_batch().unwrap();
            let lent = rows[1].lend().unwrap();
            assert_eq!((lent[0].arrays[0].dim(0), lent[0].row), (1, 0));
            assert_eq!(keys(&lent[0], 4).0, [40.0, 41.0, 42.0, 43.0]);
        });
    }

    #[test]
    fn a_row_that_outgrows_its_batch_is_copied() {
        with_device(Device::cpu(), || {
            let mut rows = rows();
            rows[2].advance(256 - LENGTHS[2]);
            let lent = rows[2].lend().unwrap();
            assert_eq!((lent[0].arrays[0].dim(0), lent[0].row), (1, 0));
            assert_eq!(keys(&lent[0], 3), (vec![20.0, 21.0, 22.0], 512));
            assert_eq!(rows[3].lend().unwrap()[0].arrays[0].dim(0), 5);
        });
    }
}
