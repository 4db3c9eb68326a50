//! Texts as vectors, and how relevant documents are to a query.

use std::sync::{Arc, Mutex, PoisonError};

use inference_core::{
    EmbedOptions, Embedding, EmbeddingFormat, EmbeddingVector, Error, Prompt, Relevance, RerankOptions,
    TextModel,
};

use super::{ended, some_ids, some_prompts};
use crate::{
    ClauseResult, Failure, Subject,
    clause::{clauses, ensure},
};

clauses!("embedding":
    a_batch_gives_what_its_texts_give_alone [Embed],
    no_texts_have_no_vectors [Embed],
    vectors_have_the_form_that_was_asked_for [Embed],
    fewer_dimensions_are_the_first_ones [Embed],
    a_prefix_is_part_of_the_text [Embed],
    texts_are_checked [Embed],
    a_text_too_long_is_refused_or_cut [Embed],
    progress_counts_the_texts [Embed],
    a_cancelled_call_is_an_error [Embed],
    documents_are_scored_in_their_order [Rerank],
    a_raw_score_is_the_logit [Rerank],
    no_documents_have_no_scores [Rerank],
    a_cancelled_reranking_is_an_error [Rerank],
);

/// The cosine of the angle between two vectors.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The vector of one text.
async fn alone(model: &dyn TextModel, prompt: Prompt, options: EmbedOptions) -> Result<Embedding, Failure> {
    let mut embeddings = model.embed(vec![prompt], options).await?;
    match (embeddings.pop(), embeddings.len()) {
        (Some(embedding), 0) => Ok(embedding),
        (_, more) => Err(Failure::broken(format!("one text has {} vectors", more + 1))),
    }
}

/// Vectors come in the texts' order, and each is what the text gives alone.
pub async fn a_batch_gives_what_its_texts_give_alone(subject: &Subject) -> ClauseResult {
    let model = subject.embedder().await?;
    let mut prompts = some_prompts(subject, &*model);
    prompts.extend((0..9).map(|salt| some_ids(&*model, 3 + 5 * salt % 16, salt + 20).into()));
    let together = model.embed(prompts.clone(), EmbedOptions::new()).await?;
    ensure!(together.len() == prompts.len(), "{} vectors of {} texts", together.len(), prompts.len());
    for (i, (prompt, found)) in prompts.into_iter().zip(together).enumerate() {
        let expected = alone(&*model, prompt, EmbedOptions::new()).await?;
        ensure!(found.prompt_tokens == expected.prompt_tokens, "text {i} has another length among others");
        let near = cosine(&found.to_floats(), &expected.to_floats());
        ensure!(near >= 1.0 - subject.single_tolerance(), "text {i}: a cosine of {near} to its vector alone");
    }
    Ok(())
}

/// An empty list is no error.
pub async fn no_texts_have_no_vectors(subject: &Subject) -> ClauseResult {
    let none = subject.embedder().await?.embed(vec![], EmbedOptions::new()).await?;
    ensure!(none.is_empty(), "{} vectors of no text", none.len());
    Ok(())
}

/// Normalised vectors have the length 1; 8 bits and single bits stand for the same vector.
pub async fn vectors_have_the_form_that_was_asked_for(subject: &Subject) -> ClauseResult {
    let model = subject.embedder().await?;
    let embed = async |format: EmbeddingFormat| {
        alone(&*model, subject.prompt.clone(), EmbedOptions::new().normalize(true).format(format)).await
    };
    let whole = embed(EmbeddingFormat::Float).await?;
    ensure!(matches!(whole.vector, EmbeddingVector::Float(_)), "floats were asked for");
    let floats = whole.to_floats();
    let length = floats.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    ensure!((length - 1.0).abs() < 1e-3, "a normalised vector has the length {length}");
    let int8 = embed(EmbeddingFormat::Int8).await?;
    ensure!(matches!(int8.vector, EmbeddingVector::Int8 { .. }), "8 bits were asked for");
    let near = cosine(&int8.to_floats(), &floats);
    ensure!(near > 0.99, "in 8 bits, the vector has a cosine of {near} to itself");
    let bits = embed(EmbeddingFormat::Binary).await?;
    ensure!(matches!(bits.vector, EmbeddingVector::Binary { .. }), "bits were asked for");
    for (at, (bit, x)) in bits.to_floats().iter().zip(&floats).enumerate() {
        ensure!((*bit > 0.0) == (*x > 0.0) || x.abs() < 1e-6, "element {at} is {x}, and its bit {bit}");
    }
    ensure!(bits.vector.dimensions() == floats.len(), "{} bits", bits.vector.dimensions());
    Ok(())
}

