//! Filters that take their value as text, whatever it is.

use super::lists::escaped;
use crate::{
    args::Args,
    error::{Result, runtime},
    ops::{
        format::percent,
        print,
        strings::{Ends, Side, capitalize, is_space, pad, part_of, replace, strip, title},
    },
    value::{DictBuilder, Heap, Text, TextBuilder, Value},
};

/// Applies one of these filters.
pub(super) fn apply(name: &str, value: &Value, args: &Args, heap: &Heap) -> Result<Value> {
    let text = print::text(value, heap)?;
    heap.charge(text.len())?;
    let mut out = heap.builder();
    match name {
        "upper" => out.push_cased(&text, true)?,
        "lower" => out.push_cased(&text, false)?,
        "capitalize" => capitalize(&text, &mut out)?,
        // Unlike the method, the filter takes an apostrophe for a part of its word.
        "title" => title(&text, |c| c.is_whitespace() || matches!(c, '-' | '(' | '{' | '[' | '<'), &mut out)?,
        "trim" => {
            let [chars] = args.bind(name, ["chars"])?;
            return part_of(&text, strip(&text, Ends::Both, chars.as_ref(), heap)?, heap);
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"])?;
            let (Some(old), Some(new)) = (old, new) else {
                return Err(runtime!("replace() needs what to replace, and by what"));
            };
            let (old, new) = (print::text(&old, heap)?, print::text(&new, heap)?);
            let count = count.and_then(|count| count.as_int()).unwrap_or(-1);
            replace(&text, (&old, &new), count, &mut out, heap)?;
        }
        "center" => {
            let [width] = args.bind(name, ["width"])?;
            let width = width.and_then(|width| width.as_int()).unwrap_or(80);
            pad(&text, Side::Center, width, ' ', &mut out, heap)?;
        }
        "format" => format(&text, args, &mut out, heap)?,
        "wordcount" => {
            let words =
                text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty());
            return Ok(heap.int(words.count()));
        }
        "pprint" => return print::repr(value, heap).map(Value::Str),
        "urlencode" => return url_encode(value, heap),
        "striptags" => strip_tags(&text, &mut out)?,
        "safe" => {
            out.push_str(&text)?;
            return out.finish_markup().map(Value::Str);
        }
        "forceescape" => {
            out.push_str(&text)?;
            return escaped(&out.finish()?, heap);
        }
        _ => return escaped(&text, heap),
    }
    out.finish().map(Value::Str)
}

/// `'%s' | format(…)`
fn format(text: &Text, args: &Args, out: &mut TextBuilder, heap: &Heap) -> Result<()> {
    if args.named().is_empty() {
        return percent(text, &args.positional, out, heap);
    }
    let mut named = DictBuilder::new(heap)?;
    for (name, value) in args.named() {
        named.insert(heap.str(name)?, value.clone())?;
    }
    percent(text, &[named.finish()?], out, heap)
}

/// A text for a URL, or the query of a mapping or a list of pairs.
fn url_encode(value: &Value, heap: &Heap) -> Result<Value> {
    let mut out = heap.builder();
    let pair = |key: &Value, value: &Value, out: &mut TextBuilder| {
        if !out.as_str().is_empty() {
            out.push('&')?;
        }
        quote(&print::text(key, heap)?, false, out)?;
        out.push('=')?;
        quote(&print::text(value, heap)?, false, out)
    };
    match value {
        Value::Dict(dict) => dict.iter().try_for_each(|(key, value)| pair(key, value, &mut out))?,
        Value::List(seq) | Value::Tuple(seq) | Value::Iter(seq) => {
            for item in seq.iter() {
                match item {
                    Value::List(sides) | Value::Tuple(sides) if sides.len() == 2 => {
                        pair(&sides[0], &sides[1], &mut out)?;
                    }
                    _ => return Err(runtime!("urlencode needs pairs")),
                }
            }
        }
        other => quote(&print::text(other, heap)?, true, &mut out)?,
    }
    out.finish().map(Value::Str)
}

fn quote(text: &str, is_path: bool, out: &mut TextBuilder) -> Result<()> {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => {
                out.push(char::from(byte))?;
            }
            b'/' if is_path => out.push('/')?,
            b' ' if !is_path => out.push('+')?,
            byte => out.write(format_args!("%{byte:02X}"))?,
        }
    }
    Ok(())
}

/// Without tags and comments, and with one blank for any number of them.
fn strip_tags(text: &str, out: &mut TextBuilder) -> Result<()> {
    let mut rest = text;
    let mut blank = false;
    while let Some(c) = rest.chars().next() {
        let end = if rest.starts_with("<!--") { "-->" } else { ">" };
        if c == '<'
            && let Some(at) = rest.find(end)
        {
            rest = &rest[at + end.len()..];
            continue;
        }
        if c == '<' {
            // Nothing closes from here on.
            for c in rest.chars() {
                add_blanked(c, &mut blank, out)?;
            }
            return Ok(());
        }
        add_blanked(c, &mut blank, out)?;
        rest = &rest[c.len_utf8()..];
    }
    Ok(())
}

fn add_blanked(c: char, blank: &mut bool, out: &mut TextBuilder) -> Result<()> {
    if is_space(c) {
        *blank = !out.as_str().is_empty();
        return Ok(());
    }
    if std::mem::take(blank) {
        out.push(' ')?;
    }
    out.push(c)
}
