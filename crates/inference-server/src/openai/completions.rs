//! `POST /v1/completions`: a text continued as it stands, without the chat template.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json as Body,
    extract::State,
    response::{IntoResponse as _, Response},
};
use futures::{StreamExt as _, future::try_join_all};
use inference_core::{GenerateOptions, Prompt, TextModel, Token};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{
    Usage,
    answer::{StreamOptions, finish_reason},
};
use crate::{
    error::{ApiError, ApiResult, Dialect},
    generation::{Answer, Generation, Part, Progress, Shape, Ticket, interleave, new_id, now},
    json::Json,
    logprobs::TokenNames,
    sampling::{OneOrMany, Sampling, of_answer},
    server::Server,
    sse::{self, Events, Gone},
    tools::{self, StructuredOutputs},
};

/// The largest number of alternatives, as OpenAI has it.
const LOGPROBS: usize = 5;

/// A request of `POST /v1/completions`. Fields that are not listed are refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CompletionRequest {
    /// The model's name; unset: the first one.
    model: Option<String>,
    /// One of the model's adapters: the same as the model `model:adapter`.
    adapter: Option<String>,
    prompt: Prompts,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    /// Answers to each prompt.
    #[schema(minimum = 1)]
    n: Option<usize>,
    /// The prompt precedes its answer.
    echo: Option<bool>,
    max_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    seed: Option<i64>,
    stop: Option<OneOrMany>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    /// Numbers added to logits, by token id.
    #[schema(value_type = Option<std::collections::HashMap<String, f32>>)]
    logit_bias: Option<BTreeMap<String, f32>>,
    /// Log-probabilities of so many of the likeliest tokens.
    #[schema(maximum = 5)]
    logprobs: Option<usize>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    min_tokens: Option<usize>,
    stop_token_ids: Option<Vec<u32>>,
    ignore_eos: Option<bool>,
    /// Whether each choice has the ids of its tokens, as `token_ids`.
    return_token_ids: Option<bool>,
    /// As in the chat API.
    response_format: Option<Value>,
    /// A regular expression, a grammar or texts that the answer is held to.
    structured_outputs: Option<StructuredOutputs>,
    /// Only null: nothing is filled in before a given end.
    suffix: Option<Value>,
    /// Only as many as `n`.
    best_of: Option<usize>,
    /// Has no effect here.
    #[allow(dead_code, reason = "read from requests to be known")]
    user: Option<Value>,
}

/// A prompt or several, as texts or as token ids.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string, token ids, or a list of either")]
pub(crate) enum Prompts {
    /// A text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
    /// Several texts.
    Texts(Vec<String>),
    /// Several lists of token ids.
    TokenLists(Vec<Vec<u32>>),
}

impl Prompts {
    pub(crate) fn into_vec(self) -> Vec<Prompt> {
        match self {
            Self::Text(text) => vec![Prompt::Text(text)],
            Self::Tokens(ids) => vec![Prompt::Tokens(ids)],
            Self::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
            Self::TokenLists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
        }
    }
}

struct Plan {
    prompts: Vec<Prompt>,
    options: GenerateOptions,
    /// Answers to each prompt.
    answers: usize,
    echo: bool,
    logprobs: bool,
    ids: bool,
}

/// Continues texts.
#[utoipa::path(post, path = "/v1/completions", tag = "OpenAI", request_body = CompletionRequest,
    responses((status = 200, description = "A completion, or a stream of its chunks", body = Object)))]
