//! Probing, opening, loading.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use inference_core::{
    CancellationToken, Error, KvBits, LoadOptions, ModelManifest, Outcome, TextModelExt as _,
    backend::{Availability, Support},
};

use super::{alone, ended, ids, same_answer, some_ids, some_prompts};
use crate::{
    ClauseResult, Failure, Subject,
    clause::{clauses, ensure},
};

clauses!("loading":
    a_probe_is_cheap [],
    the_descriptor_and_the_backend_agree [],
    capabilities_stay_what_they_are [],
    a_supported_model_is_selected [],
    the_model_describes_itself [],
    a_cancelled_load_says_so [],
    models_live_side_by_side [Generate],
    the_context_length_holds [ContextLength Generate],
    a_cap_on_the_batch_changes_no_answer [MaxBatch Generate],
    a_prefill_chunk_changes_no_answer [PrefillChunk Generate],
    a_cache_limit_changes_no_answer [CacheLimit Generate],
    a_memory_limit_changes_no_answer [MemoryLimit Generate],
    quantised_caches_answer_together_as_alone [KvBits Generate],
    a_missing_adapter_is_an_error [Adapter],
    a_trainer_is_there_where_claimed [Train],
);

/// A probe starts nothing: it answers within a tenth of a second, and the same each time.
pub async fn a_probe_is_cheap(subject: &Subject) -> ClauseResult {
    let probe = subject.descriptor().probe;
    let (mut best, mut answers) = (Duration::MAX, Vec::new());
    for _ in 0..5 {
        let began = Instant::now();
        answers.push(probe());
        best = best.min(began.elapsed());
    }
    ensure!(best < Duration::from_millis(100), "the quickest of five probes took {best:?}");
    ensure!(answers.windows(2).all(|pair| pair[0] == pair[1]), "probes differ: {answers:?}");
    match &answers[0] {
        Availability::Available(device) => {
            ensure!(!device.is_empty(), "it is available on a device without a name");
        }
        Availability::Unavailable(reason) => ensure!(!reason.is_empty(), "it is unavailable for no reason"),
    }
    Ok(())
}

/// The backend that a descriptor opens has its id, and says version and device. An id is made of lower-case letters, digits
/// and underscores.
pub async fn the_descriptor_and_the_backend_agree(subject: &Subject) -> ClauseResult {
    let (id, backend) = (subject.descriptor().id, subject.backend()?);
    let info = backend.info();
    ensure!(info.id == id, "the descriptor is {id:?}, the backend {:?}", info.id);
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    ensure!(
        !id.is_empty() && id.chars().all(plain),
        "{id:?} is no id: lower-case letters, digits, underscores"
    );
    ensure!(!info.version.is_empty() && !info.device.is_empty(), "no version or device: {info:?}");
    Ok(())
}

/// A backend claims the same capabilities whenever it is asked or opened: callers decide by them.
pub async fn capabilities_stay_what_they_are(subject: &Subject) -> ClauseResult {
    let backend = subject.backend()?;
    let (first, again, anew) = (backend.capabilities(), backend.capabilities(), subject.capabilities()?);
    ensure!(first == again && first == anew, "first {first:?}, again {again:?}, opened anew {anew:?}");
    Ok(())
}

/// A backend that supports the model says so each time, and is selected without being named unless its priority is negative.
pub async fn a_supported_model_is_selected(subject: &Subject) -> ClauseResult {
    let manifest = ModelManifest::read(subject.folder())?;
    let backend = subject.backend()?;
    for _ in 0..2 {
        if let Support::No(reason) = backend.supports(&manifest) {
            return Err(Failure::broken(format!("the model is not supported: {reason}")));
        }
    }
    let verdicts = subject.registry().explain(&manifest);
    let expected = if subject.descriptor().priority < 0 { Outcome::OnlyWhenNamed } else { Outcome::Usable };
    ensure!(verdicts.len() == 1 && verdicts[0].outcome == expected, "{verdicts:?}, expected {expected:?}");
    Ok(())
}

