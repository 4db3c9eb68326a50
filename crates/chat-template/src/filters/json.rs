//! `tojson`, which transformers replaces by a `json.dumps` that leaves letters beyond ASCII alone.

use crate::{
    args::{Args, is_true},
    error::{Result, runtime},
    ops::json_text::JsonText,
    value::{Heap, Value},
};

pub(super) fn tojson(value: &Value, args: &Args, heap: &Heap) -> Result<Value> {
    let [ascii, indent, separators, sort] =
        args.bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(Value::Str(text)) => Some(text),
        Some(width) => {
            let width =
                width.as_int().ok_or_else(|| runtime!("tojson: indent must be a number or a string"))?;
            let mut blanks = heap.builder();
            blanks.push_char_repeated(' ', usize::try_from(width.max(0)).unwrap_or(usize::MAX))?;
            Some(blanks.finish()?)
        }
    };
    let separator = |at: usize, unset: &str| match &separators {
        Some(Value::List(seq) | Value::Tuple(seq)) => match seq.get(at) {
            Some(Value::Str(text)) => Ok(text.clone()),
            _ => heap.text(unset),
        },
        _ => heap.text(unset),
    };
    let json = JsonText {
        item_separator: separator(0, if indent.is_some() { "," } else { ", " })?,
        key_separator: separator(1, ": ")?,
        indent,
        sort_keys: is_true(sort.as_ref()),
        ascii: is_true(ascii.as_ref()),
    };
    let mut out = heap.builder();
    json.write(value, &mut out, heap)?;
    out.finish().map(Value::Str)
}
