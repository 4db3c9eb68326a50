//! Calls written with literals: `name(key=literal, …)` in Python, `call:name{key:literal, …}` in Gemma 4's notation.

use serde_json::{Map, Number, Value};

use super::{
    call::{Calls, ParsedCall},
    scanner::GEMMA_QUOTE,
};

/// Literals may lie this deep in one another.
const MAX_DEPTH: usize = 32;

/// Reads calls, one after another or in a list; `print(…)` around one and `.call` behind a name are let through.
pub(super) fn calls(body: &str) -> Calls {
    let body = body.trim();
    let body = body.strip_prefix('[').and_then(|body| body.strip_suffix(']')).unwrap_or(body);
    let mut reader = Reader { rest: body };
    let mut calls = Vec::new();
    while reader.skip_space(&[',', ';']) {
        let printed = reader.rest.strip_prefix("print(");
        reader.rest = printed.unwrap_or(reader.rest);
        calls.push(reader.call()?);
        if printed.is_some() {
            reader.expect(')')?;
        }
    }
    if calls.is_empty() { Err("it is empty".to_owned()) } else { Ok(calls) }
}

/// Reads calls in Gemma 4's notation: keys are bare, and strings stand between two of its own quotes.
pub(super) fn gemma(body: &str) -> Calls {
    let mut reader = Reader { rest: body };
    let mut calls = Vec::new();
    while reader.skip_space(&[',']) {
        reader.rest = reader.rest.strip_prefix("call:").ok_or("it does not begin with call:")?;
        let name = reader.name()?;
        match reader.literal(0)? {
            Value::Object(arguments) => calls.push(ParsedCall { id: None, name, arguments }),
            _ => return Err(format!("the arguments of {name} are no object")),
        }
    }
    if calls.is_empty() { Err("it is empty".to_owned()) } else { Ok(calls) }
}

