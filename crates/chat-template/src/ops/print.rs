//! How Python prints values: `str` and `repr`.

use num_bigint::BigInt;

use super::numbers::MAX_DIGITS;
use crate::{
    budget::ELEMENT,
    error::{Result, runtime},
    value::{Heap, Text, TextBuilder, Value},
};

/// Python's `str(value)`; nothing for what is undefined.
pub(crate) fn text(value: &Value, heap: &Heap) -> Result<Text> {
    if let Value::Str(text) = value {
        return Ok(text.clone());
    }
    let mut out = heap.builder();
    write_text(value, &mut out, heap)?;
    out.finish()
}

/// Adds `str(value)`.
pub(crate) fn write_text(value: &Value, out: &mut TextBuilder, heap: &Heap) -> Result<()> {
    match value {
        Value::Str(text) => out.push_str(text),
        Value::Undefined(_) => Ok(()),
        other => write_repr(other, out, heap),
    }
}

/// Python's `repr(value)`.
pub(crate) fn repr(value: &Value, heap: &Heap) -> Result<Text> {
    let mut out = heap.builder();
    write_repr(value, &mut out, heap)?;
    out.finish()
}

/// Adds `repr(value)`.
pub(crate) fn write_repr(value: &Value, out: &mut TextBuilder, heap: &Heap) -> Result<()> {
    heap.charge(ELEMENT)?;
    match value {
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Int(int) => out.write(format_args!("{int}")),
        Value::BigInt(int) => write_integer(int, out, heap),
        Value::Float(float) => out.push_str(&float_repr(*float)),
        Value::Str(text) => quote(text, out),
        Value::List(seq) => write_items(seq, ('[', ']'), out, heap),
        Value::Tuple(seq) => write_items(seq, ('(', ')'), out, heap),
        Value::Dict(dict) => {
            out.push('{')?;
            for (at, (key, value)) in dict.iter().enumerate() {
                out.push_str(if at == 0 { "" } else { ", " })?;
                write_repr(key, out, heap)?;
                out.push_str(": ")?;
                write_repr(value, out, heap)?;
            }
            out.push('}')
        }
        // Nothing of what it holds: a namespace may hold itself, and what others print as depends on the machine.
        other => out.write(format_args!("<{}>", other.type_name())),
    }
}

fn write_items(
    items: &[Value],
    (open, close): (char, char),
    out: &mut TextBuilder,
    heap: &Heap,
) -> Result<()> {
    out.push(open)?;
    for (at, item) in items.iter().enumerate() {
        out.push_str(if at == 0 { "" } else { ", " })?;
        write_repr(item, out, heap)?;
    }
    if open == '(' && items.len() == 1 {
        out.push(',')?;
    }
    out.push(close)
}

/// The decimal digits of an integer, as many as Python writes at most.
pub(crate) fn write_integer(int: &BigInt, out: &mut TextBuilder, heap: &Heap) -> Result<()> {
    let too_long = || runtime!("Exceeds the limit ({MAX_DIGITS} digits) for integer string conversion");
    // A digit has 3.32 bits.
    if int.bits() > 4 * MAX_DIGITS as u64 {
        return Err(too_long());
    }
    heap.charge(int.bits() as usize)?;
    let digits = int.to_string();
    if digits.trim_start_matches('-').len() > MAX_DIGITS {
        return Err(too_long());
    }
    out.push_str(&digits)
}

/// Python's `repr` of a string: single quotes, unless it holds some and no double ones.
fn quote(text: &str, out: &mut TextBuilder) -> Result<()> {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.reserve(text.len())?;
    out.push(quote)?;
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n")?,
            '\r' => out.push_str("\\r")?,
            '\t' => out.push_str("\\t")?,
            '\\' => out.push_str("\\\\")?,
            c if c == quote => out.extend(['\\', c])?,
            c if !is_printable(c) => match c as u32 {
                code @ 0..=0xff => out.write(format_args!("\\x{code:02x}"))?,
                code @ 0x100..=0xffff => out.write(format_args!("\\u{code:04x}"))?,
                code => out.write(format_args!("\\U{code:08x}"))?,
            },
            c => out.push(c)?,
        }
    }
    out.push(quote)
}

/// Python's `isprintable`, for the characters that occur: neither controls nor formats nor separators other than a space.
pub(crate) fn is_printable(c: char) -> bool {
    !(c.is_control()
        || (c.is_whitespace() && c != ' ')
        || matches!(c as u32, 0xad | 0x61c | 0x180e | 0x200b..=0x200f | 0x202a..=0x202e | 0x2060..=0x206f | 0xfeff
            | 0xfff9..=0xfffb | 0xe000..=0xf8ff | 0xe0000..=0xe007f | 0xf0000..=0x10ffff))
}

/// Python's `repr` of a float: the shortest digits that read back the same, with an exponent below 1e-4 and from 1e16.
pub(crate) fn float_repr(float: f64) -> String {
    if float.is_nan() {
        return "nan".to_owned();
    }
    if float.is_infinite() {
        return if float > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if float != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{float}");
    if plain.contains('.') { plain } else { plain + ".0" }
}
