//! Operators, attributes, items and slices.

use minijinja::machinery::ast::{BinOpKind, CompareOpKind};

use super::{
    budget::Budget,
    filters, methods, print,
    value::{Fallible, Value},
};

/// The value of a literal.
pub(super) fn constant(literal: &minijinja::Value, budget: &Budget) -> Fallible<Value> {
    use minijinja::value::ValueKind;
    match literal.kind() {
        ValueKind::None => Ok(Value::None),
        ValueKind::Bool => Ok(Value::Bool(literal.is_true())),
        ValueKind::Number if literal.is_integer() => {
            let int =
                i128::try_from(literal.clone()).map_err(|_| format!("{literal} is too large a number"))?;
            Ok(Value::Int(int))
        }
        ValueKind::Number => Ok(Value::Float(f64::try_from(literal.clone()).unwrap_or(f64::NAN))),
        _ => {
            let text = literal.as_str().unwrap_or_default();
            budget.charge(text.len())?;
            Ok(Value::str(text))
        }
    }
}

pub(super) fn negate(value: &Value) -> Fallible<Value> {
    match (value, value.as_int()) {
        (_, Some(int)) => int.checked_neg().map(Value::Int).ok_or_else(too_large),
        (Value::Float(float), _) => Ok(Value::Float(-float)),
        _ => Err(undefined(value)
            .unwrap_or_else(|| format!("bad operand type for unary -: '{}'", value.type_name()))),
    }
}

/// An operator that needs both of its sides.
pub(super) fn binary(op: BinOpKind, left: &Value, right: &Value, budget: &Budget) -> Fallible<Value> {
    match op {
        BinOpKind::Concat => {
            let (mut text, rest) = (print::text(left, budget)?, print::text(right, budget)?);
            budget.charge_text(text.len() + rest.len())?;
            text.push_str(&rest);
            Ok(Value::str(text))
        }
        BinOpKind::Add => add(left, right, budget),
        BinOpKind::Mul => multiply(left, right, budget),
        BinOpKind::Rem if left.as_str().is_some() => {
            let args = if let Value::Tuple(seq) = right { seq.items.clone() } else { vec![right.clone()] };
            methods::percent(left.as_str().unwrap_or_default(), &args, budget)
        }
        BinOpKind::Sub | BinOpKind::Div | BinOpKind::FloorDiv | BinOpKind::Rem | BinOpKind::Pow => {
            arithmetic(op, left, right)
        }
        BinOpKind::Eq => compare(CompareOpKind::Eq, left, right, budget).map(Value::Bool),
        BinOpKind::Ne => compare(CompareOpKind::Ne, left, right, budget).map(Value::Bool),
        BinOpKind::Lt => compare(CompareOpKind::Lt, left, right, budget).map(Value::Bool),
        BinOpKind::Lte => compare(CompareOpKind::Lte, left, right, budget).map(Value::Bool),
        BinOpKind::Gt => compare(CompareOpKind::Gt, left, right, budget).map(Value::Bool),
        BinOpKind::Gte => compare(CompareOpKind::Gte, left, right, budget).map(Value::Bool),
        BinOpKind::In => compare(CompareOpKind::In, left, right, budget).map(Value::Bool),
        BinOpKind::ScAnd | BinOpKind::ScOr => Err("and, or are evaluated where they stand".to_owned()),
    }
}

pub(super) fn compare(op: CompareOpKind, left: &Value, right: &Value, budget: &Budget) -> Fallible<bool> {
    if matches!(op, CompareOpKind::In | CompareOpKind::NotIn) {
        return Ok(right.contains(left, budget)? == matches!(op, CompareOpKind::In));
    }
    budget.charge(left.size().min(right.size()))?;
    if let CompareOpKind::Eq | CompareOpKind::Ne = op {
        return Ok(left.equals(right) == matches!(op, CompareOpKind::Eq));
    }
    if let Some(reason) = undefined(left).or_else(|| undefined(right)) {
        return Err(reason);
    }
    let order = left.compare(right)?;
    Ok(match op {
        CompareOpKind::Lt => order.is_lt(),
        CompareOpKind::Lte => order.is_le(),
        CompareOpKind::Gt => order.is_gt(),
        _ => order.is_ge(),
    })
}

