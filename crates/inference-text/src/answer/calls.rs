//! Calls of tools in the notations of the model families.

use serde_json::{Map, Value};

use super::literal;

/// A call that was read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    /// What the model calls the call, where it does.
    pub(super) id: Option<String>,
    pub(super) name: String,
    pub(super) arguments: Map<String, Value>,
}

type Calls = Result<Vec<Call>, String>;

/// `{"name": …, "arguments": …}`, with `parameters` for the arguments in Llama's, `tool_name` for the name in Cohere's, and
/// `{name: arguments}` in Apertus'; one, a list, or several one after another.
pub(super) fn json(body: &str) -> Calls {
    let mut calls = Vec::new();
    let mut rest = body.trim_start();
    while !rest.is_empty() {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        match values.next() {
            Some(Ok(Value::Array(values))) => {
                for value in &values {
                    calls.push(from_value(value)?);
                }
            }
            Some(Ok(value)) => calls.push(from_value(&value)?),
            Some(Err(error)) => return Err(format!("it is no JSON: {error}")),
            None => break,
        }
        rest = rest[values.byte_offset()..].trim_start_matches(|c: char| c.is_whitespace() || c == ';');
    }
    if calls.is_empty() { Err("it is empty".to_owned()) } else { Ok(calls) }
}

/// [`json`], or calls in Python.
pub(super) fn json_or_python(body: &str) -> Calls {
    json(body).or_else(|_| literal::calls(body))
}

fn from_value(value: &Value) -> Result<Call, String> {
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
        return call(name, arguments.clone());
    };
    let call = call(&name, arguments.cloned().unwrap_or_else(|| Value::Object(Map::new())))?;
    Ok(Call { id, ..call })
}

/// A call; arguments that are JSON in a string are read.
fn call(name: &str, arguments: Value) -> Result<Call, String> {
    let arguments = match arguments {
        Value::String(text) => parsed(&text)?,
        other => other,
    };
    match (name.trim(), arguments) {
        ("", _) => Err("it has no name".to_owned()),
        (name, Value::Object(arguments)) => Ok(Call { id: None, name: name.to_owned(), arguments }),
        (name, _) => Err(format!("the arguments of {name} are no JSON object")),
    }
}

fn parsed(text: &str) -> Result<Value, String> {
    match text.trim() {
        "" => Ok(Value::Object(Map::new())),
        text => serde_json::from_str(text).map_err(|error| format!("the arguments are no JSON: {error}")),
    }
}

/// Within `<tool_call>`: JSON, Qwen3-Coder's `<function=…>` or GLM's `<arg_key>`.
pub(super) fn tagged(body: &str, tools: &[Value]) -> Calls {
    let body = body.trim();
    if body.starts_with("<function=") {
        return body.split("<function=").skip(1).map(|function| coder(function, tools)).collect();
    }
    if body.starts_with(['{', '[']) {
        return json(body);
    }
    let (name, mut rest) = body.find("<arg_key>").map_or((body, ""), |at| body.split_at(at));
    if name.contains(['<', '{', ' ']) || name.is_empty() {
        return Err("it is neither JSON nor tagged".to_owned());
    }
    let mut arguments = Map::new();
    while let Some((_, tail)) = rest.split_once("<arg_key>") {
        let (key, tail) = tail.split_once("</arg_key>").ok_or("an <arg_key> is not closed")?;
        let (_, tail) = tail.split_once("<arg_value>").ok_or("an <arg_key> has no <arg_value>")?;
        let (value, tail) = tail.split_once("</arg_value>").ok_or("an <arg_value> is not closed")?;
        arguments.insert(key.trim().to_owned(), typed(name.trim(), key.trim(), value, tools));
        rest = tail;
    }
    call(name, Value::Object(arguments)).map(|call| vec![call])
}

/// `name>` and then `<parameter=key>value</parameter>`s, or the arguments as JSON (Functionary).
fn coder(function: &str, tools: &[Value]) -> Result<Call, String> {
    let (name, mut rest) = function.split_once('>').ok_or("<function= has no end")?;
    if rest.trim_start().starts_with('{') {
        let json = rest.trim_end();
        return call(name, parsed(json.strip_suffix("</function>").unwrap_or(json))?);
    }
    let mut arguments = Map::new();
    while let Some((_, tail)) = rest.split_once("<parameter=") {
        let (key, tail) = tail.split_once('>').ok_or("<parameter= has no end")?;
        let (value, tail) = tail.split_once("</parameter>").ok_or("a <parameter> is not closed")?;
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = value.strip_suffix('\n').unwrap_or(value);
        arguments.insert(key.to_owned(), typed(name, key, value, tools));
        rest = tail;
    }
    call(name, Value::Object(arguments))
}

