//! What stands behind `|`: Jinja2's filters.

use std::cmp::Ordering;

use super::{
    budget::Budget,
    checks,
    eval::{Args, Interpreter},
    format, lists, methods, ops,
    print::{self, Json},
    value::{Fallible, Text, Value},
};

const NAMES: &[&str] = &[
    "abs",
    "attr",
    "batch",
    "bool",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
];

/// Whether there is a filter of that name.
pub(super) fn exists(name: &str) -> bool {
    NAMES.contains(&name)
}

/// Applies a filter.
pub(super) fn apply(interpreter: &Interpreter<'_>, name: &str, value: Value, args: Args) -> Fallible<Value> {
    let budget = &interpreter.budget;
    match name {
        "default" | "d" => {
            let [default, boolean] = args.bind(name, ["default_value", "boolean"])?;
            let unset = value.is_undefined() || boolean.is_some_and(|b| b.is_true()) && !value.is_true();
            Ok(if unset { default.unwrap_or_else(|| Value::str("")) } else { value })
        }
        "tojson" => tojson(&value, &args, budget),
        "string" => {
            let [] = args.bind(name, [])?;
            print::text(&value, budget).map(Value::str)
        }
        "safe" => print::text(&value, budget).map(Value::markup),
        "escape" | "e" => match &value {
            Value::Str(text) => escape(text, budget).map(Value::markup),
            other => escape(&Text::from(print::text(other, budget)?), budget).map(Value::markup),
        },
        "length" | "count" => Ok(Value::Int(value.length(budget)? as i128)),
        "items" => match &value {
            Value::Undefined(_) => Value::iter(vec![]),
            Value::Dict(dict) => {
                budget.charge_elements(dict.entries.len())?;
                Value::iter(methods::pairs(&dict.entries)?)
            }
            _ => Err("Can only get item pairs from a mapping.".to_owned()),
        },
        "join" => join(&value, &args, budget),
        "first" | "last" => {
            let items = value.iterate(budget)?;
            let item = if name == "first" { items.first() } else { items.last() };
            Ok(item
                .cloned()
                .unwrap_or_else(|| Value::Undefined(format!("the {name} item of an empty sequence").into())))
        }
        "list" => Value::list(value.iterate(budget)?),
        "reverse" => match &value {
            Value::Str(text) => {
                budget.charge_text(text.len())?;
                Ok(Value::str(text.chars().rev().collect::<String>()))
            }
            _ => Value::iter(value.iterate(budget)?.into_iter().rev().collect()),
        },
        "map" => map(interpreter, &value, args),
        "select" | "reject" | "selectattr" | "rejectattr" => select(name, &value, args, budget),
        "sort" | "unique" | "min" | "max" | "groupby" | "dictsort" | "sum" | "batch" | "slice" => {
            lists::apply(name, &value, &args, budget)
        }
        "attr" => {
            let [attribute] = args.bind(name, ["name"])?;
            let attribute = attribute.as_ref().and_then(Value::as_str).ok_or("attr() needs a name")?;
            match &value {
                Value::Dict(_) if !methods::has(&value, attribute) => {
                    Ok(Value::Undefined(format!("attribute '{attribute}' of 'dict object'").into()))
                }
                value => ops::attribute(value, attribute, budget),
            }
        }
        "int" | "float" | "abs" | "round" => number(name, &value, &args, budget),
        "bool" => Ok(Value::Bool(value.is_true())),
        _ => of_text(name, &value, &args, budget),
    }
}

