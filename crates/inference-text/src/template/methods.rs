//! Methods of strings, lists and dicts, and the fields of `loop`.

use super::{
    budget::Budget,
    eval::{Args, LoopState},
    format, print,
    value::{Fallible, Value},
};

const OF_STRINGS: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "find",
    "format",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "islower",
    "isnumeric",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];
const OF_DICTS: &[&str] = &["copy", "get", "items", "keys", "values"];
const OF_LISTS: &[&str] = &["copy", "count", "index"];
/// Methods that would change their object, which transformers' sandbox refuses.
const UNSAFE_OF_DICTS: &[&str] = &["clear", "pop", "popitem", "setdefault", "update"];
const UNSAFE_OF_LISTS: &[&str] = &["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];

/// Whether the value has a method of that name.
pub(super) fn has(value: &Value, name: &str) -> bool {
    match value {
        Value::Str(_) => OF_STRINGS.contains(&name),
        Value::Dict(_) => OF_DICTS.contains(&name) || UNSAFE_OF_DICTS.contains(&name),
        Value::List(_) => OF_LISTS.contains(&name) || UNSAFE_OF_LISTS.contains(&name),
        Value::Tuple(_) => matches!(name, "count" | "index"),
        Value::Loop(_) => matches!(name, "cycle" | "changed"),
        _ => false,
    }
}

/// Calls a method; `None` where the value has none of that name.
pub(super) fn call(value: &Value, name: &str, args: &Args, budget: &Budget) -> Fallible<Option<Value>> {
    if !has(value, name) {
        return Ok(None);
    }
    budget.charge(value.size())?;
    match value {
        Value::Str(text) => of_string(text, name, args, budget).map(Some),
        Value::Dict(_) if UNSAFE_OF_DICTS.contains(&name) => Err(refused(value, name)),
        Value::List(_) if UNSAFE_OF_LISTS.contains(&name) => Err(refused(value, name)),
        Value::Dict(dict) => of_dict(value, &dict.entries, name, args, budget).map(Some),
        Value::List(seq) | Value::Tuple(seq) => of_list(value, &seq.items, name, args, budget).map(Some),
        Value::Loop(state) => of_loop(state, name, args, budget).map(Some),
        _ => Ok(None),
    }
}

fn refused(value: &Value, name: &str) -> String {
    format!("access to attribute '{name}' of '{}' object is unsafe", value.type_name())
}

fn of_dict(
    dict: &Value,
    entries: &[(Value, Value)],
    name: &str,
    args: &Args,
    budget: &Budget,
) -> Fallible<Value> {
    if name == "get" {
        let [key, default] = args.bind("get", ["key", "default"])?;
        let key = key.ok_or("get expected at least 1 argument, got 0")?;
        return Ok(dict.get(&key, budget)?.or(default).unwrap_or(Value::None));
    }
    let [] = args.bind(name, [])?;
    budget.charge_elements(entries.len())?;
    match name {
        "keys" => Value::list(entries.iter().map(|(key, _)| key.clone()).collect()),
        "values" => Value::list(entries.iter().map(|(_, value)| value.clone()).collect()),
        "items" => Value::list(pairs(entries)?),
        _ => Ok(dict.clone()),
    }
}

/// The entries of a dict as tuples.
pub(super) fn pairs(entries: &[(Value, Value)]) -> Fallible<Vec<Value>> {
    entries.iter().map(|(key, value)| Value::tuple(vec![key.clone(), value.clone()])).collect()
}

fn of_list(list: &Value, items: &[Value], name: &str, args: &Args, budget: &Budget) -> Fallible<Value> {
    if name == "copy" {
        return Ok(list.clone());
    }
    let [wanted] = args.bind(name, ["value"])?;
    let wanted = wanted.ok_or_else(|| format!("{name}() takes exactly one argument (0 given)"))?;
    budget.charge(items.len().saturating_mul(wanted.size().max(1)))?;
    match name {
        "count" => Ok(Value::Int(items.iter().filter(|item| item.equals(&wanted)).count() as i128)),
        _ => match items.iter().position(|item| item.equals(&wanted)) {
            Some(at) => Ok(Value::Int(at as i128)),
            None => Err("the value is not in the list".to_owned()),
        },
    }
}

fn of_loop(state: &LoopState, name: &str, args: &Args, budget: &Budget) -> Fallible<Value> {
    if name == "cycle" {
        return match args.pos.len() {
            0 => Err("no items for cycling given".to_owned()),
            count => Ok(args.pos[state.index.get() % count].clone()),
        };
    }
    if args.pos.iter().any(Value::is_live) {
        return Err("loop.changed cannot watch namespaces, macros or loops".to_owned());
    }
    let mut seen = state.seen.borrow_mut();
    budget.charge(args.pos.iter().map(Value::size).sum())?;
    let same = seen.as_ref().is_some_and(|seen| {
        seen.len() == args.pos.len() && seen.iter().zip(&args.pos).all(|(a, b)| a.equals(b))
    });
    if !same {
        *seen = Some(args.pos.clone());
    }
    Ok(Value::Bool(!same))
}

/// A field of `loop`.
pub(super) fn loop_field(state: &LoopState, name: &str) -> Fallible<Option<Value>> {
    let (at, length) = (state.index.get(), state.items.len());
    let int = |number: usize| Some(Value::Int(number as i128));
    let item = |at: Option<usize>, what: &str| {
        let item = at.and_then(|at| state.items.get(at)).cloned();
        Some(item.unwrap_or_else(|| Value::Undefined(what.into())))
    };
    Ok(match name {
        "index" => int(at + 1),
        "index0" => int(at),
        "revindex" => int(length - at),
        "revindex0" => int(length - at - 1),
        "first" => Some(Value::Bool(at == 0)),
        "last" => Some(Value::Bool(at + 1 == length)),
        "length" => int(length),
        "depth" => int(state.depth + 1),
        "depth0" => int(state.depth),
        "previtem" => item(at.checked_sub(1), "there is no previous item; it"),
        "nextitem" => item(Some(at + 1), "there is no next item; it"),
        _ => None,
    })
}

fn of_string(text: &str, name: &str, args: &Args, budget: &Budget) -> Fallible<Value> {
    let made = |text: String| {
        budget.charge_text(text.len())?;
        Ok(Value::str(text))
    };
    match name {
        "format" => return made(format::braces(text, args, budget)?),
        "join" => {
            let [items] = args.bind(name, ["iterable"])?;
            let items = items.ok_or("join() takes exactly one argument (0 given)")?.iterate(budget)?;
            return join(&items, text, budget);
        }
        "startswith" | "endswith" => {
            let [affix, start, end] = args.bind(name, ["prefix", "start", "end"])?;
            let part = part(text, start.as_ref(), end.as_ref());
            let holds = |affix: &Value| match affix.as_str() {
                Some(affix) if name == "startswith" => Ok(part.starts_with(affix)),
                Some(affix) => Ok(part.ends_with(affix)),
                None => {
                    Err(format!("{name} first arg must be str or a tuple of str, not {}", affix.type_name()))
                }
            };
            let affixes = match affix {
                Some(Value::Tuple(seq)) => seq.items.clone(),
                Some(one) => vec![one],
                None => return Err(format!("{name}() takes at least 1 argument (0 given)")),
            };
            for affix in &affixes {
                if holds(affix)? {
                    return Ok(Value::Bool(true));
                }
            }
            return Ok(Value::Bool(false));
        }
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = args.bind(name, ["chars"])?;
            return strip(text, name, chars.as_ref()).map(Value::str);
        }
        "split" | "rsplit" => {
            let [separator, limit] = args.bind(name, ["sep", "maxsplit"])?;
            let limit = limit.and_then(|limit| limit.as_int()).unwrap_or(-1);
            let parts = split(text, name, separator.as_ref(), limit)?;
            budget.charge_elements(parts.len())?;
            return Value::list(parts.into_iter().map(Value::str).collect());
        }
        "splitlines" => {
            let [keep] = args.bind(name, ["keepends"])?;
            let lines = split_lines(text, keep.is_some_and(|keep| keep.is_true()));
            budget.charge_elements(lines.len())?;
            return Value::list(lines.into_iter().map(Value::str).collect());
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"])?;
            let (Some(old), Some(new)) =
                (old.as_ref().and_then(Value::as_str), new.as_ref().and_then(Value::as_str))
            else {
                return Err("replace() arguments 1 and 2 must be str".to_owned());
            };
            let count = count.and_then(|count| count.as_int()).unwrap_or(-1);
            return replace(text, old, new, count, budget);
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let [wanted, start, end] = args.bind(name, ["sub", "start", "end"])?;
            let Some(wanted) = wanted.as_ref().and_then(Value::as_str) else {
                return Err(format!("{name}() argument 1 must be str"));
            };
            let part = part(text, start.as_ref(), end.as_ref());
            if name == "count" {
                return Ok(Value::Int(part.matches(wanted).count() as i128));
            }
            let found = if name.starts_with('r') { part.rfind(wanted) } else { part.find(wanted) };
            let offset = part.as_ptr() as usize - text.as_ptr() as usize;
            return match found {
                Some(at) => Ok(Value::Int(text[..offset + at].chars().count() as i128)),
                None if name.ends_with("find") => Ok(Value::Int(-1)),
                None => Err("substring not found".to_owned()),
            };
        }
        "removeprefix" | "removesuffix" => {
            let [affix] = args.bind(name, ["affix"])?;
            let Some(affix) = affix.as_ref().and_then(Value::as_str) else {
                return Err(format!("{name}() argument must be str"));
            };
            let cut =
                if name == "removeprefix" { text.strip_prefix(affix) } else { text.strip_suffix(affix) };
            return Ok(Value::str(cut.unwrap_or(text)));
        }
        "partition" | "rpartition" => {
            let [separator] = args.bind(name, ["sep"])?;
            let separator =
                separator.as_ref().and_then(Value::as_str).filter(|separator| !separator.is_empty());
            let separator = separator.ok_or_else(|| format!("{name}() needs a separator"))?;
            let found =
                if name == "partition" { text.split_once(separator) } else { text.rsplit_once(separator) };
            let parts = match found {
                Some((head, tail)) => [head, separator, tail],
                None if name == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            return Value::tuple(parts.map(Value::str).to_vec());
        }
        "center" | "ljust" | "rjust" | "zfill" => {
            let [width, fill] = args.bind(name, ["width", "fillchar"])?;
            let width =
                width.and_then(|width| width.as_int()).ok_or_else(|| format!("{name}() needs a width"))?;
            let fill = fill.and_then(|fill| fill.as_str()?.chars().next()).unwrap_or(' ');
            return pad(text, name, width, fill, budget).map(Value::str);
        }
        _ => {}
    }
    let [] = args.bind(name, [])?;
    let all = |test: fn(char) -> bool| Value::Bool(!text.is_empty() && text.chars().all(test));
    let cased = |upper: bool| {
        let has = text.chars().any(|c| c.is_uppercase() || c.is_lowercase());
        Value::Bool(has && text.chars().all(|c| if upper { !c.is_lowercase() } else { !c.is_uppercase() }))
    };
    match name {
        "upper" => made(text.to_uppercase()),
        "lower" | "casefold" => made(text.to_lowercase()),
        "title" => made(title(text, |c| !c.is_alphabetic())),
        "capitalize" => made(capitalize(text)),
        "swapcase" => made(
            text.chars()
                .map(|c| {
                    if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() }
                })
                .collect(),
        ),
        "isalpha" => Ok(all(char::is_alphabetic)),
        "isalnum" => Ok(all(char::is_alphanumeric)),
        "isdigit" | "isdecimal" | "isnumeric" => Ok(all(char::is_numeric)),
        "isspace" => Ok(all(is_space)),
        "isascii" => Ok(Value::Bool(text.is_ascii())),
        "isupper" => Ok(cased(true)),
        "islower" => Ok(cased(false)),
        _ => Ok(Value::Bool(!text.is_empty() && text == title(text, |c| !c.is_alphabetic()))),
    }
}