fn add(left: &Value, right: &Value, budget: &Budget) -> Fallible<Value> {
    match (left, right) {
        (Value::Str(a), Value::Str(b)) if a.markup || b.markup => {
            let (a, b) = (filters::escape(a, budget)?, filters::escape(b, budget)?);
            budget.charge_text(a.len() + b.len())?;
            Ok(Value::markup(a + &b))
        }
        (Value::Str(a), Value::Str(b)) => {
            budget.charge_text(a.len() + b.len())?;
            Ok(Value::str([&**a, &**b].concat()))
        }
        (Value::List(a), Value::List(b)) => {
            budget.charge_elements(a.items.len() + b.items.len())?;
            Value::list([&a.items[..], &b.items[..]].concat())
        }
        (Value::Tuple(a), Value::Tuple(b)) => {
            budget.charge_elements(a.items.len() + b.items.len())?;
            Value::tuple([&a.items[..], &b.items[..]].concat())
        }
        (Value::Str(_), other) | (other, Value::Str(_)) if undefined(other).is_none() => {
            Err(format!("can only concatenate str (not \"{}\") to str", other.type_name()))
        }
        _ => match (left.as_int(), right.as_int(), left.as_float(), right.as_float()) {
            (Some(a), Some(b), ..) => a.checked_add(b).map(Value::Int).ok_or_else(too_large),
            (_, _, Some(a), Some(b)) => Ok(Value::Float(a + b)),
            _ => Err(unsupported("+", left, right)),
        },
    }
}

fn multiply(left: &Value, right: &Value, budget: &Budget) -> Fallible<Value> {
    let (repeated, times) = match (left, right) {
        (Value::Str(_) | Value::List(_) | Value::Tuple(_), _) => (left, right),
        _ => (right, left),
    };
    let count = times.as_int().map(|times| usize::try_from(times.max(0)).unwrap_or(usize::MAX));
    match (repeated, count) {
        (Value::Str(text), Some(count)) => {
            budget.charge_text(text.len().saturating_mul(count))?;
            Ok(Value::str(text.repeat(count)))
        }
        (Value::List(seq), Some(count)) => {
            budget.charge_elements(seq.items.len().saturating_mul(count))?;
            Value::list(repeat(&seq.items, count))
        }
        (Value::Tuple(seq), Some(count)) => {
            budget.charge_elements(seq.items.len().saturating_mul(count))?;
            Value::tuple(repeat(&seq.items, count))
        }
        _ => match (left.as_int(), right.as_int(), left.as_float(), right.as_float()) {
            (Some(a), Some(b), ..) => a.checked_mul(b).map(Value::Int).ok_or_else(too_large),
            (_, _, Some(a), Some(b)) => Ok(Value::Float(a * b)),
            _ => Err(unsupported("*", left, right)),
        },
    }
}

fn repeat(items: &[Value], count: usize) -> Vec<Value> {
    items.iter().cycle().take(items.len().saturating_mul(count)).cloned().collect()
}

fn arithmetic(op: BinOpKind, left: &Value, right: &Value) -> Fallible<Value> {
    let sign = match op {
        BinOpKind::Sub => "-",
        BinOpKind::Div => "/",
        BinOpKind::FloorDiv => "//",
        BinOpKind::Rem => "%",
        _ => "**",
    };
    let (Some(x), Some(y)) = (left.as_float(), right.as_float()) else {
        return Err(unsupported(sign, left, right));
    };
    if y == 0.0 && matches!(op, BinOpKind::Div | BinOpKind::FloorDiv | BinOpKind::Rem) {
        return Err("division by zero".to_owned());
    }
    if let (Some(a), Some(b)) = (left.as_int(), right.as_int()) {
        // Python rounds towards minus infinity.
        let floor = || a.checked_div(b).map(|q| if a % b != 0 && (a < 0) != (b < 0) { q - 1 } else { q });
        let result = match op {
            BinOpKind::Sub => a.checked_sub(b),
            BinOpKind::FloorDiv => floor(),
            BinOpKind::Rem => floor().and_then(|q| a.checked_sub(q.checked_mul(b)?)),
            BinOpKind::Pow if b >= 0 => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
            _ => return Ok(Value::Float(if op_is_div(op) { x / y } else { x.powf(y) })),
        };
        return result.map(Value::Int).ok_or_else(too_large);
    }
    Ok(Value::Float(match op {
        BinOpKind::Sub => x - y,
        BinOpKind::Div => x / y,
        BinOpKind::FloorDiv => (x / y).floor(),
        BinOpKind::Rem => x - (x / y).floor() * y,
        _ => x.powf(y),
    }))
}

fn op_is_div(op: BinOpKind) -> bool {
    matches!(op, BinOpKind::Div)
}

/// `value.name`: a method or field, or else the item of that key.
pub(super) fn attribute(value: &Value, name: &str, budget: &Budget) -> Fallible<Value> {
    if let Some(reason) = undefined(value) {
        return Err(reason);
    }
    if methods::has(value, name) {
        return Ok(Value::Method(std::rc::Rc::new((value.clone(), name.into()))));
    }
    let found = match value {
        Value::Dict(_) => value.get(&Value::str(name), budget)?,
        Value::Namespace(fields) => {
            fields.borrow().iter().find(|(known, _)| &**known == name).map(|(_, v)| v.clone())
        }
        Value::Loop(state) => methods::loop_field(state, name)?,
        // The pairs that `groupby` gives have names; no other tuple has attributes.
        Value::Tuple(seq) if seq.items.len() == 2 && matches!(name, "grouper" | "list") => {
            Some(seq.items[usize::from(name == "list")].clone())
        }
        _ => None,
    };
    Ok(found.unwrap_or_else(|| missing(value, &format!("attribute '{name}'"))))
}