pub(crate) async fn complete(
    State(server): State<Server>,
    Json(request): Json<CompletionRequest>,
) -> ApiResult<Response> {
    let entry = server.models().find(request.model.as_deref(), request.adapter.as_deref())?.clone();
    let stream = request.stream.unwrap_or(false);
    let usage = request.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or(false);
    let plan = request.plan()?;
    let ticket = Ticket::take(&server, &entry, plan.prompts.len() * plan.answers).await?;
    let echoes = if plan.echo { echoes(ticket.model(), &plan.prompts).await? } else { Vec::new() };
    let echoes: Vec<String> =
        echoes.into_iter().flat_map(|text| std::iter::repeat_n(text, plan.answers)).collect();
    let generations = start(&ticket, &plan).await?;
    let writer = Writer {
        ticket,
        id: new_id("cmpl-"),
        created: now(),
        names: TokenNames::default(),
        logprobs: plan.logprobs,
        ids: plan.ids,
        answers: plan.answers,
        usage: Usage::default(),
    };
    if stream {
        return Ok(writer.stream(generations, echoes, usage, server.settings().keep_alive));
    }
    let answers = try_join_all(generations.into_iter().map(Generation::collect)).await?;
    Ok(Body(writer.whole(answers, echoes).await?).into_response())
}

impl CompletionRequest {
    fn plan(self) -> ApiResult<Plan> {
        let answers = self.n.unwrap_or(1);
        if answers == 0 {
            return Err(ApiError::invalid("n", "0, expected at least 1"));
        }
        if self.best_of.is_some_and(|best| best != answers) {
            return Err(ApiError::unsupported("best_of", "expected as many as `n`: no answers are compared"));
        }
        if self.suffix.is_some_and(|suffix| !suffix.is_null() && suffix != "") {
            return Err(ApiError::unsupported("suffix", "a text is continued, not filled in"));
        }
        if self.logprobs.is_some_and(|top| top > LOGPROBS) {
            return Err(ApiError::invalid("logprobs", format!("expected at most {LOGPROBS}")));
        }
        let echo = self.echo.unwrap_or(false);
        if echo && self.logprobs.is_some() {
            return Err(ApiError::unsupported("echo", "log-probabilities of the prompt are not computed"));
        }
        let prompts = self.prompt.into_vec();
        if prompts.is_empty() {
            return Err(ApiError::invalid("prompt", "there are none, expected at least one"));
        }
        let sampling = Sampling {
            max_tokens: self.max_tokens,
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
        options.log_probabilities = self.logprobs;
        let ids = self.return_token_ids.unwrap_or(false);
        let format = self.response_format.as_ref();
        options.constraint = tools::constraint(format, "response_format", self.structured_outputs)?;
        Ok(Plan { prompts, options, answers, echo, logprobs: self.logprobs.is_some(), ids })
    }
}

async fn start(ticket: &Arc<Ticket>, plan: &Plan) -> ApiResult<Vec<Generation>> {
    let starts = plan.prompts.iter().flat_map(|prompt| (0..plan.answers).map(move |answer| (prompt, answer)));
    let starts = starts.map(|(prompt, answer)| {
        ticket.start(prompt.clone(), of_answer(&plan.options, answer), Shape::Raw, "prompt")
    });
    try_join_all(starts).await
}

async fn echoes(model: &dyn TextModel, prompts: &[Prompt]) -> ApiResult<Vec<String>> {
    let text = |prompt: &Prompt| {
        let prompt = prompt.clone();
        async move {
            match prompt {
                Prompt::Tokens(ids) => model.decode(ids).await,
                Prompt::Text(text) => Ok(text),
                _ => Ok(String::new()),
            }
        }
    };
    let texts = try_join_all(prompts.iter().map(text)).await;
    texts.map_err(|error| ApiError::of_request(&error, "prompt"))
}

struct Writer {
    ticket: Arc<Ticket>,
    id: String,
    created: u64,
    names: TokenNames,
    logprobs: bool,
    ids: bool,
    answers: usize,
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [Choice],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<&'a Usage>,
}

#[derive(Debug, Default, Serialize)]
struct Choice {
    index: usize,
    text: String,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

/// The older API's form of log-probabilities: lists side by side.
#[derive(Debug, Default, Serialize)]
struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<Map<String, Value>>,
    text_offset: Vec<usize>,
}

impl Writer {
    async fn whole(mut self, answers: Vec<Answer>, echoes: Vec<String>) -> ApiResult<Value> {
        let mut choices = Vec::with_capacity(answers.len());
        for (index, answer) in answers.into_iter().enumerate() {
            self.count(index, &answer.ended);
            let logprobs = self.logprobs(&answer.tokens, &mut 0).await?;
            let text = echoes.get(index).map_or("", String::as_str).to_owned() + &answer.text;
            let finish_reason = Some(finish_reason(&answer.ended.end));
            choices.push(Choice {
                index,
                text,
                logprobs,
                finish_reason,
                token_ids: self.ids(&answer.tokens),
            });
        }
        Ok(json!(Chunk { usage: Some(&self.usage), ..self.chunk(&choices) }))
    }