/// A loaded model says where it comes from, who runs it, and what shape it has.
pub async fn the_model_describes_itself(subject: &Subject) -> ClauseResult {
    let manifest = ModelManifest::read(subject.folder())?;
    let model = subject.model().await?;
    let info = model.info();
    ensure!(info.backend == subject.descriptor().id, "its backend is {:?}", info.backend);
    ensure!(info.path == subject.folder(), "its path is {}", info.path.display());
    ensure!(info.architecture == manifest.model_type(), "its architecture is {:?}", info.architecture);
    ensure!(info.vocab_size > 0 && info.context_length > 0, "no vocabulary or context: {info:?}");
    ensure!(info.layers > 0 && info.hidden_size > 0 && info.parameters > 0, "no shape: {info:?}");
    ensure!(info.weight_bytes > 0, "no weights: {info:?}");
    let (told, counted) = (info.parameters, manifest.parameters());
    ensure!(told == counted, "{told} parameters, of {counted} in the files");
    ensure!(
        info.dtype == manifest.float_dtype(),
        "its dtype is {:?}, of the files {:?}",
        info.dtype,
        manifest.float_dtype()
    );
    ensure!(info.quantization == manifest.quantization().copied(), "quantised as {:?}", info.quantization);
    let outside = info.eos_token_ids.iter().find(|id| **id as usize >= info.vocab_size);
    ensure!(outside.is_none(), "end-of-sequence token {outside:?} is outside the vocabulary");
    Ok(())
}

/// A load that is cancelled on its way fails with `Error::Cancelled`, unless it was quicker.
pub async fn a_cancelled_load_says_so(subject: &Subject) -> ClauseResult {
    let cancel = CancellationToken::new();
    cancel.cancel();
    let cancelled = subject.load(subject.base_load_options().cancel(cancel)).await;
    let right = matches!(cancelled, Err(Error::Cancelled));
    ensure!(right, "cancelled before it began, it ended as {}", ended(&cancelled));
    // At the first report of its progress, and at a later one: where the load is quicker, it has won.
    for last in [1, 4] {
        let (cancel, reports) = (CancellationToken::new(), AtomicUsize::new(0));
        let later = cancel.clone();
        let options = subject.base_load_options().cancel(cancel).on_progress(move |_| {
            if reports.fetch_add(1, Ordering::Relaxed) + 1 == last {
                later.cancel();
            }
        });
        match subject.load(options).await {
            Ok(_) | Err(Error::Cancelled) => {}
            Err(error) => {
                return Err(Failure::broken(format!("it failed as {}: {error}", error.kind())));
            }
        }
    }
    Ok(())
}

/// Two models of one backend answer alike, and closing one leaves the other as it was.
pub async fn models_live_side_by_side(subject: &Subject) -> ClauseResult {
    let (one, two) = (subject.model().await?, subject.fresh_model().await?);
    let options = subject.greedy(6)?;
    let expected = ids(&alone(&*one, &subject.prompt, &options).await?);
    let second = ids(&alone(&*two, &subject.prompt, &options).await?);
    ensure!(second == expected, "the second model gave {second:?}, the first {expected:?}");
    two.close().await?;
    super::still_right(subject, &*one, &expected).await
}

