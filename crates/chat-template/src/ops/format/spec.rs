//! How one value is laid out.

use std::{iter::Peekable, str::Chars};

use crate::error::{Result, runtime};

#[derive(Debug, Default, Clone)]
pub(super) struct Spec {
    pub(super) fill: Option<char>,
    /// `<`, `>`, `^`, or `=`: between the sign and the digits.
    pub(super) align: Option<char>,
    /// `+` or a blank, for numbers without a minus.
    pub(super) sign: Option<char>,
    /// `#`: with `0x` and its kin.
    pub(super) alternate: bool,
    /// `,` or `_` between thousands.
    pub(super) grouping: Option<char>,
    pub(super) width: usize,
    pub(super) precision: Option<usize>,
    /// `s`, `d`, `f`, ….
    pub(super) kind: Option<char>,
}

/// `[[fill]align][sign][#][0][width][grouping][.precision][kind]`
pub(super) fn parse(text: &str) -> Result<Spec> {
    let is_align = |c: Option<char>| c.is_some_and(|c| matches!(c, '<' | '>' | '^' | '='));
    let mut spec = Spec::default();
    let mut rest = text.chars().peekable();
    let mut ahead = text.chars();
    let (first, second) = (ahead.next(), ahead.next());
    if is_align(second) {
        (spec.fill, spec.align) = (first, second);
        rest.next();
        rest.next();
    } else if is_align(first) {
        spec.align = first;
        rest.next();
    }
    spec.sign = rest.next_if(|c| matches!(c, '+' | '-' | ' ')).filter(|c| *c != '-');
    spec.alternate = rest.next_if_eq(&'#').is_some();
    if rest.next_if_eq(&'0').is_some() && spec.align.is_none() {
        (spec.fill, spec.align) = (Some('0'), Some('='));
    }
    spec.width = number(&mut rest).unwrap_or(0);
    spec.grouping = rest.next_if(|c| matches!(c, ',' | '_'));
    if rest.next_if_eq(&'.').is_some() {
        spec.precision =
            Some(number(&mut rest).ok_or_else(|| runtime!("Format specifier missing precision"))?);
    }
    spec.kind = rest.next();
    if rest.next().is_some() { Err(runtime!("Invalid format specifier '{text}'")) } else { Ok(spec) }
}

/// Digits; a number too large for any text stays that.
pub(super) fn number(rest: &mut Peekable<Chars<'_>>) -> Option<usize> {
    let mut found = None;
    while let Some(digit) = rest.next_if(char::is_ascii_digit).and_then(|c| c.to_digit(10)) {
        found = Some(found.unwrap_or(0usize).saturating_mul(10).saturating_add(digit as usize));
    }
    found
}
