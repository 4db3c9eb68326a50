//! Embeddings and relevance: counts of syllables.

use inference_core::{
    EmbedOptions, Embedding, EmbeddingFormat, Error, Prompt, Relevance, RerankOptions, Result, TextProgress,
};

use super::{language::VOCAB, model::Core};

pub(crate) fn embed(core: &Core, prompts: Vec<Prompt>, options: &EmbedOptions) -> Result<Vec<Embedding>> {
    let fault = &core.fault;
    core.check_open()?;
    if options.cancel.is_cancelled() && !fault.is("a_cancelled_call_is_an_error") {
        return Err(Error::Cancelled);
    }
    if options.prefix_name.is_some() {
        return Err(Error::invalid_option("prefix_name", "there are none"));
    }
    let total = prompts.len() + usize::from(fault.is("progress_counts_the_texts"));
    let mut embeddings = Vec::new();
    for prompt in prompts {
        let prompt = match (prompt, &options.prefix) {
            (Prompt::Text(text), Some(prefix)) if !fault.is("a_prefix_is_part_of_the_text") => {
                Prompt::Text(format!("{prefix}{text}"))
            }
            (prompt, _) => prompt,
        };
        let lenient = fault.is("texts_are_checked");
        let rotates = options.truncate || fault.is("a_text_too_long_is_refused_or_cut");
        let mut ids = core.ids(prompt, lenient, rotates)?;
        ids.truncate(core.context_length());
        let mut vector = vec![0.0; VOCAB as usize];
        ids.iter().for_each(|id| vector[*id as usize] += 1.0);
        let mut asked = options.clone();
        if fault.is("vectors_have_the_form_that_was_asked_for") {
            asked.format = EmbeddingFormat::Float;
        }
        if fault.is("fewer_dimensions_are_the_first_ones") {
            asked.dimensions = None;
        }
        embeddings.push(Embedding::from_pooled(vector, ids.len(), &asked, true)?);
        options.on_progress.iter().for_each(|seen| seen.report(TextProgress::new(embeddings.len(), total)));
    }
    if fault.is("a_batch_gives_what_its_texts_give_alone") {
        embeddings.reverse();
    }
    Ok(embeddings)
}

pub(crate) fn rerank(
    core: &Core,
    query: String,
    documents: Vec<String>,
    options: &RerankOptions,
) -> Result<Vec<Relevance>> {
    let fault = &core.fault;
    core.check_open()?;
    if options.cancel.is_cancelled() && !fault.is("a_cancelled_reranking_is_an_error") {
        return Err(Error::Cancelled);
    }
    let query = core.ids(Prompt::Text(query), false, false)?;
    let mut scores = Vec::new();
    for document in documents {
        let ids = core.ids(Prompt::Text(document), false, false)?;
        let shared = query.iter().filter(|id| ids.contains(id)).count();
        let raw = options.raw && !fault.is("a_raw_score_is_the_logit");
        scores.push(Relevance::from_logit(shared as f32 / 9.0 - 1.0, query.len() + ids.len(), raw));
    }
    if fault.is("documents_are_scored_in_their_order") {
        scores.reverse();
    }
    Ok(scores)
}
