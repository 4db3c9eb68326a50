//! The mock's tokens: words.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Ids of the mock's vocabulary: 0 ends a text, a word has the id that its letters hash to.
pub const VOCAB_SIZE: usize = 4096;

pub(super) const ID: &str = "mock";
pub(super) const EOS: u32 = 0;

#[derive(Debug, Clone)]
pub(super) struct Word {
    pub(super) id: u32,
    pub(super) text: String,
}

impl Word {
    pub(super) fn new(text: &str) -> Self {
        let id = if text == "<eos>" {
            EOS
        } else {
            let hash = text
                .bytes()
                .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
            1 + (hash % (VOCAB_SIZE as u64 - 1)) as u32
        };
        Self { id, text: text.to_owned() }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
