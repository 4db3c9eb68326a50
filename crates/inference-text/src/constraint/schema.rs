//! JSON schemas, before they are compiled: what could be misread is refused, and so is what is too large.

use inference_core::Result;
use serde_json::{Map, Value, json};

use super::invalid::invalid;

/// Bytes of a grammar, a regular expression or a schema at most.
pub(super) const MAX_SOURCE: usize = 256 << 10;

/// Schemas within schemas at most.
const MAX_DEPTH: usize = 64;

/// White space between the parts of a text: none, one space, or a line break and the indentation behind it. Without a bound, a
/// model could go on with it for ever.
const WHITE_SPACE: &str = r"( |\n[ \t]{0,12})";

/// Keywords whose value is a schema.
const ONE: [&str; 12] = [
    "items",
    "additionalItems",
    "additionalProperties",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contains",
    "propertyNames",
    "not",
    "if",
    "then",
    "else",
    "contentSchema",
];
/// Keywords whose value is a list of schemas.
const LIST: [&str; 5] = ["allOf", "anyOf", "oneOf", "prefixItems", "items"];
/// Keywords whose value is an object of schemas.
const NAMED: [&str; 6] =
    ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"];

/// A schema as llguidance is given it.
///
/// # Errors
/// It is no schema, too large or too deep, or has a keyword that llguidance would read in another way than the standard.
pub(super) fn prepare(schema: &Value) -> Result<String> {
    let refuse = |reason: String| Err(invalid(format!("JSON schema: {reason}")));
    // Nothing recursive before its depth is known.
    check(schema)?;
    let mut object = match schema {
        Value::Object(object) => object.clone(),
        Value::Bool(true) => Map::new(),
        Value::Bool(false) => return refuse("it is `false`, which no value is valid by".to_owned()),
        other => return refuse(format!("it is {other}, expected an object")),
    };
    if let Some(key) = object.keys().find(|key| key.starts_with("x-guidance")) {
        return refuse(format!("`{key}` is no keyword of a JSON schema"));
    }
    object.insert(
        "x-guidance".to_owned(),
        json!({"whitespace_flexible": true, "whitespace_pattern": WHITE_SPACE}),
    );
    let mut schema = Value::Object(object);
    spell_formats(&mut schema);
    let text = schema.to_string();
    if text.len() > MAX_SOURCE {
        return refuse(format!("{} bytes, expected at most {MAX_SOURCE}", text.len()));
    }
    Ok(text)
}

/// A day of the Gregorian calendar; the years with a 29 February are those that 4 divides, of the centuries those that 400 divides.
const DATE: &str = r"([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))|([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)";
const TIME: &str =
    r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])";

/// Puts a pattern in the place of dates and times: llguidance's formats allow leap seconds at any minute and 29 February in
/// any year. These leave out leap seconds, which most programs cannot read. What has a pattern of its own gets the other beside it.
fn spell_formats(schema: &mut Value) {
    let Value::Object(keywords) = schema else { return };
    let pattern = match keywords.get("format").and_then(Value::as_str) {
        Some("date") => Some(format!("^{DATE}$")),
        Some("time") => Some(format!("^{TIME}$")),
        Some("date-time") => Some(format!("^{DATE}T{TIME}$")),
        _ => None,
    };
    for (keyword, value) in keywords.iter_mut() {
        let keyword = keyword.as_str();
        match value {
            Value::Object(schemas) if NAMED.contains(&keyword) => {
                schemas.values_mut().for_each(spell_formats);
            }
            Value::Array(schemas) if LIST.contains(&keyword) => schemas.iter_mut().for_each(spell_formats),
            value if ONE.contains(&keyword) => spell_formats(value),
            _ => {}
        }
    }
    let Some(pattern) = pattern else { return };
    keywords.remove("format");
    if !keywords.contains_key("pattern") {
        keywords.insert("pattern".to_owned(), pattern.into());
    } else if let Value::Array(all) = keywords.entry("allOf").or_insert_with(|| json!([])) {
        all.push(json!({"pattern": pattern}));
    }
}

/// Walks through a schema and all schemas in it, without recursion.
fn check(schema: &Value) -> Result<()> {
    let refuse = |reason: String| Err(invalid(format!("JSON schema: {reason}")));
    let mut left = vec![(schema, 0_usize)];
    if !is_shallow(schema) {
        return refuse(format!("more than {MAX_VALUE_DEPTH} values within each other"));
    }
    while let Some((schema, depth)) = left.pop() {
        let Value::Object(keywords) = schema else { continue };
        if depth > MAX_DEPTH {
            return refuse(format!("more than {MAX_DEPTH} schemas within each other"));
        }
        if depth > 0 && keywords.contains_key("$id") {
            return refuse("`$id` below the top cannot be held to".to_owned());
        }
        for (keyword, value) in keywords {
            let keyword = keyword.as_str();
            match value {
                Value::Object(schemas) if NAMED.contains(&keyword) => {
                    left.extend(schemas.values().map(|schema| (schema, depth + 1)));
                }
                Value::Array(schemas) if LIST.contains(&keyword) => {
                    left.extend(schemas.iter().map(|schema| (schema, depth + 1)));
                }
                value if ONE.contains(&keyword) => left.push((value, depth + 1)),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Values within values at most: what `serde_json` reads.
const MAX_VALUE_DEPTH: usize = 127;

fn is_shallow(value: &Value) -> bool {
    let mut left = vec![(value, 0_usize)];
    while let Some((value, depth)) = left.pop() {
        if depth > MAX_VALUE_DEPTH {
            return false;
        }
        match value {
            Value::Array(values) => left.extend(values.iter().map(|value| (value, depth + 1))),
            Value::Object(values) => left.extend(values.values().map(|value| (value, depth + 1))),
            _ => {}
        }
    }
    true
}