/// Filters that take their value as text, whatever it is.
fn of_text(name: &str, value: &Value, args: &Args, budget: &Budget) -> Fallible<Value> {
    if !exists(name) {
        return Err(format!("No filter named '{name}'."));
    }
    let text = print::text(value, budget)?;
    let made = |text: String| {
        budget.charge_text(text.len())?;
        Ok(Value::str(text))
    };
    match name {
        "upper" => made(text.to_uppercase()),
        "lower" => made(text.to_lowercase()),
        "capitalize" => made(methods::capitalize(&text)),
        // Unlike the method, the filter takes an apostrophe for a part of its word.
        "title" => {
            made(methods::title(&text, |c| c.is_whitespace() || matches!(c, '-' | '(' | '{' | '[' | '<')))
        }
        "trim" => {
            let [chars] = args.bind(name, ["chars"])?;
            methods::strip(&text, "strip", chars.as_ref()).map(Value::str)
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"])?;
            let (Some(old), Some(new)) = (old, new) else {
                return Err("replace() needs what to replace, and by what".to_owned());
            };
            let count = count.and_then(|count| count.as_int()).unwrap_or(-1);
            methods::replace(&text, &print::text(&old, budget)?, &print::text(&new, budget)?, count, budget)
        }
        "indent" => indent(&text, args, budget),
        "center" => {
            let [width] = args.bind(name, ["width"])?;
            let width = width.and_then(|width| width.as_int()).unwrap_or(80);
            methods::pad(&text, "center", width, ' ', budget).map(Value::str)
        }
        "format" => {
            let named = args.named.iter().map(|(name, value)| (Value::str(name), value.clone())).collect();
            let values =
                if args.named.is_empty() { args.pos.clone() } else { vec![Value::dict(named, budget)?] };
            made(format::percent(&text, &values, budget)?)
        }
        "truncate" => truncate(&text, args, budget),
        "wordcount" => Ok(Value::Int(
            text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|w| !w.is_empty()).count()
                as i128,
        )),
        "pprint" => print::repr(value, budget).map(Value::str),
        "urlencode" => {
            let keep = |b: u8| b.is_ascii_alphanumeric() || b"_.-~/".contains(&b);
            made(
                text.bytes()
                    .map(|b| if keep(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
                    .collect(),
            )
        }
        // forceescape
        _ => escape(&Text::from(text), budget).map(Value::markup),
    }
}

/// A text with HTML's special characters escaped, unless it is so already.
pub(super) fn escape(text: &Text, budget: &Budget) -> Fallible<String> {
    if text.markup {
        return Ok(text.to_string());
    }
    budget.charge_text(text.len().saturating_mul(5))?;
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    Ok(escaped.replace('\'', "&#39;").replace('"', "&#34;"))
}

/// transformers' own: `json.dumps` that leaves letters beyond ASCII alone.
fn tojson(value: &Value, args: &Args, budget: &Budget) -> Fallible<Value> {
    let [ascii, indent, separators, sort] =
        args.bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(Value::Str(text)) => Some(text.to_string()),
        Some(width) => {
            let width = width.as_int().ok_or("tojson: indent must be a number or a string")?;
            let width = usize::try_from(width.clamp(0, 1000)).unwrap_or(0);
            Some(" ".repeat(width))
        }
    };
    let separator = |at: usize| match &separators {
        Some(Value::List(seq) | Value::Tuple(seq)) => {
            seq.items.get(at).and_then(Value::as_str).map(str::to_owned)
        }
        _ => None,
    };
    let json = Json {
        item_separator: separator(0).unwrap_or_else(|| if indent.is_some() { "," } else { ", " }.to_owned()),
        key_separator: separator(1).unwrap_or_else(|| ": ".to_owned()),
        indent,
        sort_keys: sort.is_some_and(|sort| sort.is_true()),
        ascii: ascii.is_some_and(|ascii| ascii.is_true()),
    };
    json.dumps(value, budget).map(Value::str)
}

fn join(value: &Value, args: &Args, budget: &Budget) -> Fallible<Value> {
    let [separator, attribute] = args.bind("join", ["d", "attribute"])?;
    let mut items = value.iterate(budget)?;
    if let Some(attribute) = attribute {
        items = items.iter().map(|item| path(item, &attribute, None, budget)).collect::<Fallible<_>>()?;
    }
    let texts = methods::texts(&items, budget)?;
    let separator = separator.map_or(Ok(String::new()), |separator| print::text(&separator, budget))?;
    let size = texts.iter().map(String::len).fold(0, usize::saturating_add);
    budget.charge_text(size.saturating_add(separator.len().saturating_mul(texts.len())))?;
    Ok(Value::str(texts.join(&separator)))
}

