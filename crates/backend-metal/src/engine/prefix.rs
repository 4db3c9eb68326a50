//! Keys and values of texts that ended, for prompts that begin as they did: the next turn of a chat computes only what is new.

use crate::nn::{KvCache, Rotation};

/// A shorter beginning is computed anew: copying its buffers would cost more.
const SHORTEST: usize = 16;

/// Caches of ended texts within a budget of bytes; the least recently used goes first.
#[derive(Debug)]
pub(super) struct PrefixCache {
    /// Least recently used first.
    entries: Vec<Entry>,
    budget: u64,
}

#[derive(Debug)]
struct Entry {
    tokens: Vec<u32>,
    cache: KvCache,
}

impl PrefixCache {
    /// An empty cache that holds at most `budget` bytes; 0 keeps nothing.
    pub(super) fn new(budget: u64) -> Self {
        Self { entries: Vec::new(), budget }
    }

    /// Bytes of all entries.
    pub(super) fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.cache.bytes()).sum()
    }

    /// Releases at least so many bytes, if there are as many: the least recently used entries first.
    pub(super) fn evict(&mut self, bytes: u64) {
        let rest = self.bytes().saturating_sub(bytes);
        while !self.entries.is_empty() && self.bytes() > rest {
            self.entries.remove(0);
        }
    }

    /// Releases everything.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }

    /// How many tokens of the prompt [`find`](Self::find) would give keys and values of.
    pub(super) fn cached_len(&self, prompt: &[u32], rotation: Option<Rotation>) -> usize {
        self.longest(prompt, rotation).map_or(0, |(_, shared)| shared)
    }

    /// A cache that holds the longest known prefix of the prompt, but not all of it: the last token is always computed, for its
    /// logits. `rotation` is what the prompt's cache has.
    pub(super) fn find(&mut self, prompt: &[u32], rotation: Option<Rotation>) -> Option<KvCache> {
        let (index, shared) = self.longest(prompt, rotation)?;
        let entry = self.entries.remove(index);
        let mut cache = entry.cache.clone();
        self.entries.push(entry);
        cache.rewind(shared);
        Some(cache)
    }

    /// The entry with the longest prefix of the prompt, and how long that is.
    fn longest(&self, prompt: &[u32], rotation: Option<Rotation>) -> Option<(usize, usize)> {
        let usable = prompt.len().saturating_sub(1);
        (self.entries.iter().enumerate())
            .map(|(index, entry)| (index, common(&entry.tokens, prompt).min(usable)))
            .map(|(index, shared)| (index, self.entries[index].cache.reach(shared)))
            .filter(|(index, reach)| *reach >= SHORTEST && self.entries[*index].cache.rotation() == rotation)
            .max_by_key(|(_, shared)| *shared)
    }

    /// Keeps the cache of a text that ended; `tokens` are those that it holds.
    pub(super) fn keep(&mut self, tokens: Vec<u32>, cache: KvCache) {
        let usable = tokens.len() == cache.len() && cache.can_rewind_to(tokens.len());
        if !usable || tokens.len() < SHORTEST || cache.bytes() > self.budget {
            return;
        }
        let entry = Entry { tokens, cache };
        // What the new one can stand in for need not be kept twice.
        self.entries
            .retain(|old| !(entry.tokens.starts_with(&old.tokens) && stands_in(&entry.cache, &old.cache)));
        self.entries.push(entry);
        // The last rows of a batch would keep the memory of all. What cannot be copied is not kept.
        self.entries.retain_mut(|entry| entry.cache.leave_sparse_batch().is_ok());
        self.evict(self.bytes().saturating_sub(self.budget));
    }
}

/// Whether a cache serves every text that this older one, of a text that begins alike, would have served.
fn stands_in(cache: &KvCache, old: &KvCache) -> bool {
    cache.rotation() == old.rotation() && cache.can_rewind_to(old.len())
}