/// Prompt and answer together never pass the context length that was asked for; a longer prompt is an error.
pub async fn the_context_length_holds(subject: &Subject) -> ClauseResult {
    let model = subject.load(subject.base_load_options().context_length(24)).await?;
    let length = model.info().context_length;
    ensure!(length == 24, "the model says {length}, asked for 24");
    let prompt = some_ids(&*model, 16, 3);
    match model.complete(prompt, subject.greedy(1000)?).await {
        Ok(answer) => {
            let tokens = answer.tokens.len();
            ensure!(tokens <= 8, "16 prompt tokens and {tokens} more stand in a context of 24");
        }
        Err(Error::ContextExceeded { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let result = model.generate(some_ids(&*model, 25, 3).into(), subject.greedy(1)?).await;
    ensure!(
        matches!(result, Err(Error::ContextExceeded { .. })),
        "25 prompt tokens ended as {}",
        ended(&result)
    );
    Ok(())
}

/// Requests that wait for a place in the batch get the answers that they get at once.
pub async fn a_cap_on_the_batch_changes_no_answer(subject: &Subject) -> ClauseResult {
    same_answers(subject, subject.base_load_options().max_batch(1)).await
}

/// Prompts computed five tokens at a time give the answers of prompts computed whole.
pub async fn a_prefill_chunk_changes_no_answer(subject: &Subject) -> ClauseResult {
    same_answers(subject, subject.base_load_options().prefill_chunk(5)).await
}

/// An allocator that keeps nothing for reuse changes no answer.
pub async fn a_cache_limit_changes_no_answer(subject: &Subject) -> ClauseResult {
    same_answers(subject, subject.base_load_options().cache_limit(0)).await
}

/// A generous memory limit changes no answer.
pub async fn a_memory_limit_changes_no_answer(subject: &Subject) -> ClauseResult {
    same_answers(subject, subject.base_load_options().memory_limit(1 << 40)).await
}

/// With keys and values in 8 and in 4 bits a prompt gets the same answer whatever runs beside it. A model whose heads have no
/// group size is refused by that option.
pub async fn quantised_caches_answer_together_as_alone(subject: &Subject) -> ClauseResult {
    for bits in [KvBits::Eight, KvBits::Four] {
        let model = match subject.load(subject.base_load_options().kv_bits(bits)).await {
            Err(Error::InvalidOption { option: "kv_bits", reason, .. }) => {
                return Err(Failure::inconclusive(reason));
            }
            loaded => loaded?,
        };
        let options = subject.greedy(6)?;
        let prompts = some_prompts(subject, &*model);
        let together = model.batch_generate(prompts.clone(), options.clone()).await;
        for (prompt, together) in prompts.iter().zip(together) {
            let (together, alone) = (ids(&together?), ids(&alone(&*model, prompt, &options).await?));
            let which = format!("beside others, in {} bits, it", bits.get());
            same_answer(subject, &*model, prompt, [&together, &alone], &which).await?;
        }
    }
    Ok(())
}

async fn same_answers(subject: &Subject, options: LoadOptions) -> ClauseResult {
    let (usual, other) = (subject.model().await?, subject.load(options).await?);
    let options = subject.greedy(6)?;
    let prompts = some_prompts(subject, &*usual);
    let expected = usual.batch_generate(prompts.clone(), options.clone()).await;
    let found = other.batch_generate(prompts.clone(), options).await;
    for ((expected, found), prompt) in expected.into_iter().zip(found).zip(&prompts) {
        let (expected, found) = (ids(&expected?), ids(&found?));
        same_answer(subject, &*usual, prompt, [&found, &expected], "with the option it").await?;
    }
    Ok(())
}

/// An adapter folder that does not exist is an error about that folder.
pub async fn a_missing_adapter_is_an_error(subject: &Subject) -> ClauseResult {
    let missing = subject.folder().join("no such adapter");
    match subject.load(subject.base_load_options().adapter(&missing)).await {
        Err(Error::Io { path, .. } | Error::InvalidModel { path, .. }) => {
            ensure!(path.starts_with(&missing), "the error is about {}", path.display());
            Ok(())
        }
        result => Err(Failure::broken(format!("it ended as {}", ended(&result)))),
    }
}

/// A model of a backend that can train has a trainer.
pub async fn a_trainer_is_there_where_claimed(subject: &Subject) -> ClauseResult {
    ensure!(
        subject.model().await?.trainable().is_some(),
        "training is a capability, and there is no trainer"
    );
    Ok(())
}
