//! Types of arguments, by the definitions of the tools: notations with bare text do not say whether `5` is a number.

use serde_json::Value;

use super::literal;

/// Schemas may refer to others this deep.
const MAX_DEPTH: usize = 8;

/// The JSON types that an argument may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Types(u8);

impl Types {
    const STRING: u8 = 1;
    const NUMBER: u8 = 2;
    const BOOLEAN: u8 = 4;
    const NULL: u8 = 8;
    const OBJECT: u8 = 16;
    const ARRAY: u8 = 32;

    /// The types of a tool's argument; none where the definition does not say.
    pub(super) fn of_argument(tools: &[Value], tool: &str, argument: &str) -> Self {
        let definitions = tools.iter().map(|tool| tool.get("function").unwrap_or(tool));
        let named = |definition: &&Value| definition.get("name").and_then(Value::as_str) == Some(tool);
        let parameters =
            definitions.into_iter().find(named).and_then(|definition| definition.get("parameters"));
        let schema = parameters.and_then(|parameters| parameters.get("properties")?.get(argument));
        let mut types = Self::default();
        if let (Some(parameters), Some(schema)) = (parameters, schema) {
            types.add(schema, parameters, 0);
        }
        types
    }

    fn add(&mut self, schema: &Value, root: &Value, depth: usize) {
        if depth > MAX_DEPTH {
            return;
        }
        match schema.get("type") {
            Some(Value::String(name)) => self.0 |= Self::named(name),
            Some(Value::Array(names)) => {
                names.iter().filter_map(Value::as_str).for_each(|name| self.0 |= Self::named(name));
            }
            _ => {
                let values = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
                values.chain(schema.get("const")).for_each(|value| self.0 |= Self::of(value));
            }
        }
        if schema.get("nullable") == Some(&Value::Bool(true)) {
            self.0 |= Self::NULL;
        }
        for key in ["anyOf", "oneOf", "allOf"] {
            let schemas = schema.get(key).and_then(Value::as_array).into_iter().flatten();
            schemas.for_each(|schema| self.add(schema, root, depth + 1));
        }
        let target = schema.get("$ref").and_then(Value::as_str).and_then(|target| target.strip_prefix('#'));
        if let Some(schema) = target.and_then(|target| root.pointer(target)) {
            self.add(schema, root, depth + 1);
        }
    }

    fn named(name: &str) -> u8 {
        match name {
            "string" => Self::STRING,
            "number" | "integer" => Self::NUMBER,
            "boolean" => Self::BOOLEAN,
            "null" => Self::NULL,
            "object" => Self::OBJECT,
            "array" => Self::ARRAY,
            _ => 0,
        }
    }

    fn of(value: &Value) -> u8 {
        match value {
            Value::String(_) => Self::STRING,
            Value::Number(_) => Self::NUMBER,
            Value::Bool(_) => Self::BOOLEAN,
            Value::Null => Self::NULL,
            Value::Object(_) => Self::OBJECT,
            Value::Array(_) => Self::ARRAY,
        }
    }

    /// What a bare text stands for: JSON or a Python literal of one of the types, else a string. Templates write a value
    /// that is no string as one or the other.
    pub(super) fn read(self, text: &str) -> Value {
        if self.0 == Self::STRING {
            return Value::String(text.to_owned());
        }
        let value = serde_json::from_str(text.trim()).ok().or_else(|| literal::value(text).ok());
        let fits = |value: &Value| self.0 == 0 || self.0 & Self::of(value) != 0;
        match value {
            // A text in quotes is that text where strings are bare, quotes and all.
            Some(Value::String(_)) | None => Value::String(text.to_owned()),
            Some(value) if fits(&value) => value,
            Some(_) => Value::String(text.to_owned()),
        }
    }
}
