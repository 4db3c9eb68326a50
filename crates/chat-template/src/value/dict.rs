//! Dicts in the making, and their items.

use std::rc::Rc;

use super::{
    compare::{equals, find},
    heap::Heap,
    types::{Dict, Nesting, Value},
};
use crate::{
    budget::{ELEMENT, Hold},
    error::{Result, runtime},
};

/// What the header of a dict takes.
const OVERHEAD: usize = 96;

/// Entries that are charged for as they come.
pub(crate) struct DictBuilder<'h> {
    heap: &'h Heap,
    entries: Vec<(Value, Value)>,
    hold: Hold,
}

impl<'h> DictBuilder<'h> {
    pub(crate) fn new(heap: &'h Heap) -> Result<Self> {
        Ok(Self { heap, entries: Vec::new(), hold: heap.hold(OVERHEAD)? })
    }

    /// Adds an entry; one with an equal key gives way to it.
    pub(crate) fn insert(&mut self, key: Value, value: Value) -> Result<()> {
        if !key.is_hashable() {
            return Err(runtime!("unhashable type: '{}'", key.type_name()));
        }
        for (known, old) in &mut self.entries {
            self.heap.charge(1)?;
            if equals(known, &key, self.heap)? {
                *old = value;
                return Ok(());
            }
        }
        self.insert_new(key, value)
    }

    /// Adds an entry whose key is known to be new.
    pub(super) fn insert_new(&mut self, key: Value, value: Value) -> Result<()> {
        self.heap.charge(ELEMENT)?;
        self.hold.make_room(&mut self.entries, 1)?;
        self.entries.push((key, value));
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<Value> {
        self.heap.charge_elements(self.entries.len())?;
        let nesting = Nesting::around(self.entries.iter().flat_map(|(key, value)| [key, value]))?;
        Ok(Value::Dict(Rc::new(Dict { nesting, entries: self.entries, _hold: self.hold })))
    }
}

/// The value of a key.
pub(crate) fn get(dict: &Dict, key: &Value, heap: &Heap) -> Result<Option<Value>> {
    Ok(find(dict, key, heap)?.cloned())
}

/// The value of a string's key.
pub(crate) fn get_by_name(dict: &Dict, name: &str, heap: &Heap) -> Result<Option<Value>> {
    for (key, value) in dict.iter() {
        if let Value::Str(key) = key
            && heap.same_text(key, name)?
        {
            return Ok(Some(value.clone()));
        }
    }
    heap.charge(dict.len())?;
    Ok(None)
}
