//! `strftime_now`: the time by a format of C, one directive at a time, as each may make more text than it is long.

use jiff::{civil::DateTime, fmt::strtime, tz::TimeZone};

use crate::{
    budget::STEP,
    error::Result,
    value::{Heap, Value},
};

/// The longest directive that is read as one: `%`, flags, a width, a letter.
const MAX_DIRECTIVE: usize = 12;

pub(super) fn strftime(format: &str, now: DateTime, heap: &Heap) -> Result<Value> {
    heap.charge(format.len())?;
    let mut out = heap.builder();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at])?;
        rest = &rest[at..];
        let directive = directive(rest);
        heap.charge(STEP * 8)?;
        // What the C library does not know it leaves as it is.
        match formatted(directive, now) {
            Ok(text) => out.push_str(&text)?,
            Err(_) => out.push_str(directive)?,
        }
        rest = &rest[directive.len()..];
    }
    out.push_str(rest)?;
    out.finish().map(Value::Str)
}

/// The text of one directive. Those that depend on a language are C's own.
fn formatted(directive: &str, now: DateTime) -> Result<String, jiff::Error> {
    match directive {
        "%c" => strtime::format("%a %b %e %H:%M:%S %Y", now),
        "%x" => strtime::format("%m/%d/%y", now),
        "%X" => strtime::format("%H:%M:%S", now),
        "%s" => now.to_zoned(TimeZone::system()).map(|zoned| zoned.timestamp().as_second().to_string()),
        other => strtime::format(other, now),
    }
}

/// The directive that a text begins with.
fn directive(text: &str) -> &str {
    let is_part = |c: char| c.is_ascii_digit() || matches!(c, '-' | '_' | '^' | '#' | '.' | ':');
    let end = text[1..].char_indices().take(MAX_DIRECTIVE).find(|(_, c)| !is_part(*c));
    match end {
        Some((at, letter)) => &text[..1 + at + letter.len_utf8()],
        None => &text[..text.floor_char_boundary(MAX_DIRECTIVE.min(text.len()))],
    }
}