/// Python's `sep.join(items)`.
fn join(items: &[Value], separator: &str, budget: &Budget) -> Fallible<Value> {
    let mut texts = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let text = item.as_str();
        texts.push(text.ok_or_else(|| {
            format!("sequence item {at}: expected str instance, {} found", item.type_name())
        })?);
    }
    let size = texts.iter().map(|text| text.len()).fold(0, usize::saturating_add);
    budget.charge_text(size.saturating_add(separator.len().saturating_mul(texts.len().saturating_sub(1))))?;
    Ok(Value::str(texts.join(separator)))
}

/// Python's `text.replace(old, new, count)`.
pub(super) fn replace(text: &str, old: &str, new: &str, count: i128, budget: &Budget) -> Fallible<Value> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let found = text.matches(old).take(count).count();
    budget.charge_text(text.len().saturating_add(found.saturating_mul(new.len())))?;
    Ok(Value::str(text.replacen(old, new, count)))
}

/// Python's `strip` and its one-sided kin.
pub(super) fn strip<'a>(text: &'a str, name: &str, chars: Option<&Value>) -> Fallible<&'a str> {
    let wanted = match chars {
        None | Some(Value::None) => None,
        Some(Value::Str(chars)) => Some(chars.chars().collect::<Vec<_>>()),
        Some(other) => return Err(format!("{name} arg must be None or str, not {}", other.type_name())),
    };
    let cut = |c: char| wanted.as_ref().map_or_else(|| is_space(c), |wanted| wanted.contains(&c));
    Ok(match name {
        "lstrip" => text.trim_start_matches(cut),
        "rstrip" => text.trim_end_matches(cut),
        _ => text.trim_matches(cut),
    })
}

