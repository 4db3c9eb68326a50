//! Filters of numbers.

use crate::{
    args::{Args, is_true},
    error::{Result, runtime},
    ops::{numbers, print::text},
    value::{Heap, Value, missing},
};

/// Applies one of these filters.
pub(super) fn apply(name: &str, value: &Value, args: &Args, heap: &Heap) -> Result<Value> {
    match name {
        "abs" => match value {
            Value::Float(float) => Ok(Value::Float(float.abs())),
            other => match numbers::to_big(other, heap)? {
                Some(int) => heap.integer(int.magnitude().clone().into()),
                None => Err(missing(value)
                    .unwrap_or_else(|| runtime!("bad operand type for abs(): '{}'", value.type_name()))),
            },
        },
        "round" => round(value, args, heap),
        "int" => integer(value, args, heap),
        "filesizeformat" => {
            let [binary] = args.bind(name, ["binary"])?;
            let bytes = float(value, heap)?.ok_or_else(|| runtime!("filesizeformat needs a number"))?;
            file_size(bytes, is_true(binary.as_ref()), heap)
        }
        _ => {
            let [default] = args.bind(name, ["default"])?;
            Ok(float(value, heap)?.map(Value::Float).or(default).unwrap_or(Value::Float(0.0)))
        }
    }
}

/// Python's `float(value)`.
fn float(value: &Value, heap: &Heap) -> Result<Option<f64>> {
    match value {
        Value::Str(text) => numbers::parse_float(text, heap),
        other => Ok(other.as_float()),
    }
}

fn integer(value: &Value, args: &Args, heap: &Heap) -> Result<Value> {
    let [default, base] = args.bind("int", ["default", "base"])?;
    let base = base.and_then(|base| base.as_int()).and_then(|base| u32::try_from(base).ok()).unwrap_or(10);
    let parsed = match value {
        Value::Str(text) => match numbers::parse_integer(text, base, heap)? {
            Some(int) => Some(int),
            // So that '42.23' is 42.
            None => match numbers::parse_float(text, heap)? {
                Some(float) => numbers::truncate(float, heap)?,
                None => None,
            },
        },
        Value::Float(float) if float.is_infinite() => {
            return Err(runtime!("cannot convert float infinity to integer"));
        }
        Value::Float(float) => numbers::truncate(*float, heap)?,
        other => numbers::to_big(other, heap)?.map(|int| heap.integer(int)).transpose()?,
    };
    Ok(parsed.or(default).unwrap_or(Value::Int(0)))
}

fn round(value: &Value, args: &Args, heap: &Heap) -> Result<Value> {
    let [precision, method] = args.bind("round", ["precision", "method"])?;
    let precision = precision.and_then(|p| p.as_int()).unwrap_or(0);
    let method = method.as_ref().map_or(Some("common"), Value::as_str);
    let float = value.as_float().ok_or_else(|| {
        missing(value).unwrap_or_else(|| runtime!("round() needs a number, found '{}'", value.type_name()))
    })?;
    // No float has more digits before or behind its point.
    let clamped = precision.clamp(-330, 1_100) as i32;
    match method {
        Some("common") if !matches!(value, Value::Float(_)) => {
            let zeros = u32::try_from(precision.saturating_neg().max(0)).unwrap_or(u32::MAX);
            numbers::round_integer(value, zeros, heap)
        }
        // Python rounds to the nearest by the exact decimal value, and halves to even.
        Some("common") if clamped >= 0 => {
            let digits = clamped as usize;
            Ok(Value::Float(format!("{float:.digits$}").parse().unwrap_or(float)))
        }
        Some("common") => {
            let unit = 10f64.powi(-clamped);
            Ok(Value::Float(if unit.is_finite() { (float / unit).round_ties_even() * unit } else { 0.0 }))
        }
        Some(method @ ("ceil" | "floor")) => {
            let scale = 10f64.powi(clamped.min(308));
            let scaled = float * scale;
            Ok(Value::Float(if method == "ceil" { scaled.ceil() } else { scaled.floor() } / scale))
        }
        _ => Err(runtime!("method must be common, ceil or floor")),
    }
}

/// `1.5 kB`, or with powers of 1024 `1.5 KiB`.
fn file_size(bytes: f64, binary: bool, heap: &Heap) -> Result<Value> {
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    let units = if binary {
        ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"]
    } else {
        ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"]
    };
    if bytes == 1.0 {
        return heap.str("1 Byte");
    }
    if bytes < base {
        let whole = numbers::truncate(bytes, heap)?
            .ok_or_else(|| runtime!("filesizeformat needs a finite number"))?;
        return heap.written(format_args!("{} Bytes", &*text(&whole, heap)?));
    }
    let mut unit = base;
    for (at, name) in units.iter().enumerate() {
        unit *= base;
        if bytes < unit || at + 1 == units.len() {
            return heap.written(format_args!("{:.1} {name}", base * bytes / unit));
        }
    }
    heap.str("")
}
