//! Keys and values of sessions: each stays until its session is dropped, whatever the prefix cache lets go of.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use inference_core::{Dtype, backend::SessionTensor};
use mlx_rs::{
    Array,
    error::{Exception, Result as MlxResult},
};
use tokio::sync::{OwnedMutexGuard, oneshot};

use super::prefix::common;
use crate::{
    mlx::{self, mlx_dtype},
    nn::{Architecture, KvCache, Rotation, Rows},
};

/// A session of one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SessionId(u64);

impl SessionId {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What makes a request a turn: the session, and its text, which nobody else has before the turn ends.
#[derive(Debug)]
pub(crate) struct SessionTurn {
    pub(crate) id: SessionId,
    pub(crate) text: OwnedMutexGuard<Vec<u32>>,
}

/// Keys and values as a file holds them, by name.
pub(crate) type Tensors = BTreeMap<String, SessionTensor>;

/// What is done to a session besides its turns.
#[derive(Debug)]
pub(crate) enum SessionCommand {
    /// Begins `to` with what `from` has.
    Fork { from: SessionId, to: SessionId },
    /// Copies out what it has.
    Export { id: SessionId, reply: oneshot::Sender<inference_core::Result<Tensors>> },
    /// Begins it with what another copied out; the reply says what is wrong with that.
    Import { id: SessionId, tensors: Tensors, reply: oneshot::Sender<Result<(), String>> },
    /// Lets go of it.
    Drop(SessionId),
}

/// The sessions of one model.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    /// Empty while a turn has it, and before the first.
    slots: BTreeMap<SessionId, Option<Entry>>,
}

#[derive(Debug, Clone)]
struct Entry {
    /// The tokens that the cache holds.
    tokens: Vec<u32>,
    cache: KvCache,
}

impl Entry {
    /// How many tokens of the prompt its cache can serve.
    fn usable(&self, prompt: &[u32], rotation: Option<Rotation>) -> usize {
        let shared = common(&self.tokens, prompt).min(prompt.len().saturating_sub(1));
        if self.cache.rotation() == rotation { self.cache.reach(shared) } else { 0 }
    }
}

impl Sessions {
    /// Expects the keys and values of a turn.
    pub(super) fn open(&mut self, id: SessionId) {
        self.slots.entry(id).or_default();
    }

    /// How many tokens of the prompt [`take`](Self::take) would give keys and values of.
    pub(super) fn cached_len(&self, id: SessionId, prompt: &[u32], rotation: Option<Rotation>) -> usize {
        let entry = self.slots.get(&id).and_then(Option::as_ref);
        entry.map_or(0, |entry| entry.usable(prompt, rotation))
    }

    /// The session's cache, cut to what it shares with the prompt, but for the last token, which is always computed. It is
    /// given away and not copied: its only owner writes in place.
    pub(super) fn take(
        &mut self,
        id: SessionId,
        prompt: &[u32],
        rotation: Option<Rotation>,
    ) -> Option<KvCache> {
        let mut entry = self.slots.get_mut(&id)?.take()?;
        let shared = entry.usable(prompt, rotation);
        if shared == 0 {
            return None;
        }
        entry.cache.rewind(shared);
        Some(entry.cache)
    }

    /// Keeps what a turn has left, unless the session was dropped meanwhile. `tokens` are those that the cache holds.
    pub(super) fn keep(&mut self, id: SessionId, tokens: Vec<u32>, cache: KvCache) {
        // A turn that never began has nothing, and what there was before it is still here.
        if let Some(slot) = self.slots.get_mut(&id)
            && tokens.len() == cache.len()
            && !tokens.is_empty()
        {
            *slot = Some(Entry { tokens, cache });
        }
    }

    pub(super) fn fork(&mut self, from: SessionId, to: SessionId) {
        let entry = self.slots.get(&from).cloned().flatten();
        self.slots.insert(to, entry);
    }

    pub(super) fn remove(&mut self, id: SessionId) {
        self.slots.remove(&id);
    }