/// Python's whitespace: Unicode's, and the four separators of ASCII.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

fn split<'a>(text: &'a str, name: &str, separator: Option<&Value>, limit: i128) -> Fallible<Vec<&'a str>> {
    let limit = usize::try_from(limit).map_or(usize::MAX, |limit| limit.saturating_add(1));
    let from_right = name == "rsplit";
    match separator {
        Some(Value::Str(separator)) if separator.is_empty() => Err("empty separator".to_owned()),
        Some(Value::Str(separator)) if from_right => {
            let mut parts: Vec<_> = text.rsplitn(limit, &**separator).collect();
            parts.reverse();
            Ok(parts)
        }
        Some(Value::Str(separator)) => Ok(text.splitn(limit, &**separator).collect()),
        None | Some(Value::None) => {
            let mut parts = Vec::new();
            let mut rest =
                if from_right { text.trim_end_matches(is_space) } else { text.trim_start_matches(is_space) };
            while !rest.is_empty() {
                let end = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
                let Some(at) = end.filter(|_| parts.len() + 1 < limit) else {
                    parts.push(rest);
                    break;
                };
                if from_right {
                    let width = rest[at..].chars().next().map_or(1, char::len_utf8);
                    parts.push(&rest[at + width..]);
                    rest = rest[..at].trim_end_matches(is_space);
                } else {
                    parts.push(&rest[..at]);
                    rest = rest[at..].trim_start_matches(is_space);
                }
            }
            if from_right {
                parts.reverse();
            }
            parts.retain(|part| !part.is_empty());
            Ok(parts)
        }
        Some(other) => Err(format!("must be str or None, not {}", other.type_name())),
    }
}

