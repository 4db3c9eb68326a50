//! What a request of Anthropic's API asks for.

use inference_core::{GenerateOptions, Message, TemplateOptions};
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::messages::conversation;
use crate::{
    error::{ApiError, ApiResult},
    generation::Shape,
    prefill::is_prefill,
    sampling::{OneOrMany, Sampling},
    tools::{self, ToolChoice, Tools},
};

/// A request of `POST /v1/messages`. Fields that are not listed are refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MessagesRequest {
    /// The model's name.
    pub(super) model: String,
    pub(super) max_tokens: usize,
    /// The conversation. Where the last message is the assistant's, the answer goes on with it.
    #[schema(value_type = Vec<Object>)]
    messages: Vec<Value>,
    /// A string, or a list of blocks of type `text`.
    system: Option<Value>,
    pub(super) stream: Option<bool>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    stop_sequences: Option<Vec<String>>,
    /// Tools that the client runs.
    #[schema(value_type = Option<Vec<Object>>)]
    tools: Option<Vec<Value>>,
    tool_choice: Option<Choice>,
    thinking: Option<Thinking>,
    /// Has no effect here, and neither have the fields that follow: they do not change the answer.
    #[allow(dead_code, reason = "read from requests to be known")]
    metadata: Option<Value>,
    #[allow(dead_code, reason = "read from requests to be known")]
    service_tier: Option<Value>,
    #[allow(dead_code, reason = "read from requests to be known")]
    cache_control: Option<Value>,
}

/// A request of `POST /v1/messages/count_tokens`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CountRequest {
    /// The model's name.
    pub(super) model: String,
    #[schema(value_type = Vec<Object>)]
    messages: Vec<Value>,
    system: Option<Value>,
    #[schema(value_type = Option<Vec<Object>>)]
    tools: Option<Vec<Value>>,
    tool_choice: Option<Choice>,
    thinking: Option<Thinking>,
    /// Has no effect here.
    #[allow(dead_code, reason = "read from requests to be known")]
    cache_control: Option<Value>,
}

/// Whether the model has to call a tool.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Choice {
    /// `auto`, `none`, `any` or `tool`.
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

/// Whether the model reasons before it answers.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Thinking {
    /// `enabled`, `disabled` or `adaptive`.
    #[serde(rename = "type")]
    kind: String,
    budget_tokens: Option<usize>,
    /// Has no effect: reasoning is shown.
    #[allow(dead_code, reason = "read from requests to be known")]
    display: Option<Value>,
}

/// What the request comes to.
pub(super) struct Plan {
    pub(super) messages: Vec<Message>,
    pub(super) options: GenerateOptions,
    pub(super) shape: Shape,
}

impl MessagesRequest {
    pub(super) fn plan(self) -> ApiResult<Plan> {
        let messages = conversation(self.system.as_ref(), &self.messages)?;
        let sampling = Sampling {
            max_tokens: Some(self.max_tokens),
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            stop: self.stop_sequences.map(OneOrMany::Many),
            ..Sampling::default()
        };
        let options = sampling.options().map_err(|error| match error.param.as_deref() {
            Some("stop") => error.with_param("stop_sequences"),
            _ => error,
        })?;
        let options = with_thinking(options, self.thinking.as_ref())?;
        let tools = read_tools(self.tools.as_deref(), self.tool_choice.as_ref())?;
        let (mut options, shape) = tools.apply(options, "tool_choice")?;
        options.template.continue_final_message = is_prefill(&messages);
        Ok(Plan { messages, options, shape })
    }
}

impl CountRequest {
    pub(super) fn plan(self) -> ApiResult<(Vec<Message>, TemplateOptions)> {
        let messages = conversation(self.system.as_ref(), &self.messages)?;
        let tools = read_tools(self.tools.as_deref(), self.tool_choice.as_ref())?;
        let options = with_thinking(GenerateOptions::new(), self.thinking.as_ref())?;
        let (mut options, _) = tools.apply(options, "tool_choice")?;
        options.template.continue_final_message = is_prefill(&messages);
        Ok((messages, options.template))
    }
}

fn with_thinking(options: GenerateOptions, thinking: Option<&Thinking>) -> ApiResult<GenerateOptions> {
    let Some(thinking) = thinking else { return Ok(options) };
    match (thinking.kind.as_str(), thinking.budget_tokens) {
        ("enabled", Some(budget)) => {
            Ok(options.template_variable("enable_thinking", true).thinking_budget(budget))
        }
        ("enabled", None) => Err(ApiError::invalid("thinking.budget_tokens", "expected a number of tokens")),
        ("adaptive", None) => Ok(options),
        ("disabled", None) => Ok(options.template_variable("enable_thinking", false)),
        ("disabled" | "adaptive", Some(_)) => {
            Err(ApiError::invalid("thinking.budget_tokens", "set without `enabled`"))
        }
        (other, _) => {
            let message = format!("{other:?}, expected \"enabled\", \"disabled\" or \"adaptive\"");
            Err(ApiError::invalid("thinking.type", message))
        }
    }
}

fn read_tools(tools: Option<&[Value]>, choice: Option<&Choice>) -> ApiResult<Tools> {
    let mut definitions = Vec::new();
    for (number, tool) in tools.unwrap_or_default().iter().enumerate() {
        let at = format!("tools[{number}]");
        let Some(function) = tool.as_object() else {
            return Err(ApiError::invalid(at, "expected an object"));
        };
        let kind = function.get("type").and_then(Value::as_str).unwrap_or("custom");
        if kind != "custom" {
            let message = format!("{kind:?} would have to run here; expected a tool that the client runs");
            return Err(ApiError::unsupported(format!("{at}.type"), message));
        }
        definitions.push(tools::definition(function, "input_schema", &at)?);
    }
    let Some(choice) = choice else { return Ok(Tools { definitions, ..Tools::default() }) };
    let single = choice.disable_parallel_tool_use == Some(true);
    let choice = match (choice.kind.as_str(), &choice.name) {
        ("auto", None) => ToolChoice::Auto,
        ("none", None) => ToolChoice::None,
        ("any", None) => ToolChoice::Required,
        ("tool", Some(name)) => ToolChoice::Named(name.clone()),
        ("tool", None) => return Err(ApiError::invalid("tool_choice.name", "expected the name of a tool")),
        ("auto" | "none" | "any", Some(_)) => {
            return Err(ApiError::invalid("tool_choice.name", "set without the type \"tool\""));
        }
        (other, _) => {
            let message = format!("{other:?}, expected \"auto\", \"any\", \"tool\" or \"none\"");
            return Err(ApiError::invalid("tool_choice.type", message));
        }
    };
    Ok(Tools { definitions, choice, single })
}
