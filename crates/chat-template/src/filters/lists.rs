//! Filters that take, cut and join lists.

use crate::{
    args::Args,
    error::{Result, runtime},
    ops::{
        binary::binary,
        lookup::{follow, path},
        print::write_text,
        strings::escape,
    },
    syntax::ast::BinaryOp,
    value::{Heap, Missing, Value},
};

/// Applies one of these filters.
pub(super) fn apply(name: &str, value: &Value, args: &Args, heap: &Heap) -> Result<Value> {
    match name {
        "first" | "last" => {
            let items = heap.iterate(value)?;
            match if name == "first" { items.first() } else { items.last() } {
                Some(item) => Ok(item.clone()),
                None => heap.undefined(Missing::Other("an item of an empty sequence")),
            }
        }
        "items" => items(value, heap),
        "join" => join(value, args, heap),
        "list" => {
            let mut items = heap.items();
            items.extend(&heap.iterate(value)?)?;
            items.list()
        }
        "reverse" => reverse(value, heap),
        "sum" => {
            let [attribute, start] = args.bind(name, ["attribute", "start"])?;
            let steps = attribute.map(|attribute| path(&attribute, heap)).transpose()?;
            let mut sum = start.unwrap_or(Value::Int(0));
            for item in heap.iterate(value)?.iter() {
                let item = follow(item, steps.as_deref().unwrap_or_default(), None, heap)?;
                sum = binary(BinaryOp::Add, &sum, &item, heap)?;
            }
            Ok(sum)
        }
        "batch" => batch(value, args, heap),
        _ => slice(value, args, heap),
    }
}

fn items(value: &Value, heap: &Heap) -> Result<Value> {
    let mut pairs = heap.items();
    match value {
        Value::Undefined(_) => {}
        Value::Dict(dict) => {
            for (key, value) in dict.iter() {
                pairs.push(heap.pair(key.clone(), value.clone())?)?;
            }
        }
        _ => return Err(runtime!("Can only get item pairs from a mapping.")),
    }
    pairs.iter_value()
}

/// The texts of all items. Without autoescape, a markup among them makes no difference, but one as the separator does.
fn join(value: &Value, args: &Args, heap: &Heap) -> Result<Value> {
    let [separator, attribute] = args.bind("join", ["d", "attribute"])?;
    let steps = attribute.map(|attribute| path(&attribute, heap)).transpose()?;
    let separator =
        separator.map_or_else(|| heap.text(""), |separator| crate::ops::print::text(&separator, heap))?;
    let mut out = heap.builder();
    for (at, item) in heap.iterate(value)?.iter().enumerate() {
        heap.charge(1)?;
        if at > 0 {
            out.push_str(&separator)?;
        }
        match &steps {
            Some(steps) => write_text(&follow(item, steps, None, heap)?, &mut out, heap)?,
            None => write_text(item, &mut out, heap)?,
        }
    }
    out.finish().map(Value::Str)
}

fn reverse(value: &Value, heap: &Heap) -> Result<Value> {
    if let Value::Str(text) = value {
        let mut out = heap.builder();
        out.extend(text.chars().rev())?;
        return out.finish().map(Value::Str);
    }
    let mut reversed = heap.items();
    for item in heap.iterate(value)?.iter().rev() {
        reversed.push(item.clone())?;
    }
    reversed.iter_value()
}

fn count(value: Option<&Value>, name: &str) -> Result<usize> {
    let count =
        value.and_then(Value::as_int).and_then(|int| usize::try_from(int).ok()).filter(|count| *count > 0);
    count.ok_or_else(|| runtime!("{name}() needs a number above 0"))
}

/// Rows of so many items.
fn batch(value: &Value, args: &Args, heap: &Heap) -> Result<Value> {
    let [size, fill] = args.bind("batch", ["linecount", "fill_with"])?;
    let size = count(size.as_ref(), "batch")?;
    let items = heap.iterate(value)?;
    let mut rows = heap.items();
    for chunk in items.chunks(size) {
        let mut row = heap.items();
        row.extend(chunk)?;
        if let Some(fill) = fill.as_ref().filter(|fill| !matches!(fill, Value::None)) {
            for _ in chunk.len()..size {
                row.push(fill.clone())?;
            }
        }
        rows.push(row.list()?)?;
    }
    rows.iter_value()
}

/// So many columns, the first ones longer by one if it does not come out even.
fn slice(value: &Value, args: &Args, heap: &Heap) -> Result<Value> {
    let [slices, fill] = args.bind("slice", ["slices", "fill_with"])?;
    let slices = count(slices.as_ref(), "slice")?;
    let items = heap.iterate(value)?;
    let (each, longer) = (items.len() / slices, items.len() % slices);
    let mut rest = &items[..];
    let mut columns = heap.items();
    for at in 0..slices {
        let (part, tail) = rest.split_at(each + usize::from(at < longer));
        rest = tail;
        let mut column = heap.items();
        column.extend(part)?;
        if let Some(fill) = fill.as_ref().filter(|fill| at >= longer && !matches!(fill, Value::None)) {
            column.push(fill.clone())?;
        }
        columns.push(column.list()?)?;
    }
    columns.iter_value()
}

/// A text with HTML's special characters escaped.
pub(super) fn escaped(text: &crate::value::Text, heap: &Heap) -> Result<Value> {
    let mut out = heap.builder();
    escape(text, &mut out)?;
    out.finish_markup().map(Value::Str)
}