/// Python's `splitlines`: it knows more line ends than `\n`.
pub(super) fn split_lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    let is_end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    while !rest.is_empty() {
        let Some(at) = rest.find(is_end) else {
            lines.push(rest);
            break;
        };
        let width = if rest[at..].starts_with("\r\n") {
            2
        } else {
            rest[at..].chars().next().map_or(1, char::len_utf8)
        };
        lines.push(&rest[..if keep_ends { at + width } else { at }]);
        rest = &rest[at + width..];
    }
    lines
}

/// Each word's first letter upper case, the rest lower; a word ends where `ends` says so.
pub(super) fn title(text: &str, ends: fn(char) -> bool) -> String {
    let mut begins = true;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if begins {
            out.extend(c.to_uppercase());
        } else {
            out.extend(c.to_lowercase());
        }
        begins = ends(c);
    }
    out
}

pub(super) fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(chars.flat_map(char::to_lowercase)).collect()
    })
}

/// Fills a text up to a width.
pub(super) fn pad(text: &str, name: &str, width: i128, fill: char, budget: &Budget) -> Fallible<String> {
    let length = text.chars().count();
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(length);
    budget.charge_text(text.len().saturating_add(missing.saturating_mul(fill.len_utf8())))?;
    let filled = |count: usize| fill.to_string().repeat(count);
    Ok(match name {
        "ljust" => text.to_owned() + &filled(missing),
        "rjust" => filled(missing) + text,
        "zfill" => {
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            format!("{sign}{}{digits}", "0".repeat(missing))
        }
        _ => {
            // Python puts the odd one on the left if the width is odd.
            let left = missing / 2 + (missing & width.unsigned_abs() as usize & 1);
            filled(left) + text + &filled(missing - left)
        }
    })
}

/// The part of a text between two places, counted in characters as Python's slices are.
fn part<'a>(text: &'a str, start: Option<&Value>, end: Option<&Value>) -> &'a str {
    if start.is_none() && end.is_none() {
        return text;
    }
    let length = text.chars().count() as i128;
    let place = |bound: Option<&Value>, unset: i128| {
        let at = bound.and_then(Value::as_int).unwrap_or(unset);
        (if at < 0 { at.saturating_add(length) } else { at }).clamp(0, length) as usize
    };
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    let (start, end) = (byte(place(start, 0)), byte(place(end, length)));
    if start <= end { &text[start..end] } else { "" }
}

/// `text % args`.
pub(super) fn percent(text: &str, args: &[Value], budget: &Budget) -> Fallible<Value> {
    let made = format::percent(text, args, budget)?;
    budget.charge_text(made.len())?;
    Ok(Value::str(made))
}

/// Python's `str` of each item.
pub(super) fn texts(items: &[Value], budget: &Budget) -> Fallible<Vec<String>> {
    items.iter().map(|item| print::text(item, budget)).collect()
}
