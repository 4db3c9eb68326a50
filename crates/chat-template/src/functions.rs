//! Functions that every template can call.

mod lipsum;
mod strftime;

use std::cell::Cell;

use jiff::Zoned;

use crate::{
    args::Args,
    budget::STEP,
    context::Context,
    error::{Error, ErrorKind, Result, runtime},
    ops::print::text,
    value::{Cycler, DictBuilder, Heap, Joiner, Name, Value},
};

/// The most numbers of a range, as in the sandbox of transformers.
const MAX_RANGE: u64 = 100_000;

/// The function of that name.
pub(crate) fn named(name: &str) -> Option<&'static str> {
    const NAMES: &[&str] =
        &["raise_exception", "strftime_now", "namespace", "range", "dict", "cycler", "joiner", "lipsum"];
    NAMES.iter().copied().find(|known| *known == name)
}

/// Calls a function.
pub(crate) fn call(context: &Context, name: &str, args: &Args) -> Result<Value> {
    let heap = &context.heap;
    heap.charge(STEP)?;
    match name {
        "raise_exception" => {
            let [message] = args.bind(name, ["message"])?;
            let message = text(&message.unwrap_or(Value::None), heap)?;
            Err(Error::new(ErrorKind::Raised, format_args!("{}", &*message)))
        }
        "strftime_now" => {
            let [format] = args.bind(name, ["format"])?;
            let format = format.ok_or_else(|| runtime!("strftime_now() needs a format"))?;
            let format = format.as_str().ok_or_else(|| runtime!("strftime_now() needs a string"))?;
            let now = context.now.get().unwrap_or_else(|| Zoned::now().datetime());
            context.now.set(Some(now));
            strftime::strftime(format, now, heap)
        }
        "namespace" => {
            let namespace = heap.namespace()?;
            entries(args, heap, |key, value| {
                heap.set_field(namespace, Name::Made(text(&key, heap)?), value)
            })?;
            Ok(Value::Namespace(namespace))
        }
        "dict" => {
            let mut dict = DictBuilder::new(heap)?;
            entries(args, heap, |key, value| dict.insert(key, value))?;
            dict.finish()
        }
        "cycler" => {
            let mut items = heap.items();
            items.extend(&args.positional)?;
            if items.is_empty() {
                return Err(runtime!("at least one item has to be provided"));
            }
            Ok(Value::Cycler(heap.held(Cycler { items: items.seq()?, at: Cell::new(0) })?))
        }
        "joiner" => {
            let [separator] = args.bind(name, ["sep"])?;
            let separator = separator.map_or_else(|| heap.str(", "), Ok)?;
            let mut nested = heap.items();
            // As deep as a list about the separator.
            nested.push(separator.clone())?;
            nested.seq()?;
            Ok(Value::Joiner(heap.held(Joiner { separator, used: Cell::new(false) })?))
        }
        "lipsum" => lipsum::lipsum(context, args),
        _ => range(args, heap),
    }
}

/// The entries of mappings, of lists of pairs, and of named arguments.
fn entries(args: &Args, heap: &Heap, mut each: impl FnMut(Value, Value) -> Result<()>) -> Result<()> {
    for value in args.positional.iter() {
        if let Value::Dict(dict) = value {
            dict.iter().try_for_each(|(key, value)| each(key.clone(), value.clone()))?;
            continue;
        }
        for item in heap.iterate(value)?.iter() {
            match item {
                Value::List(pair) | Value::Tuple(pair) if pair.len() == 2 => {
                    each(pair[0].clone(), pair[1].clone())?;
                }
                _ => return Err(runtime!("expected a dict or a list of pairs")),
            }
        }
    }
    args.named().iter().try_for_each(|(name, value)| each(heap.str(name)?, value.clone()))
}

fn range(args: &Args, heap: &Heap) -> Result<Value> {
    let number = |value: &Value| value.as_int().ok_or_else(|| runtime!("range() needs integers"));
    let (start, stop, step) = match &args.positional[..] {
        [stop] => (0, number(stop)?, 1),
        [start, stop] => (number(start)?, number(stop)?, 1),
        [start, stop, step] => (number(start)?, number(stop)?, number(step)?),
        other => return Err(runtime!("range expected 1 to 3 arguments, got {}", other.len())),
    };
    if step == 0 {
        return Err(runtime!("range() arg 3 must not be zero"));
    }
    let is_empty = if step > 0 { start >= stop } else { start <= stop };
    let count = if is_empty { 0 } else { start.abs_diff(stop).div_ceil(step.unsigned_abs()) };
    if count > MAX_RANGE {
        return Err(runtime!("Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE})"));
    }
    let mut items = heap.items();
    let mut at = start;
    for _ in 0..count {
        items.push(Value::Int(at))?;
        at = at.saturating_add(step);
    }
    items.list()
}
