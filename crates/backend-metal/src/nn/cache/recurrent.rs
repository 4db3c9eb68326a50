//! Recurrent states of one row: convolution windows, matrices of linear attention and of state space models.
//!
//! A state is never written in place. A step makes new arrays for all its rows, and each row holds on to them and to its place in
//! them. So a copy of a row costs nothing, and so does a snapshot.

use std::rc::Rc;

use mlx_rs::{Array, error::Result, ops};

use crate::mlx::{scalar, slice};

/// Snapshots of one row. Where there are more, one goes whose neighbours lie closest together.
pub(crate) const SNAPSHOTS: usize = 4;

/// The recurrent states of one row.
#[derive(Debug, Clone, Default)]
pub(super) struct RecurrentStates {
    /// For each recurrent layer; `None` before the first token.
    states: Vec<Option<RowState>>,
    /// States at earlier lengths, shortest first.
    snapshots: Vec<Snapshot>,
}

/// A row of a step's states.
#[derive(Debug, Clone)]
struct RowState {
    /// `[rows, ..]` each.
    arrays: Rc<[Array]>,
    row: usize,
}

#[derive(Debug, Clone)]
struct Snapshot {
    len: usize,
    states: Vec<Option<RowState>>,
}

impl RowState {
    fn rows(&self) -> usize {
        self.arrays.first().map_or(1, |array| array.dim(0) as usize)
    }

    /// The arrays of this row: `[1, ..]`.
    fn own(&self) -> Result<Vec<Array>> {
        let row = self.row as i32;
        let own =
            |array: &Array| if array.dim(0) == 1 { Ok(array.clone()) } else { slice(array, 0, row, row + 1) };
        self.arrays.iter().map(own).collect()
    }

    fn bytes(&self) -> u64 {
        self.arrays.iter().map(|array| array.nbytes() as u64).sum::<u64>() / self.rows().max(1) as u64
    }
}

impl RecurrentStates {
    /// The empty states of so many layers.
    pub(super) fn new(layers: usize) -> Self {
        Self { states: vec![None; layers], snapshots: Vec::new() }
    }

    /// Empty states of the same layers.
    pub(super) fn empty_like(&self) -> Self {
        Self::new(self.states.len())
    }

    /// How many layers are recurrent.
    pub(super) fn layers(&self) -> usize {
        self.states.len()
    }

    /// Bytes of the states and snapshots.
    pub(super) fn bytes(&self) -> u64 {
        let snapshots = self.snapshots.iter().flat_map(|snapshot| &snapshot.states);
        self.states.iter().chain(snapshots).flatten().map(RowState::bytes).sum()
    }

    /// The arrays of one layer, of this row or of all rows of the last step.
    pub(super) fn layer_arrays(&self, layer: usize) -> &[Array] {
        self.states[layer].as_ref().map_or(&[], |state| &state.arrays)
    }

    /// The arrays of one layer of this row: `[1, ..]`.
    pub(super) fn export(&self, layer: usize) -> Result<Vec<Array>> {
        self.states[layer].as_ref().map_or(Ok(Vec::new()), RowState::own)
    }

    /// Sets the arrays of one layer of this row: `[1, ..]`.
    pub(super) fn set(&mut self, layer: usize, arrays: Vec<Array>) {
        self.states[layer] = Some(RowState { arrays: arrays.into(), row: 0 });
    }

    /// Copies what lies beside the states of other rows; the copies. The arrays of those rows are not kept by it.
    pub(super) fn detach(&mut self) -> Result<Vec<Array>> {
        let mut copies = Vec::new();
        let snapshots = self.snapshots.iter_mut().flat_map(|snapshot| &mut snapshot.states);
        for state in self.states.iter_mut().chain(snapshots).flatten().filter(|state| state.rows() > 1) {
            // A slice would keep all rows.
            let copy = |array: &Array| array.multiply(scalar(1.0, array.dtype())?);
            let own = state.own()?.iter().map(copy).collect::<Result<Vec<_>>>()?;
            copies.extend(own.iter().cloned());
            *state = RowState { arrays: own.into(), row: 0 };
        }
        Ok(copies)
    }

    /// Keeps the states, which are those of `len` tokens.
    pub(super) fn snapshot(&mut self, len: usize) {
        if self.states.is_empty() || len == 0 || self.snapshots.iter().any(|snapshot| snapshot.len == len) {
            return;
        }
        self.snapshots.push(Snapshot { len, states: self.states.clone() });
        if self.snapshots.len() > SNAPSHOTS {
            let gap = |at: &usize| {
                let before = if *at == 0 { 0 } else { self.snapshots[at - 1].len };
                self.snapshots[at + 1].len - before
            };
            if let Some(closest) = (0..SNAPSHOTS).min_by_key(gap) {
                self.snapshots.remove(closest);
            }
        }
    }

    /// The greatest length up to `len` that the states, which are those of `current` tokens, can go back to.
    pub(super) fn reach(&self, current: usize, len: usize) -> usize {
        if self.states.is_empty() || len >= current {
            return len.min(current);
        }
        self.snapshots.iter().map(|snapshot| snapshot.len).filter(|kept| *kept <= len).max().unwrap_or(0)
    }

    /// Goes back to `len` tokens: a length that [`reach`](Self::reach) gives.
    pub(super) fn rewind(&mut self, len: usize) {
        self.snapshots.retain(|snapshot| snapshot.len <= len);
        match self.snapshots.last() {
            Some(snapshot) if snapshot.len == len => self.states.clone_from(&snapshot.states),
            _ => self.states.fill(None),
        }
    }
}

/// The states of a layer for these rows, in their order: `[rows, ..]` each. `None` where no row has any.
pub(super) fn gather(rows: &[&RecurrentStates], layer: usize) -> Result<Option<Vec<Array>>> {
    let states: Vec<_> = rows.iter().map(|row| row.states[layer].as_ref()).collect();
    let Some(first) = states.iter().copied().flatten().next() else { return Ok(None) };
    let is_whole = first.rows() == rows.len()
        && (states.iter().enumerate()).all(|(index, state)| {
            state.is_some_and(|state| state.row == index && Rc::ptr_eq(&state.arrays, &first.arrays))
        });
    if is_whole {
        return Ok(Some(first.arrays.to_vec()));
    }
    let zeros = || first.own()?.iter().map(|array| ops::zeros_dtype(array.shape(), array.dtype())).collect();
    let parts = states.into_iter().map(|state| state.map_or_else(zeros, RowState::own));
    let parts = parts.collect::<Result<Vec<Vec<Array>>>>()?;
    let joined = |index: usize| {
        let parts: Vec<_> = parts.iter().map(|arrays| &arrays[index]).collect();
        if let [one] = parts[..] { Ok(one.clone()) } else { ops::concatenate(&parts, 0) }
    };
    (0..first.arrays.len()).map(joined).collect::<Result<_>>().map(Some)
}

/// Gives each row its part of a layer's new states: `[rows, ..]` each.
pub(super) fn scatter<'a>(
    rows: impl Iterator<Item = &'a mut RecurrentStates>,
    layer: usize,
    arrays: Vec<Array>,
) {
    let arrays: Rc<[Array]> = arrays.into();
    for (row, states) in rows.enumerate() {
        states.states[layer] = Some(RowState { arrays: arrays.clone(), row });
    }
}
