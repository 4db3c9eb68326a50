//! The caller's own step on logits.

use std::sync::{Arc, Mutex, PoisonError};

use futures::future::join3;
use inference_core::{Error, GenerateOptions, TextModelExt as _};

use super::{alone, ended, ids, logits, same_answer, some_ids, still_right};
use crate::{
    ClauseResult, Failure, Subject,
    clause::{clauses, ensure},
    sampler,
};

clauses!("processing":
    a_processor_has_the_last_word [Generate LogitsProcessor LogitBias],
    a_processor_sees_logits_and_history [Generate LogitsProcessor Classify Logits],
    a_processor_that_fails_ends_its_request_alone [Generate LogitsProcessor],
);

/// The likeliest token is the one that the processor makes so, whatever a bias has made of the logits before.
pub async fn a_processor_has_the_last_word(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let script = some_ids(&*model, 6, 31);
    let said = script.clone();
    let processor = move |_: &[u32], answer: &[u32], logits: &mut [f32]| {
        logits.fill(0.0);
        logits[said[answer.len()] as usize] = 100.0;
    };
    let other = some_ids(&*model, 8, 31)[7];
    let options = subject.greedy(script.len())?.logit_bias([(other, 1e4)]).logits_processor(processor);
    let found = ids(&alone(&*model, &subject.prompt, &options).await?);
    ensure!(found == script, "the processor left {script:?}, found {found:?}");
    Ok(())
}

/// It is called once for each token, with the prompt's and the answer's ids and with the model's logits; where it changes
/// nothing, so does the answer.
pub async fn a_processor_sees_logits_and_history(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let prompt = some_ids(&*model, 9, 33);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    let processor = move |prompt: &[u32], answer: &[u32], logits: &mut [f32]| {
        let call = (prompt.to_vec(), answer.to_vec(), logits.to_vec());
        sink.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    };
    let plain = ids(&alone(&*model, &prompt.clone().into(), &subject.greedy(5)?).await?);
    let options = subject.greedy(5)?.logits_processor(processor);
    let answer = ids(&alone(&*model, &prompt.clone().into(), &options).await?);
    ensure!(answer == plain, "a processor that changes nothing made {answer:?} of {plain:?}");
    let calls = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    ensure!(calls.len() == answer.len(), "{} calls for {} tokens", calls.len(), answer.len());
    for (step, (given, so_far, found)) in calls.into_iter().enumerate() {
        ensure!(given == prompt, "the prompt is {prompt:?}, it saw {given:?}");
        ensure!(so_far == answer[..step], "step {step} of {answer:?}, it saw {so_far:?}");
        let expected = sampler::log_softmax(&logits(&*model, &[&prompt[..], &so_far].concat()).await?);
        let found: Vec<f64> = found.into_iter().map(f64::from).collect();
        for (id, (found, expected)) in sampler::log_softmax(&found).iter().zip(&expected).enumerate() {
            let off = (found - expected).abs();
            ensure!(
                off <= subject.log_tolerance()?,
                "step {step}: token {id} had {found}, its logit says {expected}"
            );
        }
    }
    Ok(())
}

/// A processor that panics, or leaves logits that no token can be chosen from, ends its own request with an error that names the
/// option; the requests beside it and after it are not touched.
pub async fn a_processor_that_fails_ends_its_request_alone(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let options = subject.greedy(8)?;
    let before = ids(&alone(&*model, &subject.prompt, &options).await?);
    let panics = |_: &[u32], answer: &[u32], _: &mut [f32]| assert!(answer.len() < 3, "a processor's panic");
    let spoils = |_: &[u32], answer: &[u32], logits: &mut [f32]| {
        if answer.len() == 2 {
            logits.fill(f32::NAN);
        }
    };
    let ask = |options: GenerateOptions| model.complete(subject.prompt.clone(), options);
    let (panicked, spoilt, beside) = join3(
        ask(options.clone().logits_processor(panics)),
        ask(options.clone().logits_processor(spoils)),
        ask(options),
    )
    .await;
    for result in [panicked, spoilt] {
        match &result {
            Err(Error::InvalidOption { option: "logits_processor", .. }) => {}
            other => {
                return Err(Failure::broken(format!(
                    "a processor failed, which ended in {}, expected invalid_option",
                    ended(other)
                )));
            }
        }
    }
    same_answer(subject, &*model, &subject.prompt, [&ids(&beside?), &before], "the request beside it")
        .await?;
    still_right(subject, &*model, &before).await
}
