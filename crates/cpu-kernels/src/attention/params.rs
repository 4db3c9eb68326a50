//! The parameters of attention.

use crate::{
    error::{Error, Result},
    operand::{Floats, length},
};

/// The parameters of attention.
#[derive(Debug, Clone, Copy)]
pub struct AttentionParams<'a> {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values. They divide the heads of queries: neighbours share one.
    pub kv_heads: usize,
    /// Elements of a vector.
    pub head_dim: usize,
    /// The factor of the products of queries and keys.
    pub scale: f32,
    /// The sliding window: positions that a query sees, with its own. `None` is all positions before it.
    pub window: Option<usize>,
    /// Scores `s` become `cap · tanh(s / cap)`.
    pub softcap: Option<f32>,
    /// Attention sinks: for each head a score that takes part in the softmax and has no value, `[heads]`.
    pub sinks: Option<Floats<'a>>,
}

impl AttentionParams<'_> {
    pub(super) fn check(&self) -> Result<()> {
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a multiple of the {} heads of keys", self.kv_heads);
            return Err(Error::Invalid { name: "the number of heads", found: self.heads, expected });
        }
        if self.window == Some(0) {
            return Err(Error::Invalid { name: "the window", found: 0, expected: "at least 1".into() });
        }
        self.sinks.as_ref().map_or(Ok(()), |sinks| length("sinks", sinks.len(), self.heads))
    }
}
