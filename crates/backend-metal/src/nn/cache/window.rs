//! Sliding windows: which positions a layer keeps, and in which slots.

use mlx_rs::Array;

/// The positions that one layer keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Window {
    /// How many positions are kept; `None` keeps all.
    pub(super) size: Option<usize>,
    /// How many of those are attention sinks: the first positions, which are never dropped.
    pub(super) keep: usize,
}

impl Window {
    /// Whether not all positions are kept.
    pub(crate) fn is_limited(self) -> bool {
        self.size.is_some()
    }

    /// How many positions are held of `len` tokens.
    pub(super) fn held(self, len: usize) -> usize {
        self.size.map_or(len, |size| len.min(size))
    }

    /// The slot of a position: slot `p` for position `p` while the window is not full. Then the slots behind the sinks are reused
    /// in turn.
    pub(super) fn slot(self, position: usize) -> usize {
        match self.size {
            Some(size) if position >= size => self.keep + (position - self.keep) % (size - self.keep),
            _ => position,
        }
    }

    /// Whether writing `tokens` tokens at `position` does not wrap around the window. One token never does.
    pub(super) fn fits_contiguously(self, position: usize, tokens: usize) -> bool {
        tokens == 1 || self.size.is_none_or(|size| position + tokens <= size)
    }

    /// How many positions before `position`, sinks aside, its token attends to in a window of this size.
    pub(super) fn before(self, position: usize, size: usize) -> usize {
        (position - self.keep.min(position)).min(size - self.keep - 1)
    }

    /// The mask of several new tokens at `position`, where sinks and window do not adjoin.
    pub(super) fn sink_mask(self, position: usize, tokens: usize) -> Option<SinkMask> {
        let size = self.size.filter(|size| self.keep > 0 && tokens > 1 && position + tokens > *size)?;
        let before = self.before(position, size);
        let seen = (0..self.keep.min(position)).chain(position - before..position + tokens);
        Some(SinkMask { seen: seen.collect(), keep: self.keep, size: size - self.keep })
    }
}

/// What several tokens attend to when positions between the sinks and the window were dropped.
#[derive(Debug)]
pub(crate) struct SinkMask {
    /// The positions that the layer shows, in order.
    pub(super) seen: Vec<usize>,
    /// Positions below this are sinks.
    keep: usize,
    /// How many other positions a query attends to, its own included.
    size: usize,
}

impl SinkMask {
    /// The mask of the last `tokens` positions: `[tokens, seen]`, true where a query attends to a key.
    pub(crate) fn mask(&self, tokens: usize) -> Array {
        let queries = &self.seen[self.seen.len() - tokens..];
        let attends = |query: usize, key: usize| key <= query && (key < self.keep || key + self.size > query);
        let mask: Vec<bool> =
            queries.iter().flat_map(|query| self.seen.iter().map(move |key| attends(*query, *key))).collect();
        Array::from_slice(&mask, &[tokens as i32, self.seen.len() as i32])
    }
}
