//! Arithmetic: 64-bit integers that grow beyond when they have to, and floats.

use num_bigint::{BigInt, Sign};
use num_traits::{FromPrimitive, ToPrimitive, Zero};

use crate::{
    error::{Error, Result, runtime},
    syntax::ast::BinaryOp,
    value::{Heap, Value, missing},
};

/// The most digits of an integer that is read from a text or written as one, as in Python.
pub(crate) const MAX_DIGITS: usize = 4_300;

/// How many words of 64 bits an integer takes.
fn words(int: &BigInt) -> usize {
    usize::try_from(int.bits() / 64).unwrap_or(usize::MAX).saturating_add(1)
}

/// An integer of any size, if the value is one.
pub(crate) fn to_big(value: &Value, heap: &Heap) -> Result<Option<BigInt>> {
    Ok(match value {
        Value::BigInt(int) => {
            heap.charge(words(int))?;
            Some((***int).clone())
        }
        other => other.as_int().map(BigInt::from),
    })
}

/// `-value`
pub(crate) fn negate(value: &Value, heap: &Heap) -> Result<Value> {
    match value {
        Value::Float(float) => Ok(Value::Float(-float)),
        other => match to_big(other, heap)? {
            Some(int) => heap.integer(-int),
            None => Err(wrong_operand("unary -", value)),
        },
    }
}

/// `+value`
pub(crate) fn positive(value: &Value, heap: &Heap) -> Result<Value> {
    match value {
        Value::Float(float) => Ok(Value::Float(*float)),
        other => match to_big(other, heap)? {
            Some(int) => heap.integer(int),
            None => Err(wrong_operand("unary +", value)),
        },
    }
}

fn wrong_operand(operator: &str, value: &Value) -> Error {
    missing(value).unwrap_or_else(|| runtime!("bad operand type for {operator}: '{}'", value.type_name()))
}

pub(crate) fn sign(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Add => "+",
        BinaryOp::Subtract => "-",
        BinaryOp::Multiply => "*",
        BinaryOp::Divide => "/",
        BinaryOp::FloorDivide => "//",
        BinaryOp::Modulo => "%",
        BinaryOp::Power => "**",
    }
}

/// An operator between two numbers; `None` if one is no number.
pub(crate) fn arithmetic(op: BinaryOp, left: &Value, right: &Value, heap: &Heap) -> Result<Option<Value>> {
    let is_float = |value: &Value| matches!(value, Value::Float(_));
    let (Some(x), Some(y)) = (left.as_float(), right.as_float()) else { return Ok(None) };
    let divides = matches!(op, BinaryOp::Divide | BinaryOp::FloorDivide | BinaryOp::Modulo);
    if divides && !right.is_true() {
        return Err(runtime!("division by zero"));
    }
    if !is_float(left) && !is_float(right) {
        return integers(op, left, right, heap).map(Some);
    }
    // Python refuses an integer that no float can hold.
    if (x.is_infinite() && !is_float(left)) || (y.is_infinite() && !is_float(right)) {
        return Err(runtime!("int too large to convert to float"));
    }
    floats(op, x, y).map(|float| Some(Value::Float(float)))
}

fn floats(op: BinaryOp, x: f64, y: f64) -> Result<f64> {
    Ok(match op {
        BinaryOp::Add => x + y,
        BinaryOp::Subtract => x - y,
        BinaryOp::Multiply => x * y,
        BinaryOp::Divide => x / y,
        BinaryOp::Modulo => modulo(x, y),
        BinaryOp::FloorDivide => {
            let quotient = (x - modulo(x, y)) / y;
            let floor = quotient.floor();
            if quotient - floor > 0.5 { floor + 1.0 } else { floor }
        }
        BinaryOp::Power if x == 0.0 && y < 0.0 => {
            return Err(runtime!("0.0 cannot be raised to a negative power"));
        }
        BinaryOp::Power if x < 0.0 && y.fract() != 0.0 && y.is_finite() => {
            return Err(runtime!("complex numbers are not supported"));
        }
        BinaryOp::Power => {
            let power = x.powf(y);
            if power.is_infinite() && x.is_finite() && y.is_finite() {
                return Err(runtime!("the result is too large for a float"));
            }
            power
        }
    })
}

/// The rest of a division, with the divisor's sign.
fn modulo(x: f64, y: f64) -> f64 {
    let rest = x % y;
    if rest != 0.0 && (rest < 0.0) != (y < 0.0) { rest + y } else { rest }
}

