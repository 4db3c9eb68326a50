//! What Python's strings do. Functions that make text write it into a builder; those that cut one call back for each part.

use crate::{
    error::{Result, runtime},
    value::{Heap, Text, TextBuilder, Value},
};

/// Python's whitespace: Unicode's, and the four separators of ASCII.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

pub(crate) fn trim(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// A part of a text, or that text itself if the part is all of it.
pub(crate) fn part_of(text: &Text, part: &str, heap: &Heap) -> Result<Value> {
    if part.len() == text.len() && !text.is_markup() {
        return Ok(Value::Str(text.clone()));
    }
    heap.str(part)
}

/// Which ends of a text to work on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    Left,
    Right,
    Both,
}

/// Python's `strip` and its one-sided kin.
pub(crate) fn strip<'a>(text: &'a str, ends: Ends, chars: Option<&Value>, heap: &Heap) -> Result<&'a str> {
    let chars = match chars {
        None | Some(Value::None) => None,
        Some(Value::Str(chars)) => Some(chars),
        Some(other) => return Err(runtime!("strip arg must be None or str, not {}", other.type_name())),
    };
    let scanned = text.len().saturating_add(1);
    match chars {
        None => heap.charge(scanned)?,
        // Each character of the text may be looked for among all of them.
        Some(chars) => heap.charge_product(scanned, chars.len().saturating_add(1))?,
    }
    let cut = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    Ok(match ends {
        Ends::Left => text.trim_start_matches(cut),
        Ends::Right => text.trim_end_matches(cut),
        Ends::Both => text.trim_matches(cut),
    })
}

/// Python's `text.replace(old, new, count)`; all of them if the count is negative.
pub(crate) fn replace(
    text: &str,
    (old, new): (&str, &str),
    count: i64,
    out: &mut TextBuilder,
    heap: &Heap,
) -> Result<()> {
    heap.charge(text.len().saturating_add(old.len()))?;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let mut taken = 0;
    for (at, _) in text.match_indices(old).take(count) {
        out.push_str(&text[taken..at])?;
        out.push_str(new)?;
        taken = at + old.len();
    }
    out.push_str(&text[taken..])
}

/// What is called with each part of a text.
type Each<'f> = &'f mut dyn FnMut(&str) -> Result<()>;

/// Python's `split` and `rsplit`. The parts of `rsplit` come from the right.
pub(crate) fn split(
    text: &str,
    separator: Option<&Value>,
    limit: i64,
    from_right: bool,
    heap: &Heap,
    each: Each<'_>,
) -> Result<()> {
    let limit = usize::try_from(limit).map_or(usize::MAX, |limit| limit.saturating_add(1));
    heap.charge(text.len())?;
    match separator {
        Some(Value::Str(separator)) if separator.is_empty() => Err(runtime!("empty separator")),
        Some(Value::Str(separator)) => {
            heap.charge(separator.len())?;
            if from_right {
                text.rsplitn(limit, &**separator).try_for_each(each)
            } else {
                text.splitn(limit, &**separator).try_for_each(each)
            }
        }
        None | Some(Value::None) => split_at_space(text, limit, from_right, each),
        Some(other) => Err(runtime!("must be str or None, not {}", other.type_name())),
    }
}

fn split_at_space(text: &str, limit: usize, from_right: bool, each: Each<'_>) -> Result<()> {
    let mut rest =
        if from_right { text.trim_end_matches(is_space) } else { text.trim_start_matches(is_space) };
    let mut count = 0;
    while !rest.is_empty() {
        count += 1;
        let end = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = end.filter(|_| count < limit) else { return each(rest) };
        if from_right {
            let width = rest[at..].chars().next().map_or(1, char::len_utf8);
            each(&rest[at + width..])?;
            rest = rest[..at].trim_end_matches(is_space);
        } else {
            each(&rest[..at])?;
            rest = rest[at..].trim_start_matches(is_space);
        }
    }
    Ok(())
}