/// Fewer dimensions are the first ones of all; more than there are is an error.
pub async fn fewer_dimensions_are_the_first_ones(subject: &Subject) -> ClauseResult {
    let model = subject.embedder().await?;
    let options = EmbedOptions::new().normalize(false);
    let whole = alone(&*model, subject.prompt.clone(), options.clone()).await?.to_floats();
    let half = whole.len().div_ceil(2);
    let cut = alone(&*model, subject.prompt.clone(), options.clone().dimensions(half)).await?.to_floats();
    ensure!(cut.len() == half, "{} elements, {half} were asked for", cut.len());
    let near = cosine(&cut, &whole[..half]);
    ensure!(
        near >= 1.0 - subject.single_tolerance(),
        "the first half has a cosine of {near} to what was asked for"
    );
    match model.embed(vec![subject.prompt.clone()], options.dimensions(whole.len() + 1)).await {
        Err(Error::InvalidOption { option: "dimensions", .. }) => Ok(()),
        result => Err(Failure::broken(format!("more dimensions than there are ended as {}", ended(&result)))),
    }
}

/// A prefix stands before the text; a name that the folder does not have is an error.
pub async fn a_prefix_is_part_of_the_text(subject: &Subject) -> ClauseResult {
    let model = subject.embedder().await?;
    let (prefix, text) = ("find this: ", "a red house");
    let options = EmbedOptions::new().prefix(prefix);
    let found = alone(&*model, text.into(), options).await?;
    let whole = format!("{prefix}{text}");
    let expected = alone(&*model, whole.as_str().into(), EmbedOptions::new().prefix("")).await?;
    ensure!(found.prompt_tokens == expected.prompt_tokens, "with a prefix it has {}", found.prompt_tokens);
    let near = cosine(&found.to_floats(), &expected.to_floats());
    ensure!(near >= 1.0 - subject.single_tolerance(), "with a prefix, a cosine of {near} to the whole text");
    let unknown = EmbedOptions::new().prefix_name("no such prefix");
    match model.embed(vec![text.into()], unknown).await {
        Err(Error::InvalidOption { option: "prefix_name", .. }) => Ok(()),
        result => Err(Failure::broken(format!("an unknown prefix ended as {}", ended(&result)))),
    }
}

/// One text that cannot be computed fails the call.
pub async fn texts_are_checked(subject: &Subject) -> ClauseResult {
    let model = subject.embedder().await?;
    for bad in [vec![], vec![model.info().vocab_size as u32], vec![1, u32::MAX]] {
        let said = format!("{bad:?}");
        let prompts = vec![subject.prompt.clone(), bad.into()];
        match model.embed(prompts, EmbedOptions::new()).await {
            Err(Error::InvalidPrompt { .. }) => {}
            result => return Err(Failure::broken(format!("a text of {said} ended as {}", ended(&result)))),
        }
    }
    Ok(())
}

/// A text that is longer than the model's context is an error, or cut where that was asked for.
pub async fn a_text_too_long_is_refused_or_cut(subject: &Subject) -> ClauseResult {
    let model = subject.embedder().await?;
    let context = model.info().context_length;
    if context > 1 << 17 {
        return Err(Failure::inconclusive(format!("the context of {context} tokens takes long to fill")));
    }
    let long = "word ".repeat(2 * context);
    match model.embed(vec![long.as_str().into()], EmbedOptions::new()).await {
        Err(Error::ContextExceeded { .. }) => {}
        result => return Err(Failure::broken(format!("a text too long ended as {}", ended(&result)))),
    }
    let cut = alone(&*model, long.as_str().into(), EmbedOptions::new().truncate(true)).await?;
    ensure!(cut.prompt_tokens <= context, "a cut text has {} of {context} tokens", cut.prompt_tokens);
    Ok(())
}

