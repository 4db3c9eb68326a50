//! What stands behind `|`: Jinja2's filters, and the `tojson` of transformers.

mod json;
mod lists;
mod numbers;
mod order;
mod text;
mod wrap;

use crate::{
    args::{Args, is_true},
    context::Context,
    error::{Result, runtime},
    jinja_tests::passes,
    ops::{
        lookup::{attribute, field, follow, path},
        print,
    },
    value::{Heap, Missing, Name, Value},
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
    "filesizeformat",
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
    "random",
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
    "striptags",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
    "wordwrap",
];

/// Whether there is a filter of that name.
pub(crate) fn exists(name: &str) -> bool {
    NAMES.contains(&name)
}

/// Applies a filter.
pub(crate) fn apply(context: &Context, name: &str, value: &Value, args: &Args) -> Result<Value> {
    context.enter()?;
    let made = within(context, name, value, args)?;
    context.leave();
    Ok(made)
}

fn within(context: &Context, name: &str, value: &Value, args: &Args) -> Result<Value> {
    let heap = &context.heap;
    match name {
        "default" | "d" => default(value, args, heap),
        "map" => map(context, value, args),
        "select" | "reject" | "selectattr" | "rejectattr" => select(name, value, args, heap),
        "random" => random(context, value, args),
        "attr" => attr(value, args, heap),
        "tojson" => json::tojson(value, args, heap),
        "string" => {
            let [] = args.bind(name, [])?;
            print::text(value, heap).map(Value::Str)
        }
        "length" | "count" => Ok(heap.int(heap.length(value)?)),
        "bool" => Ok(Value::Bool(value.is_true())),
        "abs" | "filesizeformat" | "float" | "int" | "round" => numbers::apply(name, value, args, heap),
        "sort" | "unique" | "min" | "max" | "groupby" | "dictsort" => order::apply(name, value, args, heap),
        "batch" | "first" | "items" | "join" | "last" | "list" | "reverse" | "slice" | "sum" => {
            lists::apply(name, value, args, heap)
        }
        "indent" | "truncate" | "wordwrap" => wrap::apply(name, value, args, heap),
        _ if exists(name) => text::apply(name, value, args, heap),
        _ => Err(runtime!("No filter named '{name}'.")),
    }
}

fn default(value: &Value, args: &Args, heap: &Heap) -> Result<Value> {
    let [default, boolean] = args.bind("default", ["default_value", "boolean"])?;
    if value.is_undefined() || is_true(boolean.as_ref()) && !value.is_true() {
        return default.map_or_else(|| heap.str(""), Ok);
    }
    Ok(value.clone())
}

/// An attribute and never an item.
fn attr(value: &Value, args: &Args, heap: &Heap) -> Result<Value> {
    let [name] = args.bind("attr", ["name"])?;
    let Some(Value::Str(name)) = name else { return Err(runtime!("attr() needs a name")) };
    let name = Name::Made(name);
    match value {
        Value::Dict(_) if !crate::ops::method_names::has_method(value, &name) => {
            debug_assert!(field(value, &name, heap)?.is_none(), "a dict has methods only");
            heap.undefined(Missing::Attribute(name, value.type_name()))
        }
        value => attribute(value, &name, heap),
    }
}

/// `map('filter', …)` or `map(attribute=…, default=…)`.
fn map(context: &Context, value: &Value, args: &Args) -> Result<Value> {
    let heap = &context.heap;
    if value.is_true() {
        let items = heap.iterate(value)?;
        return if args.positional.is_empty() {
            map_attribute(&items, args, heap)
        } else {
            map_filter(context, &items, args)
        };
    }
    heap.items().iter_value()
}

fn map_filter(context: &Context, items: &[Value], args: &Args) -> Result<Value> {
    // A filter that applies filters is two levels deep.
    context.enter()?;
    let rest = args.without_first(1, &context.heap)?;
    let filter = args.positional.first().and_then(Value::as_str);
    let filter = filter.ok_or_else(|| runtime!("map requires the name of a filter"))?;
    let mut mapped = context.heap.items();
    for item in items {
        mapped.push(apply(context, filter, item, &rest)?)?;
    }
    context.leave();
    mapped.iter_value()
}

fn map_attribute(items: &[Value], args: &Args, heap: &Heap) -> Result<Value> {
    let [attribute, default] = args.bind("map", ["attribute", "default"])?;
    let attribute = attribute.ok_or_else(|| runtime!("map requires a filter argument"))?;
    let steps = path(&attribute, heap)?;
    let mut mapped = heap.items();
    for item in items {
        mapped.push(follow(item, &steps, default.as_ref(), heap)?)?;
    }
    mapped.iter_value()
}

/// `select`, `reject` by a test, or by an attribute's.
fn select(name: &str, value: &Value, args: &Args, heap: &Heap) -> Result<Value> {
    let by_attribute = name.ends_with("attr");
    let steps = match args.positional.first() {
        Some(attribute) if by_attribute => Some(path(attribute, heap)?),
        None if by_attribute => return Err(runtime!("{name} needs an attribute")),
        _ => None,
    };
    let test = args.positional.get(usize::from(by_attribute));
    let test =
        test.map(|test| test.as_str().ok_or_else(|| runtime!("a test is given by its name"))).transpose()?;
    let rest = args.without_first(1 + usize::from(by_attribute), heap)?;
    let wanted = name.starts_with("select");
    let mut kept = heap.items();
    // Jinja2 does not look at what is false: none, say.
    let items = if value.is_true() { Some(heap.iterate(value)?) } else { None };
    for item in items.iter().flat_map(|items| items.iter()) {
        let looked_at = match &steps {
            Some(steps) => follow(item, steps, None, heap)?,
            None => item.clone(),
        };
        let holds = match test {
            Some(test) => passes(test, &looked_at, &rest, exists, heap)?,
            None => looked_at.is_true(),
        };
        if holds == wanted {
            kept.push(item.clone())?;
        }
    }
    kept.iter_value()
}

/// One item, by the seed of the environment.
fn random(context: &Context, value: &Value, args: &Args) -> Result<Value> {
    let heap = &context.heap;
    let [] = args.bind("random", [])?;
    let items = match value {
        Value::Str(_) | Value::List(_) | Value::Tuple(_) => heap.iterate(value)?,
        other => return Err(runtime!("'{}' object is not a sequence", other.type_name())),
    };
    match items.get(context.below(items.len())) {
        Some(item) => Ok(item.clone()),
        None => heap.undefined(Missing::Other("a random item of an empty sequence")),
    }
}
