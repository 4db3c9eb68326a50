//! Methods of strings.

use crate::{
    args::Args,
    error::{Result, runtime},
    ops::{
        format::{self, Source},
        print::is_printable,
        strings::{
            Ends, Side, capitalize, is_space, pad, part, part_of, replace, split, split_lines, strip, title,
        },
    },
    value::{Heap, Items, Text, TextBuilder, Value},
};

pub(super) fn call(text: &Text, name: &str, args: &Args, heap: &Heap) -> Result<Value> {
    match name {
        "format" => made(heap, |out| format::braces(text, Source::Args(args), out, heap)),
        "format_map" => {
            let [mapping] = args.bind(name, ["mapping"])?;
            let mapping = required(mapping, name)?;
            made(heap, |out| format::braces(text, Source::Map(&mapping), out, heap))
        }
        "join" => {
            let [items] = args.bind(name, ["iterable"])?;
            let items = heap.iterate(&required(items, name)?)?;
            made(heap, |out| join(&items, text, out))
        }
        "startswith" | "endswith" => affix(text, name, args, heap),
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = args.bind(name, ["chars"])?;
            let ends = match name {
                "lstrip" => Ends::Left,
                "rstrip" => Ends::Right,
                _ => Ends::Both,
            };
            part_of(text, strip(text, ends, chars.as_ref(), heap)?, heap)
        }
        "split" | "rsplit" => {
            let [separator, limit] = args.bind(name, ["sep", "maxsplit"])?;
            let limit = limit.and_then(|limit| limit.as_int()).unwrap_or(-1);
            let from_right = name == "rsplit";
            let mut parts = heap.items();
            split(text, separator.as_ref(), limit, from_right, heap, &mut |part| {
                parts.push(heap.str(part)?)
            })?;
            if from_right {
                reverse(&mut parts, heap)?;
            }
            parts.list()
        }
        "splitlines" => {
            let [keep] = args.bind(name, ["keepends"])?;
            let mut lines = heap.items();
            let keep = keep.is_some_and(|keep| keep.is_true());
            split_lines(text, keep, heap, &mut |line| lines.push(heap.str(line)?))?;
            lines.list()
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"])?;
            let (old, new) = (required(old, name)?, required(new, name)?);
            let (Some(old), Some(new)) = (old.as_str(), new.as_str()) else {
                return Err(runtime!("replace() arguments 1 and 2 must be str"));
            };
            let count = count.and_then(|count| count.as_int()).unwrap_or(-1);
            made(heap, |out| replace(text, (old, new), count, out, heap))
        }
        "find" | "rfind" | "index" | "rindex" | "count" => find(text, name, args, heap),
        "removeprefix" | "removesuffix" | "partition" | "rpartition" => cut(text, name, args, heap),
        "center" | "ljust" | "rjust" | "zfill" => {
            let [width, fill] = args.bind(name, ["width", "fillchar"])?;
            let width = width.and_then(|width| width.as_int());
            let width = width.ok_or_else(|| runtime!("{name}() needs a width"))?;
            let fill = fill.and_then(|fill| fill.as_str()?.chars().next()).unwrap_or(' ');
            let side = match name {
                "center" => Side::Center,
                "ljust" => Side::Left,
                "rjust" => Side::Right,
                _ => Side::Zeros,
            };
            made(heap, |out| pad(text, side, width, fill, out, heap))
        }
        "expandtabs" => {
            let [size] = args.bind(name, ["tabsize"])?;
            let size = size.and_then(|size| size.as_int()).unwrap_or(8);
            made(heap, |out| expand_tabs(text, size, out))
        }
        _ => {
            let [] = args.bind(name, [])?;
            heap.charge(text.len())?;
            if name.starts_with("is") {
                Ok(Value::Bool(is(text, name, heap)?))
            } else {
                cased(text, name, heap)
            }
        }
    }
}

/// The text that a function writes.
fn made(heap: &Heap, write: impl FnOnce(&mut TextBuilder) -> Result<()>) -> Result<Value> {
    let mut out = heap.builder();
    write(&mut out)?;
    out.finish().map(Value::Str)
}

fn required(value: Option<Value>, name: &str) -> Result<Value> {
    value.ok_or_else(|| runtime!("{name}() lacks an argument"))
}

fn reverse(items: &mut Items, heap: &Heap) -> Result<()> {
    heap.charge_elements(items.len())?;
    let count = items.len();
    (0..count / 2).for_each(|at| items.swap(at, count - 1 - at));
    Ok(())
}

/// Python's `sep.join(items)`.
fn join(items: &[Value], separator: &str, out: &mut TextBuilder) -> Result<()> {
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push_str(separator)?;
        }
        let text = item.as_str().ok_or_else(|| {
            runtime!("sequence item {at}: expected str instance, {} found", item.type_name())
        })?;
        out.reserve(1)?;
        out.push_str(text)?;
    }
    Ok(())
}

