//! `json.dumps`.

use super::{
    print::{float_repr, write_integer},
    sort,
};
use crate::{
    budget::ELEMENT,
    error::{Result, runtime},
    value::{Dict, Heap, Text, TextBuilder, Value, compare},
};

/// How `json.dumps` lays out its text.
#[derive(Debug, Clone)]
pub(crate) struct JsonText {
    pub(crate) indent: Option<Text>,
    pub(crate) item_separator: Text,
    pub(crate) key_separator: Text,
    pub(crate) sort_keys: bool,
    pub(crate) ascii: bool,
}

impl JsonText {
    /// Adds `json.dumps(value)`.
    pub(crate) fn write(&self, value: &Value, out: &mut TextBuilder, heap: &Heap) -> Result<()> {
        self.within(value, 0, out, heap)
    }

    fn within(&self, value: &Value, depth: usize, out: &mut TextBuilder, heap: &Heap) -> Result<()> {
        heap.charge(ELEMENT)?;
        match value {
            Value::Str(text) => self.string(text, out),
            Value::List(seq) | Value::Tuple(seq) => {
                out.push('[')?;
                for (at, item) in seq.iter().enumerate() {
                    self.separate(at, depth, out)?;
                    self.within(item, depth + 1, out, heap)?;
                }
                self.close(seq.is_empty(), depth, ']', out)
            }
            Value::Dict(dict) => self.dict(dict, depth, out, heap),
            other => scalar(other, out, heap),
        }
    }

    fn dict(&self, dict: &Dict, depth: usize, out: &mut TextBuilder, heap: &Heap) -> Result<()> {
        out.push('{')?;
        if self.sort_keys {
            let mut order = heap.items();
            for at in 0..dict.len() {
                order.push(heap.int(at))?;
            }
            let at = |value: &Value| usize::try_from(value.as_int().unwrap_or(0)).unwrap_or(0);
            let order = sort::sorted(order, heap, |a, b| compare(&dict[at(a)].0, &dict[at(b)].0, heap))?;
            for (place, index) in order.iter().enumerate() {
                let (key, value) = &dict[at(index)];
                self.entry(place, key, value, depth, out, heap)?;
            }
        } else {
            for (place, (key, value)) in dict.iter().enumerate() {
                self.entry(place, key, value, depth, out, heap)?;
            }
        }
        self.close(dict.is_empty(), depth, '}', out)
    }

    fn entry(
        &self,
        place: usize,
        key: &Value,
        value: &Value,
        depth: usize,
        out: &mut TextBuilder,
        heap: &Heap,
    ) -> Result<()> {
        self.separate(place, depth, out)?;
        match key {
            Value::Str(key) => self.string(key, out)?,
            Value::Bool(_) | Value::None | Value::Int(_) | Value::BigInt(_) | Value::Float(_) => {
                out.push('"')?;
                scalar(key, out, heap)?;
                out.push('"')?;
            }
            other => {
                return Err(runtime!(
                    "keys must be str, int, float, bool or None, not {}",
                    other.type_name()
                ));
            }
        }
        out.push_str(&self.key_separator)?;
        self.within(value, depth + 1, out, heap)
    }

    /// What stands before an element: a comma, and its own line if indented.
    fn separate(&self, at: usize, depth: usize, out: &mut TextBuilder) -> Result<()> {
        if at > 0 {
            out.push_str(&self.item_separator)?;
        }
        self.line(depth + 1, out)
    }

    fn close(&self, empty: bool, depth: usize, bracket: char, out: &mut TextBuilder) -> Result<()> {
        if !empty {
            self.line(depth, out)?;
        }
        out.push(bracket)
    }

    fn line(&self, depth: usize, out: &mut TextBuilder) -> Result<()> {
        let Some(indent) = &self.indent else { return Ok(()) };
        out.push('\n')?;
        out.push_repeated(indent, depth)
    }

    fn string(&self, text: &str, out: &mut TextBuilder) -> Result<()> {
        let escaped = |c: char| matches!(c, '"' | '\\' | '\0'..='\x1f') || (self.ascii && !c.is_ascii());
        out.push('"')?;
        let mut rest = text;
        while let Some(at) = rest.find(escaped) {
            out.push_str(&rest[..at])?;
            rest = &rest[at..];
            let Some(c) = rest.chars().next() else { break };
            rest = &rest[c.len_utf8()..];
            match c {
                '"' => out.push_str("\\\"")?,
                '\\' => out.push_str("\\\\")?,
                '\n' => out.push_str("\\n")?,
                '\r' => out.push_str("\\r")?,
                '\t' => out.push_str("\\t")?,
                '\u{8}' => out.push_str("\\b")?,
                '\u{c}' => out.push_str("\\f")?,
                c => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.write(format_args!("\\u{unit:04x}"))?;
                    }
                }
            }
        }
        out.push_str(rest)?;
        out.push('"')
    }
}

fn scalar(value: &Value, out: &mut TextBuilder, heap: &Heap) -> Result<()> {
    match value {
        Value::None => out.push_str("null"),
        Value::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
        Value::Int(int) => out.write(format_args!("{int}")),
        Value::BigInt(int) => write_integer(int, out, heap),
        // JSON has no infinities; Python writes these words.
        Value::Float(float) if float.is_nan() => out.push_str("NaN"),
        Value::Float(float) if float.is_infinite() => {
            out.push_str(if *float > 0.0 { "Infinity" } else { "-Infinity" })
        }
        Value::Float(float) => out.push_str(&float_repr(*float)),
        other => Err(runtime!("Object of type {} is not JSON serializable", other.type_name())),
    }
}
