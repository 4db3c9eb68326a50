//! Cuts a source into tokens by Jinja2's rules, with blocks trimmed as transformers has them: the line end after a block
//! goes (`trim_blocks`), and so do the blanks before one that stands first on its line (`lstrip_blocks`).

use super::{
    escapes,
    token::{Kind, Operator, Token},
};
use crate::error::{Error, Result};

/// Cuts a source whose line ends are `\n`.
pub(super) fn tokenize(source: &str) -> Result<Vec<Token<'_>>> {
    let mut lexer = Lexer { source, at: 0, line: 1, line_starting: true, tokens: Vec::new() };
    while lexer.at < source.len() {
        lexer.data()?;
    }
    lexer.push(Kind::End);
    Ok(lexer.tokens)
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    /// The line that `at` lies on.
    line: u32,
    /// Whether `at` is where a line begins.
    line_starting: bool,
    tokens: Vec<Token<'s>>,
}

/// Python's whitespace.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// The sign of a tag: `-` strips all blanks beyond it, `+` none.
fn sign(text: &str) -> Option<u8> {
    text.bytes().next().filter(|byte| matches!(byte, b'-' | b'+'))
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn push(&mut self, kind: Kind<'s>) {
        self.tokens.push(Token { kind, line: self.line });
    }

    /// Goes past so many bytes.
    fn advance(&mut self, bytes: usize) {
        let passed = &self.rest()[..bytes];
        self.line += passed.bytes().filter(|byte| *byte == b'\n').count() as u32;
        if let Some(last) = passed.bytes().last() {
            self.line_starting = last == b'\n';
        }
        self.at += bytes;
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.advance(rest.len() - rest.trim_start_matches(is_space).len());
    }

    fn fail(&self, message: std::fmt::Arguments<'_>) -> Error {
        Error::syntax(self.line, message)
    }

    /// Text up to the next tag, and that tag.
    fn data(&mut self) -> Result<()> {
        let rest = self.rest();
        let opens = |at: &usize| matches!(rest.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#'));
        let Some(at) = rest.match_indices('{').map(|(at, _)| at).find(opens) else {
            self.push(Kind::Data(rest));
            self.advance(rest.len());
            return Ok(());
        };
        let tag = rest.as_bytes()[at + 1];
        let after = &rest[at + 2..];
        let sign = sign(after);
        let text = self.before_tag(&rest[..at], tag, sign);
        if !text.is_empty() {
            self.push(Kind::Data(text));
        }
        self.advance(at);
        let body = &after[usize::from(sign.is_some())..];
        self.advance(2 + usize::from(sign.is_some()));
        match tag {
            b'#' => self.comment(),
            b'{' => self.tag(Kind::PrintBegin, Kind::PrintEnd),
            _ => match raw_begin(body) {
                Some(length) => {
                    self.advance(length);
                    self.raw()
                }
                None => self.tag(Kind::BlockBegin, Kind::BlockEnd),
            },
        }
    }

    /// The text before a tag, without the blanks that the tag strips.
    fn before_tag<'a>(&self, text: &'a str, tag: u8, sign: Option<u8>) -> &'a str {
        match sign {
            Some(b'-') => text.trim_end_matches(is_space),
            None if tag != b'{' => {
                let line = text.rfind('\n').map_or(0, |at| at + 1);
                let begins = line > 0 || self.line_starting;
                if begins && text[line..].chars().all(is_space) { &text[..line] } else { text }
            }
            _ => text,
        }
    }

    /// Past the end of a comment.
    fn comment(&mut self) -> Result<()> {
        let rest = self.rest();
        let Some(end) = rest.find("#}") else {
            return Err(self.fail(format_args!("a comment is not closed")));
        };
        let sign = rest[..end].bytes().last();
        self.advance(end + 2);
        self.after_block(sign);
        Ok(())
    }

    /// Past the blanks that the end of a block strips.
    fn after_block(&mut self, sign: Option<u8>) {
        match sign {
            Some(b'-') => self.skip_space(),
            Some(b'+') => {}
            _ => self.advance(usize::from(self.rest().starts_with('\n'))),
        }
    }

    /// The text of a raw block, and past its end.
    fn raw(&mut self) -> Result<()> {
        let rest = self.rest();
        for (at, _) in rest.match_indices("{%") {
            let sign = sign(&rest[at + 2..]);
            let body = at + 2 + usize::from(sign.is_some());
            let Some((length, end_sign)) = raw_end(&rest[body..]) else { continue };
            let text = self.before_tag(&rest[..at], b'%', sign);
            if !text.is_empty() {
                self.push(Kind::Data(text));
            }
            self.advance(body + length);
            self.after_block(end_sign);
            return Ok(());
        }
        Err(self.fail(format_args!("a raw block is not closed")))
    }

    /// The tokens of a tag.
    fn tag(&mut self, begin: Kind<'s>, end: Kind<'s>) -> Result<()> {
        let is_block = end == Kind::BlockEnd;
        let mark = if is_block { "%}" } else { "}}" };
        self.push(begin);
        let mut open = Vec::new();
        loop {
            self.skip_space();
            let rest = self.rest();
            if open.is_empty() {
                let sign = sign(rest).filter(|sign| *sign == b'-' || is_block);
                let signed = usize::from(sign.is_some() && rest[1..].starts_with(mark));
                if rest[signed..].starts_with(mark) {
                    self.push(end);
                    self.advance(signed + mark.len());
                    let sign = sign.filter(|_| signed == 1);
                    if is_block || sign.is_some() {
                        self.after_block(sign);
                    }
                    return Ok(());
                }
            }
            let Some(first) = rest.chars().next() else {
                return Err(self.fail(format_args!("unexpected end of the template, expected '{mark}'")));
            };
            match first {
                '0'..='9' => self.number()?,
                '"' | '\'' => self.text(first)?,
                c if c.is_alphanumeric() || c == '_' => {
                    let is_part = |c: char| c.is_alphanumeric() || c == '_';
                    let length = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
                    if c.is_numeric() {
                        return Err(self.fail(format_args!("'{}' is not a name", &rest[..length])));
                    }
                    self.push(Kind::Name(&rest[..length]));
                    self.advance(length);
                }
                other => self.operator(other, &mut open)?,
            }
        }
    }

    fn operator(&mut self, first: char, open: &mut Vec<Operator>) -> Result<()> {
        let rest = self.rest();
        let operator = Operator::ALL.iter().copied().find(|operator| rest.starts_with(operator.text()));
        let Some(operator) = operator else {
            return Err(self.fail(format_args!("unexpected character {first:?}")));
        };
        let closed = match operator {
            Operator::ParenOpen | Operator::BracketOpen | Operator::BraceOpen => {
                open.push(operator);
                None
            }
            Operator::ParenClose => Some(Operator::ParenOpen),
            Operator::BracketClose => Some(Operator::BracketOpen),
            Operator::BraceClose => Some(Operator::BraceOpen),
            _ => None,
        };
        if closed.is_some() && open.pop() != closed {
            return Err(self.fail(format_args!("unexpected '{}'", operator.text())));
        }
        self.push(Kind::Operator(operator));
        self.advance(operator.text().len());
        Ok(())
    }

    fn text(&mut self, quote: char) -> Result<()> {
        let rest = self.rest();
        let mut escaped = false;
        let end = rest.char_indices().skip(1).find(|(_, c)| {
            let ends = !escaped && *c == quote;
            escaped = !escaped && *c == '\\';
            ends
        });
        let Some((end, _)) = end else { return Err(self.fail(format_args!("a string is not closed"))) };
        let text = escapes::decode(&rest[1..end]).map_err(|reason| self.fail(format_args!("{reason}")))?;
        self.push(Kind::Text(text));
        self.advance(end + 1);
        Ok(())
    }

    fn number(&mut self) -> Result<()> {
        let rest = self.rest();
        let after_dot = self.source[..self.at].ends_with('.');
        let (length, is_float) = match float(rest).filter(|_| !after_dot) {
            Some(length) => (length, true),
            None => (integer(rest), false),
        };
        let written = rest[..length].replace('_', "");
        self.push(if is_float {
            Kind::Float(written.parse().unwrap_or(f64::INFINITY))
        } else {
            Kind::Integer(written)
        });
        self.advance(length);
        Ok(())
    }
}

