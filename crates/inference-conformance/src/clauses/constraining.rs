//! Answers that are held to a shape.

use std::sync::{Arc, Mutex, PoisonError};

use futures::future::{join_all, join3};
use inference_core::{
    Completion, Constraint, ConstraintState, ConstraintVocabulary, Error, FinishReason, GenerateOptions,
    Prompt, StopCause, TextModel, TextModelExt as _, TokenConstraint, TokenMask,
};
use serde_json::json;

use super::{alone, ended, ids, logits, same_answer, some_ids, still_right};
use crate::{
    ClauseResult, Failure, Subject,
    clause::{clauses, ensure},
    sampler,
};

clauses!("constraining":
    only_what_is_allowed_is_said [Generate Constraint Sampling Seed],
    the_likeliest_of_the_allowed_is_taken [Generate Constraint Classify Logits],
    log_probabilities_are_of_the_allowed [Generate Constraint Classify Logits LogProbabilities],
    draws_follow_the_probabilities_of_the_allowed [Generate Constraint Classify Logits Sampling],
    a_text_ends_only_where_it_may [Generate Constraint LogitBias],
    a_text_that_is_cut_says_so [Generate Constraint],
    a_state_is_told_every_token [Generate Constraint],
    each_request_has_its_own_constraint [Generate Constraint],
    a_constraint_that_fails_ends_its_request_alone [Generate Constraint],
    one_of_the_texts_is_said [Generate Constraint Tokenize],
    what_cannot_be_held_to_is_refused [Generate Constraint],
);

/// Draws that are less likely than this where the promise is kept count as a breach.
const SIGNIFICANCE: f64 = 1e-6;

/// Says so many of these ids, and then ends the text.
#[derive(Clone)]
struct Listed {
    ids: Vec<u32>,
    tokens: usize,
    /// What happens at this token in place of that.
    fault: Option<(usize, Fault)>,
    said: Arc<Mutex<Vec<u32>>>,
}

#[derive(Clone, Copy)]
enum Fault {
    Panics,
    AllowsNone,
}

struct State {
    of: Listed,
    said: usize,
    eos: Vec<u32>,
}

impl Listed {
    fn new(ids: Vec<u32>, tokens: usize) -> Self {
        Self { ids, tokens, fault: None, said: Arc::default() }
    }

    fn failing(self, at: usize, fault: Fault) -> Self {
        Self { fault: Some((at, fault)), ..self }
    }

    fn constraint(&self) -> Constraint {
        Constraint::custom(self.clone())
    }
}

impl TokenConstraint for Listed {
    fn start(&self, vocabulary: &ConstraintVocabulary) -> Result<Box<dyn ConstraintState>, String> {
        Ok(Box::new(State { of: self.clone(), said: 0, eos: vocabulary.eos_token_ids.clone() }))
    }
}

impl ConstraintState for State {
    fn mask(&mut self, mask: &mut TokenMask) -> Result<(), String> {
        match self.of.fault {
            Some((at, Fault::Panics)) if at == self.said => panic!("a constraint's panic"),
            Some((at, Fault::AllowsNone)) if at == self.said => return Ok(()),
            _ => {}
        }
        let ids = if self.said < self.of.tokens { &self.of.ids } else { &self.eos };
        ids.iter().for_each(|id| mask.allow(*id));
        Ok(())
    }

    fn accept(&mut self, id: u32) -> Result<(), String> {
        self.said += 1;
        self.of.said.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        Ok(())
    }

    fn rollback(&mut self, tokens: usize) -> Result<(), String> {
        self.said -= tokens;
        let mut said = self.of.said.lock().unwrap_or_else(PoisonError::into_inner);
        let left = said.len() - tokens;
        said.truncate(left);
        Ok(())
    }
}

/// Greedy options for a text that ends by itself.
fn greedy(max_tokens: usize) -> GenerateOptions {
    GenerateOptions::new().max_tokens(max_tokens).temperature(0.0).generation_config(false)
}

fn ends_by_itself(answer: &Completion) -> ClauseResult {
    let reason = &answer.finish.reason;
    ensure!(
        matches!(reason, FinishReason::Stop(StopCause::EndOfSequence(_))),
        "it ended as {reason:?}, expected an end-of-sequence token"
    );
    Ok(())
}

/// Whatever the temperature, every token is one that the constraint allows.
pub async fn only_what_is_allowed_is_said(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let allowed = some_ids(&*model, 3, 41);
    let constraint = Listed::new(allowed.clone(), 6);
    for (seed, temperature) in (0..).zip([0.0, 0.0, 1.0, 4.0]) {
        let options = greedy(20).temperature(temperature).seed(seed).constraint(constraint.constraint());
        let answer = alone(&*model, &subject.prompt, &options).await?;
        let said = ids(&answer);
        ensure!(said.iter().all(|id| allowed.contains(id)), "of {allowed:?} it said {said:?}");
        ensure!(said.len() == 6, "the constraint has six tokens, it said {said:?}");
        ends_by_itself(&answer)?;
    }
    Ok(())
}

