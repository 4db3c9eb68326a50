//! What a request of the Responses API asks for.

use inference_core::{GenerateOptions, Message};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{items, store::ResponseStore};
use crate::{
    error::{ApiError, ApiResult},
    generation::Shape,
    openai::chat::{TOP_LOGPROBS, with_effort},
    sampling::Sampling,
    tools::{self, Tools},
};

/// What `include` names to have log-probabilities.
const LOGPROBS: &str = "message.output_text.logprobs";

/// A request of `POST /v1/responses`. Fields that are not listed are refused.
#[allow(dead_code, reason = "fields without effect are read to be known")]
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResponsesRequest {
    /// The model's name; unset: the first one.
    pub(super) model: Option<String>,
    /// One of the model's adapters: the same as the model `model:adapter`.
    pub(super) adapter: Option<String>,
    /// A text, or a list of items: messages, function calls, their outputs, reasoning.
    #[serde(default)]
    input: Value,
    instructions: Option<String>,
    pub(super) previous_response_id: Option<String>,
    pub(super) stream: Option<bool>,
    /// Only `include_obfuscation`, which has no effect.
    stream_options: Option<Value>,
    /// Whether the response is kept for `previous_response_id`.
    pub(super) store: Option<bool>,
    max_output_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    seed: Option<i64>,
    /// Functions. Tools of other kinds are left out: no server here would run them.
    #[schema(value_type = Option<Vec<Object>>)]
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    reasoning: Option<Reasoning>,
    text: Option<TextFormat>,
    /// Only `disabled`.
    truncation: Option<String>,
    /// `message.output_text.logprobs`: the log-probability of each token of the text.
    include: Option<Vec<String>>,
    /// Only false.
    background: Option<bool>,
    /// Only null.
    conversation: Option<Value>,
    /// Only null.
    prompt: Option<Value>,
    /// Log-probabilities of so many of the likeliest tokens as well.
    #[schema(maximum = 20)]
    top_logprobs: Option<usize>,
    pub(super) metadata: Option<Value>,
    /// Has no effect here, and neither have the fields that follow: they do not change the answer.
    user: Option<Value>,
    service_tier: Option<Value>,
    safety_identifier: Option<Value>,
    prompt_cache_key: Option<Value>,
    prompt_cache_retention: Option<Value>,
    max_tool_calls: Option<Value>,
    client_metadata: Option<Value>,
}

/// How much the model reasons.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reasoning {
    /// Given to the chat template as `reasoning_effort`; `none` sets `enable_thinking` to false.
    effort: Option<String>,
    /// Has no effect: the reasoning itself is given, not a summary.
    #[allow(dead_code, reason = "read from requests to be known")]
    summary: Option<Value>,
    #[allow(dead_code, reason = "read from requests to be known")]
    generate_summary: Option<Value>,
}

/// The form of the answer.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TextFormat {
    format: Option<Value>,
    /// Only `medium`.
    verbosity: Option<String>,
}

/// What the request comes to.
pub(super) struct Plan {
    /// What is kept with the answer.
    pub(super) conversation: Vec<Message>,
    /// What the model is given.
    pub(super) messages: Vec<Message>,
    pub(super) options: GenerateOptions,
    pub(super) shape: Shape,
    /// Whether each token of the text has its log-probability.
    pub(super) logprobs: bool,
    /// What the response repeats of the request.
    pub(super) echo: Value,
}

impl ResponsesRequest {
    pub(super) fn plan(self, store: &ResponseStore) -> ApiResult<Plan> {
        self.check()?;
        let earlier = match self.previous_response_id.as_deref() {
            None => Vec::new(),
            Some(id) => {
                let stored = store.get(id).ok_or_else(|| {
                    let message = format!("there is no response {id:?}: it was not stored, or is no longer");
                    ApiError {
                        param: Some("previous_response_id".to_owned()),
                        ..ApiError::not_found(message)
                    }
                })?;
                stored.conversation
            }
        };
        let conversation = items::conversation(earlier, &self.input)?;
        let messages = items::with_instructions(self.instructions.as_deref(), conversation.clone());
        let definitions = self.definitions()?;
        let echo = self.echo(&definitions);
        let choice = tools::tool_choice(self.tool_choice.as_ref())?;
        let tools = Tools { definitions, choice, single: self.parallel_tool_calls == Some(false) };
        let sampling = Sampling {
            max_tokens: self.max_output_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            seed: self.seed,
            ..Sampling::default()
        };
        let mut options = sampling.options()?;
        let logprobs = self.logprobs();
        if logprobs {
            options = options.log_probabilities(self.top_logprobs.unwrap_or(0));
        }
        let effort = self.reasoning.as_ref().and_then(|reasoning| reasoning.effort.as_deref());
        let options = with_effort(options, effort);
        let format = self.text.as_ref().and_then(|text| text.format.as_ref());
        let mut options = options;
        options.constraint = tools::response_format(format, "text.format")?;
        let (options, shape) = tools.apply(options, "tool_choice")?;
        Ok(Plan { conversation, messages, options, shape, logprobs, echo })
    }