/// Reads a text that is one literal.
pub(super) fn value(text: &str) -> Result<Value, String> {
    let mut reader = Reader { rest: text };
    let value = reader.literal(0)?;
    if reader.skip_space(&[]) {
        Err(format!("{:?} stands behind the literal", reader.near()))
    } else {
        Ok(value)
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn call(&mut self) -> Result<ParsedCall, String> {
        let name = self.name()?;
        self.expect('(')?;
        let mut arguments = Map::new();
        while !self.next_is(')') {
            let key = self.name()?;
            self.expect('=')?;
            arguments.insert(key, self.literal(0)?);
            if !self.next_is(',') && !self.peek_is(')') {
                return Err(format!("expected , or ) before {:?}", self.near()));
            }
        }
        let name = name.strip_suffix(".call").unwrap_or(&name).to_owned();
        Ok(ParsedCall { id: None, name, arguments })
    }

    fn name(&mut self) -> Result<String, String> {
        self.skip_space(&[]);
        let end = self
            .rest
            .find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '.' | '-')))
            .unwrap_or(self.rest.len());
        if end == 0 {
            return Err(format!("expected a name before {:?}", self.near()));
        }
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(name.to_owned())
    }

    fn literal(&mut self, depth: usize) -> Result<Value, String> {
        if depth > MAX_DEPTH {
            return Err("its literals lie too deep in one another".to_owned());
        }
        self.skip_space(&[]);
        if let Some(rest) = self.rest.strip_prefix(GEMMA_QUOTE) {
            let (text, rest) = rest.split_once(GEMMA_QUOTE).ok_or("a string is not closed")?;
            self.rest = rest;
            return Ok(Value::String(text.to_owned()));
        }
        match self.rest.chars().next() {
            Some(quote @ ('"' | '\'')) => self.string(quote).map(Value::String),
            Some(open @ ('[' | '(')) => {
                self.rest = &self.rest[1..];
                let close = if open == '[' { ']' } else { ')' };
                let mut items = Vec::new();
                while !self.next_is(close) {
                    items.push(self.literal(depth + 1)?);
                    if !self.next_is(',') && !self.peek_is(close) {
                        return Err(format!("expected , or {close} before {:?}", self.near()));
                    }
                }
                Ok(Value::Array(items))
            }
            Some('{') => {
                self.rest = &self.rest[1..];
                let mut entries = Map::new();
                while !self.next_is('}') {
                    self.skip_space(&[]);
                    let key = if self.rest.starts_with(|c: char| c.is_alphabetic() || c == '_') {
                        Value::String(self.name()?)
                    } else {
                        self.literal(depth + 1)?
                    };
                    let Value::String(key) = key else {
                        return Err("a key is no string".to_owned());
                    };
                    self.expect(':')?;
                    entries.insert(key, self.literal(depth + 1)?);
                    if !self.next_is(',') && !self.peek_is('}') {
                        return Err(format!("expected , or }} before {:?}", self.near()));
                    }
                }
                Ok(Value::Object(entries))
            }
            _ => self.word(),
        }
    }

    /// A number, or a word that stands for a value.
    fn word(&mut self) -> Result<Value, String> {
        let end =
            self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+' | '_')));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        let value = match word {
            "True" | "true" => Value::Bool(true),
            "False" | "false" => Value::Bool(false),
            "None" | "null" => Value::Null,
            number => match (
                number.parse::<i64>(),
                number.parse::<u64>(),
                number.parse().ok().and_then(Number::from_f64),
            ) {
                (Ok(int), ..) => int.into(),
                (_, Ok(int), _) => int.into(),
                (.., Some(float)) => Value::Number(float),
                _ => return Err(format!("expected a literal before {:?}", self.near())),
            },
        };
        self.rest = rest;
        Ok(value)
    }

    fn string(&mut self, quote: char) -> Result<String, String> {
        let mut text = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                c if c == quote => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(text);
                }
                '\\' => match chars.next() {
                    Some((_, escape)) => push_escaped(escape, &mut chars, &mut text)?,
                    None => break,
                },
                c => text.push(c),
            }
        }
        Err("a string is not closed".to_owned())
    }

    /// Skips space and these characters; whether anything is left.
    fn skip_space(&mut self, also: &[char]) -> bool {
        self.rest = self.rest.trim_start_matches(|c: char| c.is_whitespace() || also.contains(&c));
        !self.rest.is_empty()
    }

    fn peek_is(&mut self, wanted: char) -> bool {
        self.skip_space(&[]);
        self.rest.starts_with(wanted)
    }

    fn next_is(&mut self, wanted: char) -> bool {
        let found = self.peek_is(wanted);
        if found {
            self.rest = &self.rest[wanted.len_utf8()..];
        }
        found
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        if self.next_is(wanted) { Ok(()) } else { Err(format!("expected {wanted} before {:?}", self.near())) }
    }

    fn near(&self) -> String {
        self.rest.chars().take(20).collect()
    }
}

/// Appends what stands behind a backslash, as Python reads it: of an unknown escape the backslash stays.
fn push_escaped(
    escape: char,
    chars: &mut impl Iterator<Item = (usize, char)>,
    text: &mut String,
) -> Result<(), String> {
    let mut code = |digits: usize| -> Result<char, String> {
        let digits: String = chars.take(digits).map(|(_, c)| c).collect();
        let code = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
        code.ok_or_else(|| format!("\\{escape}{digits} is not a character"))
    };
    match escape {
        'n' => text.push('\n'),
        't' => text.push('\t'),
        'r' => text.push('\r'),
        'b' => text.push('\u{8}'),
        'f' => text.push('\u{c}'),
        '0' => text.push('\0'),
        'x' => text.push(code(2)?),
        'u' => text.push(code(4)?),
        'U' => text.push(code(8)?),
        '\n' => {}
        c @ ('\'' | '"' | '\\' | '/') => text.push(c),
        c => text.extend(['\\', c]),
    }
    Ok(())
}
