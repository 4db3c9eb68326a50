//! What each row's layers keep of the tokens that it has seen: [`LayerState`] says what. A [`KvCache`] is one row's, and the one
//! interface to all of it: how far it can be rewound, rewind, fork by cloning, bytes, export and import, capacity bucket.
//!
//! | state | written | rewound |
//! |---|---|---|
//! | keys and values, all positions | as below | to any length |
//! | keys and values in a window | as below | until the window has dropped positions |
//! | recurrent | new arrays at each step | to snapshots, which are taken where a chunk begins and ends |
//!
//! A row's keys and values lie in a [`KvBuffer`](buffers::KvBuffer): its own on the CPU, one per batch of rows elsewhere. Four
//! operations write to it:
//!
//! | operation | rows × tokens | written by |
//! |---|---|---|
//! | `KvCache::slot`, then `mark_written` | B × T that do not wrap around a window | the CPU's attention kernel, in place |
//! | `KvCache::update` | 1 × T | MLX, functionally |
//! | `update_batch` | B × T that do not wrap around a window, in one buffer | MLX, functionally |
//! | `fill_batch` | B × T, where all rows are empty | MLX, functionally |
//!
//! A row that has fewer than T tokens has padding behind them. It is written to slots that the row's next tokens take, and it pushes
//! nothing out of a window. One token never wraps around a window. Memory that may be a view of other arrays is copied before it is
//! written in place: see [`LayerBuffers`](buffers::LayerBuffers).

mod batch;
mod buffers;
mod kv_cache;
mod layer_state;
mod lend;
mod recurrent;
mod window;

pub(crate) use self::{
    batch::{BatchSlots, fill_batch, regroup, update_batch},
    buffers::quantize_kv,
    kv_cache::{KvCache, Rotation},
    layer_state::LayerState,
    lend::Lent,
    recurrent::SNAPSHOTS,
    window::Window,
};
