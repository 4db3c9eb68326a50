//! What a request says it cost, and what a model says it did.

use std::time::Instant;

use inference_core::Prompt;

use super::{ENDLESS, alone, drain, eventually, some_ids, was_cancelled};
use crate::{
    ClauseResult, Subject,
    clause::{clauses, ensure},
};

clauses!("metrics":
    tokens_are_counted [Generate],
    times_fit_the_clock [Generate],
    stats_count_every_request [Generate],
    stats_count_cancellations [Generate],
);

/// `generated_tokens` is what was delivered; `prompt_tokens` is the prompt's length, of which at most all were cached.
pub async fn tokens_are_counted(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    for (length, limit) in [(1, 3), (5, 0), (17, 8), (17, 8)] {
        let prompt = Prompt::Tokens(some_ids(&*model, length, 21));
        let answer = alone(&*model, &prompt, &subject.greedy(limit)?).await?;
        let (metrics, delivered) = (&answer.finish.metrics, answer.tokens.len());
        let generated = metrics.generated_tokens;
        ensure!(generated == delivered, "{generated} tokens generated, {delivered} delivered");
        ensure!(metrics.prompt_tokens == length, "{} prompt tokens, given {length}", metrics.prompt_tokens);
        ensure!(metrics.cached_tokens <= length, "{} of {length} tokens were cached", metrics.cached_tokens);
    }
    Ok(())
}

/// A request's times add up to no more than the caller waited; the time to the first token is there if a token is.
pub async fn times_fit_the_clock(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    for limit in [0, 12] {
        let began = Instant::now();
        let answer = alone(&*model, &subject.prompt, &subject.greedy(limit)?).await?;
        let waited = began.elapsed();
        let metrics = &answer.finish.metrics;
        let told = metrics.queued + metrics.prefill + metrics.decode;
        ensure!(told <= waited, "queued, prefill and decode took {told:?}, the caller waited {waited:?}");
        let first = metrics.time_to_first_token;
        let delivered = answer.tokens.len();
        ensure!(first.is_some() == (delivered > 0), "{delivered} tokens, the first after {first:?}");
        ensure!(first.is_none_or(|first| first <= waited), "the first token after {first:?} of {waited:?}");
        if let Some(spread) = metrics.inter_token {
            let sorted = spread.p50 <= spread.p90 && spread.p90 <= spread.p99 && spread.p99 <= spread.max;
            ensure!(sorted && spread.max <= waited, "{spread:?} in {waited:?}");
        }
    }
    Ok(())
}

/// Running totals grow by what each request cost.
pub async fn stats_count_every_request(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    ensure!(
        eventually(subject, || model.stats().active == 0),
        "{} requests are left over",
        model.stats().active
    );
    let before = model.stats();
    let (mut prompt, mut generated) = (0, 0);
    for limit in [2, 7] {
        let answer = alone(&*model, &subject.prompt, &subject.greedy(limit)?).await?;
        prompt += answer.finish.metrics.prompt_tokens as u64;
        generated += answer.finish.metrics.generated_tokens as u64;
    }
    let right = || {
        let after = model.stats();
        after.requests == before.requests + 2
            && after.prompt_tokens == before.prompt_tokens + prompt
            && after.generated_tokens == before.generated_tokens + generated
            && (after.active, after.failed, after.cancelled) == (0, before.failed, before.cancelled)
    };
    ensure!(
        eventually(subject, right),
        "two requests of {prompt} and {generated} tokens: {before:?} became {:?}",
        model.stats()
    );
    Ok(())
}

/// A cancelled request is counted as cancelled, and as active only while it runs.
pub async fn stats_count_cancellations(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    ensure!(
        eventually(subject, || model.stats().active == 0),
        "{} requests are left over",
        model.stats().active
    );
    let before = model.stats();
    let options = subject.greedy(ENDLESS)?;
    let cancel = options.cancel.clone();
    let mut stream = model.generate(subject.prompt.clone(), options).await?;
    let running = model.stats().active;
    cancel.cancel();
    was_cancelled(&drain(&mut stream).await?.1)?;
    ensure!(running == 1, "{running} requests were active while one ran");
    let right = || {
        let after = model.stats();
        (after.requests, after.cancelled, after.active, after.failed)
            == (before.requests + 1, before.cancelled + 1, 0, before.failed)
    };
    ensure!(eventually(subject, right), "one request was cancelled: {before:?} became {:?}", model.stats());
    Ok(())
}