fn integers(op: BinaryOp, left: &Value, right: &Value, heap: &Heap) -> Result<Value> {
    if let (Some(a), Some(b)) = (small(left), small(right))
        && let Some(int) = small_integers(op, a, b)
    {
        return Ok(Value::Int(int));
    }
    let (Some(a), Some(b)) = (to_big(left, heap)?, to_big(right, heap)?) else {
        return Err(runtime!("expected integers"));
    };
    let (a_words, b_words) = (words(&a), words(&b));
    if op == BinaryOp::Power {
        return power(&a, &b, heap);
    }
    // What the operation takes, and the memory of its result, before it is done.
    match op {
        BinaryOp::Add | BinaryOp::Subtract => heap.charge(a_words.saturating_add(b_words))?,
        _ => heap.charge_product(a_words, b_words)?,
    }
    let room = heap.hold(a_words.saturating_add(b_words).saturating_mul(16))?;
    let result = match op {
        BinaryOp::Add => a + b,
        BinaryOp::Subtract => a - b,
        BinaryOp::Multiply => a * b,
        BinaryOp::Divide => return divide(&a, &b, heap),
        BinaryOp::FloorDivide => floor_divide(&a, &b).0,
        BinaryOp::Modulo | BinaryOp::Power => floor_divide(&a, &b).1,
    };
    drop(room);
    heap.integer(result)
}

fn small(value: &Value) -> Option<i64> {
    if matches!(value, Value::BigInt(_)) { None } else { value.as_int() }
}

/// Where 64 bits are enough.
fn small_integers(op: BinaryOp, a: i64, b: i64) -> Option<i64> {
    match op {
        BinaryOp::Add => a.checked_add(b),
        BinaryOp::Subtract => a.checked_sub(b),
        BinaryOp::Multiply => a.checked_mul(b),
        // Python rounds towards minus infinity.
        BinaryOp::FloorDivide => {
            let quotient = a.checked_div(b)?;
            Some(if a % b != 0 && (a < 0) != (b < 0) { quotient - 1 } else { quotient })
        }
        BinaryOp::Modulo => {
            let rest = a.checked_rem(b)?;
            Some(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest })
        }
        BinaryOp::Power => a.checked_pow(u32::try_from(b).ok()?),
        BinaryOp::Divide => None,
    }
}

/// Quotient and rest, rounded towards minus infinity.
fn floor_divide(a: &BigInt, b: &BigInt) -> (BigInt, BigInt) {
    let (quotient, rest) = (a / b, a % b);
    if !rest.is_zero() && (rest.sign() == Sign::Minus) != (b.sign() == Sign::Minus) {
        (quotient - 1, rest + b)
    } else {
        (quotient, rest)
    }
}

/// The float that is nearest to a quotient.
fn divide(a: &BigInt, b: &BigInt, heap: &Heap) -> Result<Value> {
    // A quotient of 66 bits at least, whose last bit says whether there is a rest, is rounded only once.
    let shift =
        66 + i64::try_from(b.bits()).unwrap_or(i64::MAX) - i64::try_from(a.bits()).unwrap_or(i64::MAX);
    let bits = usize::try_from(shift.unsigned_abs()).unwrap_or(usize::MAX);
    let _room = heap.hold(words(a).saturating_add(words(b)).saturating_mul(16).saturating_add(bits / 4))?;
    heap.charge_product(words(a).saturating_add(bits / 64), words(b).saturating_add(bits / 64))?;
    let (numerator, denominator) = if shift > 0 { (a << bits, b.clone()) } else { (a.clone(), b << bits) };
    let (quotient, rest) = (&numerator / &denominator, &numerator % &denominator);
    let sticky =
        if rest.is_zero() { quotient } else { (quotient << 1u8) + if a.sign() == b.sign() { 1 } else { -1 } };
    let doubled = i64::from(!rest.is_zero());
    let float = sticky.to_f64().unwrap_or(f64::INFINITY);
    let exponent = i32::try_from(-(shift + doubled)).unwrap_or(if shift > 0 { i32::MIN } else { i32::MAX });
    // In two steps, as neither power may leave the range of floats.
    let half = exponent / 2;
    let result = float * 2f64.powi(half) * 2f64.powi(exponent - half);
    if result.is_infinite() {
        return Err(runtime!("integer division result too large for a float"));
    }
    Ok(Value::Float(result))
}

