//! A call of a tool, as models make it.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::{Map, Value, json};

/// A call of a tool that the model makes. As JSON it has OpenAI's form, which chat templates read too:
/// `{"id", "type": "function", "function": {"name", "arguments"}}`. Arguments are written as an object, and read as an object
/// or as an object in a string.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct ToolCall {
    /// What its result refers to; made up of nine letters and digits where the model gives none.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// Its arguments by name.
    pub arguments: Map<String, Value>,
}

impl ToolCall {
    /// A call.
    pub fn new(id: impl Into<String>, name: impl Into<String>, arguments: Map<String, Value>) -> Self {
        Self { id: id.into(), name: name.into(), arguments }
    }
}

impl Serialize for ToolCall {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let function = json!({ "name": self.name, "arguments": self.arguments });
        json!({ "id": self.id, "type": "function", "function": function }).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ToolCall {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Call {
            #[serde(default)]
            id: String,
            #[serde(default, rename = "type")]
            kind: Option<String>,
            function: Function,
        }
        #[derive(Deserialize)]
        struct Function {
            name: String,
            #[serde(default)]
            arguments: Value,
        }
        let Call { id, kind, function: Function { name, arguments } } = Call::deserialize(deserializer)?;
        if let Some(kind) = kind.filter(|kind| kind != "function") {
            return Err(D::Error::custom(format_args!("type: {kind:?}, expected \"function\"")));
        }
        let parsed = match arguments {
            Value::String(text) if text.trim().is_empty() => Ok(Value::Null),
            Value::String(text) => serde_json::from_str(&text),
            other => Ok(other),
        };
        match parsed {
            Ok(Value::Object(arguments)) => Ok(Self { id, name, arguments }),
            Ok(Value::Null) => Ok(Self { id, name, arguments: Map::new() }),
            Ok(other) => Err(D::Error::custom(format_args!(
                "function.arguments: {other}, expected an object of arguments"
            ))),
            Err(error) => Err(D::Error::custom(format_args!("function.arguments: not JSON: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_call_reads_what_it_writes_and_arguments_in_a_string() {
        let call = ToolCall::new("c1", "add", Map::from_iter([("a".to_owned(), json!(1))]));
        let read =
            |value: Value| serde_json::from_value::<ToolCall>(value).map_err(|error| error.to_string());
        assert_eq!(read(json!(call)).unwrap(), call);
        let text = json!({"id": "c1", "function": {"name": "add", "arguments": "{\"a\":1}"}});
        assert_eq!(read(text).unwrap(), call);
        let none = json!({"function": {"name": "now", "arguments": ""}});
        assert_eq!(read(none).unwrap(), ToolCall::new("", "now", Map::new()));
        let list = json!({"function": {"name": "add", "arguments": "[1]"}});
        assert!(read(list).unwrap_err().contains("function.arguments: [1], expected an object"));
        let cut = json!({"function": {"name": "add", "arguments": "{"}});
        assert!(read(cut).unwrap_err().contains("not JSON"));
        let other = json!({"type": "custom", "function": {"name": "add"}});
        assert!(read(other).unwrap_err().contains("expected \"function\""));
    }
}