    /// Refuses what would have to be ignored.
    fn check(&self) -> ApiResult<()> {
        let refuse = |field: &str, reason: &str| Err(ApiError::unsupported(field, reason));
        let is_set = |value: &Option<Value>| value.as_ref().is_some_and(|value| !value.is_null());
        if self.background == Some(true) {
            return refuse("background", "responses are made while the client waits");
        }
        if is_set(&self.conversation) {
            return refuse("conversation", "there are no stored conversations; use previous_response_id");
        }
        if is_set(&self.prompt) {
            return refuse("prompt", "there are no stored prompts; use input and instructions");
        }
        if self.truncation.as_ref().is_some_and(|truncation| truncation != "disabled") {
            return refuse("truncation", "nothing is left out of a conversation; expected \"disabled\"");
        }
        if self.top_logprobs.is_some_and(|top| top > TOP_LOGPROBS) {
            return Err(ApiError::invalid("top_logprobs", format!("expected at most {TOP_LOGPROBS}")));
        }
        // The reasoning is given in plain, so that there is none to be encrypted.
        let known = ["reasoning.encrypted_content", LOGPROBS];
        if let Some(other) = self.include.iter().flatten().find(|include| !known.contains(&include.as_str()))
        {
            return refuse("include", &format!("{other:?} is nothing that this server has"));
        }
        let verbosity = self.text.as_ref().and_then(|text| text.verbosity.as_deref());
        if verbosity.is_some_and(|verbosity| verbosity != "medium") {
            return refuse("text.verbosity", "say in the instructions how long the answer should be");
        }
        let options = self.stream_options.as_ref().and_then(Value::as_object);
        if let Some(other) = options.and_then(|map| map.keys().find(|key| *key != "include_obfuscation")) {
            return refuse(&format!("stream_options.{other}"), "this is no field that this server knows");
        }
        Ok(())
    }

    fn logprobs(&self) -> bool {
        self.top_logprobs.is_some_and(|top| top > 0)
            || self.include.iter().flatten().any(|include| include == LOGPROBS)
    }

    /// The functions among the tools.
    fn definitions(&self) -> ApiResult<Vec<Value>> {
        let tools = self.tools.iter().flatten().enumerate();
        let functions = tools.filter(|(_, tool)| tool.get("type").is_some_and(|kind| kind == "function"));
        let read = |(number, tool): (usize, &Value)| {
            let at = format!("tools[{number}]");
            let function = tool.as_object();
            let function = function.ok_or_else(|| ApiError::invalid(&at, "expected an object"))?;
            tools::definition(function, "parameters", &at)
        };
        functions.map(read).collect()
    }

    fn echo(&self, definitions: &[Value]) -> Value {
        let tool = |tool: &Value| {
            let mut flat = tool["function"].clone();
            flat["type"] = json!("function");
            flat["strict"] = json!(flat.get("strict") == Some(&Value::Bool(true)));
            flat
        };
        let format = self.text.as_ref().and_then(|text| text.format.clone());
        let format = format.unwrap_or_else(|| json!({"type": "text"}));
        json!({
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "parallel_tool_calls": self.parallel_tool_calls.unwrap_or(true),
            "previous_response_id": self.previous_response_id,
            "reasoning": {"effort": self.reasoning.as_ref().and_then(|r| r.effort.as_deref()), "summary": null},
            "store": self.store.unwrap_or(true),
            "temperature": self.temperature,
            "text": {"format": format},
            "tool_choice": self.tool_choice.clone().unwrap_or_else(|| json!("auto")),
            "tools": definitions.iter().map(tool).collect::<Vec<_>>(),
            "top_logprobs": self.top_logprobs.unwrap_or(0),
            "top_p": self.top_p,
            "truncation": "disabled",
            "background": false,
            "metadata": self.metadata.clone().unwrap_or_else(|| json!({})),
        })
    }
}
