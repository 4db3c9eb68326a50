//! What requests take of memory, and what is left for them.

use std::cell::Cell;

use crate::{
    mlx::{self, Device, QuantizationScheme, memory},
    nn::{KvCache, ModelConfig, SNAPSHOTS},
};

/// Buffers of keys and values grow by this many positions.
const KV_STEP: usize = 256;

/// Bytes that are left alone, for what is not counted: stacks, tokens, what the allocator loses.
const MARGIN: u64 = 16 << 20;

/// One part in so many of a memory limit that is left stays free: what requests need is known that well.
const MISJUDGED: u64 = 32;

/// Where less is left, the allocator's cache is cleared before memory counts as used up.
const LOW: u64 = 256 << 20;

/// The sizes of a model's requests, and who says how much memory is left.
pub(super) struct Budget {
    /// For each layer with attention, the positions that it keeps, `None` is all, and the bytes of one.
    positions: Vec<(Option<usize>, u64)>,
    /// Bytes of all recurrent states of one text.
    states: u64,
    /// Bytes of one token's activations.
    activations: u64,
    /// Bytes of the logits of one row.
    logits: u64,
    free: Box<dyn Fn() -> Option<u64>>,
}

impl Budget {
    /// The budget of a model whose keys and values are kept by this scheme, in the memory that `free` tells.
    pub(super) fn new(
        config: &ModelConfig,
        scheme: Option<QuantizationScheme>,
        free: impl Fn() -> Option<u64> + 'static,
    ) -> Self {
        let size = if config.dtype == "f32" { 4 } else { 2 };
        let position = |elements: usize| match scheme {
            None => elements * size,
            // A scale and a bias for each group.
            Some(QuantizationScheme { bits, group_size, .. }) => {
                elements * bits / 8 + elements / group_size.max(1) * 2 * size
            }
        };
        let layers = config.states.iter();
        let positions = layers.clone().filter_map(|layer| layer.attention);
        let recurrent = layers.filter_map(|layer| layer.recurrent);
        Self {
            positions: positions.map(|kept| (kept.window, position(kept.elements) as u64)).collect(),
            states: recurrent.map(|state| (4 * state.floats + size * state.activations) as u64).sum(),
            // The residual stream, queries, keys, values and gates of the layers that MLX has begun: measured on the CPU, up to
            // 38 numbers for each of the hidden size where all layers are submitted at once.
            activations: 40 * 4 * config.hidden_size as u64,
            // Logits, and what penalties and sampling make of them.
            logits: 8 * 4 * config.vocab_size as u64,
            free: Box::new(free),
        }
    }

    /// Bytes that requests may still take, where that is known: what is reserved for others aside.
    pub(super) fn free(&self) -> Option<u64> {
        (self.free)().map(|free| free.saturating_sub(RESERVED.get()))
    }

    /// Bytes of the keys and values of so many tokens in a cache like this one.
    fn kv(&self, cache: &KvCache, tokens: usize) -> u64 {
        let rotation = cache.rotation().map_or(usize::MAX, |rotation| rotation.size);
        let tokens = tokens.next_multiple_of(KV_STEP);
        let bytes = self.positions.iter().map(|(window, position)| {
            let positions = tokens.min(window.unwrap_or(usize::MAX)).min(rotation);
            position.saturating_mul(positions as u64)
        });
        bytes.fold(0, u64::saturating_add)
    }

    /// Bytes that it takes to make buffers for so many tokens: in each layer they are put together of what there is and of zeros.
    fn buffers(&self, cache: &KvCache, tokens: usize) -> u64 {
        let widest = self.positions.iter().map(|(_, position)| *position).max().unwrap_or(0);
        let zeros = widest.saturating_mul(tokens.next_multiple_of(KV_STEP) as u64);
        self.kv(cache, tokens).saturating_add(zeros)
    }

    /// Bytes that a text of so many tokens needs to begin, computed in chunks of `chunk`.
    pub(super) fn prefill(&self, cache: &KvCache, tokens: usize, chunk: usize) -> u64 {
        let activations = self.activations.saturating_mul(chunk as u64);
        // The states, and a snapshot at the end of each chunk.
        let states = self.states.saturating_mul(2 + tokens.div_ceil(chunk.max(1)).min(SNAPSHOTS) as u64);
        self.buffers(cache, tokens + 1)
            .saturating_add(states)
            .saturating_add(activations)
            .saturating_add(self.logits)
    }

