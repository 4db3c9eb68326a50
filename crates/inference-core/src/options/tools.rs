//! Whether and which tools an answer calls.

use serde_json::Value;

/// Whether and which tools an answer calls. The arguments of calls that are required, and of calls of strict tools
/// (`"strict": true` in the definition), follow the tool's schema.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// At least one tool is called, and nothing else said.
    Required,
    /// This tool is called, once, and nothing else said.
    Named(String),
}

/// What stands in `function`, or the definition itself.
fn function(tool: &Value) -> &Value {
    tool.get("function").unwrap_or(tool)
}

/// Whether the arguments of a tool's calls have to follow its schema.
pub(crate) fn is_strict(tool: &Value) -> bool {
    let strict = function(tool).get("strict").or_else(|| tool.get("strict"));
    strict.and_then(Value::as_bool).unwrap_or(false)
}
