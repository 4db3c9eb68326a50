//! Functions that every template can call.

use std::rc::Rc;

use super::{
    eval::{Args, Interpreter},
    print,
    value::{Fallible, Fields, Value},
};

/// The function of that name.
pub(super) fn named(name: &str) -> Option<&'static str> {
    ["raise_exception", "strftime_now", "namespace", "range", "dict"].into_iter().find(|known| *known == name)
}

/// Calls a function.
pub(super) fn call(interpreter: &Interpreter<'_>, name: &str, args: &Args) -> Fallible<Value> {
    let budget = &interpreter.budget;
    match name {
        "raise_exception" => {
            let [message] = args.bind(name, ["message"])?;
            Err(print::text(&message.unwrap_or(Value::None), budget)?)
        }
        "strftime_now" => {
            let [format] = args.bind(name, ["format"])?;
            let format = format.ok_or("strftime_now() needs a format")?;
            let format = format.as_str().ok_or("strftime_now() needs a string")?;
            let text = jiff::fmt::strtime::format(format, interpreter.now);
            text.map(Value::str).map_err(|error| format!("strftime_now: {error}"))
        }
        "namespace" => {
            let mut entries: Vec<(Value, Value)> = Vec::new();
            for value in &args.pos {
                entries.extend(pairs(value)?);
            }
            let fields = Fields::default();
            entries.extend(args.named.iter().map(|(name, value)| (Value::str(name), value.clone())));
            for (key, value) in entries {
                if value.is_live() {
                    return Err("a namespace cannot hold namespaces, macros or loops".to_owned());
                }
                set_attribute(&fields, &print::text(&key, budget)?, value);
            }
            Ok(Value::Namespace(Rc::new(fields)))
        }
        "dict" => {
            let mut entries = Vec::new();
            for value in &args.pos {
                entries.extend(pairs(value)?);
            }
            entries.extend(args.named.iter().map(|(name, value)| (Value::str(name), value.clone())));
            Value::dict(entries, budget)
        }
        _ => {
            let ints: Option<Vec<i128>> = args.pos.iter().map(Value::as_int).collect();
            let ints = ints.ok_or("range() needs integers")?;
            let (start, stop, step) = match ints[..] {
                [stop] => (0, stop, 1),
                [start, stop] => (start, stop, 1),
                [_, _, 0] => return Err("range() arg 3 must not be zero".to_owned()),
                [start, stop, step] => (start, stop, step),
                _ => return Err(format!("range expected 1 to 3 arguments, got {}", ints.len())),
            };
            let span = if step > 0 { stop.saturating_sub(start) } else { start.saturating_sub(stop) };
            let count = usize::try_from(span.max(0).unsigned_abs().div_ceil(step.unsigned_abs()))
                .unwrap_or(usize::MAX);
            budget.charge_elements(count)?;
            Value::list((0..count as i128).map(|at| Value::Int(start + at * step)).collect())
        }
    }
}

/// The entries of a dict, or of a list of pairs.
fn pairs(value: &Value) -> Fallible<Vec<(Value, Value)>> {
    match value {
        Value::Dict(dict) => Ok(dict.entries.clone()),
        Value::List(seq) | Value::Tuple(seq) | Value::Iter(seq) => seq
            .items
            .iter()
            .map(|item| match item {
                Value::List(pair) | Value::Tuple(pair) if pair.items.len() == 2 => {
                    Ok((pair.items[0].clone(), pair.items[1].clone()))
                }
                _ => Err("expected a dict or a list of pairs".to_owned()),
            })
            .collect(),
        other => Err(format!("'{}' object is not iterable", other.type_name())),
    }
}

/// Sets a field of a namespace.
pub(super) fn set_attribute(fields: &Fields, name: &str, value: Value) {
    let mut fields = fields.borrow_mut();
    match fields.iter_mut().find(|(known, _)| &**known == name) {
        Some((_, old)) => *old = value,
        None => fields.push((name.into(), value)),
    }
}

/// Whether two namespaces are one.
pub(super) fn same(a: &Rc<Fields>, b: &Rc<Fields>) -> bool {
    Rc::ptr_eq(a, b)
}