/// An argument that comes as bare text: of the type that the tool's definition says, or what it reads as.
fn typed(name: &str, key: &str, value: &str, tools: &[Value]) -> Value {
    let definition = tools.iter().map(|tool| tool.get("function").unwrap_or(tool));
    let definition =
        definition.into_iter().find(|tool| tool.get("name").and_then(Value::as_str) == Some(name));
    let expected = definition
        .and_then(|tool| tool.get("parameters")?.get("properties")?.get(key)?.get("type")?.as_str());
    if expected == Some("string") {
        return Value::String(value.to_owned());
    }
    serde_json::from_str(value.trim()).unwrap_or_else(|_| Value::String(value.to_owned()))
}

/// After `[TOOL_CALLS]`: a JSON list, or `name[ARGS]{…}`, with more of the same.
pub(super) fn mistral(body: &str) -> Calls {
    let calls = body.split("[TOOL_CALLS]").filter(|call| !call.trim().is_empty());
    let calls: Vec<Vec<Call>> = calls
        .map(|body| match body.split_once("[ARGS]") {
            Some((head, arguments)) => {
                let (name, id) =
                    head.split_once("[CALL_ID]").map_or((head, None), |(name, id)| (name, Some(id)));
                let call = call(name, parsed(arguments.trim_end_matches("</s>"))?)?;
                Ok(vec![Call { id: id.map(|id| id.trim().to_owned()), ..call }])
            }
            None => json(body.trim().trim_end_matches("</s>")),
        })
        .collect::<Result<_, String>>()?;
    if calls.is_empty() { Err("it is empty".to_owned()) } else { Ok(calls.concat()) }
}

/// DeepSeek's: `name<｜tool▁sep｜>{…}`, or `function<｜tool▁sep｜>name` and the arguments in a fence.
pub(super) fn deepseek(body: &str) -> Calls {
    let mut calls = Vec::new();
    for part in body.split("<｜tool▁call▁begin｜>").skip(1) {
        let part = part.split("<｜tool▁call▁end｜>").next().unwrap_or_default();
        let (head, tail) = part.split_once("<｜tool▁sep｜>").ok_or("it has no <｜tool▁sep｜>")?;
        calls.push(match tail.split_once("```json") {
            Some((name, arguments)) => call(name, parsed(arguments.trim_end().trim_end_matches("```"))?)?,
            None => call(head, parsed(tail)?)?,
        });
    }
    if calls.is_empty() { Err("it has no <｜tool▁call▁begin｜>".to_owned()) } else { Ok(calls) }
}

/// Kimi's: `functions.name:0<|tool_call_argument_begin|>{…}`, where the head is the call's id.
pub(super) fn kimi(body: &str) -> Calls {
    let mut calls = Vec::new();
    for part in body.split("<|tool_call_begin|>").skip(1) {
        let part = part.split("<|tool_call_end|>").next().unwrap_or_default();
        let (id, arguments) = part
            .split_once("<|tool_call_argument_begin|>")
            .ok_or("it has no <|tool_call_argument_begin|>")?;
        let id = id.trim();
        let name = id.rsplit_once(':').map_or(id, |(name, _)| name);
        let call = call(name.strip_prefix("functions.").unwrap_or(name), parsed(arguments)?)?;
        calls.push(Call { id: Some(id.to_owned()), ..call });
    }
    if calls.is_empty() { Err("it has no <|tool_call_begin|>".to_owned()) } else { Ok(calls) }
}

/// gpt-oss's: `commentary to=functions.name …` over the arguments.
pub(super) fn channel(header: &str, body: &str) -> Calls {
    let recipient =
        header.split("to=").nth(1).and_then(|tail| tail.split([' ', '<', '\n']).next()).unwrap_or_default();
    let name = recipient.strip_prefix("functions.").unwrap_or(recipient);
    call(name, parsed(body)?).map(|call| vec![call])
}
