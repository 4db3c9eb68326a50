//! A tool call that was read, and what all notations share.

use serde_json::{Map, Value};

/// A tool call that was read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ParsedCall {
    /// The call's id, where the model gives one.
    pub(super) id: Option<String>,
    pub(super) name: String,
    pub(super) arguments: Map<String, Value>,
}

/// What reading an answer's calls comes to: the calls, or why they cannot be read.
pub(super) type Calls = Result<Vec<ParsedCall>, String>;

impl ParsedCall {
    /// A call; arguments that are JSON in a string are read.
    pub(super) fn new(name: &str, arguments: Value) -> Result<Self, String> {
        let arguments = match arguments {
            Value::String(text) => json_arguments(&text)?,
            other => other,
        };
        match (name.trim(), arguments) {
            ("", _) => Err("it has no name".to_owned()),
            (name, Value::Object(arguments)) => Ok(Self { id: None, name: name.to_owned(), arguments }),
            (name, _) => Err(format!("the arguments of {name} are not a JSON object")),
        }
    }

    pub(super) fn with_id(self, id: Option<&str>) -> Self {
        Self { id: id.map(|id| id.trim().to_owned()), ..self }
    }
}

/// Arguments that are a whole JSON text; none where it is empty.
pub(super) fn json_arguments(text: &str) -> Result<Value, String> {
    match text.trim() {
        "" => Ok(Value::Object(Map::new())),
        text => serde_json::from_str(text).map_err(|error| format!("the arguments are not JSON: {error}")),
    }
}

/// The JSON value that a text begins with, and the text behind it: what ends a value is in the value, not in the text.
pub(super) fn json_prefix(text: &str) -> Result<(Value, &str), String> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    match values.next() {
        Some(Ok(value)) => Ok((value, &text[values.byte_offset()..])),
        Some(Err(error)) => Err(format!("it is not JSON: {error}")),
        None => Err("it is empty".to_owned()),
    }
}
