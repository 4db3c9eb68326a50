//! A caller that changes its mind.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, future::join_all};
use inference_core::{CancellationToken, Feature, Prompt, TextModelExt as _};

use super::{
    ENDLESS, alone, drain, eventually, ids, same_answer, some_ids, some_prompts, still_right, was_cancelled,
};
use crate::{
    ClauseResult, Failure, Subject,
    clause::{clauses, ensure},
};

clauses!("cancelling":
    before_the_start [Generate],
    during_prefill [Generate],
    during_decode [Generate],
    an_unread_stream_frees_the_engine [Generate],
    dropping_the_stream_frees_the_engine [Generate],
    dropping_leaves_the_callers_token_alone [Generate],
    one_of_many_leaves_the_others_alone [Generate],
);

/// A request whose token is cancelled already is taken in and ends as cancelled, without a token: no error.
pub async fn before_the_start(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let options = subject.greedy(ENDLESS)?;
    options.cancel.cancel();
    let mut stream = model.generate(subject.prompt.clone(), options).await?;
    let (tokens, finish) = drain(&mut stream).await?;
    was_cancelled(&finish)?;
    ensure!(
        tokens.is_empty(),
        "{} tokens came of a request that was cancelled before it began",
        tokens.len()
    );
    Ok(())
}

/// A prompt that is being computed is given up within one chunk: where the whole takes long, its cancellation does not. Of
/// several tries one has to be short: the machine may be at other work during the rest, but who computes the whole prompt
/// is never short.
pub async fn during_prefill(subject: &Subject) -> ClauseResult {
    const TRIES: usize = 3;
    let shared = subject.model().await?;
    let expected = ids(&alone(&*shared, &subject.prompt, &subject.greedy(6)?).await?);
    let length = subject.long_prompt.min(shared.info().context_length / 2).max(1);
    // A prompt of many chunks, so that one of them is little of the whole.
    let (model, chunk) = if subject.capabilities()?.has(Feature::PrefillChunk) {
        let chunk = subject.prefill_chunk.min(length / 16).max(1);
        (subject.load(subject.base_load_options().prefill_chunk(chunk)).await?, chunk)
    } else {
        (shared, subject.prefill_chunk)
    };
    if 4 * chunk > length {
        let reason = format!(
            "a prompt of {length} tokens is hardly more than a chunk of {chunk}: `Subject::long_prompt`"
        );
        return Err(Failure::inconclusive(reason));
    }
    let mut longest = String::new();
    for attempt in 0..TRIES {
        // Different prompts, so that nothing of one is reused by the next.
        let prompt = |n: usize| Prompt::from(some_ids(&*model, length, 7 + 2 * attempt + n));
        let began = Instant::now();
        alone(&*model, &prompt(0), &subject.greedy(0)?).await?;
        let whole = began.elapsed();
        let options = subject.greedy(ENDLESS)?;
        let cancel = options.cancel.clone();
        let mut stream = model.generate(prompt(1), options).await?;
        let began = Instant::now();
        cancel.cancel();
        let (_, finish) = drain(&mut stream).await?;
        let took = began.elapsed();
        was_cancelled(&finish)?;
        // The chunk under way and one that was already submitted, and what the machine may take for itself.
        let chunks = whole.mul_f64((2 * chunk) as f64 / length as f64);
        let allowed = chunks.min(whole.mul_f64(0.5)) + Duration::from_millis(400);
        if took <= allowed {
            return still_right(subject, &*model, &expected).await;
        }
        longest = format!("it took {took:?} to give up a prompt that takes {whole:?}, expected {allowed:?}");
    }
    Err(Failure::broken(format!("{TRIES} times of {TRIES}, at last: {longest}")))
}