    /// Bytes that so many tokens of a text take besides where they are computed beside others: no more of all is padding.
    pub(super) fn beside_others(&self, tokens: usize) -> u64 {
        let position: u64 = self.positions.iter().map(|(_, position)| position).sum();
        position.saturating_mul(tokens.next_multiple_of(KV_STEP) as u64)
    }

    /// Bytes that a decode step takes for a row while it is computed.
    pub(super) fn step(&self) -> u64 {
        self.activations.saturating_add(self.logits)
    }

    /// Bytes that a cache's next token needs: larger buffers, or none.
    pub(super) fn growth(&self, cache: &KvCache) -> u64 {
        let len = cache.len();
        let fits = !len.is_multiple_of(KV_STEP) || len == 0;
        if fits { 0 } else { self.buffers(cache, len + 1) }
    }
}

thread_local! {
    /// What all models of the thread have reserved. They share its memory.
    static RESERVED: Cell<u64> = const { Cell::new(0) };
}

/// Bytes that a request was promised and has not allocated all the time: of its prompt while that is computed, then of its
/// decode steps. Nobody else may take them.
#[derive(Debug, Default)]
pub(super) struct Reservation(u64);

impl Reservation {
    /// Reserves so many bytes in place of those of before.
    pub(super) fn set(&mut self, bytes: u64) {
        RESERVED.set(RESERVED.get().saturating_sub(self.0).saturating_add(bytes));
        self.0 = bytes;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Bytes that requests on this device may still take: what the system can give, and what the memory limit leaves.
pub(super) fn free_memory(device: Device) -> Option<u64> {
    let ask = || {
        let limit = memory::limit().map(|limit| limit.saturating_sub(memory::usage().active_bytes));
        let limit = limit.map(|left| left - left / MISJUDGED);
        let system = device.free_memory().map(|free| free.saturating_sub(MARGIN));
        limit.into_iter().chain(system).min()
    };
    let free = ask();
    if free.is_none_or(|free| free >= LOW) {
        return free;
    }
    // What was submitted allocates later: now, so that it counts. And what the allocator keeps of freed arrays counts as used,
    // and can be given back. A failure of either leaves the number too high or too low, and no worse.
    let _ = mlx::synchronize(&device.stream());
    let _ = memory::clear_cache();
    ask()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{LayerState, Rotation};

    fn budget(scheme: Option<QuantizationScheme>) -> Budget {
        let config = ModelConfig {
            vocab_size: 100,
            layers: 2,
            hidden_size: 8,
            kv_heads: 2,
            head_dim: 64,
            states: [None, Some(300)].map(|window| LayerState::attention(window, 2 * 2 * 64)).into(),
            dtype: "bf16".to_owned(),
            ..ModelConfig::default()
        };
        Budget::new(&config, scheme, || Some(7))
    }

    #[test]
    fn keys_and_values_take_whole_steps_and_no_more_than_windows_hold() {
        let cache = KvCache::new([None, Some(300)]);
        // Two bytes of keys and of values, for two heads of 64.
        let position = 2 * 2 * 2 * 64;
        let budget = budget(None);
        assert_eq!(budget.kv(&cache, 1), (256 + 256) * position);
        assert_eq!(budget.kv(&cache, 256), (256 + 256) * position);
        assert_eq!(budget.kv(&cache, 257), (512 + 300) * position);
        let rotating = cache.clone().rotating(Rotation { keep: 2, size: 280 });
        assert_eq!(budget.kv(&rotating, 5000), (280 + 280) * position);
        assert_eq!(budget.prefill(&cache, 256, 10), (512 + 300 + 512) * position + 10 * 40 * 4 * 8 + 3200);
        assert_eq!(budget.free(), Some(7));
    }

    #[test]
    fn what_is_reserved_is_not_free() {
        let budget = budget(None);
        let mut reservations = [Reservation::default(), Reservation::default()];
        reservations[0].set(3);
        reservations[1].set(2);
        assert_eq!(budget.free(), Some(2));
        reservations[0].set(2);
        assert_eq!(budget.free(), Some(3));
        reservations[1].set(9);
        assert_eq!(budget.free(), Some(0));
        drop(reservations);
        assert_eq!(budget.free(), Some(7));
    }

    #[test]
    fn a_cache_grows_when_its_buffers_are_full() {
        let budget = budget(None);
        let mut cache = KvCache::new([None, Some(300)]);
        assert_eq!(budget.growth(&cache), 0);
        cache.advance(255);
        assert_eq!(budget.growth(&cache), 0);
        cache.advance(1);
        assert_eq!(budget.growth(&cache), budget.buffers(&cache, 257));
        cache.advance(1);
        assert_eq!(budget.growth(&cache), 0);
    }
}