    /// Keys and values of each layer, and the tokens that they are of.
    pub(super) fn export(&self, id: SessionId) -> MlxResult<Tensors> {
        let mut tensors = Tensors::new();
        let Some(Entry { tokens, cache }) = self.slots.get(&id).and_then(Option::as_ref) else {
            return Ok(tensors);
        };
        if cache.rotation().is_some() || !cache.can_rewind_to(tokens.len()) {
            // Of a context that rotates, or of a model whose positions depend on the text's length: computed anew.
            return Ok(tensors);
        }
        let bytes = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        tensors.insert(HELD.to_owned(), SessionTensor::new(Dtype::U32, vec![tokens.len()], bytes));
        for (layer, arrays) in cache.export()?.iter().enumerate() {
            for (part, array) in arrays.iter().enumerate() {
                let shape = array.shape().iter().map(|extent| *extent as usize).collect();
                let bytes = mlx::with_bytes(array, <[u8]>::to_vec)?;
                let dtype = stored(array.dtype())
                    .ok_or_else(|| Exception::custom(format!("a file holds no {:?}", array.dtype())))?;
                tensors.insert(name(layer, part), SessionTensor::new(dtype, shape, bytes));
            }
        }
        Ok(tensors)
    }

    /// Takes in what [`export`](Self::export) gave, into a cache like this empty one, which may hold `context_length` tokens.
    ///
    /// # Errors
    /// Says what does not belong to this model.
    pub(super) fn import(
        &mut self,
        id: SessionId,
        mut tensors: Tensors,
        model: &dyn Architecture,
        empty: KvCache,
        context_length: usize,
    ) -> Result<(), String> {
        let entry = match tensors.remove(HELD) {
            None => None,
            Some(held) => Some(read_entry(&held, &mut tensors, model, empty, context_length)?),
        };
        if let Some(name) = tensors.keys().next() {
            return Err(format!("{name}: is no tensor of this layout"));
        }
        self.slots.insert(id, entry);
        Ok(())
    }
}

/// The tokens of which there are keys and values.
const HELD: &str = "held";

/// The type by which a file names elements of a cache.
fn stored(dtype: mlx_rs::Dtype) -> Option<Dtype> {
    [Dtype::U32, Dtype::F16, Dtype::Bf16, Dtype::F32]
        .into_iter()
        .find(|stored| mlx_dtype(*stored) == Some(dtype))
}

fn name(layer: usize, part: usize) -> String {
    format!("layers.{layer:04}.{part}")
}

fn read_entry(
    held: &SessionTensor,
    tensors: &mut Tensors,
    model: &dyn Architecture,
    empty: KvCache,
    context_length: usize,
) -> Result<Entry, String> {
    let mlx = |error: Exception| error.to_string();
    let (words, []) = held.bytes.as_chunks() else { return Err(format!("{HELD}: expected u32")) };
    let tokens: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let config = model.config();
    if held.dtype != Dtype::U32 || held.shape != [tokens.len()] || tokens.is_empty() {
        return Err(format!("{HELD}: expected a list of u32"));
    }
    if tokens.len() > context_length || tokens.iter().any(|id| *id as usize >= config.vocab_size) {
        return Err(format!("{HELD}: expected at most {context_length} ids of the vocabulary"));
    }
    // What the model would write for one token, without computing it, says what its keys and values look like.
    let mut like = empty.clone();
    let token = Array::from_slice(&tokens[..1], &[1, 1]);
    model.hidden(&token, Rows::cached(&mut [&mut like])).map_err(mlx)?;
    let mut layers = Vec::with_capacity(config.layers);
    for (layer, expected) in like.export_like(tokens.len()).into_iter().enumerate() {
        let mut arrays = Vec::with_capacity(expected.len());
        for (part, (dtype, shape)) in expected.into_iter().enumerate() {
            let name = name(layer, part);
            let Some(tensor) = tensors.remove(&name) else { return Err(format!("{name}: is missing")) };
            if mlx_dtype(tensor.dtype) != Some(dtype)
                || !tensor.shape.iter().map(|n| *n as i64).eq(shape.iter().map(|n| i64::from(*n)))
            {
                let found = format!("{} {:?}", tensor.dtype, tensor.shape);
                return Err(format!("{name}: is {found}, expected {dtype:?} {shape:?}"));
            }
            let array = mlx::filled(&shape, dtype, |memory| {
                if memory.len() != tensor.bytes.len() {
                    let found = tensor.bytes.len();
                    return Err(Exception::custom(format!(
                        "{name}: {found} bytes, expected {}",
                        memory.len()
                    )));
                }
                memory.copy_from_slice(&tensor.bytes);
                Ok::<_, Exception>(())
            });
            arrays.push(array.map_err(mlx)?);
        }
        layers.push(arrays);
    }
    let mut cache = empty;
    cache.import(layers, tokens.len());
    Ok(Entry { tokens, cache })
}
