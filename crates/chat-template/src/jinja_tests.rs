//! What stands behind `is`: Jinja2's tests.

use std::rc::Rc;

use num_bigint::BigInt;
use num_traits::Zero;

use crate::{
    args::Args,
    budget::STEP,
    error::{Result, runtime},
    ops::{binary::compare_with, numbers::to_big, print::text},
    syntax::ast::CompareOp,
    value::{Heap, Value},
};

const NAMES: &[&str] = &[
    "boolean",
    "callable",
    "defined",
    "divisibleby",
    "eq",
    "equalto",
    "==",
    "escaped",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    ">=",
    "gt",
    "greaterthan",
    ">",
    "in",
    "integer",
    "iterable",
    "le",
    "<=",
    "lower",
    "lt",
    "lessthan",
    "<",
    "mapping",
    "ne",
    "!=",
    "none",
    "number",
    "odd",
    "sameas",
    "sequence",
    "string",
    "test",
    "true",
    "undefined",
    "upper",
];

/// Whether a value passes a test. `is_filter` says which filters there are.
pub(crate) fn passes(
    name: &str,
    value: &Value,
    args: &Args,
    is_filter: fn(&str) -> bool,
    heap: &Heap,
) -> Result<bool> {
    heap.charge(STEP)?;
    let argument = || args.positional.first().ok_or_else(|| runtime!("test '{name}' needs an argument"));
    if let Some(operator) = operator(name) {
        return compare_with(operator, value, argument()?, heap);
    }
    Ok(match name {
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_) | Value::BigInt(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => value.as_float().is_some(),
        "string" => matches!(value, Value::Str(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        "sequence" => is_sequence(value),
        "iterable" => is_sequence(value) || matches!(value, Value::Iter(_)),
        "callable" => matches!(
            value,
            Value::Macro(_) | Value::Function(_) | Value::Method(_) | Value::Loop(_) | Value::Joiner(_)
        ),
        "odd" => remainder(name, value, &Value::Int(2), heap)?.bit(0),
        "even" => remainder(name, value, &Value::Int(2), heap)?.is_zero(),
        "divisibleby" => remainder(name, value, argument()?, heap)?.is_zero(),
        "lower" | "upper" => {
            let text = text(value, heap)?;
            heap.charge(text.len().saturating_mul(2))?;
            let wrong = if name == "lower" { char::is_uppercase } else { char::is_lowercase };
            text.chars().any(|c| c.is_lowercase() || c.is_uppercase()) && !text.chars().any(wrong)
        }
        "sameas" => same(value, argument()?, heap)?,
        "escaped" => matches!(value, Value::Str(text) if text.is_markup()),
        "filter" => value.as_str().is_some_and(is_filter),
        "test" => value.as_str().is_some_and(|name| NAMES.contains(&name)),
        _ => return Err(runtime!("No test named '{name}'.")),
    })
}

fn operator(name: &str) -> Option<CompareOp> {
    Some(match name {
        "eq" | "equalto" | "==" => CompareOp::Equal,
        "ne" | "!=" => CompareOp::NotEqual,
        "lt" | "lessthan" | "<" => CompareOp::Less,
        "le" | "<=" => CompareOp::LessEqual,
        "gt" | "greaterthan" | ">" => CompareOp::Greater,
        "ge" | ">=" => CompareOp::GreaterEqual,
        "in" => CompareOp::In,
        _ => return None,
    })
}

/// What has a length and items; Python's strings and dicts have both.
fn is_sequence(value: &Value) -> bool {
    matches!(
        value,
        Value::Str(_)
            | Value::List(_)
            | Value::Tuple(_)
            | Value::Dict(_)
            | Value::Undefined(_)
            | Value::Loop(_)
    )
}

/// What is left of an integer when it is divided.
fn remainder(test: &str, value: &Value, by: &Value, heap: &Heap) -> Result<BigInt> {
    let integer = |value: &Value| {
        to_big(value, heap)?
            .ok_or_else(|| runtime!("test '{test}' needs an integer, found '{}'", value.type_name()))
    };
    let (int, by) = (integer(value)?, integer(by)?);
    if by.is_zero() {
        return Err(runtime!("division by zero"));
    }
    heap.charge_product((int.bits() / 64) as usize + 1, (by.bits() / 64) as usize + 1)?;
    Ok(int % by)
}

/// Python's `is`, as far as it is not up to chance.
fn same(a: &Value, b: &Value, heap: &Heap) -> Result<bool> {
    Ok(match (a, b) {
        (Value::None, Value::None) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Int(a), Value::Int(b)) => a == b,
        (Value::Str(a), Value::Str(b)) => heap.same_text(a, b)?,
        (Value::List(a), Value::List(b)) => Rc::ptr_eq(a, b),
        (Value::Dict(a), Value::Dict(b)) => Rc::ptr_eq(a, b),
        (Value::Namespace(a), Value::Namespace(b)) => a == b,
        _ => false,
    })
}
