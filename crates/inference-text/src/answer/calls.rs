//! Tool calls in the JSON notations of the model families.
//!
//! A delimiter within a JSON string is text: calls are read value by value, and never cut at delimiters.

use serde_json::{Map, Value};

use super::{
    call::{Calls, ParsedCall, json_prefix},
    literal,
};

/// `{"name": …, "arguments": …}`, with `parameters` for the arguments in Llama's, `tool_name` for the name in Cohere's, and
/// `{name: arguments}` in Apertus'; one, a list, or several one after another.
pub(super) fn json(body: &str) -> Calls {
    let mut calls = Vec::new();
    let mut rest = body.trim_start();
    while !rest.is_empty() {
        let (value, tail) = json_prefix(rest)?;
        json_values(&value, &mut calls)?;
        rest = tail.trim_start_matches(|c: char| c.is_whitespace() || c == ';');
    }
    if calls.is_empty() { Err("it is empty".to_owned()) } else { Ok(calls) }
}

/// [`json`], or calls in Python.
pub(super) fn json_or_python(body: &str) -> Calls {
    json(body).or_else(|_| literal::calls(body))
}

fn json_values(value: &Value, calls: &mut Vec<ParsedCall>) -> Result<(), String> {
    match value {
        Value::Array(values) => values.iter().try_for_each(|value| {
            calls.push(from_value(value)?);
            Ok(())
        }),
        value => {
            calls.push(from_value(value)?);
            Ok(())
        }
    }
}

fn from_value(value: &Value) -> Result<ParsedCall, String> {
    let text = |value: &Value, keys: [&str; 2]| {
        keys.into_iter().find_map(|key| value.get(key)?.as_str().map(str::to_owned))
    };
    let id = text(value, ["id", "tool_call_id"]);
    let value = value.get("function").filter(|function| function.is_object()).unwrap_or(value);
    let arguments = value.get("arguments").or_else(|| value.get("parameters"));
    let Some(name) = text(value, ["name", "tool_name"]) else {
        let only =
            value.as_object().filter(|entries| entries.len() == 1).and_then(|entries| entries.iter().next());
        let (name, arguments) =
            only.filter(|(_, value)| value.is_object()).ok_or("it has no string `name`")?;
        return ParsedCall::new(name, arguments.clone());
    };
    let call = ParsedCall::new(&name, arguments.cloned().unwrap_or_else(no_arguments))?;
    Ok(ParsedCall { id, ..call })
}

/// After `[TOOL_CALLS]`: a JSON list, or `name[ARGS]{…}`, with more of the same.
pub(super) fn mistral(body: &str) -> Calls {
    let mut calls = Vec::new();
    let mut rest = body;
    loop {
        rest = rest.trim_start();
        rest = rest.strip_prefix("[TOOL_CALLS]").map_or(rest, str::trim_start);
        if rest.is_empty() || rest.trim() == "</s>" {
            break;
        }
        if rest.starts_with(['[', '{']) {
            let (value, tail) = json_prefix(rest)?;
            json_values(&value, &mut calls)?;
            rest = tail;
            continue;
        }
        let (head, tail) = rest.split_once("[ARGS]").ok_or("it has no [ARGS]")?;
        let (name, id) = head.split_once("[CALL_ID]").map_or((head, None), |(name, id)| (name, Some(id)));
        let (arguments, tail) = arguments_until(tail, &["[TOOL_CALLS]", "</s>"])?;
        calls.push(ParsedCall::new(name, arguments)?.with_id(id));
        rest = tail;
    }
    if calls.is_empty() { Err("it is empty".to_owned()) } else { Ok(calls) }
}

/// DeepSeek's: `name<｜tool▁sep｜>{…}`, or `function<｜tool▁sep｜>name` and the arguments in a fence.
pub(super) fn deepseek(body: &str) -> Calls {
    const END: &str = "<｜tool▁call▁end｜>";
    let mut calls = Vec::new();
    let mut rest = body;
    while let Some((_, part)) = rest.split_once("<｜tool▁call▁begin｜>") {
        let (head, tail) = part.split_once("<｜tool▁sep｜>").ok_or("it has no <｜tool▁sep｜>")?;
        let fenced = tail.split_once("```json").filter(|(name, _)| !name.contains(['{', '<']));
        let (name, arguments) = fenced.unwrap_or((head, tail));
        let (arguments, tail) = arguments_until(arguments, &[END, "```"])?;
        calls.push(ParsedCall::new(name, arguments)?);
        rest = tail;
    }
    if calls.is_empty() { Err("it has no <｜tool▁call▁begin｜>".to_owned()) } else { Ok(calls) }
}

/// Kimi's: `functions.name:0<|tool_call_argument_begin|>{…}`, where the head is the call's id.
pub(super) fn kimi(body: &str) -> Calls {
    let mut calls = Vec::new();
    let mut rest = body;
    while let Some((_, part)) = rest.split_once("<|tool_call_begin|>") {
        let (id, tail) = part
            .split_once("<|tool_call_argument_begin|>")
            .ok_or("it has no <|tool_call_argument_begin|>")?;
        let id = id.trim();
        let name = id.rsplit_once(':').map_or(id, |(name, _)| name);
        let (arguments, tail) = arguments_until(tail, &["<|tool_call_end|>"])?;
        let call = ParsedCall::new(name.strip_prefix("functions.").unwrap_or(name), arguments)?;
        calls.push(call.with_id(Some(id)));
        rest = tail;
    }
    if calls.is_empty() { Err("it has no <|tool_call_begin|>".to_owned()) } else { Ok(calls) }
}

/// gpt-oss's: `commentary to=functions.name …` over the arguments.
pub(super) fn channel(header: &str, body: &str) -> Calls {
    let (arguments, _) = arguments_until(body, &[])?;
    ParsedCall::new(recipient(header), arguments).map(|call| vec![call])
}

/// The function that gpt-oss's header of a message names; empty where it names none.
pub(super) fn recipient(header: &str) -> &str {
    let recipient =
        header.split("to=").nth(1).and_then(|tail| tail.split([' ', '<', '\n']).next()).unwrap_or_default();
    recipient.strip_prefix("functions.").unwrap_or(recipient)
}

/// The arguments that a text begins with, and the text behind them; none where it begins with one of these ends.
fn arguments_until<'t>(text: &'t str, ends: &[&str]) -> Result<(Value, &'t str), String> {
    let text = text.trim_start();
    if text.is_empty() || ends.iter().any(|end| text.starts_with(end)) {
        return Ok((no_arguments(), text));
    }
    let (arguments, tail) = json_prefix(text).map_err(|reason| format!("the arguments: {reason}"))?;
    let tail = tail.trim_start();
    if tail.is_empty() || ends.iter().any(|end| tail.starts_with(end)) {
        return Ok((arguments, tail));
    }
    let near: String = tail.chars().take(20).collect();
    Err(format!("behind the arguments stands {near:?}"))
}

fn no_arguments() -> Value {
    Value::Object(Map::new())
}
