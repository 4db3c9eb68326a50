//! How Python prints values: `str`, `repr` and `json.dumps`.

use std::fmt::Write as _;

use super::{
    budget::Budget,
    value::{Fallible, Value},
};

/// Python's `str(value)`; nothing for what is undefined.
pub(super) fn text(value: &Value, budget: &Budget) -> Fallible<String> {
    match value {
        Value::Str(text) => {
            budget.charge_text(text.len())?;
            Ok(text.to_string())
        }
        Value::Undefined(_) => Ok(String::new()),
        other => repr(other, budget),
    }
}

/// Python's `repr(value)`.
pub(super) fn repr(value: &Value, budget: &Budget) -> Fallible<String> {
    let mut out = String::new();
    write_repr(value, &mut out, budget)?;
    Ok(out)
}

fn write_repr(value: &Value, out: &mut String, budget: &Budget) -> Fallible<()> {
    let before = out.len();
    match value {
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Int(int) => {
            let _ = write!(out, "{int}");
        }
        Value::Float(float) => out.push_str(&float_repr(*float)),
        Value::Str(text) => {
            budget.charge_text(text.len() * 2)?;
            quote(text, out);
        }
        Value::List(seq) => write_items(&seq.items, ('[', ']'), out, budget)?,
        Value::Tuple(seq) => write_items(&seq.items, ('(', ')'), out, budget)?,
        Value::Dict(dict) => {
            out.push('{');
            for (at, (key, value)) in dict.entries.iter().enumerate() {
                out.push_str(if at == 0 { "" } else { ", " });
                write_repr(key, out, budget)?;
                out.push_str(": ");
                write_repr(value, out, budget)?;
            }
            out.push('}');
        }
        // Nothing of what it holds: a namespace may be large, and what it prints as depends on the machine.
        other => {
            let _ = write!(out, "<{}>", other.type_name());
        }
    }
    budget.charge_text(out.len() - before.min(out.len()))?;
    if out.len() > super::budget::MAX_TEXT { budget.charge_text(out.len()) } else { Ok(()) }
}

fn write_items(
    items: &[Value],
    (open, close): (char, char),
    out: &mut String,
    budget: &Budget,
) -> Fallible<()> {
    out.push(open);
    for (at, item) in items.iter().enumerate() {
        out.push_str(if at == 0 { "" } else { ", " });
        write_repr(item, out, budget)?;
    }
    if open == '(' && items.len() == 1 {
        out.push(',');
    }
    out.push(close);
    Ok(())
}

/// Python's `repr` of a string: single quotes, unless it holds some and no double ones.
fn quote(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if !is_printable(c) => {
                let code = c as u32;
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// Python's `isprintable`, for the characters that occur: neither controls nor formats nor separators other than a space.
fn is_printable(c: char) -> bool {
    !(c.is_control()
        || (c.is_whitespace() && c != ' ')
        || matches!(c as u32, 0xad | 0x61c | 0x180e | 0x200b..=0x200f | 0x202a..=0x202e | 0x2060..=0x206f | 0xfeff
            | 0xfff9..=0xfffb | 0xe000..=0xf8ff | 0xe0000..=0xe007f | 0xf0000..=0x10ffff))
}

/// Python's `repr` of a float: the shortest digits that read back the same, with an exponent below 1e-4 and from 1e16.
pub(super) fn float_repr(float: f64) -> String {
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

/// How `json.dumps` lays out its text.
#[derive(Debug, Clone)]
pub(super) struct Json {
    pub(super) indent: Option<String>,
    pub(super) item_separator: String,
    pub(super) key_separator: String,
    pub(super) sort_keys: bool,
    pub(super) ascii: bool,
}

impl Json {
    /// `json.dumps(value)`.
    pub(super) fn dumps(&self, value: &Value, budget: &Budget) -> Fallible<String> {
        let mut out = String::new();
        self.write(value, 0, &mut out, budget)?;
        Ok(out)
    }

    fn write(&self, value: &Value, depth: usize, out: &mut String, budget: &Budget) -> Fallible<()> {
        let before = out.len();
        match value {
            Value::None => out.push_str("null"),
            Value::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
            Value::Int(int) => {
                let _ = write!(out, "{int}");
            }
            Value::Float(float) => out.push_str(&json_float(*float)),
            Value::Str(text) => {
                budget.charge_text(text.len())?;
                self.string(text, out);
            }
            Value::List(seq) | Value::Tuple(seq) => {
                out.push('[');
                for (at, item) in seq.items.iter().enumerate() {
                    self.separate(at, depth, out, budget)?;
                    self.write(item, depth + 1, out, budget)?;
                }
                self.close(seq.items.is_empty(), depth, ']', out, budget)?;
            }
            Value::Dict(dict) => {
                let mut entries: Vec<&(Value, Value)> = dict.entries.iter().collect();
                if self.sort_keys {
                    budget.charge(value.size())?;
                    entries.sort_by(|(a, _), (b, _)| a.compare(b).unwrap_or(std::cmp::Ordering::Equal));
                }
                out.push('{');
                for (at, (key, value)) in entries.into_iter().enumerate() {
                    self.separate(at, depth, out, budget)?;
                    let key = match key {
                        Value::Str(key) => key.to_string(),
                        Value::Bool(_) | Value::None | Value::Int(_) | Value::Float(_) => {
                            self.dumps(key, budget)?
                        }
                        other => {
                            return Err(format!(
                                "keys must be str, int, float, bool or None, not {}",
                                other.type_name()
                            ));
                        }
                    };
                    budget.charge_text(key.len())?;
                    self.string(&key, out);
                    out.push_str(&self.key_separator);
                    self.write(value, depth + 1, out, budget)?;
                }
                self.close(dict.entries.is_empty(), depth, '}', out, budget)?;
            }
            other => return Err(format!("Object of type {} is not JSON serializable", other.type_name())),
        }
        budget.charge(out.len() - before.min(out.len()))?;
        if out.len() > super::budget::MAX_TEXT { budget.charge_text(out.len()) } else { Ok(()) }
    }

    /// What stands before an element: a comma, and its own line if indented.
    fn separate(&self, at: usize, depth: usize, out: &mut String, budget: &Budget) -> Fallible<()> {
        if at > 0 {
            budget.charge_text(self.item_separator.len())?;
            out.push_str(&self.item_separator);
        }
        self.line(depth + 1, out, budget)
    }

    fn close(
        &self,
        empty: bool,
        depth: usize,
        bracket: char,
        out: &mut String,
        budget: &Budget,
    ) -> Fallible<()> {
        if !empty {
            self.line(depth, out, budget)?;
        }
        out.push(bracket);
        Ok(())
    }

    fn line(&self, depth: usize, out: &mut String, budget: &Budget) -> Fallible<()> {
        if let Some(indent) = &self.indent {
            budget.charge_text(indent.len() * depth + 1)?;
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
        Ok(())
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// JSON has no infinities; Python writes these words.
fn json_float(float: f64) -> String {
    match float {
        f if f.is_nan() => "NaN".to_owned(),
        f if f == f64::INFINITY => "Infinity".to_owned(),
        f if f == f64::NEG_INFINITY => "-Infinity".to_owned(),
        f => float_repr(f),
    }
}
