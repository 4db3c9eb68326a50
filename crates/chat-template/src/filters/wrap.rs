//! Filters that lay out lines.

use crate::{
    args::{Args, is_true},
    error::{Result, runtime},
    ops::{
        print,
        strings::{is_space, split_lines},
    },
    value::{Heap, Text, TextBuilder, Value},
};

/// Applies one of these filters.
pub(super) fn apply(name: &str, value: &Value, args: &Args, heap: &Heap) -> Result<Value> {
    let text = print::text(value, heap)?;
    match name {
        "indent" => indent(&text, args, heap),
        "truncate" => truncate(&text, args, heap),
        _ => word_wrap(&text, args, heap),
    }
}

fn indent(text: &Text, args: &Args, heap: &Heap) -> Result<Value> {
    let [width, first, blank] = args.bind("indent", ["width", "first", "blank"])?;
    let (first, blank) = (is_true(first.as_ref()), is_true(blank.as_ref()));
    let prefix = match width {
        Some(Value::Str(prefix)) => prefix,
        width => {
            let width = width.map_or(Some(4), |width| width.as_int());
            let width = width.ok_or_else(|| runtime!("indent() needs a width"))?;
            let mut blanks = heap.builder();
            blanks.push_char_repeated(' ', usize::try_from(width.max(0)).unwrap_or(usize::MAX))?;
            blanks.finish()?
        }
    };
    let mut with_end = heap.builder();
    with_end.push_str(text)?;
    with_end.push('\n')?;
    let mut out = heap.builder();
    let mut at = 0usize;
    split_lines(with_end.as_str(), false, heap, &mut |line| {
        if at > 0 {
            out.push('\n')?;
        }
        if if at == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&prefix)?;
        }
        at += 1;
        out.push_str(line)
    })?;
    out.finish().map(Value::Str)
}

fn truncate(text: &Text, args: &Args, heap: &Heap) -> Result<Value> {
    let [length, kill, end, leeway] = args.bind("truncate", ["length", "killwords", "end", "leeway"])?;
    let count = |value: Option<Value>, unset: usize| {
        value.and_then(|value| value.as_int()).map_or(unset, |int| usize::try_from(int).unwrap_or(0))
    };
    let (length, leeway) = (count(length, 255), count(leeway.filter(|l| !matches!(l, Value::None)), 5));
    let end = end.map_or_else(|| heap.text("..."), |end| print::text(&end, heap))?;
    let reserved = end.chars_count()?;
    if length < reserved {
        return Err(runtime!("expected length >= {reserved}, got {length}"));
    }
    if text.chars_count()? <= length.saturating_add(leeway) {
        return Ok(Value::Str(text.clone()));
    }
    let cut = &text[..text.offset(length - reserved)?];
    let kept = if is_true(kill.as_ref()) { cut } else { cut.rsplit_once(' ').map_or(cut, |(head, _)| head) };
    let mut out = heap.builder();
    out.push_str(kept)?;
    out.push_str(&end)?;
    out.finish().map(Value::Str)
}

fn word_wrap(text: &Text, args: &Args, heap: &Heap) -> Result<Value> {
    let [width, long, join, hyphens] =
        args.bind("wordwrap", ["width", "break_long_words", "wrapstring", "break_on_hyphens"])?;
    let width = width.map_or(Some(79), |width| width.as_int()).and_then(|width| usize::try_from(width).ok());
    let Some(width) = width.filter(|width| *width > 0) else {
        return Err(runtime!("wordwrap() needs a width above 0"));
    };
    let wrapped = Wrapped {
        width,
        break_long: long.is_none_or(|long| long.is_true()),
        break_on_hyphens: hyphens.is_none_or(|hyphens| hyphens.is_true()),
        heap,
    };
    let join = match join {
        None | Some(Value::None) => heap.text("\n")?,
        Some(join) => print::text(&join, heap)?,
    };
    let mut out = heap.builder();
    let mut is_first = true;
    split_lines(text, false, heap, &mut |line| {
        if !std::mem::take(&mut is_first) {
            out.push_str(&join)?;
        }
        wrapped.line(line, &join, &mut out)
    })?;
    out.finish().map(Value::Str)
}

/// How Python's `textwrap` cuts a line into shorter ones.
struct Wrapped<'h> {
    width: usize,
    break_long: bool,
    break_on_hyphens: bool,
    heap: &'h Heap,
}

impl Wrapped<'_> {
    fn line(&self, line: &str, join: &str, out: &mut TextBuilder) -> Result<()> {
        let mut rest = line;
        let mut is_first = true;
        while !rest.is_empty() {
            // Blanks at the beginning of a line that this made are dropped.
            if !is_first {
                rest = rest.trim_start_matches(is_space);
            }
            let end = self.end_of_line(rest)?;
            let made = rest[..end].trim_end_matches(is_space);
            if !made.is_empty() {
                if !std::mem::take(&mut is_first) {
                    out.push_str(join)?;
                }
                out.push_str(made)?;
            }
            rest = &rest[end..];
        }
        Ok(())
    }

    /// Where the next line ends.
    fn end_of_line(&self, rest: &str) -> Result<usize> {
        let (mut end, mut length) = (0, 0);
        while end < rest.len() {
            let chunk = self.chunk(&rest[end..])?;
            let count = chunk.chars().count();
            if length + count <= self.width {
                end += chunk.len();
                length += count;
                continue;
            }
            if count > self.width {
                end += self.long_word(chunk, self.width - length, end == 0);
            }
            break;
        }
        Ok(end)
    }

    /// How much of a word that is longer than a line fits in what is left of this one.
    fn long_word(&self, chunk: &str, room: usize, is_alone: bool) -> usize {
        if !self.break_long {
            return if is_alone { chunk.len() } else { 0 };
        }
        let end = chunk.char_indices().nth(room).map_or(chunk.len(), |(at, _)| at);
        match chunk[..end].rfind('-') {
            Some(at) if self.break_on_hyphens && chunk[..at].contains(|c| c != '-') => at + 1,
            _ => end,
        }
    }

    /// What a text begins with that is not to be broken: blanks, a word, or a part of one up to a hyphen.
    fn chunk<'t>(&self, text: &'t str) -> Result<&'t str> {
        let blanks = text.len() - text.trim_start_matches(is_space).len();
        if blanks > 0 {
            self.heap.charge(blanks)?;
            return Ok(&text[..blanks]);
        }
        let word = &text[..text.find(is_space).unwrap_or(text.len())];
        self.heap.charge(word.len())?;
        if !self.break_on_hyphens {
            return Ok(word);
        }
        for (at, _) in word.match_indices('-') {
            let mut before = word[..at].chars().rev();
            let mut after = word[at + 1..].chars();
            let is_letter = |c: Option<char>| c.is_some_and(char::is_alphabetic);
            let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
            if is_letter(before.next())
                && is_word(before.next())
                && is_word(after.next())
                && is_letter(after.next())
            {
                return Ok(&word[..=at]);
            }
        }
        Ok(word)
    }
}
