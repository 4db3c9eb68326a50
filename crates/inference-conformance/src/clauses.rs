//! The clauses, by theme. Each is one promise of the contract.

pub mod cancelling;
pub mod classify;
pub mod closing;
pub mod constraining;
pub mod embedding;
pub mod errors;
pub mod generate;
pub mod loading;
pub mod log_probabilities;
pub mod metrics;
pub mod options;
pub mod processing;
pub mod sampling;
pub mod sessions;
pub mod streaming;
pub mod tokenizing;
pub mod training;

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use inference_core::{
    ClassifyOptions, Completion, Error, Feature, Finish, FinishReason, GenerateOptions, Prompt,
    TemplateOptions, TextModel, TextModelExt as _, Token, TokenStream,
};

use crate::{Clause, ClauseResult, Failure, Subject, clause::ensure};

pub(crate) const ALL: &[&[Clause]] = &[
    loading::CLAUSES,
    generate::CLAUSES,
    streaming::CLAUSES,
    cancelling::CLAUSES,
    options::CLAUSES,
    sampling::CLAUSES,
    processing::CLAUSES,
    constraining::CLAUSES,
    log_probabilities::CLAUSES,
    classify::CLAUSES,
    embedding::CLAUSES,
    errors::CLAUSES,
    metrics::CLAUSES,
    tokenizing::CLAUSES,
    sessions::CLAUSES,
    training::CLAUSES,
    closing::CLAUSES,
];

/// More tokens than a request ever reads: it ends by what is done to it.
const ENDLESS: usize = 50_000;

fn ids(completion: &Completion) -> Vec<u32> {
    completion.tokens.iter().map(|token| token.id).collect()
}

/// `n` ids that the model has and that do not end a text; another `salt` gives others.
fn some_ids(model: &dyn TextModel, n: usize, salt: usize) -> Vec<u32> {
    let info = model.info();
    let usable = |id: &u32| !info.eos_token_ids.contains(id);
    let pool: Vec<u32> = (0..info.vocab_size as u32).skip(1).filter(usable).take(199).collect();
    // Steps that share no factor with the pool's usual size walk through all of it.
    (0..n).map(|i| pool[(i * 7 + i / pool.len() + salt * 31) % pool.len()]).collect()
}

/// Three prompts of different length.
fn some_prompts(subject: &Subject, model: &dyn TextModel) -> Vec<Prompt> {
    let long = 40.min(model.info().context_length / 4).max(1);
    vec![subject.prompt.clone(), some_ids(model, 3, 1).into(), some_ids(model, long, 2).into()]
}

/// What the prompt answers with nothing beside it.
async fn alone(
    model: &dyn TextModel,
    prompt: &Prompt,
    options: &GenerateOptions,
) -> Result<Completion, Failure> {
    Ok(model.complete(prompt.clone(), options.clone()).await?)
}

/// The engine answers the subject's prompt as it did when nothing had happened.
async fn still_right(subject: &Subject, model: &dyn TextModel, before: &[u32]) -> ClauseResult {
    let after = ids(&alone(model, &subject.prompt, &subject.greedy(before.len())?).await?);
    same_answer(subject, model, &subject.prompt, [&after, before], "the next request").await
}

/// Fails unless two greedy answers to a prompt are equal, up to a tie: where they part, the logits of both tokens are the highest
/// within the tolerance. What follows is about different texts then.
async fn same_answer(
    subject: &Subject,
    model: &dyn TextModel,
    prompt: &Prompt,
    [found, expected]: [&[u32]; 2],
    which: &str,
) -> ClauseResult {
    let parting = found.iter().zip(expected).position(|(found, expected)| found != expected);
    let capabilities = subject.capabilities()?;
    let (Some(at), true) =
        (parting, [Feature::Classify, Feature::Logits].iter().all(|f| capabilities.has(*f)))
    else {
        let same = found == expected;
        ensure!(same, "{which} gave {found:?}, expected {expected:?}");
        return Ok(());
    };
    let mut text = match prompt {
        Prompt::Tokens(ids) => ids.clone(),
        prompt => model.tokenize(prompt.clone(), TemplateOptions::default()).await?,
    };
    text.extend(&found[..at]);
    let logits = logits(model, &text).await?;
    let highest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let behind = [found[at], expected[at]].map(|id| highest - logits[id as usize]);
    // Both answers' logits may be off by the tolerance.
    let tolerance = 2.0 * subject.log_tolerance()?;
    let tie = behind.iter().all(|behind| *behind <= tolerance);
    ensure!(
        tie,
        "{which} gave {found:?}, expected {expected:?}: of tokens that are {behind:?} behind the likeliest"
    );
    Ok(())
}