/// An attribute by its path: `a.b.0`, or an index. Where a step leads nowhere, the default takes its place.
pub(super) fn path(
    value: &Value,
    attribute: &Value,
    default: Option<&Value>,
    budget: &Budget,
) -> Fallible<Value> {
    let step = |value: &Value, key: &Value| {
        let found = ops::item(value, key, budget)?;
        Ok(if found.is_undefined() { default.cloned().unwrap_or(found) } else { found })
    };
    let Value::Str(steps) = attribute else { return step(value, attribute) };
    steps.split('.').try_fold(value.clone(), |value, name| {
        step(&value, &name.parse().map_or_else(|_| Value::str(name), Value::Int))
    })
}

/// `map('filter', …)` or `map(attribute=…, default=…)`.
fn map(interpreter: &Interpreter<'_>, value: &Value, mut args: Args) -> Fallible<Value> {
    let budget = &interpreter.budget;
    let items = if value.is_true() { value.iterate(budget)? } else { vec![] };
    let take = |args: &mut Args, name: &str| {
        args.named.iter().position(|(known, _)| known == name).map(|at| args.named.remove(at).1)
    };
    let (attribute, default) = (take(&mut args, "attribute"), take(&mut args, "default"));
    let mapped: Fallible<Vec<Value>> = match attribute {
        Some(attribute) => {
            items.iter().map(|item| path(item, &attribute, default.as_ref(), budget)).collect()
        }
        None if args.pos.is_empty() => Err("map requires a filter argument".to_owned()),
        None => {
            let filter = args.pos.remove(0);
            let filter = filter.as_str().ok_or("map requires the name of a filter")?;
            let apply_to = |item: Value| {
                budget.charge(super::budget::STEP)?;
                apply(interpreter, filter, item, Args { pos: args.pos.clone(), named: args.named.clone() })
            };
            items.into_iter().map(apply_to).collect()
        }
    };
    Value::iter(mapped?)
}

/// `select`, `reject` by a test, or by an attribute's.
fn select(name: &str, value: &Value, mut args: Args, budget: &Budget) -> Fallible<Value> {
    let attribute = match name {
        "selectattr" | "rejectattr" if args.pos.is_empty() => {
            return Err(format!("{name} needs an attribute"));
        }
        "selectattr" | "rejectattr" => Some(args.pos.remove(0)),
        _ => None,
    };
    let test = if args.pos.is_empty() { None } else { Some(args.pos.remove(0)) };
    let wanted = name.starts_with("select");
    let mut kept = Vec::new();
    // Jinja2 does not look at what is false: none, say.
    for item in if value.is_true() { value.iterate(budget)? } else { vec![] } {
        budget.charge(super::budget::STEP)?;
        let looked_at = match &attribute {
            Some(attribute) => path(&item, attribute, None, budget)?,
            None => item.clone(),
        };
        let passes = match &test {
            Some(test) => {
                checks::is(test.as_str().ok_or("a test is given by its name")?, &looked_at, &args, budget)?
            }
            None => looked_at.is_true(),
        };
        if passes == wanted {
            kept.push(item);
        }
    }
    Value::iter(kept)
}