/// Greedy takes the allowed token with the largest logit.
pub async fn the_likeliest_of_the_allowed_is_taken(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let allowed = some_ids(&*model, 5, 43);
    let mut history = some_ids(&*model, 8, 44);
    let options = greedy(20).constraint(Listed::new(allowed.clone(), 5).constraint());
    for id in ids(&alone(&*model, &history.clone().into(), &options).await?) {
        let logits = logits(&*model, &history).await?;
        let of = |id: u32| logits[id as usize];
        let best = allowed.iter().copied().map(of).fold(f64::NEG_INFINITY, f64::max);
        ensure!(allowed.contains(&id), "{id} is not among {allowed:?}");
        ensure!(
            of(id) >= best - subject.log_tolerance()?,
            "it said {id} with logit {}, the likeliest has {best}",
            of(id)
        );
        history.push(id);
    }
    Ok(())
}

/// The log-probabilities of a step: those of the allowed tokens, which add up to certainty.
async fn renormalised(model: &dyn TextModel, history: &[u32], allowed: &[u32]) -> Result<Vec<f64>, Failure> {
    let mut logits = logits(model, history).await?;
    for (id, logit) in logits.iter_mut().enumerate() {
        if !allowed.contains(&(id as u32)) {
            *logit = f64::NEG_INFINITY;
        }
    }
    Ok(sampler::log_softmax(&logits))
}

/// They are those of the allowed tokens alone.
pub async fn log_probabilities_are_of_the_allowed(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let allowed = some_ids(&*model, 4, 45);
    let mut history = some_ids(&*model, 8, 46);
    let options = greedy(20).log_probabilities(3).constraint(Listed::new(allowed.clone(), 3).constraint());
    for token in alone(&*model, &history.clone().into(), &options).await?.tokens {
        let expected = renormalised(&*model, &history, &allowed).await?;
        let chosen = token.log_probability.map(|l| (token.id, l));
        let listed = token.top.iter().map(|other| (other.id, other.log_probability));
        for (id, found) in chosen.into_iter().chain(listed) {
            let expected = expected[id as usize];
            let off = (f64::from(found) - expected).abs();
            ensure!(
                off <= subject.log_tolerance()?,
                "token {id} has {found}, of {allowed:?} it has {expected}"
            );
        }
        history.push(token.id);
    }
    Ok(())
}

/// A draw is from the allowed tokens, by their probabilities, renormalised.
pub async fn draws_follow_the_probabilities_of_the_allowed(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let prompt = some_ids(&*model, 8, 47);
    // Among the likelier ones, so that the draws tell them apart.
    let all = logits(&*model, &prompt).await?;
    let mut order = some_ids(&*model, 40.min(all.len() - 1), 48);
    order.sort_by(|a, b| all[*b as usize].total_cmp(&all[*a as usize]));
    order.dedup();
    let allowed: Vec<u32> = order.into_iter().step_by(2).take(5).collect();
    let expected: Vec<f64> =
        renormalised(&*model, &prompt, &allowed).await?.into_iter().map(f64::exp).collect();
    let constraint = Listed::new(allowed.clone(), 1).constraint();
    let mut counts = vec![0_u64; expected.len()];
    for first in (0..subject.draws).step_by(32) {
        let draws = (first..subject.draws.min(first + 32)).map(|_| {
            let options = greedy(1).temperature(1.0).constraint(constraint.clone());
            model.complete(Prompt::Tokens(prompt.clone()), options)
        });
        for draw in join_all(draws).await {
            let draw = draw?;
            let Some(token) = draw.tokens.first() else {
                return Err(Failure::broken(format!("no token, and {:?}", draw.finish.reason)));
            };
            ensure!(allowed.contains(&token.id), "{} is not among {allowed:?}", token.id);
            counts[token.id as usize] += 1;
        }
    }
    let test = sampler::chi_square(&counts, &expected);
    ensure!(
        test.p_value > SIGNIFICANCE,
        "{} draws of {allowed:?} do not follow their probabilities: χ² is {:.1} at {} degrees of freedom",
        subject.draws,
        test.statistic,
        test.degrees
    );
    Ok(())
}

/// An end-of-sequence token is chosen only where the constraint allows one, however likely it is.
pub async fn a_text_ends_only_where_it_may(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let Some(eos) = model.info().eos_token_ids.first().copied() else {
        return Err(Failure::inconclusive("the model has no end-of-sequence token"));
    };
    let constraint = Listed::new(some_ids(&*model, 3, 49), 4).constraint();
    let options = greedy(20).logit_bias([(eos, 1e4)]).constraint(constraint);
    let answer = alone(&*model, &subject.prompt, &options).await?;
    ensure!(answer.tokens.len() == 4, "the text may end after four tokens, and has {:?}", ids(&answer));
    ends_by_itself(&answer)
}

