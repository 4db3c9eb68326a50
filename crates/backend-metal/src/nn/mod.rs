//! The blocks that architectures are built of.

mod cache;

pub use cache::{KvCache, LayerCache, Rows};
