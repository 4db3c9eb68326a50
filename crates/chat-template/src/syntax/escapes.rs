//! Escapes in string literals, as Python reads them.

use std::{iter::Peekable, str::Chars};

/// The text of a literal. An unknown escape stays as it is written.
pub(super) fn decode(raw: &str) -> Result<String, &'static str> {
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw.chars().peekable();
    while let Some(c) = rest.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match rest.next() {
            None => out.push('\\'),
            Some('\n') => {}
            Some(c @ ('\\' | '\'' | '"')) => out.push(c),
            Some('a') => out.push('\u{7}'),
            Some('b') => out.push('\u{8}'),
            Some('f') => out.push('\u{c}'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('v') => out.push('\u{b}'),
            Some('x') => out.push(character(digits(&mut rest, 2)?)?),
            Some('U') => out.push(character(digits(&mut rest, 8)?)?),
            Some('u') => out.push(utf16(&mut rest)?),
            Some('N') => return Err("\\N{…} escapes are not supported"),
            Some(first @ '0'..='7') => out.push(character(octal(first, &mut rest))?),
            Some(other) => out.extend(['\\', other]),
        }
    }
    Ok(out)
}

fn digits(rest: &mut Peekable<Chars<'_>>, count: u32) -> Result<u32, &'static str> {
    (0..count).try_fold(0u32, |code, _| {
        let digit = rest.next().and_then(|c| c.to_digit(16)).ok_or("a truncated \\x, \\u or \\U escape")?;
        code.checked_mul(16).and_then(|code| code.checked_add(digit)).ok_or("not a character")
    })
}

fn octal(first: char, rest: &mut Peekable<Chars<'_>>) -> u32 {
    let mut code = first.to_digit(8).unwrap_or(0);
    for _ in 0..2 {
        let Some(digit) = rest.next_if(|c| c.is_digit(8)).and_then(|c| c.to_digit(8)) else { break };
        code = code * 8 + digit;
    }
    code
}

/// `\u`: one character, or with a second escape the halves of one.
fn utf16(rest: &mut Peekable<Chars<'_>>) -> Result<char, &'static str> {
    let high = digits(rest, 4)?;
    if !(0xd800..0xdc00).contains(&high) {
        return character(high);
    }
    let mut ahead = rest.clone();
    if (ahead.next(), ahead.next()) == (Some('\\'), Some('u')) {
        let low = digits(&mut ahead, 4)?;
        if (0xdc00..0xe000).contains(&low) {
            *rest = ahead;
            return character(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00));
        }
    }
    Err("half a surrogate pair")
}

fn character(code: u32) -> Result<char, &'static str> {
    char::from_u32(code).ok_or("not a character")
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn escapes_are_pythons() {
        let cases = [
            (r"\u00e9\x41\U0001F642", "éA🙂"),
            (r"\n\t\\\'\q\d", "\n\t\\'\\q\\d"),
            (r"\0\101\7778", "\0A\u{1ff}8"),
            (r"\ud83d\ude42", "🙂"),
            ("a\\\nb\\", "ab\\"),
        ];
        for (raw, expected) in cases {
            assert_eq!(decode(raw).as_deref(), Ok(expected), "{raw}");
        }
        for raw in [r"\x4", r"\u00", r"\U00110000", r"\ud83d", r"\ud83d\u0041", r"\N{DASH}", r"\Uffffffff"] {
            assert!(decode(raw).is_err(), "{raw}");
        }
    }
}