/// Reads to the end.
async fn drain(stream: &mut TokenStream) -> Result<(Vec<Token>, Finish), Failure> {
    let mut tokens = Vec::new();
    while let Some(token) = stream.next().await {
        tokens.push(token?);
    }
    Ok((tokens, stream.finish().await?))
}

/// Tokens that an engine may have waiting for a reader; the contract bounds them and leaves the number open.
const CHANNEL: usize = 1024;

/// Fails unless the generation was cancelled; moot where the model or its context ended it first.
fn was_cancelled(finish: &Finish) -> ClauseResult {
    match &finish.reason {
        FinishReason::Cancelled => Ok(()),
        FinishReason::Length if finish.metrics.generated_tokens < CHANNEL => {
            Err(Failure::inconclusive(format!(
                "the context was full after {} tokens, which may all wait for a reader: use a model with more",
                finish.metrics.generated_tokens
            )))
        }
        FinishReason::Stop(cause) => Err(Failure::inconclusive(format!(
            "the model ended the text first ({cause:?}): give another `prompt`"
        ))),
        reason => Err(Failure::broken(format!("it ended as {reason:?}, expected Cancelled"))),
    }
}

/// How a call ended, for a message.
fn ended<T>(result: &Result<T, Error>) -> String {
    match result {
        Ok(_) => "success".to_owned(),
        Err(error) => format!("{}: {error}", error.kind()),
    }
}

/// Waits until the condition holds, for at most half of the clause's deadline; whether it held.
fn eventually(subject: &Subject, condition: impl Fn() -> bool) -> bool {
    within(subject.deadline / 2, condition)
}

fn within(time: Duration, condition: impl Fn() -> bool) -> bool {
    let began = Instant::now();
    while !condition() {
        if began.elapsed() > time {
            return false;
        }
        // Each clause has a thread of its own, so waiting here holds nobody else.
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// A prompt and options with which the greedy text ends by the model's own end-of-sequence token: forced by a bias where
/// the backend has one, else the subject's.
fn ending(subject: &Subject, model: &dyn TextModel) -> Result<(Prompt, GenerateOptions), Failure> {
    let options = GenerateOptions::new().max_tokens(64).temperature(0.0).generation_config(false);
    if let Some(prompt) = &subject.ending_prompt {
        return Ok((prompt.clone(), options));
    }
    match model.info().eos_token_ids.first() {
        Some(eos) if subject.capabilities()?.has(Feature::LogitBias) => {
            Ok((subject.prompt.clone(), options.logit_bias([(*eos, 1e4)])))
        }
        Some(_) => Err(Failure::inconclusive("no logit bias to force an end with: give an `ending_prompt`")),
        None => Err(Failure::inconclusive("the model has no end-of-sequence token")),
    }
}

/// The model's own logits after these ids.
async fn logits(model: &dyn TextModel, ids: &[u32]) -> Result<Vec<f64>, Failure> {
    let options = ClassifyOptions::new().logits(true);
    let answers = model.classify(vec![ids.to_vec().into()], options).await?;
    let logits = answers.into_iter().next().and_then(|answer| answer.logits);
    let logits = logits.ok_or_else(|| Failure::broken("logits were asked for, and not given"))?;
    Ok(logits.into_iter().map(f64::from).collect())
}