/// The length of what is left of `{% raw %}`.
fn raw_begin(body: &str) -> Option<usize> {
    let rest = body.trim_start_matches(is_space).strip_prefix("raw")?.trim_start_matches(is_space);
    let rest = match rest.strip_prefix("-%}") {
        Some(rest) => rest.trim_start_matches(is_space),
        None => rest.strip_prefix("%}")?,
    };
    Some(body.len() - rest.len())
}

/// The length of what is left of `{% endraw %}`, and its sign.
fn raw_end(body: &str) -> Option<(usize, Option<u8>)> {
    let rest = body.trim_start_matches(is_space).strip_prefix("endraw")?.trim_start_matches(is_space);
    let sign = sign(rest);
    let rest = rest[usize::from(sign.is_some())..].strip_prefix("%}")?;
    Some((body.len() - rest.len(), sign))
}

/// The length of digits, single underscores between them; 0 where there are none.
fn digits(text: &str, radix: u32) -> usize {
    let mut length = 0;
    let mut rest = text.bytes().peekable();
    while let Some(byte) = rest.next() {
        let is_digit = |byte: u8| char::from(byte).is_digit(radix);
        let joins = byte == b'_' && length > 0 && rest.peek().is_some_and(|next| is_digit(*next));
        if !is_digit(byte) && !joins {
            break;
        }
        length += 1;
    }
    length
}

