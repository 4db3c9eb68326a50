//! Slices, by Python's rules.

use crate::{
    error::{Result, runtime},
    value::{Heap, Value, missing},
};

/// `value[start:stop:step]`
pub(crate) fn slice(value: &Value, bounds: &[Option<Value>; 3], heap: &Heap) -> Result<Value> {
    if let Some(error) = missing(value) {
        return Err(error);
    }
    let number = |bound: &Option<Value>| match bound {
        None | Some(Value::None) => Ok(None),
        Some(bound) => bound
            .as_int()
            .map(Some)
            .ok_or_else(|| runtime!("slice indices must be integers or None or have an __index__ method")),
    };
    let (start, stop, step) = (number(&bounds[0])?, number(&bounds[1])?, number(&bounds[2])?.unwrap_or(1));
    if step == 0 {
        return Err(runtime!("slice step cannot be zero"));
    }
    match value {
        Value::List(seq) | Value::Tuple(seq) => {
            let mut items = heap.items();
            for at in places(start, stop, step, seq.len()) {
                items.push(seq[at].clone())?;
            }
            if matches!(value, Value::List(_)) { items.list() } else { items.tuple() }
        }
        Value::Str(text) => {
            let length = text.chars_count()?;
            let mut places = places(start, stop, step, length);
            if step == 1 {
                let Some(first) = places.next() else { return heap.str("") };
                let (from, to) = (text.offset(first)?, text.offset(first + 1 + places.count())?);
                return super::strings::part_of(text, &text[from..to], heap);
            }
            let mut out = heap.builder();
            if text.is_ascii() {
                for at in places {
                    out.push(char::from(text.as_bytes()[at]))?;
                }
            } else {
                let _room = heap.hold(length.saturating_mul(size_of::<char>()))?;
                heap.charge(text.len())?;
                let chars: Vec<char> = text.chars().collect();
                for at in places {
                    out.push(chars[at])?;
                }
            }
            out.finish().map(Value::Str)
        }
        other => Err(runtime!("'{}' object is not subscriptable", other.type_name())),
    }
}

/// The places that a slice takes, in order.
fn places(start: Option<i64>, stop: Option<i64>, step: i64, length: usize) -> impl Iterator<Item = usize> {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let (lowest, highest) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let clamp =
        |bound: i64| (if bound < 0 { bound.saturating_add(length) } else { bound }).clamp(lowest, highest);
    let start = start.map_or(if step > 0 { lowest } else { highest }, clamp);
    let stop = stop.map_or(if step > 0 { highest } else { lowest }, clamp);
    let mut at = start;
    std::iter::from_fn(move || {
        let within = if step > 0 { at < stop } else { at > stop };
        let here = at;
        at = at.saturating_add(step);
        within.then_some(here as usize)
    })
}
