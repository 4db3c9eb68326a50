//! The KV cache: keys and values of the tokens that each row has seen.
//!
//! A row's keys and values lie in a [`KvBuffer`](buffers::KvBuffer): its own on the CPU, one per batch of rows elsewhere. Three
//! operations write to it:
//!
//! | operation | rows × tokens | written by |
//! |---|---|---|
//! | `KvCache::slot`, then `mark_written` | any × 1, or 1 × T that do not wrap around a window | the CPU's attention kernel, in place |
//! | `KvCache::update` | 1 × T | MLX, functionally |
//! | `update_batch` | B × 1, in one buffer | MLX, functionally |
//!
//! `KvCache::fill` sets the first tokens of an empty row. Memory that may be a view of other arrays is copied before it is written
//! in place: see [`LayerBuffers`](buffers::LayerBuffers).

mod batch;
mod buffers;
mod kv_cache;
mod window;

pub(crate) use self::{
    batch::{BatchSlots, regroup, update_batch},
    buffers::quantize_kv,
    kv_cache::{KvCache, Rotation},
    window::Window,
};