/// `value[key]`: the item of that key, or else the attribute of that name.
pub(super) fn item(value: &Value, key: &Value, budget: &Budget) -> Fallible<Value> {
    if let Some(reason) = undefined(value) {
        return Err(reason);
    }
    match (value, key.as_int()) {
        (Value::List(seq) | Value::Tuple(seq), Some(index)) => {
            let at = place(index, seq.items.len());
            Ok(at.map_or_else(|| missing(value, &format!("element {index}")), |at| seq.items[at].clone()))
        }
        (Value::Str(text), Some(index)) => {
            budget.charge(text.len())?;
            let at = place(index, text.chars().count());
            let found =
                at.and_then(|at| text.chars().nth(at)).map(|c| Value::str(c.encode_utf8(&mut [0; 4])));
            Ok(found.unwrap_or_else(|| missing(value, &format!("element {index}"))))
        }
        (Value::Dict(_), _) if key.is_hashable() => {
            budget.charge(key.size())?;
            match (value.get(key, budget)?, key) {
                (Some(found), _) => Ok(found),
                (None, Value::Str(name)) => attribute(value, name, budget),
                (None, key) => Ok(missing(value, &format!("element {}", print::repr(key, budget)?))),
            }
        }
        _ => match key {
            Value::Str(name) => attribute(value, name, budget),
            key => Ok(missing(value, &format!("element {}", print::repr(key, budget)?))),
        },
    }
}

/// `value[start:stop:step]` by Python's rules.
pub(super) fn slice(value: &Value, bounds: &[Option<Value>; 3], budget: &Budget) -> Fallible<Value> {
    if let Some(reason) = undefined(value) {
        return Err(reason);
    }
    let number = |bound: &Option<Value>| match bound {
        None | Some(Value::None) => Ok(None),
        Some(bound) => {
            let int =
                bound.as_int().ok_or("slice indices must be integers or None or have an __index__ method")?;
            Ok::<_, String>(Some(int))
        }
    };
    let [start, stop, step] = [number(&bounds[0])?, number(&bounds[1])?, number(&bounds[2])?];
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err("slice step cannot be zero".to_owned());
    }
    let places = |length: usize| places(start, stop, step, length);
    match value {
        Value::List(seq) | Value::Tuple(seq) => {
            budget.charge_elements(seq.items.len())?;
            let items = places(seq.items.len()).map(|at| seq.items[at].clone()).collect();
            if matches!(value, Value::List(_)) { Value::list(items) } else { Value::tuple(items) }
        }
        Value::Str(text) => {
            budget.charge_text(text.len())?;
            if text.is_ascii() && step == 1 {
                let range: Vec<usize> = places(text.len()).take(1).collect();
                let length = places(text.len()).count();
                let start = range.first().copied().unwrap_or(0);
                return Ok(Value::str(&text[start..start + length]));
            }
            budget.charge_elements(text.len() / 8)?;
            let chars: Vec<char> = text.chars().collect();
            Ok(Value::str(places(chars.len()).map(|at| chars[at]).collect::<String>()))
        }
        other => Err(format!("'{}' object is not subscriptable", other.type_name())),
    }
}

/// The places that a slice takes, in order.
fn places(start: Option<i128>, stop: Option<i128>, step: i128, length: usize) -> impl Iterator<Item = usize> {
    let length = length as i128;
    let (lowest, highest) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let clamp =
        |bound: i128| (if bound < 0 { bound.saturating_add(length) } else { bound }).clamp(lowest, highest);
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

fn place(index: i128, length: usize) -> Option<usize> {
    let at = if index < 0 { index.checked_add(length as i128)? } else { index };
    usize::try_from(at).ok().filter(|at| *at < length)
}

/// Why an undefined value cannot be used.
pub(super) fn undefined(value: &Value) -> Option<String> {
    if let Value::Undefined(what) = value { Some(format!("{what} is undefined")) } else { None }
}

fn missing(value: &Value, what: &str) -> Value {
    let owner = match value {
        Value::Dict(_) => "'dict object'".to_owned(),
        other => format!("'{} object'", other.type_name()),
    };
    Value::Undefined(format!("{what} of {owner}").into())
}

fn unsupported(sign: &str, left: &Value, right: &Value) -> String {
    undefined(left).or_else(|| undefined(right)).unwrap_or_else(|| {
        format!("unsupported operand type(s) for {sign}: '{}' and '{}'", left.type_name(), right.type_name())
    })
}

fn too_large() -> String {
    "the number is too large".to_owned()
}
