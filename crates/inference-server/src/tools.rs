//! What a request says about tools and about the form of the answer, whichever API it came by.

use inference_core::{Constraint, GenerateOptions};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::{
    error::{ApiError, ApiResult},
    generation::Shape,
};

/// Characters of a tool's name at most, as OpenAI has it.
const LONGEST_NAME: usize = 64;

/// The tools of a request, in the form that chat templates read, and how the model may use them.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    pub(crate) definitions: Vec<Value>,
    pub(crate) choice: ToolChoice,
    /// Whether the answer ends after its first call.
    pub(crate) single: bool,
}

/// Whether the model has to call a tool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    #[default]
    Auto,
    None,
    Required,
    Named(String),
}

impl Tools {
    /// Gives the template the tools; what the answer's marks then mean. `field` is what the API calls the choice.
    ///
    /// # Errors
    /// The choice names a tool that there is not.
    pub(crate) fn apply(self, options: GenerateOptions, field: &str) -> ApiResult<(GenerateOptions, Shape)> {
        let names: Vec<String> = self.definitions.iter().filter_map(name_of).collect();
        if let ToolChoice::Named(name) = &self.choice
            && !names.contains(name)
        {
            return Err(ApiError::invalid(field, format!("there is no tool {name:?} among the tools")));
        }
        if names.is_empty() || self.choice == ToolChoice::None {
            if self.choice == ToolChoice::Required {
                return Err(ApiError::invalid(field, "a call is required, but there are no tools"));
            }
            return Ok((options, Shape::NoTools));
        }
        let options = options.tools(self.definitions);
        let options = match self.choice {
            ToolChoice::Required => options.tool_choice(inference_core::ToolChoice::Required),
            ToolChoice::Named(name) => options.tool_choice(inference_core::ToolChoice::Named(name)),
            ToolChoice::Auto | ToolChoice::None => options,
        };
        Ok((options, Shape::Tools { single: self.single }))
    }
}

/// OpenAI's `response_format`, and `text.format` of its Responses API, which has the schema one level higher.
///
/// # Errors
/// It is none that the API has.
pub(crate) fn response_format(format: Option<&Value>, field: &str) -> ApiResult<Option<Constraint>> {
    let Some(format) = format.filter(|format| !format.is_null()) else { return Ok(None) };
    let schema = || {
        let schema = format.get("schema").or_else(|| format.get("json_schema")?.get("schema"));
        schema.filter(|schema| schema.is_object()).cloned().ok_or_else(|| {
            ApiError::invalid(format!("{field}.json_schema.schema"), "expected a JSON schema, an object")
        })
    };
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Constraint::json_object())),
        Some("json_schema") => Ok(Some(Constraint::json_schema(schema()?))),
        other => {
            let found = other.unwrap_or("none");
            let message = format!("{found:?}, expected \"text\", \"json_object\" or \"json_schema\"");
            Err(ApiError::invalid(format!("{field}.type"), message))
        }
    }
}

/// A shape that is none of OpenAI's: `{"regex": …}`, `{"grammar": …}` or `{"choice": […]}`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StructuredOutputs {
    /// A regular expression that the whole answer matches.
    regex: Option<String>,
    /// A grammar in Lark's notation.
    grammar: Option<String>,
    /// Texts of which the answer is one.
    choice: Option<Vec<String>>,
}

/// The shape that a request asks for: OpenAI's field, which is called `field`, or ours.
///
/// # Errors
/// There are two, or the format is none that the API has.
pub(crate) fn constraint(
    format: Option<&Value>,
    field: &str,
    own: Option<StructuredOutputs>,
) -> ApiResult<Option<Constraint>> {
    let format = response_format(format, field)?;
    let Some(StructuredOutputs { regex, grammar, choice }) = own else { return Ok(format) };
    let own = [regex.map(Constraint::regex), grammar.map(Constraint::lark), choice.map(Constraint::choice)];
    let mut given = own.into_iter().flatten().chain(format);
    match (given.next(), given.next()) {
        (Some(one), None) => Ok(Some(one)),
        (None, _) => Err(ApiError::invalid("structured_outputs", "expected `regex`, `grammar` or `choice`")),
        (Some(_), Some(_)) => Err(ApiError::invalid(
            "structured_outputs",
            format!("an answer has one shape: set one field, and not `{field}`"),
        )),
    }
}

/// One tool in the form that chat templates read: `{"type": "function", "function": {"name", "description", "parameters"}}`.
/// `function` holds these fields; `field` is where it stands in the request.
///
/// # Errors
/// The name is missing or malformed, the parameters are no schema, or a field is unknown.
pub(crate) fn definition(function: &Map<String, Value>, parameters: &str, field: &str) -> ApiResult<Value> {
    let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
    let letter = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(letter) {
        let message = format!("{name:?}, expected 1 to {LONGEST_NAME} letters, digits, _, - and .");
        return Err(ApiError::invalid(format!("{field}.name"), message));
    }
    let schema = function.get(parameters).filter(|schema| !schema.is_null());
    if schema.is_some_and(|schema| !schema.is_object()) {
        return Err(ApiError::invalid(format!("{field}.{parameters}"), "expected a JSON schema, an object"));
    }
    let strict = match function.get("strict") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(strict)) => *strict,
        Some(_) => return Err(ApiError::invalid(format!("{field}.strict"), "expected true or false")),
    };
    let known = ["name", "description", "strict", "type", "cache_control", parameters];
    if let Some(unknown) = function.keys().find(|key| !known.contains(&key.as_str())) {
        let message = format!("`{unknown}` is no field that this server knows");
        return Err(ApiError::unsupported(format!("{field}.{unknown}"), message));
    }
    let mut tool = json!({ "name": name });
    if let Some(description) = function.get("description").filter(|text| !text.is_null()) {
        tool["description"] = description.clone();
    }
    tool["parameters"] = schema.cloned().unwrap_or_else(|| json!({"type": "object", "properties": {}}));
    if strict {
        tool["strict"] = Value::Bool(true);
    }
    Ok(json!({"type": "function", "function": tool}))
}

