//! `POST /v1/chat/completions`.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json as Body,
    extract::State,
    response::{IntoResponse as _, Response},
};
use futures::future::try_join_all;
use inference_core::{GenerateOptions, Message, Prompt, ToolCall};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{
    Usage,
    answer::{Logprobs, StreamOptions, finish_reason},
    chat_stream, conversation,
};
use crate::{
    error::{ApiError, ApiResult},
    generation::{Answer, Generation, Shape, Ticket, new_id, now},
    json::Json,
    logprobs::TokenNames,
    prefill::is_prefill,
    sampling::{OneOrMany, Sampling, of_answer},
    server::Server,
    tools::{self, StructuredOutputs, Tools},
};

/// The largest number of alternatives, as OpenAI has it.
pub(crate) const TOP_LOGPROBS: usize = 20;

/// A request of `POST /v1/chat/completions`. Fields that are not listed are refused.
#[allow(dead_code, reason = "fields without effect are read to be known")]
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChatRequest {
    /// The model's name; unset: the first one.
    model: Option<String>,
    /// One of the model's adapters: the same as the model `model:adapter`.
    adapter: Option<String>,
    /// The conversation. Content is a string, null or a list of parts of type `text`. Where the last message is the assistant's,
    /// the answer goes on with it.
    #[schema(value_type = Vec<Object>)]
    messages: Vec<Message>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    /// Answers to the same conversation.
    #[schema(minimum = 1)]
    n: Option<usize>,
    max_tokens: Option<usize>,
    /// The same as `max_tokens`, by its newer name.
    max_completion_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    seed: Option<i64>,
    stop: Option<OneOrMany>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    /// Numbers added to logits, by token id.
    #[schema(value_type = Option<std::collections::HashMap<String, f32>>)]
    logit_bias: Option<BTreeMap<String, f32>>,
    logprobs: Option<bool>,
    #[schema(maximum = 20)]
    top_logprobs: Option<usize>,
    #[schema(value_type = Option<Vec<Object>>)]
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    response_format: Option<Value>,
    /// A regular expression, a grammar or texts that the answer is held to.
    structured_outputs: Option<StructuredOutputs>,
    /// Given to the chat template under this name; `none` also sets `enable_thinking` to false.
    reasoning_effort: Option<String>,
    /// Tokens of reasoning at most.
    thinking_budget: Option<usize>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    min_tokens: Option<usize>,
    stop_token_ids: Option<Vec<u32>>,
    ignore_eos: Option<bool>,
    /// Further variables of the chat template.
    #[schema(value_type = Option<Object>)]
    chat_template_kwargs: Option<Map<String, Value>>,
    /// Only `["text"]`.
    modalities: Option<Vec<String>>,
    /// Has no effect here, and neither have the fields that follow: they do not change the answer.
    user: Option<Value>,
    metadata: Option<Value>,
    store: Option<Value>,
    service_tier: Option<Value>,
    safety_identifier: Option<Value>,
    prompt_cache_key: Option<Value>,
    prompt_cache_retention: Option<Value>,
    prediction: Option<Value>,
}

/// What the request comes to.
struct Plan {
    messages: Vec<Message>,
    options: GenerateOptions,
    shape: Shape,
    answers: usize,
}

/// Answers a conversation.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "OpenAI", request_body = ChatRequest,
    responses((status = 200, description = "A chat completion, or a stream of its chunks", body = Object)))]
pub(crate) async fn chat(
    State(server): State<Server>,
    Json(request): Json<ChatRequest>,
) -> ApiResult<Response> {
    let entry = server.models().find(request.model.as_deref(), request.adapter.as_deref())?.clone();
    let stream = request.stream.unwrap_or(false);
    if request.stream_options.is_some() && !stream {
        return Err(ApiError::invalid("stream_options", "set without `stream`"));
    }
    let usage = request.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or(false);
    let logprobs = request.logprobs.unwrap_or(false);
    let plan = request.plan()?;
    let ticket = Ticket::take(&server, &entry, plan.answers).await?;
    let generations = start(&ticket, plan).await?;
    if stream {
        let every = server.settings().keep_alive;
        return Ok(chat_stream::respond(ticket, generations, logprobs, usage, every));
    }
    let answers = try_join_all(generations.into_iter().map(Generation::collect)).await?;
    Ok(Body(completion(&ticket, answers, logprobs).await?).into_response())
}

async fn start(ticket: &Arc<Ticket>, plan: Plan) -> ApiResult<Vec<Generation>> {
    let Plan { messages, options, shape, answers } = plan;
    let start = |number| {
        let (prompt, options) = (Prompt::Chat(messages.clone()), of_answer(&options, number));
        ticket.start(prompt, options, shape, "messages")
    };
    try_join_all((0..answers).map(start)).await
}

