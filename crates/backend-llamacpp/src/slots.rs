//! Which request has which of the child's slots.
//!
//! The child would choose by itself; then nobody here would know which slot holds a session's text.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The slots of one child. Requests wait in the order in which they came.
#[derive(Debug)]
pub(crate) struct Slots {
    free: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    slots: Vec<Slot>,
    /// Counts uses: the slot that was used least recently has the lowest.
    uses: u64,
}

#[derive(Debug, Default)]
struct Slot {
    taken: bool,
    /// The text whose keys and values it holds, as far as known.
    text: Vec<u32>,
    used: u64,
}

/// A slot that one request has. Dropping it frees the slot.
#[derive(Debug)]
pub(crate) struct TakenSlot {
    slots: Arc<Slots>,
    pub(crate) index: usize,
    /// How much of the text that it was taken for the slot holds already.
    pub(crate) shared: usize,
    /// What it will hold.
    text: Vec<u32>,
    _permit: OwnedSemaphorePermit,
}

impl Slots {
    pub(crate) fn new(count: usize) -> Self {
        let slots = (0..count).map(|_| Slot::default()).collect();
        Self { free: Arc::new(Semaphore::new(count)), state: Mutex::new(State { slots, uses: 0 }) }
    }

    /// Waits for a slot for this text. `None` once the child has gone.
    pub(crate) async fn take(self: &Arc<Self>, text: &[u32]) -> Option<TakenSlot> {
        let permit = self.free.clone().acquire_owned().await.ok()?;
        let mut state = self.lock();
        let (index, shared) = state.choose(text)?;
        state.uses += 1;
        let used = state.uses;
        let slot = &mut state.slots[index];
        (slot.taken, slot.used, slot.text) = (true, used, Vec::new());
        drop(state);
        Some(TakenSlot { slots: self.clone(), index, shared, text: Vec::new(), _permit: permit })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The free slot with the longest beginning of this text, and how long that is. A slot that would lose more than it lends is
    /// left alone; the one that was used least recently is taken instead.
    fn choose(&self, text: &[u32]) -> Option<(usize, usize)> {
        let free = || self.slots.iter().enumerate().filter(|(_, slot)| !slot.taken);
        let shared = |slot: &Slot| slot.text.iter().zip(text).take_while(|(a, b)| a == b).count();
        let lends = free().map(|(index, slot)| (shared(slot), index, slot.text.len()));
        let lends = lends.filter(|(shared, _, length)| *shared > 0 && 2 * shared >= *length);
        match lends.max_by_key(|(shared, index, _)| (*shared, std::cmp::Reverse(*index))) {
            Some((shared, index, _)) => Some((index, shared)),
            None => free().min_by_key(|(_, slot)| slot.used).map(|(index, slot)| (index, shared(slot))),
        }
    }
}

impl TakenSlot {
    /// Says what it holds from now on.
    pub(crate) fn holds(&mut self, text: Vec<u32>) {
        self.text = text;
    }
}

impl Drop for TakenSlot {
    fn drop(&mut self) {
        let mut state = self.slots.lock();
        let slot = &mut state.slots[self.index];
        (slot.taken, slot.text) = (false, std::mem::take(&mut self.text));
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, executor::block_on};

    use super::*;

    #[test]
    fn a_text_goes_to_the_slot_that_holds_its_beginning() {
        let slots = Arc::new(Slots::new(2));
        let put = |text: &[u32]| {
            let mut slot = block_on(slots.take(text)).unwrap();
            slot.holds(text.to_vec());
            (slot.index, slot.shared)
        };
        assert_eq!(put(&[1, 2, 3]), (0, 0));
        assert_eq!(put(&[7, 8, 9]), (1, 0), "the other is less recently used");
        assert_eq!(put(&[1, 2, 3, 4]), (0, 3));
        assert_eq!(put(&[7, 8]), (1, 2));
        // Slot 0 would lose three tokens for one.
        assert_eq!(put(&[1, 9]), (0, 1), "it is the less recently used one all the same");
        assert_eq!(put(&[7, 8, 9, 10]), (1, 2));
    }

    #[test]
    fn who_finds_no_free_slot_waits() {
        let slots = Arc::new(Slots::new(1));
        let first = block_on(slots.take(&[1])).unwrap();
        let mut second = Box::pin(slots.take(&[2]));
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        assert_eq!(second.now_or_never().unwrap().unwrap().index, 0);
    }
}
