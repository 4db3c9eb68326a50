//! Responses that later requests go on from.

use std::sync::{Mutex, MutexGuard, PoisonError};

use inference_core::Message;
use lru::LruCache;
use serde_json::Value;

/// A response, and the conversation that it ends.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(super) response: Value,
    /// Without the instructions, which each request gives anew.
    pub(super) conversation: Vec<Message>,
}

/// The latest responses, as many as fit a number of bytes.
#[derive(Debug)]
pub(crate) struct ResponseStore {
    capacity: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    responses: LruCache<String, (Stored, usize)>,
    bytes: usize,
}

impl ResponseStore {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, kept: Mutex::new(Kept { responses: LruCache::unbounded(), bytes: 0 }) }
    }

    pub(super) fn get(&self, id: &str) -> Option<Stored> {
        self.kept().responses.get(id).map(|(stored, _)| stored.clone())
    }

    pub(super) fn insert(&self, id: &str, stored: Stored) {
        let bytes = size(&stored);
        if bytes > self.capacity {
            return;
        }
        let mut kept = self.kept();
        kept.bytes += bytes;
        if let Some((_, old)) = kept.responses.put(id.to_owned(), (stored, bytes)) {
            kept.bytes -= old;
        }
        while kept.bytes > self.capacity {
            let Some((_, (_, old))) = kept.responses.pop_lru() else { break };
            kept.bytes -= old;
        }
    }

    /// Forgets a response; whether there was one.
    pub(super) fn remove(&self, id: &str) -> bool {
        let mut kept = self.kept();
        let removed = kept.responses.pop(id);
        kept.bytes -= removed.as_ref().map_or(0, |(_, bytes)| *bytes);
        removed.is_some()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// About the bytes that it takes.
fn size(stored: &Stored) -> usize {
    let message = |message: &Message| {
        64 + message.content.len() + serde_json::to_string(&message.extra).map_or(0, |text| text.len())
    };
    stored.response.to_string().len() + stored.conversation.iter().map(message).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_used_longest_ago_makes_room() {
        let stored = || Stored { response: json!("r"), conversation: vec![Message::user("x".repeat(100))] };
        let store = ResponseStore::new(2 * size(&stored()));
        store.insert("a", stored());
        store.insert("b", stored());
        assert!(store.get("a").is_some());
        store.insert("c", stored());
        assert!(store.get("b").is_none() && store.get("a").is_some() && store.get("c").is_some());
        assert!(store.remove("a") && !store.remove("a"));
        store.insert("d", stored());
        assert!(store.get("c").is_some());
        let huge = Stored { conversation: vec![Message::user("x".repeat(1000))], ..stored() };
        store.insert("e", huge);
        assert!(store.get("e").is_none() && store.get("c").is_some());
    }
}
