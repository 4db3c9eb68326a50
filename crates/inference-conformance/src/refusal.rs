//! What stands in for a clause that the backend's capabilities rule out: the backend has to say so when it is asked.

use std::path::Path;

use inference_core::{
    ClassifyOptions, Constraint, ContextOverflow, EmbedOptions, Error, Feature, GenerateOptions, KvBits,
    Message, Prompt, RerankOptions, Result, TemplateOptions, TextModel, Xtc,
};

use crate::{ClauseResult, Failure, Subject, clause::ensure};

/// Asks for each lacking feature and expects [`Error::Unsupported`], before any work.
pub(crate) async fn refused(subject: &Subject, lacking: &[Feature]) -> ClauseResult {
    let model = subject.model().await?;
    for feature in lacking {
        let before = model.stats().requests;
        match ask(subject, &*model, *feature).await {
            None => return Err(Failure::broken(format!("the kit knows no way to ask for {feature}"))),
            Some(Ok(())) => {
                return Err(Failure::broken(format!(
                    "{feature} is no capability, and was taken all the same"
                )));
            }
            // Asking for one feature may need a second that is missing too.
            Some(Err(Error::Unsupported { backend, feature: named, .. })) => {
                ensure!(backend == subject.descriptor().id, "the error names backend {backend:?}");
                let known = subject.capabilities()?;
                ensure!(!known.has(named), "{named} is refused, and a capability");
            }
            Some(Err(error)) => {
                return Err(Failure::broken(format!("{feature} is lacking, and refused as: {error}")));
            }
        }
        let after = model.stats().requests;
        ensure!(after == before, "{feature} was refused after the request was counted");
    }
    Ok(())
}

async fn ask(subject: &Subject, model: &dyn TextModel, feature: Feature) -> Option<Result<()>> {
    let options = GenerateOptions::new().max_tokens(1);
    let options = match feature {
        Feature::Generate => options,
        Feature::Chat => {
            let prompt = Prompt::Chat(vec![Message::user("Hello.")]);
            return Some(model.generate(prompt, options).await.map(drop));
        }
        Feature::ChatTemplateOptions => options.template_variable("enable_thinking", false),
        Feature::Classify => {
            return Some(
                model.classify(vec![subject.prompt.clone()], ClassifyOptions::new()).await.map(drop),
            );
        }
        Feature::Logits => {
            let options = ClassifyOptions::new().logits(true);
            return Some(model.classify(vec![subject.prompt.clone()], options).await.map(drop));
        }
        Feature::Sampling => options.temperature(1.0),
        Feature::Seed => options.seed(0),
        Feature::TopP => options.top_p(0.9),
        Feature::MinP => options.min_p(0.0),
        Feature::TopK => options.top_k(0),
        Feature::Xtc => options.xtc(Xtc::new(0.0, 0.1)),
        Feature::LogitBias => options.logit_bias([(0, 0.0)]),
        Feature::RepetitionPenalty => options.repetition_penalty(1.0),
        Feature::PresencePenalty => options.presence_penalty(0.0),
        Feature::FrequencyPenalty => options.frequency_penalty(0.0),
        Feature::LogProbabilities => options.log_probabilities(0),
        Feature::Stop => options.stop_tokens([0]),
        Feature::MinTokens => options.min_tokens(0),
        Feature::LogitsProcessor => options.logits_processor(|_: &[u32], _: &[u32], _: &mut [f32]| {}),
        Feature::Constraint => options.constraint(Constraint::choice(["a"])),
        Feature::ThinkingBudget => options.thinking_budget(8),
        Feature::ContextOverflow => options.context_overflow(ContextOverflow::Refuse),
        Feature::Tokenize => {
            let prompt = subject.prompt.clone();
            return Some(model.tokenize(prompt, TemplateOptions::new()).await.map(drop));
        }
        Feature::Embed => {
            return Some(model.embed(vec![subject.prompt.clone()], EmbedOptions::new()).await.map(drop));
        }
        Feature::Rerank => {
            let documents = vec!["a document".to_owned()];
            let scored = model.rerank("a query".to_owned(), documents, RerankOptions::new()).await;
            return Some(scored.map(drop));
        }
        Feature::Session => return Some(model.session().await.map(drop)),
        Feature::Train => {
            let refuse = || Error::unsupported(model.info().backend.clone(), feature);
            return Some(model.trainable().map_or_else(|| Err(refuse()), |_| Ok(())));
        }
        _ => {
            let load = subject.base_load_options();
            let load = match feature {
                Feature::Adapter => load.adapter(Path::new("no such adapter")),
                Feature::ContextLength => load.context_length(64),
                Feature::MemoryLimit => load.memory_limit(1 << 40),
                Feature::CacheLimit => load.cache_limit(1 << 30),
                Feature::MaxBatch => load.max_batch(1),
                Feature::PrefillChunk => load.prefill_chunk(64),
                Feature::PrefixCache => load.prefix_cache(0),
                Feature::KvBits => load.kv_bits(KvBits::Eight),
                _ => return None,
            };
            return Some(subject.load(load).await.map(drop));
        }
    };
    Some(model.generate(subject.prompt.clone(), options).await.map(drop))
}
