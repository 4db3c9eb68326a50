//! Python's `==`, `<` and `in`. Each charges for what it looks at, as it does.

use std::{cmp::Ordering, rc::Rc};

use num_bigint::BigInt;
use num_traits::{FromPrimitive, ToPrimitive};

use super::{
    heap::Heap,
    types::{Dict, Seq, Value},
};
use crate::{
    budget::ELEMENT,
    error::{Result, runtime},
};

/// Python's `==`.
pub(crate) fn equals(a: &Value, b: &Value, heap: &Heap) -> Result<bool> {
    Ok(match (a, b) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Str(a), Value::Str(b)) => return heap.same_text(a, b),
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            return Ok(Rc::ptr_eq(a, b) || a.len() == b.len() && all_equal(a, b, heap)?);
        }
        (Value::Dict(a), Value::Dict(b)) => {
            return Ok(Rc::ptr_eq(a, b) || a.len() == b.len() && same_entries(a, b, heap)?);
        }
        (Value::Iter(a), Value::Iter(b)) => Rc::ptr_eq(a, b),
        (Value::Namespace(a), Value::Namespace(b)) => a == b,
        (Value::Macro(a), Value::Macro(b)) => Rc::ptr_eq(a, b),
        (Value::Loop(a), Value::Loop(b)) => Rc::ptr_eq(a, b),
        (Value::Cycler(a), Value::Cycler(b)) => Rc::ptr_eq(a, b),
        (Value::Joiner(a), Value::Joiner(b)) => Rc::ptr_eq(a, b),
        (Value::Function(a), Value::Function(b)) => a == b,
        _ => numbers(a, b, heap)? == Some(Ordering::Equal),
    })
}

fn all_equal(a: &Seq, b: &Seq, heap: &Heap) -> Result<bool> {
    for (a, b) in a.iter().zip(b.iter()) {
        heap.charge(ELEMENT)?;
        if !equals(a, b, heap)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn same_entries(a: &Dict, b: &Dict, heap: &Heap) -> Result<bool> {
    for (key, value) in a.iter() {
        heap.charge(ELEMENT)?;
        match find(b, key, heap)? {
            Some(other) if equals(value, other, heap)? => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// The value of a key.
pub(super) fn find<'a>(entries: &'a [(Value, Value)], key: &Value, heap: &Heap) -> Result<Option<&'a Value>> {
    for (known, value) in entries {
        heap.charge(1)?;
        if equals(known, key, heap)? {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// Python's `<` and its kin.
pub(crate) fn compare(a: &Value, b: &Value, heap: &Heap) -> Result<Ordering> {
    match (a, b) {
        (Value::Str(a), Value::Str(b)) => {
            heap.charge(a.len().min(b.len()) + 1)?;
            return Ok((**a).cmp(b));
        }
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            for (a, b) in a.iter().zip(b.iter()) {
                heap.charge(ELEMENT)?;
                if !equals(a, b, heap)? {
                    return compare(a, b, heap);
                }
            }
            return Ok(a.len().cmp(&b.len()));
        }
        _ => {}
    }
    if a.as_float().is_some() && b.as_float().is_some() {
        // Not-a-number sorts nowhere; Python's comparisons with it are all false.
        return Ok(numbers(a, b, heap)?.unwrap_or(Ordering::Equal));
    }
    let (a, b) = (a.type_name(), b.type_name());
    Err(runtime!("'<' not supported between instances of '{a}' and '{b}'"))
}

/// The order of two numbers by their exact values; `None` if there is none.
fn numbers(a: &Value, b: &Value, heap: &Heap) -> Result<Option<Ordering>> {
    if !matches!(a, Value::BigInt(_)) && !matches!(b, Value::BigInt(_)) {
        return Ok(match (a, b) {
            (Value::Float(a), Value::Float(b)) => a.partial_cmp(b),
            (Value::Float(a), b) => b.as_int().and_then(|b| against(b, *a)).map(Ordering::reverse),
            (a, Value::Float(b)) => a.as_int().and_then(|a| against(a, *b)),
            _ => a.as_int().zip(b.as_int()).map(|(a, b)| a.cmp(&b)),
        });
    }
    let big = |value: &Value| -> Result<Option<(BigInt, Ordering)>> {
        Ok(match value {
            Value::BigInt(int) => {
                heap.charge(usize::try_from(int.bits() / 8).unwrap_or(usize::MAX))?;
                Some(((***int).clone(), Ordering::Equal))
            }
            Value::Float(float) => BigInt::from_f64(float.trunc())
                .map(|whole| (whole, float.fract().partial_cmp(&0.0).unwrap_or(Ordering::Equal))),
            other => other.as_int().map(|int| (BigInt::from(int), Ordering::Equal)),
        })
    };
    match (a, b) {
        (Value::Float(a), _) if a.is_infinite() => return Ok(a.partial_cmp(&0.0)),
        (_, Value::Float(b)) if b.is_infinite() => return Ok(0.0.partial_cmp(b)),
        _ => {}
    }
    Ok(big(a)?.zip(big(b)?).map(|((a, a_rest), (b, b_rest))| a.cmp(&b).then(a_rest.cmp(&b_rest))))
}

/// The order of an integer and a float.
fn against(int: i64, float: f64) -> Option<Ordering> {
    // What is beyond 64 bits is beyond any such integer.
    match float.trunc().to_i64() {
        Some(whole) => Some(int.cmp(&whole).then(0.0.partial_cmp(&float.fract())?)),
        None => 0.0.partial_cmp(&float),
    }
}

/// Python's `item in value`.
pub(crate) fn contains(value: &Value, item: &Value, heap: &Heap) -> Result<bool> {
    match value {
        Value::Str(text) => {
            let Some(part) = item.as_str() else {
                let found = item.type_name();
                return Err(runtime!("'in <string>' requires string as left operand, not {found}"));
            };
            heap.charge(text.len())?;
            heap.charge(part.len())?;
            Ok(text.contains(part))
        }
        Value::Dict(_) if !item.is_hashable() => Err(runtime!("unhashable type: '{}'", item.type_name())),
        Value::Dict(dict) => Ok(find(dict, item, heap)?.is_some()),
        Value::Undefined(_) => Ok(false),
        Value::List(seq) | Value::Tuple(seq) | Value::Iter(seq) => {
            for known in seq.iter() {
                heap.charge(1)?;
                if equals(known, item, heap)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        other => Err(runtime!("argument of type '{}' is not iterable", other.type_name())),
    }
}
