//! Methods of lists, dicts, loops and cyclers.

use crate::{
    args::Args,
    error::{Result, runtime},
    value::{Cycler, Dict, Heap, LoopState, Value, equals, get},
};

pub(super) fn of_dict(value: &Value, dict: &Dict, name: &str, args: &Args, heap: &Heap) -> Result<Value> {
    if name == "get" {
        let [key, default] = args.bind("get", ["key", "default"])?;
        let key = key.ok_or_else(|| runtime!("get expected at least 1 argument, got 0"))?;
        if !key.is_hashable() {
            return Err(runtime!("unhashable type: '{}'", key.type_name()));
        }
        return Ok(get(dict, &key, heap)?.or(default).unwrap_or(Value::None));
    }
    let [] = args.bind(name, [])?;
    if name == "copy" {
        return Ok(value.clone());
    }
    let mut items = heap.items();
    for (key, value) in dict.iter() {
        items.push(match name {
            "keys" => key.clone(),
            "values" => value.clone(),
            _ => heap.pair(key.clone(), value.clone())?,
        })?;
    }
    items.list()
}

pub(super) fn of_list(list: &Value, items: &[Value], name: &str, args: &Args, heap: &Heap) -> Result<Value> {
    if name == "copy" {
        return Ok(list.clone());
    }
    let [wanted, start, stop] = args.bind(name, ["value", "start", "stop"])?;
    let wanted = wanted.ok_or_else(|| runtime!("{name}() takes exactly one argument (0 given)"))?;
    let place = |bound: Option<Value>, unset: usize| {
        let at = bound.and_then(|bound| bound.as_int());
        at.map_or(unset, |at| {
            let at = if at < 0 { at.saturating_add(items.len() as i64).max(0) } else { at };
            usize::try_from(at).unwrap_or(usize::MAX).min(items.len())
        })
    };
    let (start, stop) = (place(start, 0), place(stop, items.len()));
    let mut count = 0;
    for (at, item) in items.iter().enumerate().take(stop).skip(start) {
        heap.charge(1)?;
        if equals(item, &wanted, heap)? {
            if name == "index" {
                return Ok(heap.int(at));
            }
            count += 1;
        }
    }
    if name == "index" { Err(runtime!("the value is not in the list")) } else { Ok(heap.int(count)) }
}

pub(super) fn of_loop(state: &LoopState, name: &str, args: &Args, heap: &Heap) -> Result<Value> {
    let given = &args.positional;
    if name == "cycle" {
        return match state.index.get().checked_rem(given.len()) {
            None => Err(runtime!("no items for cycling given")),
            Some(at) => Ok(given[at].clone()),
        };
    }
    if given.iter().any(Value::has_loop) {
        return Err(runtime!("loop.changed() cannot watch a loop"));
    }
    let mut items = heap.items();
    items.extend(given)?;
    let items = items.seq()?;
    let before = state.seen.borrow().clone();
    let same = match before {
        Some(seen) => equals(&Value::Tuple(seen), &Value::Tuple(items.clone()), heap)?,
        None => false,
    };
    if !same {
        state.seen.replace(Some(items));
    }
    Ok(Value::Bool(!same))
}

pub(super) fn of_cycler(cycler: &Cycler, name: &str) -> Result<Value> {
    if name == "reset" {
        cycler.at.set(0);
        return Ok(Value::None);
    }
    let at = cycler.at.get();
    cycler.at.set((at + 1) % cycler.items.len().max(1));
    cycler.items.get(at).cloned().ok_or_else(|| runtime!("a cycler has no items"))
}
