//! What requests take of memory, and what is left for them.

use crate::{
    mlx::{Device, Scheme, memory},
    nn::{KvCache, ModelConfig, SNAPSHOTS},
};

/// Buffers of keys and values grow by this many positions.
const KV_STEP: usize = 256;

/// Bytes that are left alone, for what is not counted: stacks, tokens, what the allocator loses.
const MARGIN: u64 = 16 << 20;

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
        scheme: Option<Scheme>,
        free: impl Fn() -> Option<u64> + 'static,
    ) -> Self {
        let size = if config.dtype == "f32" { 4 } else { 2 };
        let position = |elements: usize| match scheme {
            None => elements * size,
            // A scale and a bias for each group.
            Some(Scheme { bits, group_size, .. }) => {
                elements * bits / 8 + elements / group_size.max(1) * 2 * size
            }
        };
        let layers = config.states.iter();
        let positions = layers.clone().filter_map(|layer| layer.attention);
        let recurrent = layers.filter_map(|layer| layer.recurrent);
        Self {
            positions: positions.map(|kept| (kept.window, position(kept.elements) as u64)).collect(),
            states: recurrent.map(|state| (4 * state.floats + size * state.activations) as u64).sum(),
            // About what the widest block holds at once: the residual stream, and queries, keys, values, gates.
            activations: 16 * 4 * config.hidden_size as u64,
            logits: 2 * 4 * config.vocab_size as u64,
            free: Box::new(free),
        }
    }

    /// Bytes that requests may still take, where that is known.
    pub(super) fn free(&self) -> Option<u64> {
        (self.free)()
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

    /// Bytes that a text of so many tokens needs to begin, computed in chunks of `chunk`.
    pub(super) fn prefill(&self, cache: &KvCache, tokens: usize, chunk: usize) -> u64 {
        let activations = self.activations.saturating_mul(chunk as u64);
        // The states, and a snapshot at the end of each chunk.
        let states = self.states.saturating_mul(2 + tokens.div_ceil(chunk.max(1)).min(SNAPSHOTS) as u64);
        self.kv(cache, tokens + 1)
            .saturating_add(states)
            .saturating_add(activations)
            .saturating_add(self.logits)
    }

    /// Bytes that a cache's next token needs: larger buffers, or none.
    pub(super) fn growth(&self, cache: &KvCache) -> u64 {
        let len = cache.len();
        let fits = !len.is_multiple_of(KV_STEP) || len == 0;
        if fits { 0 } else { self.kv(cache, len + 1) }
    }
}

/// Bytes that requests on this device may still take: what the system can give, and what the memory limit leaves.
pub(super) fn free_memory(device: Device) -> Option<u64> {
    let ask = || {
        let limit = memory::limit().map(|limit| limit.saturating_sub(memory::usage().active_bytes));
        let system = device.free_memory().map(|free| free.saturating_sub(MARGIN));
        limit.into_iter().chain(system).min()
    };
    let free = ask();
    if free.is_none_or(|free| free >= LOW) {
        return free;
    }
    // What the allocator keeps of freed arrays counts as used, and can be given back.
    let _ = memory::clear_cache();
    ask()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{LayerState, Rotation};

    fn budget(scheme: Option<Scheme>) -> Budget {
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
        assert_eq!(budget.prefill(&cache, 256, 10), (512 + 300) * position + 10 * 16 * 4 * 8 + 800);
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
        assert_eq!(budget.growth(&cache), budget.kv(&cache, 257));
        cache.advance(1);
        assert_eq!(budget.growth(&cache), 0);
    }
}
