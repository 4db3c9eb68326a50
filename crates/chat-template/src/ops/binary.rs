//! Operators between two values.

use super::{format, numbers, print::text, strings::escape};
use crate::{
    error::{Error, Result, runtime},
    syntax::ast::{BinaryOp, CompareOp},
    value::{Heap, Items, Seq, Text, Value, compare, contains, equals, missing},
};

/// An operator that needs both of its sides.
pub(crate) fn binary(op: BinaryOp, left: &Value, right: &Value, heap: &Heap) -> Result<Value> {
    match (op, left, right) {
        (BinaryOp::Add, Value::Str(a), Value::Str(b)) => concat(&[a.clone(), b.clone()], heap),
        (BinaryOp::Add, Value::List(a), Value::List(b)) => joined(a, b, heap)?.list(),
        (BinaryOp::Add, Value::Tuple(a), Value::Tuple(b)) => joined(a, b, heap)?.tuple(),
        (BinaryOp::Add, Value::Str(_), other) | (BinaryOp::Add, other, Value::Str(_)) => Err(missing(other)
            .unwrap_or_else(|| runtime!("can only concatenate str (not \"{}\") to str", other.type_name()))),
        (BinaryOp::Multiply, Value::Str(_) | Value::List(_) | Value::Tuple(_), times) => {
            repeated(left, times, heap)
        }
        (BinaryOp::Multiply, times, Value::Str(_) | Value::List(_) | Value::Tuple(_)) => {
            repeated(right, times, heap)
        }
        (BinaryOp::Modulo, Value::Str(format), right) => percent(format, right, heap),
        _ => numbers::arithmetic(op, left, right, heap)?
            .ok_or_else(|| unsupported(numbers::sign(op), left, right)),
    }
}

/// `format % value`
fn percent(format: &Text, right: &Value, heap: &Heap) -> Result<Value> {
    let mut out = heap.builder();
    match right {
        Value::Tuple(seq) => format::percent(format, seq, &mut out, heap)?,
        other => format::percent(format, std::slice::from_ref(other), &mut out, heap)?,
    }
    out.finish().map(Value::Str)
}

/// Texts in a row. If one is markup, the others are escaped.
pub(crate) fn concat(texts: &[Text], heap: &Heap) -> Result<Value> {
    let markup = texts.iter().any(Text::is_markup);
    let mut out = heap.builder();
    for text in texts {
        if markup {
            escape(text, &mut out)?;
        } else {
            out.push_str(text)?;
        }
    }
    out.done(markup).map(Value::Str)
}

/// The texts of values in a row: `a ~ b`.
pub(crate) fn concat_values(values: &[Value], heap: &Heap) -> Result<Value> {
    let mut out = heap.builder();
    // Without autoescape, a markup loses its quality here.
    for value in values {
        match value {
            Value::Str(part) => out.push_str(part)?,
            other => out.push_str(&text(other, heap)?)?,
        }
    }
    out.finish().map(Value::Str)
}

fn joined(a: &Seq, b: &Seq, heap: &Heap) -> Result<Items> {
    let mut items = heap.items();
    items.extend(a)?;
    items.extend(b)?;
    Ok(items)
}

fn repeated(value: &Value, times: &Value, heap: &Heap) -> Result<Value> {
    let Some(count) = times.as_int() else { return Err(unsupported("*", value, times)) };
    let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
    match value {
        Value::Str(text) => {
            let mut out = heap.builder();
            out.push_repeated(text, count)?;
            out.done(text.is_markup()).map(Value::Str)
        }
        Value::List(seq) => repeated_items(seq, count, heap)?.list(),
        Value::Tuple(seq) => repeated_items(seq, count, heap)?.tuple(),
        other => Err(unsupported("*", other, times)),
    }
}

fn repeated_items(seq: &Seq, count: usize, heap: &Heap) -> Result<Items> {
    let mut items = heap.items();
    if seq.is_empty() {
        return Ok(items);
    }
    for _ in 0..count {
        items.extend(seq)?;
    }
    Ok(items)
}

/// A comparison, or `in`.
pub(crate) fn compare_with(op: CompareOp, left: &Value, right: &Value, heap: &Heap) -> Result<bool> {
    match op {
        CompareOp::Equal => return equals(left, right, heap),
        CompareOp::NotEqual => return Ok(!equals(left, right, heap)?),
        CompareOp::In => return contains(right, left, heap),
        CompareOp::NotIn => return Ok(!contains(right, left, heap)?),
        _ => {}
    }
    if let Some(error) = missing(left).or_else(|| missing(right)) {
        return Err(error);
    }
    let is_nan = |value: &Value| matches!(value, Value::Float(float) if float.is_nan());
    if is_nan(left) || is_nan(right) {
        compare(left, right, heap)?;
        return Ok(false);
    }
    let order = compare(left, right, heap)?;
    Ok(match op {
        CompareOp::Less => order.is_lt(),
        CompareOp::LessEqual => order.is_le(),
        CompareOp::Greater => order.is_gt(),
        _ => order.is_ge(),
    })
}

fn unsupported(sign: &str, left: &Value, right: &Value) -> Error {
    missing(left).or_else(|| missing(right)).unwrap_or_else(|| {
        runtime!("unsupported operand type(s) for {sign}: '{}' and '{}'", left.type_name(), right.type_name())
    })
}
