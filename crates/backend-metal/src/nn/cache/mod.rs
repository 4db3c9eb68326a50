//! The KV cache: keys and values of the tokens that a row has seen.

mod group;
mod kv_cache;
mod shelf;
mod span;

pub(crate) use self::{
    group::{Slots, gather, update},
    kv_cache::{KvCache, Rotation},
    shelf::pack,
    span::Span,
};
