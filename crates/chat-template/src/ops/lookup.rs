//! Attributes, items, and paths of both.

use super::method_names::has_method;
use crate::{
    budget::STEP,
    error::Result,
    value::{Heap, Items, LoopState, Method, Missing, Name, Value, get, get_by_name, missing},
};

/// `value.name`: a method or field, or else the item of that key.
pub(crate) fn attribute(value: &Value, name: &Name, heap: &Heap) -> Result<Value> {
    if let Some(error) = missing(value) {
        return Err(error);
    }
    if has_method(value, name) {
        let method = Method { object: value.clone(), name: name.clone() };
        return Ok(Value::Method(heap.held(method)?));
    }
    let found = match value {
        Value::Dict(dict) => get_by_name(dict, name, heap)?,
        other => field(other, name, heap)?,
    };
    found.map_or_else(|| absent(value, name.clone(), heap), Ok)
}

/// An attribute that is not a method, of anything but a dict.
pub(crate) fn field(value: &Value, name: &str, heap: &Heap) -> Result<Option<Value>> {
    Ok(match value {
        Value::Namespace(namespace) => heap.field(*namespace, name)?,
        Value::Loop(state) => loop_field(state, name, heap)?,
        // The pairs that `groupby` gives have names; no other tuple has attributes.
        Value::Tuple(seq) if seq.len() == 2 && matches!(name, "grouper" | "list") => {
            Some(seq[usize::from(name == "list")].clone())
        }
        Value::Cycler(cycler) => match name {
            "current" => cycler.items.get(cycler.at.get()).cloned(),
            "pos" => Some(heap.int(cycler.at.get())),
            "items" => Some(Value::Tuple(cycler.items.clone())),
            _ => None,
        },
        Value::Joiner(joiner) => match name {
            "sep" => Some(joiner.separator.clone()),
            "used" => Some(Value::Bool(joiner.used.get())),
            _ => None,
        },
        _ => None,
    })
}

/// A field of `loop`.
fn loop_field(state: &LoopState, name: &str, heap: &Heap) -> Result<Option<Value>> {
    let (at, length) = (state.index.get(), state.items.len());
    let item = |at: Option<usize>, what: &'static str| match at.and_then(|at| state.items.get(at)) {
        Some(item) => Ok(item.clone()),
        None => heap.undefined(Missing::Other(what)),
    };
    Ok(Some(match name {
        "index" => heap.int(at + 1),
        "index0" => heap.int(at),
        "revindex" => heap.int(length.saturating_sub(at)),
        "revindex0" => heap.int(length.saturating_sub(at + 1)),
        "first" => Value::Bool(at == 0),
        "last" => Value::Bool(at + 1 >= length),
        "length" => heap.int(length),
        "depth" => heap.int(state.depth + 1),
        "depth0" => heap.int(state.depth),
        "previtem" => item(at.checked_sub(1), "there is no previous item; it")?,
        "nextitem" => item(Some(at + 1), "there is no next item; it")?,
        _ => return Ok(None),
    }))
}

/// `value[key]`: the item of that key, or else the attribute of that name.
pub(crate) fn item(value: &Value, key: &Value, heap: &Heap) -> Result<Value> {
    if let Some(error) = missing(value) {
        return Err(error);
    }
    match (value, key) {
        (Value::Dict(dict), key) if key.is_hashable() => match (get(dict, key, heap)?, key) {
            (Some(found), _) => Ok(found),
            (None, Value::Str(name)) => attribute(value, &Name::Made(name.clone()), heap),
            (None, key) => no_element(value, key, heap),
        },
        (_, Value::Str(name)) => attribute(value, &Name::Made(name.clone()), heap),
        (_, key) => element(value, key, heap),
    }
}

/// The element of a list or string at a place.
fn element(value: &Value, key: &Value, heap: &Heap) -> Result<Value> {
    let Some(index) = key.as_int() else { return no_element(value, key, heap) };
    let found = match value {
        Value::List(seq) | Value::Tuple(seq) => place(index, seq.len()).map(|at| seq[at].clone()),
        Value::Str(text) => match place(index, text.chars_count()?) {
            None => None,
            Some(at) => {
                let rest = &text[text.offset(at)?..];
                rest.chars().next().map(|c| heap.str(c.encode_utf8(&mut [0; 4]))).transpose()?
            }
        },
        _ => None,
    };
    found.map_or_else(|| no_element(value, key, heap), Ok)
}

/// Where an index points, counted from the end if it is negative.
pub(crate) fn place(index: i64, length: usize) -> Option<usize> {
    let at = if index < 0 { index.checked_add(i64::try_from(length).ok()?)? } else { index };
    usize::try_from(at).ok().filter(|at| *at < length)
}

fn absent(value: &Value, name: Name, heap: &Heap) -> Result<Value> {
    heap.undefined(Missing::Attribute(name, value.type_name()))
}

fn no_element(value: &Value, key: &Value, heap: &Heap) -> Result<Value> {
    match key.as_int() {
        Some(index) => heap.undefined(Missing::Element(index, value.type_name())),
        None => heap.undefined(Missing::Other("an element")),
    }
}

/// The steps of an attribute's path: `a.b.0`, or an index.
pub(crate) fn path(attribute: &Value, heap: &Heap) -> Result<Items> {
    let mut steps = heap.items();
    let Value::Str(text) = attribute else {
        steps.push(attribute.clone())?;
        return Ok(steps);
    };
    heap.charge(text.len())?;
    for name in text.split('.') {
        let is_index = !name.is_empty() && name.len() < 19 && name.bytes().all(|byte| byte.is_ascii_digit());
        steps.push(match name.parse() {
            Ok(index) if is_index => Value::Int(index),
            _ => heap.str(name)?,
        })?;
    }
    Ok(steps)
}

/// Follows a path. Where a step leads nowhere, the default takes its place.
pub(crate) fn follow(value: &Value, steps: &[Value], default: Option<&Value>, heap: &Heap) -> Result<Value> {
    let mut value = value.clone();
    for step in steps {
        heap.charge(STEP)?;
        value = item(&value, step, heap)?;
        if let (true, Some(default)) = (value.is_undefined(), default) {
            value = default.clone();
        }
    }
    Ok(value)
}
