//! What the model would say next, from one forward pass.

use inference_core::{ClassifyOptions, Error};

use super::{alone, ended, ids, logits, same_answer, some_ids, some_prompts};
use crate::{
    ClauseResult, Failure, Subject,
    clause::{clauses, ensure},
    sampler,
};

clauses!("classify":
    the_token_is_the_greedy_one [Classify Generate],
    a_batch_gives_what_its_prompts_give_alone [Classify],
    no_prompts_have_no_answers [Classify],
    labels_add_up_to_one [Classify],
    labels_are_no_likelier_than_their_beginning [Classify Logits],
    logits_peak_at_the_token [Classify Logits],
    logits_are_given_where_asked_for [Classify Logits],
    prompts_are_checked [Classify],
    a_cancelled_call_is_an_error [Classify],
);

const LABELS: [&str; 3] = [" yes", " no", " perhaps"];

/// The token is the one that a greedy generation begins with.
pub async fn the_token_is_the_greedy_one(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    for prompt in some_prompts(subject, &*model) {
        let answer = alone(&*model, &prompt, &subject.greedy(1)?).await?;
        let Some(first) = ids(&answer).first().copied() else { continue };
        let found = model.classify(vec![prompt], ClassifyOptions::new()).await?;
        ensure!(found.len() == 1, "{} answers to one prompt", found.len());
        ensure!(found[0].token == first, "classify says {}, generate {first}", found[0].token);
        let (prompt, expected) = (found[0].prompt_tokens, answer.finish.metrics.prompt_tokens);
        ensure!(prompt == expected, "classify counts {prompt} prompt tokens, generate {expected}");
    }
    Ok(())
}

/// Answers come in the prompts' order, and each is what the prompt gives alone.
pub async fn a_batch_gives_what_its_prompts_give_alone(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let options = ClassifyOptions::new().labels(LABELS);
    let mut prompts = some_prompts(subject, &*model);
    prompts.extend((0..9).map(|salt| some_ids(&*model, 3 + salt, salt + 20).into()));
    let together = model.classify(prompts.clone(), options.clone()).await?;
    ensure!(together.len() == prompts.len(), "{} answers to {} prompts", together.len(), prompts.len());
    for (i, (prompt, found)) in prompts.into_iter().zip(together).enumerate() {
        let expected = model.classify(vec![prompt.clone()], options.clone()).await?.remove(0);
        let which = format!("prompt {i} among others");
        same_answer(subject, &*model, &prompt, [&[found.token], &[expected.token]], &which).await?;
        ensure!(found.prompt_tokens == expected.prompt_tokens, "prompt {i} has another length among others");
        for (found, expected) in found.labels.iter().zip(&expected.labels) {
            let off = f64::from((found.log_probability - expected.log_probability).abs());
            ensure!(
                off <= subject.log_tolerance()?,
                "prompt {i}: {found:?} among others, {expected:?} alone"
            );
        }
    }
    Ok(())
}

/// No prompts are answered with no answers.
pub async fn no_prompts_have_no_answers(subject: &Subject) -> ClauseResult {
    let answers = subject.model().await?.classify(Vec::new(), ClassifyOptions::new()).await?;
    ensure!(answers.is_empty(), "{} answers to no prompt", answers.len());
    Ok(())
}

/// Labels come in the order given; their probabilities are the softmax of their log-probabilities and add up to 1.
pub async fn labels_add_up_to_one(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let answers =
        model.classify(some_prompts(subject, &*model), ClassifyOptions::new().labels(LABELS)).await?;
    for answer in answers {
        let names: Vec<&str> = answer.labels.iter().map(|label| label.label.as_str()).collect();
        ensure!(names == LABELS, "labels {names:?}, asked for {LABELS:?}");
        let sum: f64 = answer.labels.iter().map(|label| f64::from(label.probability)).sum();
        ensure!((sum - 1.0).abs() < 1e-4, "the labels' probabilities add up to {sum}");
        let logs: Vec<f64> = answer.labels.iter().map(|label| f64::from(label.log_probability)).collect();
        for (label, expected) in answer.labels.iter().zip(sampler::log_softmax(&logs)) {
            let off = (f64::from(label.probability) - expected.exp()).abs();
            ensure!(off < 1e-4, "{label:?}, and its share is {}", expected.exp());
        }
    }
    let none = model.classify(vec![subject.prompt.clone()], ClassifyOptions::new()).await?;
    ensure!(none.iter().all(|answer| answer.labels.is_empty()), "labels came that nobody asked for");
    Ok(())
}

/// A label of one or more tokens is at most as likely as the likeliest first token.
pub async fn labels_are_no_likelier_than_their_beginning(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let prompt = some_ids(&*model, 8, 17);
    let best =
        sampler::log_softmax(&logits(&*model, &prompt).await?).into_iter().fold(f64::NEG_INFINITY, f64::max);
    let labels = LABELS.iter().map(|label| (*label).to_owned()).chain(["qxzvw ".repeat(4)]);
    let answers = model.classify(vec![prompt.into()], ClassifyOptions::new().labels(labels)).await?;
    for label in answers.iter().flat_map(|answer| &answer.labels) {
        let found = f64::from(label.log_probability);
        ensure!(
            found <= best + subject.log_tolerance()?,
            "{:?} has {found}, no first token more than {best}",
            label.label
        );
        ensure!(!found.is_nan(), "{:?} has no log-probability", label.label);
    }
    Ok(())
}

/// The token is where the logits are highest, of which there is one for each id.
pub async fn logits_peak_at_the_token(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let answers = model.classify(some_prompts(subject, &*model), ClassifyOptions::new().logits(true)).await?;
    for answer in answers {
        let logits: Vec<f64> = answer.logits.unwrap_or_default().into_iter().map(f64::from).collect();
        let vocabulary = model.info().vocab_size;
        ensure!(logits.len() == vocabulary, "{} logits for a vocabulary of {vocabulary}", logits.len());
        let highest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let token = logits[answer.token as usize];
        ensure!(token == highest, "token {} has {token}, the highest logit is {highest}", answer.token);
    }
    Ok(())
}

/// Logits are a favour for the asking: a vocabulary of them for each prompt is a lot.
pub async fn logits_are_given_where_asked_for(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    for asked in [false, true] {
        let options = ClassifyOptions::new().logits(asked);
        let given = model.classify(vec![subject.prompt.clone()], options).await?;
        let given = given.iter().all(|answer| answer.logits.is_some());
        ensure!(given == asked, "asked: {asked}; given: {given}");
    }
    Ok(())
}

/// One prompt that cannot be run fails the call, as it fails a generation.
pub async fn prompts_are_checked(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    for bad in [vec![], vec![model.info().vocab_size as u32], vec![1, u32::MAX]] {
        let said = format!("{bad:?}");
        let prompts = vec![subject.prompt.clone(), bad.into()];
        match model.classify(prompts, ClassifyOptions::new()).await {
            Err(Error::InvalidPrompt { .. }) => {}
            result => {
                return Err(Failure::broken(format!("a prompt of {said} ended as {}", ended(&result))));
            }
        }
    }
    Ok(())
}

/// A call that is cancelled fails with `Error::Cancelled`: half of the answers are no answer.
pub async fn a_cancelled_call_is_an_error(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let options = ClassifyOptions::new();
    options.cancel.cancel();
    match model.classify(some_prompts(subject, &*model), options).await {
        Err(Error::Cancelled) => Ok(()),
        result => Err(Failure::broken(format!("it ended as {}", ended(&result)))),
    }
}