/// A text that `max_tokens` cuts is delivered as far as it came, and its reason is the length.
pub async fn a_text_that_is_cut_says_so(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let constraint = Listed::new(some_ids(&*model, 3, 50), 9).constraint();
    let answer = alone(&*model, &subject.prompt, &greedy(4).constraint(constraint)).await?;
    let reason = &answer.finish.reason;
    ensure!(*reason == FinishReason::Length, "it ended as {reason:?}, expected the length");
    ensure!(answer.tokens.len() == 4, "{} tokens, asked for four", answer.tokens.len());
    Ok(())
}

/// A constraint's state takes the tokens of its answer, each once and in order.
pub async fn a_state_is_told_every_token(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let constraint = Listed::new(some_ids(&*model, 6, 51), 7);
    let options = greedy(20).constraint(constraint.constraint());
    let answer = ids(&alone(&*model, &subject.prompt, &options).await?);
    let said = constraint.said.lock().unwrap_or_else(PoisonError::into_inner).clone();
    // Whether it is told of the token that ends the text is left open.
    ensure!(said.starts_with(&answer), "the answer is {answer:?}, the state took {said:?}");
    ensure!(said.len() <= answer.len() + 1, "the answer is {answer:?}, the state took {said:?}");
    Ok(())
}

/// Requests side by side are each held to their own, and one without to none.
pub async fn each_request_has_its_own_constraint(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let free = subject.greedy(8)?;
    let before = ids(&alone(&*model, &subject.prompt, &free).await?);
    let own = |salt: usize| {
        let ids = some_ids(&*model, 3, 52 + salt);
        greedy(20).constraint(Listed::new(ids, 4 + salt).constraint())
    };
    let mut expected = Vec::new();
    for salt in 0..5 {
        expected.push(ids(&alone(&*model, &subject.prompt, &own(salt)).await?));
    }
    let requests = (0..5).map(|salt| model.complete(subject.prompt.clone(), own(salt)));
    let requests = requests.chain([model.complete(subject.prompt.clone(), free)]);
    expected.push(before);
    for (found, expected) in join_all(requests).await.into_iter().zip(expected) {
        let found = ids(&found?);
        ensure!(found == expected, "beside others {found:?}, alone {expected:?}");
    }
    Ok(())
}

/// A constraint that panics or allows no token ends its own request with an error that names the option; the requests beside it
/// and after it are not touched.
pub async fn a_constraint_that_fails_ends_its_request_alone(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let options = subject.greedy(8)?;
    let before = ids(&alone(&*model, &subject.prompt, &options).await?);
    let good = Listed::new(some_ids(&*model, 3, 58), 6);
    let ask = |options: GenerateOptions| model.complete(subject.prompt.clone(), options);
    let fails = |at, fault| ask(greedy(20).constraint(good.clone().failing(at, fault).constraint()));
    let (panicked, barred, beside) =
        join3(fails(3, Fault::Panics), fails(2, Fault::AllowsNone), ask(options)).await;
    let first = fails(0, Fault::Panics).await;
    for result in [panicked, barred, first] {
        match &result {
            Err(Error::InvalidOption { option: "constraint", .. }) => {}
            other => {
                let ended = ended(other);
                return Err(Failure::broken(format!(
                    "a constraint failed, which ended in {ended}, expected invalid_option"
                )));
            }
        }
    }
    same_answer(subject, &*model, &subject.prompt, [&ids(&beside?), &before], "the request beside it")
        .await?;
    still_right(subject, &*model, &before).await
}

/// A choice of texts has one of them said, whole and with nothing behind it.
pub async fn one_of_the_texts_is_said(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let mut texts = Vec::new();
    for salt in [61, 62, 63] {
        texts.push(model.decode(some_ids(&*model, 3, salt)).await?.trim().to_owned());
    }
    texts.retain(|text| !text.is_empty() && !text.contains('\u{fffd}'));
    if texts.is_empty() {
        return Err(Failure::inconclusive("the model's tokens have no text"));
    }
    let options = greedy(64).constraint(Constraint::choice(texts.clone()));
    let answer = alone(&*model, &subject.prompt, &options).await?;
    ensure!(texts.contains(&answer.text), "of {texts:?} it said {:?}", answer.text);
    ends_by_itself(&answer)
}

/// A schema with a keyword that cannot be held to is refused by its name, before the request is counted as running.
pub async fn what_cannot_be_held_to_is_refused(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let schema = json!({"type": "object", "properties": {"a": {"not": {"type": "string"}}}});
    let options = greedy(8).constraint(Constraint::json_schema(schema));
    match model.generate(subject.prompt.clone(), options).await {
        Err(Error::InvalidOption { option: "constraint", reason, .. }) if reason.contains("`not`") => Ok(()),
        Err(error) => Err(Failure::broken(format!("the error names neither option nor keyword: {error}"))),
        Ok(_) => Err(Failure::broken("a schema with `not` was taken")),
    }
}
