//! Python's two ways of putting values into a text: `"%s" % value` and `"{}".format(value)`.

use super::{
    budget::Budget,
    eval::Args,
    methods, ops, print,
    value::{Fallible, Value},
};

/// The widest field and the longest fraction that a format may ask for.
const MAX_WIDTH: usize = 10_000;

/// How one value is laid out.
#[derive(Debug, Default)]
struct Spec {
    fill: Option<char>,
    /// `<`, `>`, `^`.
    align: Option<char>,
    plus: bool,
    zero: bool,
    comma: bool,
    width: usize,
    precision: Option<usize>,
    /// `s`, `d`, `f`, ….
    kind: Option<char>,
}

/// `text.format(…)`.
pub(super) fn braces(text: &str, args: &Args, budget: &Budget) -> Fallible<String> {
    let mut out = String::new();
    let mut next = 0;
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        let brace = rest.as_bytes()[at];
        rest = &rest[at + 1..];
        if rest.as_bytes().first() == Some(&brace) {
            out.push(char::from(brace));
            rest = &rest[1..];
            continue;
        }
        if brace == b'}' {
            return Err("Single '}' encountered in format string".to_owned());
        }
        let end = rest.find('}').ok_or("expected '}' before end of string")?;
        let (field, spec) = rest[..end].split_once(':').unwrap_or((&rest[..end], ""));
        rest = &rest[end + 1..];
        let (field, conversion) = field.split_once('!').unwrap_or((field, ""));
        let mut value = field_value(field, args, &mut next, budget)?;
        if conversion == "r" {
            value = Value::str(print::repr(&value, budget)?);
        }
        let made = lay_out(&value, &parse(spec)?, budget)?;
        budget.charge_text(out.len().saturating_add(made.len()) - out.len())?;
        out.push_str(&made);
    }
    out.push_str(rest);
    Ok(out)
}

/// The value that a field names: by place, by name, or the next one; then attributes.
fn field_value(field: &str, args: &Args, next: &mut usize, budget: &Budget) -> Fallible<Value> {
    let (name, path) = field.find(['.', '[']).map_or((field, ""), |at| field.split_at(at));
    let missing = || format!("the format string asks for {field:?}, which was not given");
    let value = if name.is_empty() {
        *next += 1;
        args.pos.get(*next - 1)
    } else if let Ok(at) = name.parse::<usize>() {
        args.pos.get(at)
    } else {
        args.named.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    };
    let mut value = value.cloned().ok_or_else(missing)?;
    for step in path.split(['.', '[']).filter(|step| !step.is_empty()) {
        let step = step.trim_end_matches(']');
        let key = step.parse().map_or_else(|_| Value::str(step), Value::Int);
        value = ops::item(&value, &key, budget)?;
    }
    Ok(value)
}

/// `[[fill]align][+][0][width][,][.precision][kind]`
fn parse(spec: &str) -> Fallible<Spec> {
    let mut parsed = Spec::default();
    let chars: Vec<char> = spec.chars().collect();
    let is_align = |c: Option<&char>| c.is_some_and(|c| matches!(c, '<' | '>' | '^'));
    let mut at = 0;
    if is_align(chars.get(1)) {
        (parsed.fill, parsed.align, at) = (chars.first().copied(), chars.get(1).copied(), 2);
    } else if is_align(chars.first()) {
        (parsed.align, at) = (chars.first().copied(), 1);
    }
    let mut rest = chars[at..].iter().copied().peekable();
    parsed.plus = rest.next_if_eq(&'+').is_some();
    parsed.zero = rest.next_if_eq(&'0').is_some();
    let number = |rest: &mut std::iter::Peekable<_>| {
        let mut digits = String::new();
        while let Some(digit) = rest.next_if(char::is_ascii_digit) {
            digits.push(digit);
        }
        if digits.is_empty() { Ok(None) } else { bounded(&digits).map(Some) }
    };
    parsed.width = number(&mut rest)?.unwrap_or(0);
    parsed.comma = rest.next_if_eq(&',').is_some();
    if rest.next_if_eq(&'.').is_some() {
        parsed.precision = number(&mut rest)?;
    }
    parsed.kind = rest.next();
    if rest.next().is_some() { Err(format!("Invalid format specifier {spec:?}")) } else { Ok(parsed) }
}

