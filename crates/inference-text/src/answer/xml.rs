//! Tool calls in notations whose arguments are bare text between tags.
//!
//! Nothing is escaped in them. A tag within an argument is told from one that ends it by what stands around it: the
//! families' templates write each end tag behind the one before it, with white space between them at most.

use serde_json::{Map, Value};

use super::{
    call::{Calls, ParsedCall, json_arguments},
    calls,
    schema::Types,
};

/// How the body of `<tool_call>` is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notation {
    /// JSON (Hermes, Qwen).
    Json,
    /// `<function=name>` and `<parameter=key>` (Qwen3-Coder, Step 3.5), or JSON in `<function=name>` (Functionary).
    Function,
    /// `<arg_key>` and `<arg_value>` (GLM).
    ArgTags,
}

const FUNCTION: &str = "<function=";
const FUNCTION_END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";
const ARG_KEY: &str = "<arg_key>";
const ARG_VALUE_END: &str = "</arg_value>";

impl Notation {
    /// The notation of a call, by the tag that opened it and what followed so far.
    pub(super) fn of(opened: &str, body: &str) -> Self {
        let body = body.trim_start();
        if opened == FUNCTION {
            let json = body.split_once('>').is_some_and(|(_, rest)| rest.trim_start().starts_with('{'));
            return if json { Self::Json } else { Self::Function };
        }
        if let Some(function) = body.strip_prefix(FUNCTION) {
            let json = function.split_once('>').is_some_and(|(_, rest)| rest.trim_start().starts_with('{'));
            return if json { Self::Json } else { Self::Function };
        }
        if body.starts_with(['{', '[']) { Self::Json } else { Self::ArgTags }
    }
}

/// Whether an end tag behind this body ends the call, and is not part of an argument.
pub(super) fn is_complete(notation: Notation, opened: &str, body: &str) -> bool {
    let body = body.trim_end();
    match notation {
        // Whether it lies within a string is decided by the caller, which reads byte by byte.
        Notation::Json => true,
        Notation::ArgTags => body.ends_with(ARG_VALUE_END) || !body.contains(ARG_KEY),
        Notation::Function if opened == FUNCTION => {
            body.ends_with(PARAMETER_END) || !body.contains(PARAMETER)
        }
        Notation::Function => match body.strip_suffix(FUNCTION_END).map(str::trim_end) {
            Some(body) => body.ends_with(PARAMETER_END) || !body.contains(PARAMETER),
            // A model may forget the function's end.
            None => body.strip_suffix(PARAMETER_END).is_some_and(|value| value.ends_with('\n')),
        },
    }
}

/// Within `<tool_call>`: JSON, `<function=…>` or `<arg_key>`.
pub(super) fn tagged(body: &str, tools: &[Value]) -> Calls {
    let body = body.trim();
    if body.starts_with(FUNCTION) {
        let mut calls = Vec::new();
        let mut rest = body;
        while let Some((_, function)) = rest.split_once(FUNCTION) {
            let (call, tail) = function_call(function, tools)?;
            calls.push(call);
            rest = tail;
        }
        return Ok(calls);
    }
    if body.starts_with(['{', '[']) {
        return calls::json(body);
    }
    arg_tags(body, tools).map(|call| vec![call])
}

/// `name>` and then `<parameter=key>value</parameter>`s, or the arguments as JSON; the text behind the function.
fn function_call<'t>(function: &'t str, tools: &[Value]) -> Result<(ParsedCall, &'t str), String> {
    let (name, mut rest) = function.split_once('>').ok_or("<function= has no end")?;
    if rest.trim_start().starts_with('{') {
        let json = rest.trim_end();
        let json = json.strip_suffix(FUNCTION_END).unwrap_or(json);
        return Ok((ParsedCall::new(name, json_arguments(json)?)?, ""));
    }
    let mut arguments = Map::new();
    loop {
        rest = rest.trim_start();
        if let Some(tail) = rest.strip_prefix(FUNCTION_END) {
            rest = tail;
            break;
        }
        let Some((between, tail)) = rest.split_once(PARAMETER) else { break };
        // What stands between arguments has no meaning; another function's are not this one's.
        if let Some((_, tail)) = between.split_once(FUNCTION_END) {
            rest = &rest[between.len() - tail.len()..];
            break;
        }
        let (key, tail) = tail.split_once('>').ok_or("<parameter= has no end")?;
        let ends =
            |tail: &str| tail.is_empty() || tail.starts_with(PARAMETER) || tail.starts_with(FUNCTION_END);
        let (value, tail) = value_until(tail, PARAMETER_END, ends).ok_or("a <parameter> is not closed")?;
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = value.strip_suffix('\n').unwrap_or(value);
        arguments.insert(key.to_owned(), Types::of_argument(tools, name.trim(), key).read(value));
        rest = tail;
    }
    Ok((ParsedCall::new(name, Value::Object(arguments))?, rest))
}

/// `name`, then `<arg_key>key</arg_key><arg_value>value</arg_value>`s.
fn arg_tags(body: &str, tools: &[Value]) -> Result<ParsedCall, String> {
    let (name, mut rest) = body.find(ARG_KEY).map_or((body, ""), |at| body.split_at(at));
    let name = name.trim();
    if name.contains(['<', '{', ' ']) || name.is_empty() {
        return Err("it is neither JSON nor tagged".to_owned());
    }
    let mut arguments = Map::new();
    while let Some((_, tail)) = rest.split_once(ARG_KEY) {
        let (key, tail) = tail.split_once("</arg_key>").ok_or("an <arg_key> is not closed")?;
        let (_, tail) = tail.split_once("<arg_value>").ok_or("an <arg_key> has no <arg_value>")?;
        let ends = |tail: &str| tail.is_empty() || tail.starts_with(ARG_KEY);
        let (value, tail) = value_until(tail, ARG_VALUE_END, ends).ok_or("an <arg_value> is not closed")?;
        let key = key.trim();
        arguments.insert(key.to_owned(), Types::of_argument(tools, name, key).read(value));
        rest = tail;
    }
    ParsedCall::new(name, Value::Object(arguments))
}

/// A value up to the first end tag that is followed, but for white space, by what may follow a value; the text behind it.
/// Where no end tag is, the last one ends the value.
fn value_until<'t>(text: &'t str, end: &str, ends: impl Fn(&str) -> bool) -> Option<(&'t str, &'t str)> {
    let mut found = text.match_indices(end).map(|(at, _)| (&text[..at], &text[at + end.len()..]));
    found.find(|(_, tail)| ends(tail.trim_start())).or_else(|| text.rsplit_once(end))
}