/// How many tokens two texts begin with alike.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Array, Device, with_device};

    use super::*;
    use crate::nn::{LayerState, fill_batch, regroup};

    /// The cache of a text: 256 positions of one float for keys and one for values, however many of them are in use.
    fn cache(tokens: usize) -> KvCache {
        let mut cache = KvCache::new([None]);
        let new = Array::from_slice(&vec![0.0_f32; tokens], &[1, 1, tokens as i32, 1]);
        cache.update(0, [&new, &new], tokens).unwrap();
        cache.advance(tokens);
        cache
    }

    const BYTES: u64 = 2 * 256 * 4;

    fn text(first: u32, len: usize) -> Vec<u32> {
        (0..len as u32).map(|n| if n == 0 { first } else { n }).collect()
    }

    /// A prompt that goes on from this text.
    fn cached(prefixes: &PrefixCache, first: u32, len: usize) -> usize {
        prefixes.cached_len(&[text(first, len), vec![7, 7]].concat(), None)
    }

    #[test]
    fn the_least_recently_used_goes_first_and_the_budget_holds() {
        with_device(Device::cpu(), || {
            let mut prefixes = PrefixCache::new(3 * BYTES);
            for first in 100..103 {
                prefixes.keep(text(first, 20), cache(20));
            }
            assert_eq!(prefixes.bytes(), 3 * BYTES);
            // The oldest is used, so the second is the least recently used.
            assert_eq!(prefixes.find(&[text(100, 20), vec![9]].concat(), None).unwrap().len(), 20);
            prefixes.keep(text(103, 20), cache(20));
            assert_eq!([100, 101, 102, 103].map(|first| cached(&prefixes, first, 20)), [20, 0, 20, 20]);
            assert_eq!(prefixes.bytes(), 3 * BYTES);
            prefixes.evict(1);
            assert_eq!([100, 102, 103].map(|first| cached(&prefixes, first, 20)), [20, 0, 20]);
            prefixes.evict(BYTES + 1);
            assert_eq!(prefixes.bytes(), 0);
        });
    }

    #[test]
    fn the_last_rows_of_a_batch_hold_on_to_their_own_memory_alone() {
        with_device(Device::cpu(), || {
            let mut batch = vec![KvCache::new([None]); 6];
            let mut rows: Vec<&mut KvCache> = batch.iter_mut().collect();
            regroup(&mut rows, 20, true).unwrap();
            let new = Array::from_slice(&[0.0_f32; 6 * 20], &[6, 1, 20, 1]);
            fill_batch(&mut rows, 0, &[new.clone(), new], &[20; 6]).unwrap();
            rows.iter_mut().for_each(|row| row.advance(20));
            let mut prefixes = PrefixCache::new(100 * BYTES);
            for first in 100..102 {
                prefixes.keep(text(first, 20), batch.pop().unwrap());
            }
            assert_eq!(prefixes.bytes(), 2 * BYTES, "of a batch whose rows are all there, their part");
            drop(batch);
            assert_eq!(prefixes.bytes(), 6 * BYTES, "all of the batch is theirs");
            prefixes.keep(text(102, 20), cache(20));
            assert_eq!(prefixes.bytes(), 3 * BYTES);
            assert_eq!([100, 101, 102].map(|first| cached(&prefixes, first, 20)), [20; 3]);
        });
    }

    /// Recurrent states go back to where a chunk ended.
    #[test]
    fn a_recurrent_text_serves_as_far_as_its_last_chunk() {
        with_device(Device::cpu(), || {
            let mut cache = KvCache::for_layers(&[LayerState::recurrent(4, 0)]);
            for chunk in [20, 20, 1, 1] {
                let state = Array::from_slice(&[chunk as f32; 4], &[1, 4]);
                KvCache::set_states(&mut [&mut cache], 0, vec![state]);
                cache.advance(chunk);
                if chunk > 1 {
                    cache.snapshot();
                }
            }
            let mut prefixes = PrefixCache::new(1 << 20);
            prefixes.keep(text(100, 42), cache);
            // Three states of four floats: two snapshots and the last.
            assert_eq!(prefixes.bytes(), 3 * 16);
            assert_eq!(
                [42, 41, 40, 39, 21, 19].map(|len| cached(&prefixes, 100, len)),
                [42, 40, 40, 20, 20, 0]
            );
            assert_eq!(prefixes.find(&[text(100, 30), vec![9]].concat(), None).unwrap().len(), 20);
        });
    }

    #[test]
    fn a_longer_text_takes_the_place_of_its_prefix() {
        with_device(Device::cpu(), || {
            let mut prefixes = PrefixCache::new(3 * BYTES);
            prefixes.keep(text(100, 20), cache(20));
            prefixes.keep(text(100, 30), cache(30));
            assert_eq!((prefixes.bytes(), cached(&prefixes, 100, 30)), (BYTES, 30));
            // The last token of a prompt is always computed.
            assert_eq!(prefixes.cached_len(&text(100, 25), None), 24);
            // Too short, too large, and not what the cache holds.
            prefixes.keep(text(101, 15), cache(15));
            prefixes.keep(text(102, 20), cache(21));
            let mut tight = PrefixCache::new(BYTES - 1);
            tight.keep(text(103, 20), cache(20));
            assert_eq!((prefixes.bytes(), tight.bytes()), (BYTES, 0));
        });
    }
}