fn affix(text: &Text, name: &str, args: &Args, heap: &Heap) -> Result<Value> {
    let [affix, start, end] = args.bind(name, ["prefix", "start", "end"])?;
    let affix = required(affix, name)?;
    let Some((_, part)) = part(text, start.as_ref(), end.as_ref())? else { return Ok(Value::Bool(false)) };
    let holds = |affix: &Value| match affix.as_str() {
        Some(affix) => {
            heap.charge(affix.len().min(part.len()) + 1)?;
            Ok(if name == "startswith" { part.starts_with(affix) } else { part.ends_with(affix) })
        }
        None => Err(runtime!("{name} first arg must be str or a tuple of str, not {}", affix.type_name())),
    };
    match &affix {
        Value::Tuple(affixes) => {
            for affix in affixes.iter() {
                if holds(affix)? {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        one => holds(one).map(Value::Bool),
    }
}

fn find(text: &Text, name: &str, args: &Args, heap: &Heap) -> Result<Value> {
    let [wanted, start, end] = args.bind(name, ["sub", "start", "end"])?;
    let wanted = required(wanted, name)?;
    let Some(wanted) = wanted.as_str() else { return Err(runtime!("{name}() argument 1 must be str")) };
    heap.charge(text.len())?;
    heap.charge(wanted.len())?;
    let part = part(text, start.as_ref(), end.as_ref())?;
    if name == "count" {
        return Ok(heap.int(part.map_or(0, |(_, part)| part.matches(wanted).count())));
    }
    let found = part.and_then(|(offset, part)| {
        let at = if name.starts_with('r') { part.rfind(wanted) } else { part.find(wanted) };
        at.map(|at| offset + at)
    });
    match found {
        Some(at) => Ok(heap.int(text[..at].chars().count())),
        None if name.ends_with("find") => Ok(Value::Int(-1)),
        None => Err(runtime!("substring not found")),
    }
}

fn cut(text: &Text, name: &str, args: &Args, heap: &Heap) -> Result<Value> {
    let [affix] = args.bind(name, ["affix"])?;
    let affix = required(affix, name)?;
    let Value::Str(affix) = &affix else { return Err(runtime!("{name}() argument must be str")) };
    heap.charge(affix.len())?;
    let whole: &str = text;
    match name {
        "removeprefix" => return part_of(text, whole.strip_prefix(&**affix).unwrap_or(whole), heap),
        "removesuffix" => return part_of(text, whole.strip_suffix(&**affix).unwrap_or(whole), heap),
        _ if affix.is_empty() => return Err(runtime!("empty separator")),
        _ => {}
    }
    heap.charge(text.len())?;
    let from_left = name == "partition";
    let found = if from_left { whole.split_once(&**affix) } else { whole.rsplit_once(&**affix) };
    let parts = match found {
        Some((head, tail)) => [head, affix, tail],
        None if from_left => [whole, "", ""],
        None => ["", "", whole],
    };
    let mut items = heap.items();
    for part in parts {
        items.push(heap.str(part)?)?;
    }
    items.tuple()
}

fn expand_tabs(text: &str, size: i64, out: &mut TextBuilder) -> Result<()> {
    let size = usize::try_from(size).unwrap_or(0);
    let mut column = 0usize;
    for c in text.chars() {
        match c {
            '\t' => {
                let blanks = column.checked_rem(size).map_or(0, |past| size - past);
                out.push_char_repeated(' ', blanks)?;
                column = column.saturating_add(blanks);
            }
            '\n' | '\r' => {
                column = 0;
                out.push(c)?;
            }
            c => {
                column += 1;
                out.push(c)?;
            }
        }
    }
    Ok(())
}

/// Methods that change the case of letters.
fn cased(text: &Text, name: &str, heap: &Heap) -> Result<Value> {
    made(heap, |out| match name {
        "upper" => out.push_cased(text, true),
        "lower" => out.push_cased(text, false),
        "casefold" => {
            for c in text.chars() {
                if c == 'ß' {
                    out.push_str("ss")?;
                } else {
                    out.extend(c.to_lowercase())?;
                }
            }
            Ok(())
        }
        "title" => title(text, |c| !c.is_alphabetic(), out),
        "capitalize" => capitalize(text, out),
        _ => {
            for c in text.chars() {
                if c.is_uppercase() {
                    out.extend(c.to_lowercase())?;
                } else {
                    out.extend(c.to_uppercase())?;
                }
            }
            Ok(())
        }
    })
}

/// Methods that ask what a text consists of.
fn is(text: &Text, name: &str, heap: &Heap) -> Result<bool> {
    let all = |test: fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    let is_cased = |c: char| c.is_uppercase() || c.is_lowercase();
    Ok(match name {
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(char::is_alphanumeric),
        "isdigit" | "isdecimal" | "isnumeric" => all(char::is_numeric),
        "isspace" => all(is_space),
        "isascii" => text.is_ascii(),
        "isprintable" => text.chars().all(is_printable),
        "isidentifier" => {
            let starts = text.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_');
            starts && text.chars().all(|c| c.is_alphanumeric() || c == '_')
        }
        "isupper" => text.chars().any(is_cased) && !text.chars().any(char::is_lowercase),
        "islower" => text.chars().any(is_cased) && !text.chars().any(char::is_uppercase),
        _ => {
            let mut titled = heap.builder();
            title(text, |c| !c.is_alphabetic(), &mut titled)?;
            text.chars().any(is_cased) && titled.as_str() == &**text
        }
    })
}