impl ChatRequest {
    fn plan(self) -> ApiResult<Plan> {
        self.check()?;
        let answers = self.n.unwrap_or(1);
        let definitions = self.definitions()?;
        let choice = tools::tool_choice(self.tool_choice.as_ref())?;
        let tools = Tools { definitions, choice, single: self.parallel_tool_calls == Some(false) };
        let messages = conversation(self.messages, "messages")?;
        let sampling = Sampling {
            max_tokens: self.max_completion_tokens.or(self.max_tokens),
            min_tokens: self.min_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            seed: self.seed,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias,
            stop: self.stop,
            stop_token_ids: self.stop_token_ids,
            ignore_eos: self.ignore_eos,
        };
        let mut options = sampling.options()?;
        options.thinking_budget = self.thinking_budget;
        if self.logprobs == Some(true) {
            options = options.log_probabilities(self.top_logprobs.unwrap_or(0));
        }
        options = with_effort(options, self.reasoning_effort.as_deref());
        for (name, value) in self.chat_template_kwargs.into_iter().flatten() {
            options = options.template_variable(name, value);
        }
        options.template.continue_final_message = is_prefill(&messages);
        let format = self.response_format.as_ref();
        options.constraint = tools::constraint(format, "response_format", self.structured_outputs)?;
        let (options, shape) = tools.apply(options, "tool_choice")?;
        Ok(Plan { messages, options, shape, answers })
    }

    fn check(&self) -> ApiResult<()> {
        if self.n == Some(0) {
            return Err(ApiError::invalid("n", "0, expected at least 1"));
        }
        if self.top_logprobs.is_some() && self.logprobs != Some(true) {
            return Err(ApiError::invalid("top_logprobs", "set without `logprobs`"));
        }
        if self.top_logprobs.is_some_and(|top| top > TOP_LOGPROBS) {
            return Err(ApiError::invalid("top_logprobs", format!("expected at most {TOP_LOGPROBS}")));
        }
        if let Some(other) = self.modalities.iter().flatten().find(|kind| *kind != "text") {
            return Err(ApiError::unsupported("modalities", format!("{other:?}, expected \"text\"")));
        }
        match (self.max_tokens, self.max_completion_tokens) {
            (Some(old), Some(new)) if old != new => {
                Err(ApiError::invalid("max_tokens", "differs from `max_completion_tokens`; set one of them"))
            }
            _ => Ok(()),
        }
    }

    fn definitions(&self) -> ApiResult<Vec<Value>> {
        let tools = self.tools.iter().flatten().enumerate();
        let read = |(number, tool): (usize, &Value)| {
            let at = format!("tools[{number}]");
            match (tool.get("type").and_then(Value::as_str), tool.get("function").and_then(Value::as_object))
            {
                (Some("function"), Some(function)) => {
                    tools::definition(function, "parameters", &format!("{at}.function"))
                }
                (Some("function"), None) => {
                    Err(ApiError::invalid(format!("{at}.function"), "expected an object"))
                }
                (kind, _) => {
                    let message = format!("{:?}, expected \"function\"", kind.unwrap_or("none"));
                    Err(ApiError::unsupported(format!("{at}.type"), message))
                }
            }
        };
        tools.map(read).collect()
    }
}

/// Tells the template how much to reason.
pub(crate) fn with_effort(options: GenerateOptions, effort: Option<&str>) -> GenerateOptions {
    match effort {
        None => options,
        Some("none") => options.template_variable("enable_thinking", false),
        Some(effort) => options.template_variable("reasoning_effort", effort),
    }
}

/// A call as the chat API writes it, with arguments in a string.
fn call_json(call: &ToolCall) -> Value {
    let arguments = Value::Object(call.arguments.clone()).to_string();
    json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}})
}

async fn completion(ticket: &Ticket, answers: Vec<Answer>, logprobs: bool) -> ApiResult<Value> {
    let mut usage = Usage::default();
    let mut names = TokenNames::default();
    let mut choices = Vec::with_capacity(answers.len());
    for (index, answer) in answers.into_iter().enumerate() {
        if index == 0 {
            usage.add_prompt(&answer.ended);
        } else {
            usage.add_answer(&answer.ended);
        }
        let logprobs = if logprobs {
            let content = names.logprobs(ticket.model(), &answer.tokens).await?;
            Some(Logprobs { content, refusal: None })
        } else {
            None
        };
        let text = (!answer.text.is_empty() || answer.calls.is_empty()).then_some(answer.text);
        let mut message = json!({"role": "assistant", "content": text, "refusal": null});
        if !answer.reasoning.is_empty() {
            message["reasoning_content"] = Value::String(answer.reasoning);
        }
        if !answer.calls.is_empty() {
            message["tool_calls"] = answer.calls.iter().map(call_json).collect();
        }
        let finish = finish_reason(&answer.ended.end);
        choices
            .push(json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}));
    }
    Ok(json!({
        "id": new_id("chatcmpl-"), "object": "chat.completion", "created": now(), "model": ticket.model_name(),
        "choices": choices, "usage": usage,
    }))
}
