//! A stable sort whose comparisons may fail.

use std::cmp::Ordering;

use crate::{
    error::Result,
    value::{Heap, Items, Value},
};

/// The items in order; equal ones keep theirs. The standard library's sort cannot be stopped by an error, and may panic where an
/// order is none, as that of not-a-number.
pub(crate) fn sorted(
    mut items: Items,
    heap: &Heap,
    mut order: impl FnMut(&Value, &Value) -> Result<Ordering>,
) -> Result<Items> {
    let count = items.len();
    let mut width = 1;
    while width < count {
        let mut merged = heap.items();
        let mut start = 0;
        while start < count {
            let (middle, end) = ((start + width).min(count), (start + 2 * width).min(count));
            let (mut left, mut right) = (start, middle);
            while left < middle || right < end {
                let from_right = left == middle || right < end && order(&items[right], &items[left])?.is_lt();
                let next = if from_right { &mut right } else { &mut left };
                merged.push(items[*next].clone())?;
                *next += 1;
            }
            start = end;
        }
        items = merged;
        width *= 2;
    }
    Ok(items)
}
