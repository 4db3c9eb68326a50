//! What stands behind `is`.

use super::{
    budget::Budget,
    eval::Args,
    filters, functions, ops,
    value::{Fallible, Value},
};
use minijinja::machinery::ast::CompareOpKind;

/// Whether a value passes a test.
pub(super) fn is(name: &str, value: &Value, args: &Args, budget: &Budget) -> Fallible<bool> {
    let operator = match name {
        "eq" | "equalto" | "==" => Some(CompareOpKind::Eq),
        "ne" | "!=" => Some(CompareOpKind::Ne),
        "lt" | "lessthan" | "<" => Some(CompareOpKind::Lt),
        "le" | "<=" => Some(CompareOpKind::Lte),
        "gt" | "greaterthan" | ">" => Some(CompareOpKind::Gt),
        "ge" | ">=" => Some(CompareOpKind::Gte),
        "in" => Some(CompareOpKind::In),
        _ => None,
    };
    let argument = || args.pos.first().ok_or_else(|| format!("test '{name}' needs an argument"));
    if let Some(operator) = operator {
        return ops::compare(operator, value, argument()?, budget);
    }
    let integer = || {
        value.as_int().ok_or_else(|| format!("test '{name}' needs an integer, found '{}'", value.type_name()))
    };
    Ok(match name {
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => value.as_float().is_some(),
        "string" => matches!(value, Value::Str(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        // What has a length and items; Python's strings and dicts have both.
        "sequence" => {
            matches!(
                value,
                Value::Str(_) | Value::List(_) | Value::Tuple(_) | Value::Dict(_) | Value::Undefined(_)
            )
        }
        "iterable" => matches!(
            value,
            Value::Str(_)
                | Value::List(_)
                | Value::Tuple(_)
                | Value::Dict(_)
                | Value::Iter(_)
                | Value::Undefined(_)
        ),
        "callable" => {
            matches!(value, Value::Macro(_) | Value::Function(_) | Value::Method(_) | Value::Loop(_))
        }
        "odd" => integer()?.rem_euclid(2) == 1,
        "even" => integer()?.rem_euclid(2) == 0,
        "divisibleby" => {
            let by = argument()?
                .as_int()
                .filter(|by| *by != 0)
                .ok_or("test 'divisibleby' needs a number other than 0")?;
            integer()?.checked_rem(by) == Some(0)
        }
        "lower" | "upper" => {
            let text = super::print::text(value, budget)?;
            let cased = text.chars().any(|c| c.is_lowercase() || c.is_uppercase());
            cased && text.chars().all(|c| if name == "lower" { !c.is_uppercase() } else { !c.is_lowercase() })
        }
        "sameas" => same(value, argument()?),
        "escaped" => matches!(value, Value::Str(text) if text.markup),
        "filter" => value.as_str().is_some_and(filters::exists),
        "test" => value.as_str().is_some_and(exists),
        _ => return Err(format!("No test named '{name}'.")),
    })
}

fn exists(name: &str) -> bool {
    let budget = Budget::new();
    let given = Args { pos: vec![Value::Int(1)], named: vec![] };
    !matches!(is(name, &Value::Int(1), &given, &budget), Err(reason) if reason.starts_with("No test"))
}

/// Python's `is`, as far as it is not up to chance.
fn same(a: &Value, b: &Value) -> bool {
    use std::rc::Rc;
    match (a, b) {
        (Value::None, Value::None) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Int(a), Value::Int(b)) => a == b,
        (Value::Str(a), Value::Str(b)) => **a == **b,
        (Value::List(a), Value::List(b)) => Rc::ptr_eq(a, b),
        (Value::Dict(a), Value::Dict(b)) => Rc::ptr_eq(a, b),
        (Value::Namespace(a), Value::Namespace(b)) => functions::same(a, b),
        _ => false,
    }
}
