//! One value in a field.

use super::spec::Spec;
use crate::{
    error::{Result, runtime},
    ops::{
        numbers::to_big,
        print::{float_repr, write_integer, write_text},
    },
    value::{Heap, TextBuilder, Value},
};

/// A float has no more digits behind its point than these; what a format asks for beyond are zeros.
const MAX_FRACTION: usize = 1_100;

/// Adds a value as a format has it.
pub(super) fn lay_out(value: &Value, spec: &Spec, out: &mut TextBuilder, heap: &Heap) -> Result<()> {
    let is_number = value.as_float().is_some();
    let kind = match spec.kind {
        Some(kind) => kind,
        None if matches!(value, Value::Int(_) | Value::BigInt(_)) => 'd',
        None if matches!(value, Value::Float(_)) => '\0',
        None => 's',
    };
    let mut body = heap.builder();
    let mut prefix = "";
    let is_text = matches!(kind, 's' | 'c');
    match kind {
        's' => write_text(value, &mut body, heap)?,
        'c' => body.extend(value.as_int().and_then(|code| char::from_u32(u32::try_from(code).ok()?)))?,
        'd' | 'n' | 'b' | 'o' | 'x' | 'X' => {
            let mark = write_radix(value, kind, &mut body, heap)?;
            prefix = if spec.alternate { mark } else { "" };
        }
        _ => {
            let Some(float) = value.as_float() else { return Err(wrong(kind, value)) };
            write_float(float, kind, spec, &mut body)?;
        }
    }
    let body = body.finish()?;
    let (minus, digits) = match body.strip_prefix('-') {
        Some(digits) if is_number && !is_text => ("-", digits),
        _ => ("", &*body),
    };
    if is_text {
        let kept = match spec.precision {
            Some(precision) => &digits[..body.offset(precision)?],
            None => digits,
        };
        return aligned(kept, "", "", spec, if is_number { '>' } else { '<' }, out, heap);
    }
    let plus = spec.sign.filter(|_| minus.is_empty()).map_or("", |sign| if sign == '+' { "+" } else { " " });
    let sign = if minus.is_empty() { plus } else { minus };
    match spec.grouping {
        None => aligned(digits, sign, prefix, spec, '>', out, heap),
        Some(mark) => {
            let mut grouped = heap.builder();
            group(digits, mark, &mut grouped)?;
            aligned(grouped.as_str(), sign, prefix, spec, '>', out, heap)
        }
    }
}

/// Adds an integer in the radix of a format's kind, and returns the radix's prefix.
fn write_radix(value: &Value, kind: char, body: &mut TextBuilder, heap: &Heap) -> Result<&'static str> {
    let int = if matches!(value, Value::Float(_)) { None } else { to_big(value, heap)? };
    let Some(int) = int else { return Err(wrong(kind, value)) };
    let (radix, mark) = match kind {
        'b' => (2, "0b"),
        'o' => (8, "0o"),
        'x' => (16, "0x"),
        'X' => (16, "0X"),
        _ => (10, ""),
    };
    if radix == 10 {
        write_integer(&int, body, heap)?;
    } else {
        let bits = usize::try_from(int.bits()).unwrap_or(usize::MAX);
        heap.charge(bits)?;
        let _room = heap.hold(bits)?;
        let digits = int.to_str_radix(radix);
        body.push_str(&if kind == 'X' { digits.to_ascii_uppercase() } else { digits })?;
    }
    Ok(mark)
}

fn wrong(kind: char, value: &Value) -> crate::Error {
    runtime!("Unknown format code '{kind}' for object of type '{}'", value.type_name())
}

/// Adds a text in a field of a width.
fn aligned(
    text: &str,
    sign: &str,
    prefix: &str,
    spec: &Spec,
    default: char,
    out: &mut TextBuilder,
    heap: &Heap,
) -> Result<()> {
    heap.charge(text.len())?;
    let missing = spec.width.saturating_sub(text.chars().count() + sign.len() + prefix.len());
    let fill = spec.fill.unwrap_or(' ');
    let (before, within, after) = match spec.align.unwrap_or(default) {
        '<' => (0, 0, missing),
        '^' => (missing / 2, 0, missing - missing / 2),
        '=' => (0, missing, 0),
        _ => (missing, 0, 0),
    };
    out.push_char_repeated(fill, before)?;
    out.push_str(sign)?;
    out.push_str(prefix)?;
    out.push_char_repeated(fill, within)?;
    out.push_str(text)?;
    out.push_char_repeated(fill, after)
}

/// Digits with a mark between thousands.
fn group(digits: &str, mark: char, out: &mut TextBuilder) -> Result<()> {
    let whole = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    for (at, digit) in digits[..whole].char_indices() {
        if at > 0 && (whole - at).is_multiple_of(3) {
            out.push(mark)?;
        }
        out.push(digit)?;
    }
    out.push_str(&digits[whole..])
}

fn write_float(float: f64, kind: char, spec: &Spec, out: &mut TextBuilder) -> Result<()> {
    let precision = spec.precision.unwrap_or(6);
    if !float.is_finite() {
        let word = float_repr(float);
        return out.push_str(&if kind.is_ascii_uppercase() { word.to_ascii_uppercase() } else { word });
    }
    match kind {
        'f' | 'F' => fixed(float, precision, out),
        '%' => {
            fixed(float * 100.0, precision, out)?;
            out.push('%')
        }
        'e' | 'E' => out.push_str(&cased(scientific(float, precision.min(MAX_FRACTION)), kind)),
        'g' | 'G' => out.push_str(&cased(general(float, precision, spec.alternate), kind)),
        '\0' => match spec.precision {
            None => out.push_str(&float_repr(float)),
            Some(precision) => {
                let text = general(float, precision, false);
                out.push_str(&text)?;
                out.push_str(if text.contains(['.', 'e']) { "" } else { ".0" })
            }
        },
        other => Err(runtime!("Unknown format code '{other}' for object of type 'float'")),
    }
}

fn cased(text: String, kind: char) -> String {
    if kind.is_ascii_uppercase() { text.to_ascii_uppercase() } else { text }
}

fn fixed(float: f64, precision: usize, out: &mut TextBuilder) -> Result<()> {
    let exact = precision.min(MAX_FRACTION);
    out.push_str(&format!("{float:.exact$}"))?;
    out.push_char_repeated('0', precision - exact)
}

/// `1.5e+03`
fn scientific(float: f64, precision: usize) -> String {
    let text = format!("{float:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}

/// The shorter of both notations, without zeros at its end.
fn general(float: f64, precision: usize, keep_zeros: bool) -> String {
    let precision = precision.clamp(1, MAX_FRACTION);
    let exponent_form = scientific(float, precision - 1);
    let (digits, exponent) = exponent_form.split_once('e').unwrap_or((&exponent_form, "0"));
    let exponent: i64 = exponent.parse().unwrap_or(0);
    let without_zeros = |text: &str| {
        if keep_zeros || !text.contains('.') {
            text.to_owned()
        } else {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    };
    if (-4..precision as i64).contains(&exponent) {
        let decimals = usize::try_from(precision as i64 - 1 - exponent).unwrap_or(0);
        return without_zeros(&format!("{float:.decimals$}"));
    }
    format!("{}e{}", without_zeros(digits), &exponent_form[digits.len() + 1..])
}
