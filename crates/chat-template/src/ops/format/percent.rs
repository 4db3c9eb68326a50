//! `text % args`.

use super::{
    layout::lay_out,
    spec::{Spec, number},
};
use crate::{
    budget::STEP,
    error::{Result, runtime},
    ops::{
        lookup,
        numbers::{to_big, truncate},
        print::{repr, text as text_of},
    },
    value::{Heap, TextBuilder, Value},
};

/// Adds a text with its fields replaced.
pub(crate) fn percent(text: &str, args: &[Value], out: &mut TextBuilder, heap: &Heap) -> Result<()> {
    heap.charge(text.len())?;
    let mut given = args.iter();
    let mut is_mapping = false;
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        heap.charge(STEP)?;
        out.push_str(&rest[..at])?;
        rest = &rest[at + 1..];
        let mut named = None;
        if let Some(tail) = rest.strip_prefix('(') {
            let (name, tail) = tail.split_once(')').ok_or_else(|| runtime!("incomplete format key"))?;
            let map = args.first().filter(|map| matches!(map, Value::Dict(_)));
            let map = map.ok_or_else(|| runtime!("format requires a mapping"))?;
            named = Some(lookup::item(map, &heap.str(name)?, heap)?);
            is_mapping = true;
            rest = tail;
        }
        let mut next = || given.next().ok_or_else(|| runtime!("not enough arguments for format string"));
        let (mut spec, length) = parse(rest, &mut next)?;
        rest = &rest[length..];
        let Some(kind) = spec.kind else { return Err(runtime!("incomplete format")) };
        if kind == '%' {
            out.push('%')?;
            continue;
        }
        let value = match named {
            Some(value) => value,
            None => next()?.clone(),
        };
        let value = converted(kind, value, heap)?;
        spec.kind = Some(match kind {
            'r' | 'a' => 's',
            'i' | 'u' => 'd',
            'c' if matches!(value, Value::Str(_)) => 's',
            other => other,
        });
        lay_out(&value, &spec, out, heap)?;
    }
    if given.next().is_some() && !is_mapping && !matches!(args, [Value::Dict(_)]) {
        return Err(runtime!("not all arguments converted during string formatting"));
    }
    out.push_str(rest)
}

/// `[flags][width][.precision][length]kind`, and how long it is.
fn parse<'v>(text: &str, next: &mut dyn FnMut() -> Result<&'v Value>) -> Result<(Spec, usize)> {
    let is_part = |c: char| matches!(c, '0'..='9' | '#' | '-' | ' ' | '+' | '.' | '*' | 'h' | 'l' | 'L');
    let end = text.find(|c| !is_part(c)).unwrap_or(text.len());
    let kind = text[end..].chars().next();
    let mut spec = Spec { align: Some('>'), kind, ..Spec::default() };
    let mut rest = text[..end].chars().peekable();
    let (mut left, mut zero) = (false, false);
    while let Some(flag) = rest.next_if(|c| matches!(c, '#' | '0' | '-' | ' ' | '+')) {
        match flag {
            '#' => spec.alternate = true,
            '0' => zero = true,
            '-' => left = true,
            sign => spec.sign = if spec.sign == Some('+') { spec.sign } else { Some(sign) },
        }
    }
    let mut size = |rest: &mut std::iter::Peekable<std::str::Chars<'_>>| {
        if rest.next_if_eq(&'*').is_none() {
            return Ok(number(rest));
        }
        let given = next()?.as_int().ok_or_else(|| runtime!("* wants int"))?;
        Ok::<_, crate::Error>(Some(usize::try_from(given).unwrap_or(0)))
    };
    spec.width = size(&mut rest)?.unwrap_or(0);
    if rest.next_if_eq(&'.').is_some() {
        spec.precision = Some(size(&mut rest)?.unwrap_or(0));
    }
    while rest.next_if(|c| matches!(c, 'h' | 'l' | 'L')).is_some() {}
    if rest.next().is_some() {
        return Err(runtime!("a format is not well formed"));
    }
    if left {
        spec.align = Some('<');
    } else if zero && spec.kind.is_some_and(|kind| !matches!(kind, 's' | 'r' | 'a' | 'c')) {
        (spec.align, spec.fill) = (Some('='), Some('0'));
    }
    Ok((spec, end + kind.map_or(0, char::len_utf8)))
}

/// A value as its kind of field needs it.
fn converted(kind: char, value: Value, heap: &Heap) -> Result<Value> {
    let whole = || match &value {
        Value::Float(float) => truncate(*float, heap),
        other => to_big(other, heap)?.map(|int| heap.integer(int)).transpose(),
    };
    match kind {
        'r' | 'a' => Ok(Value::Str(repr(&value, heap)?)),
        's' => Ok(Value::Str(text_of(&value, heap)?)),
        'd' | 'i' | 'u' => whole()?
            .ok_or_else(|| runtime!("%d format: a real number is required, not {}", value.type_name())),
        'x' | 'X' | 'o' if matches!(value, Value::Float(_)) || value.as_int().is_none() => {
            Err(runtime!("%{kind} format: an integer is required, not {}", value.type_name()))
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' if value.as_float().is_none() => {
            Err(runtime!("must be real number, not {}", value.type_name()))
        }
        'c' | 'x' | 'X' | 'o' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G' => Ok(value),
        other => Err(runtime!("unsupported format character '{other}'")),
    }
}