fn power(base: &BigInt, exponent: &BigInt, heap: &Heap) -> Result<Value> {
    if exponent.sign() == Sign::Minus {
        let (x, y) = (base.to_f64().unwrap_or(f64::NAN), exponent.to_f64().unwrap_or(f64::NAN));
        if x.is_infinite() || y.is_infinite() {
            return Err(runtime!("int too large to convert to float"));
        }
        return floats(BinaryOp::Power, x, y).map(Value::Float);
    }
    if base.bits() <= 1 && *base != BigInt::from(-1) {
        // 0 and 1
        return heap.integer(if exponent.is_zero() { BigInt::from(1) } else { base.clone() });
    }
    if *base == BigInt::from(-1) {
        return heap.integer(BigInt::from(if exponent.bit(0) { -1 } else { 1 }));
    }
    let Some(exponent) = exponent.to_u32() else {
        return Err(Error::limit(format_args!("a power is too large")));
    };
    let bits = base.bits().saturating_mul(exponent.into());
    let words = usize::try_from(bits / 64).unwrap_or(usize::MAX).saturating_add(1);
    heap.charge_product(words, words)?;
    let room = heap.hold(words.saturating_mul(32))?;
    let result = base.pow(exponent);
    drop(room);
    heap.integer(result)
}

/// An integer from a text, by the rules of Python's `int(text, base)`; base 0 goes by the prefix.
pub(crate) fn parse_integer(text: &str, base: u32, heap: &Heap) -> Result<Option<Value>> {
    heap.charge(text.len())?;
    let text = super::strings::trim(text);
    let (negative, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) => (text.starts_with('-'), digits),
        None => (false, text),
    };
    let prefix = digits.get(..2).map(str::to_ascii_lowercase);
    let radix = match prefix.as_deref() {
        Some("0x") if matches!(base, 0 | 16) => Some(16),
        Some("0o") if matches!(base, 0 | 8) => Some(8),
        Some("0b") if matches!(base, 0 | 2) => Some(2),
        _ => None,
    };
    let (radix, digits) = match radix {
        Some(radix) => (radix, digits[2..].strip_prefix('_').unwrap_or(&digits[2..])),
        None => (if base == 0 { 10 } else { base }, digits),
    };
    let well_formed = !digits.is_empty()
        && digits.len() <= MAX_DIGITS
        && !digits.starts_with('_')
        && !digits.ends_with('_')
        && !digits.contains("__")
        && (2..=36).contains(&radix)
        && digits.chars().all(|c| c == '_' || c.is_digit(radix));
    if !well_formed {
        return Ok(None);
    }
    heap.charge_product(digits.len() / 8, digits.len() / 8)?;
    let int = BigInt::parse_bytes(digits.replace('_', "").as_bytes(), radix);
    int.map(|int| heap.integer(if negative { -int } else { int })).transpose()
}

/// A float from a text, by the rules of Python's `float(text)`.
pub(crate) fn parse_float(text: &str, heap: &Heap) -> Result<Option<f64>> {
    heap.charge(text.len())?;
    let text = super::strings::trim(text);
    // More digits than this change no float; a longer text is no number that somebody wrote.
    if text.len() > MAX_DIGITS {
        return Ok(None);
    }
    let joins = |at: usize| {
        let is_digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
        is_digit(text.as_bytes().get(at.wrapping_sub(1))) && is_digit(text.as_bytes().get(at + 1))
    };
    if text.match_indices('_').any(|(at, _)| !joins(at)) {
        return Ok(None);
    }
    Ok(text.replace('_', "").parse().ok())
}

/// The whole part of a float; `None` for what has none.
pub(crate) fn truncate(float: f64, heap: &Heap) -> Result<Option<Value>> {
    BigInt::from_f64(float.trunc()).map(|int| heap.integer(int)).transpose()
}

/// An integer rounded to tens, hundreds, …; halves go to the even side.
pub(crate) fn round_integer(value: &Value, zeros: u32, heap: &Heap) -> Result<Value> {
    let Some(int) = to_big(value, heap)? else { return Err(wrong_operand("round()", value)) };
    if u64::from(zeros) > int.bits() / 3 + 2 {
        return Ok(Value::Int(0));
    }
    let words = words(&int);
    heap.charge_product(words, words)?;
    let _room = heap.hold(words.saturating_mul(64))?;
    let unit = BigInt::from(10).pow(zeros);
    let (quotient, rest) = floor_divide(&int, &unit);
    let up = match (&rest * 2u8).cmp(&unit) {
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => quotient.bit(0),
        std::cmp::Ordering::Greater => true,
    };
    heap.integer((quotient + u8::from(up)) * unit)
}
