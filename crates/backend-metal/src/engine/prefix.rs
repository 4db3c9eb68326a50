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

    /// A cache that holds the longest known beginning of the prompt, but not all of it: the last token is always computed,
    /// for its logits. `rotation` is what the prompt's cache has.
    pub(super) fn find(&mut self, prompt: &[u32], rotation: Option<Rotation>) -> Option<KvCache> {
        let usable = prompt.len().saturating_sub(1);
        let (index, shared) = (self.entries.iter().enumerate())
            .map(|(index, entry)| (index, common(&entry.tokens, prompt).min(usable)))
            .filter(|(index, shared)| {
                let cache = &self.entries[*index].cache;
                *shared >= SHORTEST && cache.rotation() == rotation && cache.can_rewind_to(*shared)
            })
            .max_by_key(|(_, shared)| *shared)?;
        let entry = self.entries.remove(index);
        let mut cache = entry.cache.clone();
        self.entries.push(entry);
        cache.rewind(shared);
        Some(cache)
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
        let mut held: u64 = self.entries.iter().map(|entry| entry.cache.bytes()).sum();
        while held > self.budget {
            held -= self.entries.remove(0).cache.bytes();
        }
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