/// OpenAI's `tool_choice`; a named function is `{"type": "function", "function": {"name"}}`, in the Responses API
/// `{"type": "function", "name"}`.
///
/// # Errors
/// It is none that the API has.
pub(crate) fn tool_choice(choice: Option<&Value>) -> ApiResult<ToolChoice> {
    let field = "tool_choice";
    match choice {
        None | Some(Value::Null) => Ok(ToolChoice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => Ok(ToolChoice::Auto),
            "none" => Ok(ToolChoice::None),
            "required" => Ok(ToolChoice::Required),
            other => Err(ApiError::invalid(
                field,
                format!("{other:?}, expected \"auto\", \"none\", \"required\" or a function"),
            )),
        },
        Some(choice) if choice.get("type").is_some_and(|kind| kind == "function") => {
            let name = choice.get("name").or_else(|| choice.get("function")?.get("name"));
            let name = name.and_then(Value::as_str);
            name.map(|name| ToolChoice::Named(name.to_owned()))
                .ok_or_else(|| ApiError::invalid(format!("{field}.name"), "expected the name of a function"))
        }
        Some(_) => Err(ApiError::unsupported(
            field,
            "expected \"auto\", \"none\", \"required\" or a function by its name",
        )),
    }
}

fn name_of(tool: &Value) -> Option<String> {
    tool.get("function")?.get("name")?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(choice: ToolChoice) -> Tools {
        let function = json!({"name": "add", "parameters": {"type": "object"}});
        let definitions = vec![definition(function.as_object().unwrap(), "parameters", "tools[0]").unwrap()];
        Tools { definitions, choice, single: false }
    }

    #[test]
    fn a_choice_is_the_engines_and_one_that_cannot_be_is_refused() {
        let apply = |choice| tools(choice).apply(GenerateOptions::new(), "tool_choice");
        let (options, shape) = apply(ToolChoice::Auto).unwrap();
        assert_eq!((options.template.tools.unwrap().len(), shape), (1, Shape::Tools { single: false }));
        let (options, shape) = apply(ToolChoice::None).unwrap();
        assert_eq!((options.template.tools, shape), (None, Shape::NoTools));
        let choice = |choice| apply(choice).unwrap().0.tool_choice.unwrap();
        assert_eq!(choice(ToolChoice::Required), inference_core::ToolChoice::Required);
        let named = choice(ToolChoice::Named("add".into()));
        assert_eq!(named, inference_core::ToolChoice::Named("add".into()));
        assert!(apply(ToolChoice::Named("sub".into())).unwrap_err().message.contains("no tool \"sub\""));
    }

    #[test]
    fn definitions_are_checked() {
        let wrong = |function: Value| {
            let error = definition(function.as_object().unwrap(), "parameters", "tools[0].function");
            error.unwrap_err().param.unwrap()
        };
        assert_eq!(wrong(json!({"name": "a b"})), "tools[0].function.name");
        assert_eq!(wrong(json!({"name": "a", "parameters": []})), "tools[0].function.parameters");
        assert_eq!(wrong(json!({"name": "a", "strict": "yes"})), "tools[0].function.strict");
        let strict = json!({"name": "a", "strict": true});
        let strict = definition(strict.as_object().unwrap(), "parameters", "tools[0].function").unwrap();
        assert_eq!(strict["function"]["strict"], true);
        assert_eq!(wrong(json!({"name": "a", "desc": ""})), "tools[0].function.desc");
    }

    #[test]
    fn formats_are_told_apart() {
        let format = |value: Value| response_format(Some(&value), "response_format");
        let schema_of = |value: Value| match format(value).unwrap() {
            Some(Constraint::JsonSchema(schema)) => (*schema).clone(),
            other => panic!("{other:?}"),
        };
        assert!(format(json!({"type": "text"})).unwrap().is_none());
        assert_eq!(schema_of(json!({"type": "json_object"})), json!({"type": "object"}));
        let schema = json!({"type": "object", "title": "t"});
        assert_eq!(schema_of(json!({"type": "json_schema", "schema": schema})), schema);
        let nested = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
        assert_eq!(schema_of(nested), schema);
        assert_eq!(format(json!({"type": "xml"})).unwrap_err().param.unwrap(), "response_format.type");
        let own = |value: Value| serde_json::from_value::<StructuredOutputs>(value).unwrap();
        let shape = |format: Option<&Value>, value| constraint(format, "response_format", Some(own(value)));
        assert!(matches!(shape(None, json!({"regex": "a+"})), Ok(Some(Constraint::Regex(_)))));
        assert!(matches!(shape(None, json!({"grammar": "start: \"a\""})), Ok(Some(Constraint::Lark(_)))));
        assert!(matches!(shape(None, json!({"choice": ["a"]})), Ok(Some(Constraint::Choice(_)))));
        for (format, value) in [
            (None, json!({})),
            (None, json!({"regex": "a", "choice": ["a"]})),
            (Some(json!({"type": "json_object"})), json!({"regex": "a"})),
        ] {
            assert_eq!(shape(format.as_ref(), value).unwrap_err().param.unwrap(), "structured_outputs");
        }
    }
}