/// Python's `splitlines`: it knows more line ends than `\n`.
pub(crate) fn split_lines(text: &str, keep_ends: bool, heap: &Heap, each: Each<'_>) -> Result<()> {
    heap.charge(text.len())?;
    let is_end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut rest = text;
    while !rest.is_empty() {
        let Some(at) = rest.find(is_end) else { return each(rest) };
        let width = if rest[at..].starts_with("\r\n") {
            2
        } else {
            rest[at..].chars().next().map_or(1, char::len_utf8)
        };
        each(&rest[..if keep_ends { at + width } else { at }])?;
        rest = &rest[at + width..];
    }
    Ok(())
}

/// Each word's first letter upper case, the rest lower; a word ends where `ends` says so.
pub(crate) fn title(text: &str, ends: fn(char) -> bool, out: &mut TextBuilder) -> Result<()> {
    let mut begins = true;
    for c in text.chars() {
        if begins {
            out.extend(c.to_uppercase())?;
        } else {
            out.extend(c.to_lowercase())?;
        }
        begins = ends(c);
    }
    Ok(())
}

pub(crate) fn capitalize(text: &str, out: &mut TextBuilder) -> Result<()> {
    let Some(first) = text.chars().next() else { return Ok(()) };
    out.extend(first.to_uppercase())?;
    out.push_cased(&text[first.len_utf8()..], false)
}

/// Where a padded text stands in its field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
    Center,
    /// Right, with zeros between the sign and the digits.
    Zeros,
}

/// Fills a text up to a width in characters.
pub(crate) fn pad(
    text: &str,
    side: Side,
    width: i64,
    fill: char,
    out: &mut TextBuilder,
    heap: &Heap,
) -> Result<()> {
    heap.charge(text.len())?;
    let width = usize::try_from(width).unwrap_or(0);
    let missing = width.saturating_sub(text.chars().count());
    let left = match side {
        Side::Left => 0,
        Side::Right | Side::Zeros => missing,
        // Python puts the odd one on the left if the width is odd.
        Side::Center => missing / 2 + (missing & width & 1),
    };
    if side == Side::Zeros {
        let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
        out.push_str(sign)?;
        out.push_char_repeated('0', missing)?;
        return out.push_str(digits);
    }
    out.push_char_repeated(fill, left)?;
    out.push_str(text)?;
    out.push_char_repeated(fill, missing - left)
}

/// The part of a text between two places, counted in characters as Python's slices are, with where it begins. `None` if the first
/// place lies behind the second.
pub(crate) fn part<'a>(
    text: &'a Text,
    start: Option<&Value>,
    end: Option<&Value>,
) -> Result<Option<(usize, &'a str)>> {
    if start.is_none() && end.is_none() {
        return Ok(Some((0, text)));
    }
    let length = text.chars_count()? as i64;
    let place = |bound: Option<&Value>, unset: i64| {
        let at = bound.and_then(Value::as_int).unwrap_or(unset);
        if at < 0 { at.saturating_add(length).max(0) } else { at }
    };
    let (start, end) = (place(start, 0), place(end, length).min(length));
    if start > end {
        return Ok(None);
    }
    let offset = |at: i64| text.offset(usize::try_from(at).unwrap_or(usize::MAX));
    let (start, end) = (offset(start)?, offset(end)?);
    Ok(Some((start, &text[start..end])))
}

/// A text with HTML's special characters escaped, unless it is so already.
pub(crate) fn escape(text: &Text, out: &mut TextBuilder) -> Result<()> {
    if text.is_markup() {
        return out.push_str(text);
    }
    let mut rest: &str = text;
    while let Some(at) = rest.find(['&', '<', '>', '\'', '"']) {
        out.push_str(&rest[..at])?;
        out.push_str(match rest.as_bytes()[at] {
            b'&' => "&amp;",
            b'<' => "&lt;",
            b'>' => "&gt;",
            b'\'' => "&#39;",
            _ => "&#34;",
        })?;
        rest = &rest[at + 1..];
    }
    out.push_str(rest)
}