/// Progress grows to the number of texts.
pub async fn progress_counts_the_texts(subject: &Subject) -> ClauseResult {
    let model = subject.embedder().await?;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    let options = EmbedOptions::new().on_progress(move |progress| {
        sink.lock().unwrap_or_else(PoisonError::into_inner).push(progress);
    });
    let prompts = some_prompts(subject, &*model);
    let total = prompts.len();
    model.embed(prompts, options).await?;
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(seen.iter().all(|progress| progress.total == total), "it counts other texts: {seen:?}");
    ensure!(seen.is_sorted_by_key(|progress| progress.done), "it goes back: {seen:?}");
    ensure!(
        seen.last().is_some_and(|progress| progress.done == total),
        "it does not reach the end: {seen:?}"
    );
    Ok(())
}

/// A call that is cancelled fails with `Error::Cancelled`.
pub async fn a_cancelled_call_is_an_error(subject: &Subject) -> ClauseResult {
    let model = subject.embedder().await?;
    let options = EmbedOptions::new();
    options.cancel.cancel();
    match model.embed(some_prompts(subject, &*model), options).await {
        Err(Error::Cancelled) => Ok(()),
        result => Err(Failure::broken(format!("it ended as {}", ended(&result)))),
    }
}

const NO_RERANKER: &str = "the subject's model does not rerank: give a `reranker_folder`";
const QUERY: &str = "where do cats sleep";

fn documents() -> Vec<String> {
    let documents = ["cats sleep on warm roofs", "the price of tin", "dogs sleep where they may", "a"];
    documents.map(str::to_owned).to_vec()
}

/// The scores of some documents, where the subject's model, or its own reranker, gives any.
async fn scores(
    subject: &Subject,
    documents: Vec<String>,
    options: RerankOptions,
) -> Result<Vec<Relevance>, Failure> {
    let model = subject.reranker().await?;
    match model.rerank(QUERY.to_owned(), documents, options).await {
        Err(Error::Unsupported { .. }) => Err(Failure::inconclusive(NO_RERANKER)),
        other => Ok(other?),
    }
}

/// Scores come in the documents' order, lie between 0 and 1, and are what each document has alone.
pub async fn documents_are_scored_in_their_order(subject: &Subject) -> ClauseResult {
    let together = scores(subject, documents(), RerankOptions::new()).await?;
    ensure!(together.len() == documents().len(), "{} scores", together.len());
    for (document, found) in documents().into_iter().zip(together) {
        ensure!((0.0..=1.0).contains(&found.score), "{document:?} has the score {}", found.score);
        let alone = scores(subject, vec![document.clone()], RerankOptions::new()).await?;
        let off = f64::from(alone[0].score - found.score).abs();
        ensure!(
            off <= subject.single_tolerance(),
            "{document:?}: {} among others, {}",
            found.score,
            alone[0].score
        );
        ensure!(alone[0].prompt_tokens == found.prompt_tokens, "{document:?} has another length alone");
    }
    Ok(())
}

/// A score is σ of the raw one.
pub async fn a_raw_score_is_the_logit(subject: &Subject) -> ClauseResult {
    let scored = scores(subject, documents(), RerankOptions::new()).await?;
    let raw = scores(subject, documents(), RerankOptions::new().raw(true)).await?;
    for (raw, scored) in raw.iter().zip(scored) {
        let expected = 1.0 / (1.0 + (-f64::from(raw.score)).exp());
        let off = (expected - f64::from(scored.score)).abs();
        ensure!(off <= subject.single_tolerance(), "a logit of {} has the score {}", raw.score, scored.score);
    }
    Ok(())
}

/// An empty list is no error.
pub async fn no_documents_have_no_scores(subject: &Subject) -> ClauseResult {
    let none = scores(subject, Vec::new(), RerankOptions::new()).await?;
    ensure!(none.is_empty(), "{} scores of no document", none.len());
    Ok(())
}

/// A call that is cancelled fails with `Error::Cancelled`.
pub async fn a_cancelled_reranking_is_an_error(subject: &Subject) -> ClauseResult {
    let model = subject.reranker().await?;
    let options = RerankOptions::new();
    options.cancel.cancel();
    match model.rerank(QUERY.to_owned(), documents(), options).await {
        Err(Error::Cancelled) => Ok(()),
        Err(Error::Unsupported { .. }) => Err(Failure::inconclusive(NO_RERANKER)),
        result => Err(Failure::broken(format!("it ended as {}", ended(&result)))),
    }
}