    fn stream(
        mut self,
        generations: Vec<Generation>,
        echoes: Vec<String>,
        include_usage: bool,
        keep_alive: Duration,
    ) -> Response {
        let write = move |mut events| async move {
            // A client that is gone needs no more.
            let _ = self.run(&mut events, generations, echoes, include_usage).await;
        };
        sse::respond(write, keep_alive, sse::comment())
    }

    async fn run(
        &mut self,
        events: &mut Events,
        generations: Vec<Generation>,
        echoes: Vec<String>,
        include_usage: bool,
    ) -> Result<(), Gone> {
        for (index, echo) in echoes.iter().enumerate() {
            let choice = Choice { index, text: echo.clone(), ..Choice::default() };
            events.data(&self.chunk(&[choice])).await?;
        }
        let mut offsets = vec![0; generations.len()];
        let mut progress = std::pin::pin!(interleave(generations));
        while let Some((index, went)) = progress.next().await {
            let choice = match went {
                Ok(Progress::Went(step)) => {
                    let logprobs = self.logprobs(&step.tokens, &mut offsets[index]).await;
                    let token_ids = self.ids(&step.tokens);
                    let text: String = step.parts.into_iter().map(text_of).collect();
                    logprobs.map(|logprobs| Choice { index, text, logprobs, token_ids, finish_reason: None })
                }
                Ok(Progress::Ended(ended)) => {
                    self.count(index, &ended);
                    let finish_reason = Some(finish_reason(&ended.end));
                    Ok(Choice { index, finish_reason, ..Choice::default() })
                }
                Err(error) => Err(error),
            };
            match choice {
                Ok(choice) => events.data(&self.chunk(&[choice])).await?,
                Err(error) => return events.data(&Dialect::OpenAi.body(&error)).await,
            }
        }
        if include_usage {
            events.data(&Chunk { usage: Some(&self.usage), ..self.chunk(&[]) }).await?;
        }
        events.text("[DONE]").await
    }

    fn count(&mut self, index: usize, ended: &crate::generation::Ended) {
        if index.is_multiple_of(self.answers) {
            self.usage.add_prompt(ended);
        } else {
            self.usage.add_answer(ended);
        }
    }

    async fn logprobs(&mut self, tokens: &[Token], offset: &mut usize) -> ApiResult<Option<Logprobs>> {
        if !self.logprobs {
            return Ok(None);
        }
        let mut lists = Logprobs::default();
        for entry in self.names.logprobs(self.ticket.model(), tokens).await? {
            lists.text_offset.push(*offset);
            *offset += entry.token.chars().count();
            let top = entry.top_logprobs.into_iter().flatten();
            lists.top_logprobs.push(top.map(|top| (top.token, json!(top.logprob))).collect());
            lists.tokens.push(entry.token);
            lists.token_logprobs.push(entry.logprob);
        }
        Ok(Some(lists))
    }

    fn ids(&self, tokens: &[Token]) -> Option<Vec<u32>> {
        self.ids.then(|| tokens.iter().map(|token| token.id).collect())
    }

    fn chunk<'a>(&'a self, choices: &'a [Choice]) -> Chunk<'a> {
        let (id, model) = (self.id.as_str(), self.ticket.model_name());
        Chunk { id, object: "text_completion", created: self.created, model, choices, usage: None }
    }
}

fn text_of(part: Part) -> String {
    match part {
        Part::Text(text) | Part::Reasoning(text) => text,
        // A text that is continued has no calls.
        _ => String::new(),
    }
}
