//! The end of a model.

use futures::StreamExt as _;
use inference_core::{ClassifyOptions, Error, Feature, FinishReason};

use super::{ENDLESS, alone, drain, ended, eventually, ids, was_cancelled};
use crate::{
    ClauseResult, Failure, Subject,
    clause::{clauses, ensure},
};

clauses!("closing":
    closing_twice_is_closing_once [],
    a_closed_model_refuses [Generate],
    closing_ends_running_streams_as_cancelled [Generate],
    a_stream_keeps_its_model_loaded [Generate],
    dropping_the_last_handle_gives_the_memory_back [],
    closing_gives_the_memory_back [],
);

/// Closing a closed model is fine.
pub async fn closing_twice_is_closing_once(subject: &Subject) -> ClauseResult {
    let model = subject.fresh_model().await?;
    model.close().await?;
    model.close().await?;
    Ok(())
}

/// After `close`, every call fails with `Error::Closed`, while what is known about the model can still be asked.
pub async fn a_closed_model_refuses(subject: &Subject) -> ClauseResult {
    let model = subject.fresh_model().await?;
    let info = model.info().clone();
    model.close().await?;
    let result = model.generate(subject.prompt.clone(), subject.greedy(1)?).await;
    ensure!(matches!(result, Err(Error::Closed)), "a generation ended as {}", ended(&result));
    if subject.capabilities()?.has(Feature::Classify) {
        let result = model.classify(vec![subject.prompt.clone()], ClassifyOptions::new()).await;
        ensure!(matches!(result, Err(Error::Closed)), "a classification ended as {}", ended(&result));
    }
    ensure!(*model.info() == info, "closing changed what it says about itself");
    ensure!(model.stats().active == 0, "requests are active on a closed model");
    Ok(())
}

/// `close` ends running requests as cancelled, read or not; what they had made is delivered.
pub async fn closing_ends_running_streams_as_cancelled(subject: &Subject) -> ClauseResult {
    let model = subject.fresh_model().await?;
    let mut read = model.generate(subject.prompt.clone(), subject.greedy(ENDLESS)?).await?;
    let mut unread = model.generate(subject.prompt.clone(), subject.greedy(ENDLESS)?).await?;
    if let Some(token) = read.next().await {
        token?;
    }
    model.close().await?;
    for stream in [&mut read, &mut unread] {
        was_cancelled(&drain(stream).await?.1)?;
    }
    Ok(())
}

/// A stream goes on to its end after the last handle to its model was dropped.
pub async fn a_stream_keeps_its_model_loaded(subject: &Subject) -> ClauseResult {
    let model = subject.fresh_model().await?;
    let expected = ids(&alone(&*model, &subject.prompt, &subject.greedy(24)?).await?);
    let mut stream = model.generate(subject.prompt.clone(), subject.greedy(24)?).await?;
    drop(model);
    let (tokens, finish) = drain(&mut stream).await?;
    let tokens: Vec<u32> = tokens.into_iter().map(|token| token.id).collect();
    ensure!(tokens == expected, "it gave {tokens:?}, with its model held {expected:?}");
    ensure!(finish.reason != FinishReason::Cancelled, "it ended as {:?}", finish.reason);
    Ok(())
}

/// Dropping the last handle, and the last stream, releases the model as `close` does, unawaited.
pub async fn dropping_the_last_handle_gives_the_memory_back(subject: &Subject) -> ClauseResult {
    gives_back(subject, End::Drop).await
}

/// A closed model's memory is the engine's again.
pub async fn closing_gives_the_memory_back(subject: &Subject) -> ClauseResult {
    gives_back(subject, End::Close).await
}

/// How a model ends.
enum End {
    Close,
    Drop,
}

async fn gives_back(subject: &Subject, end: End) -> ClauseResult {
    let backend = subject.backend()?;
    let Some(memory) = backend.memory() else {
        return Err(Failure::inconclusive(
            "the backend does not tell its memory: implement `Backend::memory`",
        ));
    };
    // Loaded first, so that what the engine keeps for itself is there already.
    let shared = subject.model().await?;
    if subject.capabilities()?.has(Feature::Generate) {
        alone(&*shared, &subject.prompt, &subject.greedy(4)?).await?;
    }
    let before = memory.usage()?.active_bytes;
    let model = subject.fresh_model().await?;
    if subject.capabilities()?.has(Feature::Generate) {
        alone(&*model, &subject.prompt, &subject.greedy(4)?).await?;
    }
    let loaded = memory.usage()?.active_bytes;
    match end {
        End::Close => model.close().await?,
        End::Drop => drop(model),
    }
    // A tenth of the model, and a mebibyte for what requests leave in caches.
    let allowed = before + loaded.saturating_sub(before) / 10 + (1 << 20);
    let used = || memory.usage().map_or(u64::MAX, |usage| usage.active_bytes);
    ensure!(
        eventually(subject, || used() <= allowed),
        "{before} bytes before the load, {loaded} after it, {} after its end",
        used()
    );
    Ok(())
}
