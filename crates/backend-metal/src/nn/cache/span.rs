//! Which positions of a text a layer keeps, and where they lie.

use mlx_rs::Array;

/// What a layer keeps of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Span {
    /// Positions kept; `None` is all of them.
    pub(super) window: Option<usize>,
    /// Of those, the first ones of the text; the others are its last.
    pub(super) keep: usize,
}

impl Span {
    /// Of a text of `len` tokens, the positions that are held.
    pub(super) fn held(self, len: usize) -> usize {
        self.window.map_or(len, |window| len.min(window))
    }

    /// Position `p` lies in slot `p` of a buffer of `window` slots while there is room; after that the slots behind the kept ones
    /// are used in turn.
    pub(super) fn slot(self, position: usize) -> usize {
        match self.window {
            Some(window) if position >= window => self.keep + (position - self.keep) % (window - self.keep),
            _ => position,
        }
    }

    /// Whether `tokens` at `position` go into slots one after the other, and see all that is held then, in their order or alone.
    pub(super) fn is_straight(self, position: usize, tokens: usize) -> bool {
        tokens == 1 || self.window.is_none_or(|window| position + tokens <= window)
    }

    /// Positions before `position`, behind the kept ones, that its token sees.
    pub(super) fn before(self, position: usize, window: usize) -> usize {
        (position - self.keep.min(position)).min(window - self.keep - 1)
    }

    /// The positions that a layer shows to several new tokens at `position`, where they are not one after the other, and how
    /// many queries see behind the kept ones, their own included.
    pub(super) fn gap(self, position: usize, tokens: usize) -> Option<Gap> {
        let window =
            self.window.filter(|window| self.keep > 0 && tokens > 1 && position + tokens > *window)?;
        let before = self.before(position, window);
        let seen = (0..self.keep.min(position)).chain(position - before..position + tokens);
        Some(Gap { seen: seen.collect(), keep: self.keep, window: window - self.keep })
    }
}

/// What several tokens see of a text whose middle is forgotten.
#[derive(Debug)]
pub(crate) struct Gap {
    /// The positions, in order.
    pub(super) seen: Vec<usize>,
    /// Those below this are always seen.
    keep: usize,
    /// Of the others, as many as this, up to the query's own.
    window: usize,
}

impl Gap {
    /// What the last `tokens` of the positions see: `[tokens, seen]`, true where they do.
    pub(crate) fn mask(&self, tokens: usize) -> Array {
        let queries = &self.seen[self.seen.len() - tokens..];
        let sees = |query: usize, key: usize| key <= query && (key < self.keep || key + self.window > query);
        let mask: Vec<bool> =
            queries.iter().flat_map(|query| self.seen.iter().map(move |key| sees(*query, *key))).collect();
        Array::from_slice(&mask, &[tokens as i32, self.seen.len() as i32])
    }
}