fn bounded(digits: &str) -> Fallible<usize> {
    let number = digits.parse().ok().filter(|number| *number <= MAX_WIDTH);
    number.ok_or_else(|| format!("a format asks for a width of {digits}, expected at most {MAX_WIDTH}"))
}

fn lay_out(value: &Value, spec: &Spec, budget: &Budget) -> Fallible<String> {
    let number = value.as_float();
    let wrong =
        || format!("format code '{}' does not suit '{}'", spec.kind.unwrap_or(' '), value.type_name());
    let mut text = match spec.kind {
        Some('d') => value.as_int().ok_or_else(wrong)?.to_string(),
        Some('x') => format!("{:x}", value.as_int().ok_or_else(wrong)?),
        Some('X') => format!("{:X}", value.as_int().ok_or_else(wrong)?),
        Some('f' | 'F') => format!("{:.*}", spec.precision.unwrap_or(6), number.ok_or_else(wrong)?),
        Some('%') => format!("{:.*}%", spec.precision.unwrap_or(6), number.ok_or_else(wrong)? * 100.0),
        None | Some('s') => {
            let text = print::text(value, budget)?;
            match spec.precision {
                Some(precision) => text.chars().take(precision).collect(),
                None => text,
            }
        }
        Some(other) => return Err(format!("Unknown format code '{other}'")),
    };
    if spec.comma {
        text = with_commas(&text);
    }
    if spec.plus && number.is_some() && !text.starts_with('-') {
        text.insert(0, '+');
    }
    if spec.zero && spec.align.is_none() && number.is_some() {
        return methods::pad(&text, "zfill", spec.width as i128, '0', budget);
    }
    let side = match spec.align {
        Some('<') => "ljust",
        Some('>') => "rjust",
        Some(_) => "center",
        None if number.is_some() => "rjust",
        None => "ljust",
    };
    methods::pad(&text, side, spec.width as i128, spec.fill.unwrap_or(' '), budget)
}

fn with_commas(text: &str) -> String {
    let (sign, digits) = text.split_at(usize::from(text.starts_with('-')));
    let (whole, fraction) = digits.find('.').map_or((digits, ""), |at| digits.split_at(at));
    let mut out = sign.to_owned();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out + fraction
}

/// `text % args`.
pub(super) fn percent(text: &str, args: &[Value], budget: &Budget) -> Fallible<String> {
    let mut out = String::new();
    let mut given = args.iter();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let named = rest.strip_prefix('(').and_then(|tail| tail.split_once(')'));
        let value = named.map(|(name, tail)| {
            rest = tail;
            args.first().map_or(Err("format requires a mapping".to_owned()), |map| {
                ops::item(map, &Value::str(name), budget)
            })
        });
        let end = rest
            .find(|c: char| !matches!(c, '0'..='9' | '.' | '-' | '+' | ' '))
            .ok_or("incomplete format")?;
        let kind = rest[end..].chars().next().unwrap_or(' ');
        let flags = &rest[..end];
        rest = &rest[end + kind.len_utf8()..];
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = match value {
            Some(value) => value?,
            None => given.next().cloned().ok_or("not enough arguments for format string")?,
        };
        // The two notations differ in how they say left.
        let (left, flags) = flags.strip_prefix('-').map_or((false, flags), |flags| (true, flags));
        let mut spec = parse(flags)?;
        spec.align = Some(if left { '<' } else { '>' }).filter(|_| left || !spec.zero);
        let value = match kind {
            'r' => Value::str(print::repr(&value, budget)?),
            's' => Value::str(print::text(&value, budget)?),
            'd' | 'i' => {
                Value::Int(value.as_float().map(|f| f as i128).ok_or("%d format: a real number is required")?)
            }
            _ => value,
        };
        spec.kind = Some(match kind {
            'r' | 's' => 's',
            'i' => 'd',
            other => other,
        });
        let made = lay_out(&value, &spec, budget)?;
        out.push_str(&made);
    }
    if given.next().is_some() && !text.contains("%(") {
        return Err("not all arguments converted during string formatting".to_owned());
    }
    out.push_str(rest);
    Ok(out)
}