/// Work stops within a step or so; the text so far is delivered, and is the beginning of the whole.
pub async fn during_decode(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let options = subject.greedy(ENDLESS)?;
    let cancel = options.cancel.clone();
    let mut stream = model.generate(subject.prompt.clone(), options).await?;
    let mut found = Vec::new();
    for _ in 0..3 {
        if let Some(token) = stream.next().await {
            found.push(token?.id);
        }
    }
    cancel.cancel();
    let (rest, finish) = drain(&mut stream).await?;
    was_cancelled(&finish)?;
    found.extend(rest.iter().map(|token| token.id));
    let counted = finish.metrics.generated_tokens;
    ensure!(found.len() >= 3, "{} tokens were delivered after three had been read", found.len());
    ensure!(counted == found.len(), "{} tokens were delivered, {counted} counted", found.len());
    let whole = ids(&alone(&*model, &subject.prompt, &subject.greedy(found.len())?).await?);
    ensure!(found == whole, "cancelled {found:?}, uncancelled {whole:?}");
    Ok(())
}

/// A cancelled stream that is held and never read is out of the engine's way.
pub async fn an_unread_stream_frees_the_engine(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let expected = ids(&alone(&*model, &subject.prompt, &subject.greedy(12)?).await?);
    let mut held = Vec::new();
    let cancel = CancellationToken::new();
    for _ in 0..3 {
        let options = subject.greedy(ENDLESS)?.cancel(cancel.clone());
        held.push(model.generate(subject.prompt.clone(), options).await?);
    }
    still_right(subject, &*model, &expected).await?;
    cancel.cancel();
    ensure!(
        eventually(subject, || model.stats().active == 0),
        "{} cancelled requests are still in the engine",
        model.stats().active
    );
    still_right(subject, &*model, &expected).await?;
    for mut stream in held {
        was_cancelled(&drain(&mut stream).await?.1)?;
    }
    Ok(())
}

/// Dropping the stream cancels the generation, at any moment of it; the engine is free and the next request is right.
pub async fn dropping_the_stream_frees_the_engine(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let expected = ids(&alone(&*model, &subject.prompt, &subject.greedy(12)?).await?);
    for read in [0, 1, 5] {
        let mut stream = model.generate(subject.prompt.clone(), subject.greedy(ENDLESS)?).await?;
        for _ in 0..read {
            if let Some(token) = stream.next().await {
                token?;
            }
        }
        drop(stream);
        ensure!(
            eventually(subject, || model.stats().active == 0),
            "dropped after {read} tokens, the request is still in the engine"
        );
        still_right(subject, &*model, &expected).await?;
    }
    Ok(())
}

/// The caller's token is the caller's: it may serve other calls, and dropping a stream does not cancel it.
pub async fn dropping_leaves_the_callers_token_alone(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let cancel = CancellationToken::new();
    let options = subject.greedy(ENDLESS)?.cancel(cancel.clone());
    let mut stream = model.generate(subject.prompt.clone(), options).await?;
    if let Some(token) = stream.next().await {
        token?;
    }
    drop(stream);
    ensure!(eventually(subject, || model.stats().active == 0), "the dropped request is still in the engine");
    ensure!(!cancel.is_cancelled(), "dropping the stream cancelled the caller's token");
    Ok(())
}

/// Cancelling one request leaves those beside it alone.
pub async fn one_of_many_leaves_the_others_alone(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let options = subject.greedy(24)?;
    let prompts = some_prompts(subject, &*model);
    let mut expected = Vec::new();
    for prompt in &prompts {
        expected.push(ids(&alone(&*model, prompt, &options).await?));
    }
    let doomed = subject.greedy(ENDLESS)?;
    let cancel = doomed.cancel.clone();
    let mut stream = model.generate(subject.prompt.clone(), doomed).await?;
    let others = join_all(prompts.iter().map(|prompt| model.complete(prompt.clone(), options.clone())));
    let one = async {
        if let Some(token) = stream.next().await {
            token?;
        }
        cancel.cancel();
        Ok::<_, Failure>(drain(&mut stream).await?.1)
    };
    let (others, finish) = futures::join!(others, one);
    was_cancelled(&finish?)?;
    for ((answer, expected), prompt) in others.into_iter().zip(expected).zip(&prompts) {
        let answer = ids(&answer?);
        same_answer(subject, &*model, prompt, [&answer, &expected], "beside a cancelled request it").await?;
    }
    Ok(())
}
