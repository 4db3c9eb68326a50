//! Methods of strings, lists, dicts, loops and cyclers.

mod collections;
mod strings;

use crate::{
    args::Args,
    budget::STEP,
    error::{Result, runtime},
    ops::method_names::{has_method, is_unsafe},
    value::{Heap, Value},
};

/// Calls a method; `None` where the value has none of that name.
pub(crate) fn call(value: &Value, name: &str, args: &Args, heap: &Heap) -> Result<Option<Value>> {
    if !has_method(value, name) {
        return Ok(None);
    }
    heap.charge(STEP)?;
    if is_unsafe(value, name) {
        let owner = value.type_name();
        return Err(runtime!("access to attribute '{name}' of '{owner}' object is unsafe"));
    }
    match value {
        Value::Str(text) => strings::call(text, name, args, heap),
        Value::Dict(dict) => collections::of_dict(value, dict, name, args, heap),
        Value::List(seq) | Value::Tuple(seq) => collections::of_list(value, seq, name, args, heap),
        Value::Loop(state) => collections::of_loop(state, name, args, heap),
        Value::Cycler(cycler) => collections::of_cycler(cycler, name),
        _ => return Ok(None),
    }
    .map(Some)
}