fn number(name: &str, value: &Value, args: &Args, budget: &Budget) -> Fallible<Value> {
    match name {
        "abs" => match (value.as_int(), value.as_float()) {
            (Some(int), _) => Ok(Value::Int(int.saturating_abs())),
            (None, Some(float)) => Ok(Value::Float(float.abs())),
            _ => Err(format!("bad operand type for abs(): '{}'", value.type_name())),
        },
        "round" => {
            let [precision, method] = args.bind(name, ["precision", "method"])?;
            let precision = precision.and_then(|p| p.as_int()).unwrap_or(0).clamp(-300, 300) as i32;
            let float = value
                .as_float()
                .ok_or_else(|| format!("round() needs a number, found '{}'", value.type_name()))?;
            let scale = 10f64.powi(precision);
            let scaled = float * scale;
            let is_common = !matches!(method.as_ref().and_then(Value::as_str), Some("ceil" | "floor"));
            if let Some(int) = value.as_int().filter(|_| is_common) {
                return Ok(Value::Int(if precision < 0 {
                    (scaled.round_ties_even() / scale) as i128
                } else {
                    int
                }));
            }
            Ok(Value::Float(match method.as_ref().and_then(Value::as_str).unwrap_or("common") {
                "ceil" => scaled.ceil() / scale,
                "floor" => scaled.floor() / scale,
                // Python rounds to the nearest by the exact decimal value, and halves to even.
                _ if precision >= 0 => format!("{float:.*}", precision as usize).parse().unwrap_or(float),
                _ => scaled.round_ties_even() / scale,
            }))
        }
        "int" => {
            let [default, base] = args.bind(name, ["default", "base"])?;
            let base =
                base.and_then(|base| base.as_int()).and_then(|base| u32::try_from(base).ok()).unwrap_or(10);
            let parsed = match value {
                Value::Str(text) => {
                    budget.charge(text.len())?;
                    let text = text.trim().replace('_', "");
                    let digits = match base {
                        16 => text.trim_start_matches("0x"),
                        8 => text.trim_start_matches("0o"),
                        2 => text.trim_start_matches("0b"),
                        _ => &text,
                    };
                    let int =
                        if (2..=36).contains(&base) { i128::from_str_radix(digits, base).ok() } else { None };
                    int.or_else(|| truncated(text.parse().ok()?))
                }
                Value::Float(float) => truncated(*float),
                other => other.as_int(),
            };
            Ok(parsed.map(Value::Int).or(default).unwrap_or(Value::Int(0)))
        }
        _ => {
            let [default] = args.bind(name, ["default"])?;
            let parsed = match value {
                Value::Str(text) => text.trim().parse().ok(),
                other => other.as_float(),
            };
            Ok(parsed.map(Value::Float).or(default).unwrap_or(Value::Float(0.0)))
        }
    }
}

fn truncated(float: f64) -> Option<i128> {
    float.is_finite().then_some(float as i128)
}

fn indent(text: &str, args: &Args, budget: &Budget) -> Fallible<Value> {
    let [width, first, blank] = args.bind("indent", ["width", "first", "blank"])?;
    let (first, blank) = (first.is_some_and(|f| f.is_true()), blank.is_some_and(|b| b.is_true()));
    let prefix = match width {
        None => " ".repeat(4),
        Some(Value::Str(prefix)) => prefix.to_string(),
        Some(width) => {
            let width = width.as_int().ok_or("indent() needs a width")?;
            let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
            budget.charge_text(width)?;
            " ".repeat(width)
        }
    };
    let with_end = format!("{text}\n");
    let lines = methods::split_lines(&with_end, false);
    budget.charge_text(text.len().saturating_add((prefix.len() + 1).saturating_mul(lines.len())))?;
    let mut out = String::new();
    for (at, line) in lines.iter().enumerate() {
        if at > 0 {
            out.push('\n');
        }
        if (at > 0 || first) && (blank || !line.is_empty() || (at == 0 && first)) {
            out.push_str(&prefix);
        }
        out.push_str(line);
    }
    Ok(Value::str(out))
}

fn truncate(text: &str, args: &Args, budget: &Budget) -> Fallible<Value> {
    let [length, kill, end, leeway] = args.bind("truncate", ["length", "killwords", "end", "leeway"])?;
    let count = |value: Option<Value>, unset: usize| {
        value.and_then(|value| value.as_int()).and_then(|int| usize::try_from(int).ok()).unwrap_or(unset)
    };
    let (length, leeway) = (count(length, 255), count(leeway, 5));
    let end = end.map_or(Ok("...".to_owned()), |end| print::text(&end, budget))?;
    let chars: Vec<char> = text.chars().collect();
    if chars.len() <= length.saturating_add(leeway) {
        return Ok(Value::str(text));
    }
    let cut: String = chars[..length.saturating_sub(end.chars().count())].iter().collect();
    let kept = if kill.is_some_and(|kill| kill.is_true()) {
        &cut
    } else {
        cut.rsplit_once(' ').map_or(&*cut, |(head, _)| head)
    };
    Ok(Value::str(format!("{kept}{end}")))
}

/// An order for sorting: texts regardless of case unless asked for; values that cannot be compared are an error.
pub(super) fn order(a: &Value, b: &Value, case_sensitive: bool) -> Fallible<Ordering> {
    match (a, b) {
        (Value::Str(a), Value::Str(b)) if !case_sensitive => Ok(a.to_lowercase().cmp(&b.to_lowercase())),
        _ => a.compare(b),
    }
}