/// The length of a float: digits with a fraction, an exponent or both.
fn float(text: &str) -> Option<usize> {
    let mut length = digits(text, 10);
    let mut is_float = false;
    if text[length..].starts_with('.') {
        let fraction = digits(&text[length + 1..], 10);
        is_float = fraction > 0;
        length += if is_float { 1 + fraction } else { 0 };
    }
    if text[length..].starts_with(['e', 'E']) {
        let signed = usize::from(text[length + 1..].starts_with(['+', '-']));
        let exponent = digits(&text[length + 1 + signed..], 10);
        if exponent > 0 {
            is_float = true;
            length += 1 + signed + exponent;
        }
    }
    is_float.then_some(length)
}

/// The length of an integer. One that begins with 0 has no other digits, as in Python.
fn integer(text: &str) -> usize {
    let radix = match text.as_bytes().get(1).map(u8::to_ascii_lowercase) {
        Some(b'b') => 2,
        Some(b'o') => 8,
        Some(b'x') => 16,
        _ => 10,
    };
    if radix != 10 && text.starts_with('0') {
        let joined = usize::from(text[2..].starts_with('_'));
        let length = digits(&text[2 + joined..], radix);
        return if length > 0 { 2 + joined + length } else { 1 };
    }
    let length = digits(text, 10);
    if text.starts_with('0') {
        return text[..length].find(|c| c != '0' && c != '_').unwrap_or(length).max(1);
    }
    length
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(source: &str) -> Vec<Kind<'_>> {
        tokenize(source).unwrap().into_iter().map(|token| token.kind).collect()
    }

    fn data(source: &str) -> String {
        let data = kinds(source).into_iter();
        data.filter_map(|kind| if let Kind::Data(text) = kind { Some(text) } else { None })
            .collect::<Vec<_>>()
            .join("|")
    }

    #[test]
    fn blanks_about_tags() {
        assert_eq!(data("a\n  {% x %}\nb"), "a\n|b");
        assert_eq!(data("a\n  {%+ x +%}\nb"), "a\n  |\nb");
        assert_eq!(data("a \n {%- x -%} \n b"), "a|b");
        assert_eq!(data("a\n  {{ x }}\nb"), "a\n  |\nb");
        assert_eq!(data("  {# c #}\n b {#- c -#} c"), " b|c");
        assert_eq!(data("{% raw %}\n{{ x }} {% endraw %}\na"), "\n{{ x }} |a");
        assert_eq!(data("{% raw -%}  a  {%- endraw +%}\n b"), "a|\n b");
    }

    #[test]
    fn numbers_and_brackets() {
        assert_eq!(kinds("{{ 1_000 }}")[1], Kind::Integer("1000".to_owned()));
        assert_eq!(kinds("{{ 0x_1f }}")[1], Kind::Integer("0x1f".to_owned()));
        assert_eq!(kinds("{{ 1.5e3 }}")[1], Kind::Float(1500.0));
        assert_eq!(kinds("{{ 1e5 }}")[1], Kind::Float(1e5));
        assert_eq!(kinds("{{ {'a': {}} }}").len(), 9);
        assert_eq!(kinds("{{ a.0.1 }}").len(), 8);
        for source in ["{{ (] }}", "{{ 'a }}", "{{ a", "{# a", "{% raw %}a", "{{ ! }}", "{{ } }}"] {
            assert!(tokenize(source).is_err(), "{source}");
        }
    }

    #[test]
    fn lines_are_counted() {
        let tokens = tokenize("a\n{# \n #}\n{{\n'x\ny' }}{% b %}").unwrap();
        let line = |kind: &Kind<'_>| tokens.iter().find(|token| token.kind == *kind).unwrap().line;
        assert_eq!((line(&Kind::PrintBegin), line(&Kind::BlockBegin)), (4, 6));
    }
}
