//! Texts for embeddings and reranking: with prefixes, cut where they may be cut, or joined in pairs.

use inference_core::{Error, Prompt, Result, TemplateOptions};

use crate::{
    EncodeLimits, EncodedPair, PromptLimits, TextPipeline,
    pipeline::{check_ids, on_threads},
};

/// How texts are made into ids.
#[derive(Debug, Clone, Default)]
pub struct TextSettings {
    /// What is put before each text.
    pub prefix: String,
    /// Whether texts are put into lower case.
    pub lowercase: bool,
    /// Whether texts that are too long are cut.
    pub truncate: bool,
}

/// How Qwen3-Reranker asks whether a document answers a query. The texts are those of its model card.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// What makes a document relevant.
    pub instruction: Option<String>,
    /// The query.
    pub query: String,
    /// Whether documents that are too long are cut.
    pub truncate: bool,
}

const INSTRUCTION: &str = "Given a web search query, retrieve relevant passages that answer the query";
const BEFORE: &str = "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and \
                      the Instruct provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n";
const BEHIND: &str = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";

impl TextPipeline {
    /// The ids of each text, on as many threads as the machine has where there are enough of them.
    ///
    /// # Errors
    /// [`Error::InvalidOption`]: a prefix for what is no text; else as [`prepare_all`](Self::prepare_all).
    pub async fn prepare_texts(
        &self,
        prompts: Vec<Prompt>,
        settings: TextSettings,
        limits: PromptLimits,
    ) -> Result<Vec<Vec<u32>>> {
        let prepare = move |text: &Self, limits: PromptLimits| {
            on_threads(prompts, |prompt| text.prepare_text(prompt, &settings, &limits))
        };
        self.run(limits, prepare).await
    }

    fn prepare_text(
        &self,
        prompt: Prompt,
        settings: &TextSettings,
        limits: &PromptLimits,
    ) -> Result<Vec<u32>> {
        let TextSettings { prefix, lowercase, truncate } = settings;
        let most = limits.context_length.saturating_sub(limits.reserved);
        let text = match prompt {
            Prompt::Text(text) => text,
            _ if !prefix.is_empty() => {
                let reason = "is put before texts alone, and this prompt is a conversation or token ids";
                return Err(Error::invalid_option("prefix", reason));
            }
            Prompt::Tokens(mut ids) if *truncate => {
                ids.truncate(most);
                return check_ids(&ids, limits).map(|()| ids);
            }
            prompt => return Ok(self.prepare_blocking(prompt, &TemplateOptions::new(), limits)?.ids),
        };
        let text = if prefix.is_empty() { text } else { format!("{prefix}{text}") };
        let text = if *lowercase { text.to_lowercase() } else { text };
        let ids = if *truncate {
            self.tokenizer().encode_cut(&text, most, &all_of(limits))?
        } else {
            self.encode(&text, true, limits)?
        };
        check_ids(&ids, limits)?;
        Ok(ids)
    }

    /// The query joined with each document, for models that read both together.
    ///
    /// # Errors
    /// [`Error::InvalidModel`]: the tokenizer does not join two texts; else as [`prepare_all`](Self::prepare_all).
    pub async fn prepare_pairs(
        &self,
        query: String,
        documents: Vec<String>,
        truncate: bool,
        limits: PromptLimits,
    ) -> Result<Vec<EncodedPair>> {
        let prepare = move |text: &Self, limits: PromptLimits| {
            let encode = |part: &str| match truncate {
                true => text.tokenizer().encode_within(part, false, &all_of(&limits)),
                false => text.encode(part, false, &limits),
            };
            let query = encode(&query)?;
            on_threads(documents, |document| {
                let most = truncate.then_some(limits.context_length);
                let pair = text.tokenizer().join_pair(&query, &encode(&document)?, most)?;
                check_ids(&pair.ids, &limits)?;
                Ok(pair)
            })
        };
        self.run(limits, prepare).await
    }

    /// The ids of the question whether each document answers the query. The answer's first token is `yes` or `no`.
    ///
    /// # Errors
    /// As [`prepare_all`](Self::prepare_all).
    pub async fn prepare_judgements(
        &self,
        judgement: Judgement,
        documents: Vec<String>,
        limits: PromptLimits,
    ) -> Result<Vec<Vec<u32>>> {
        let prepare = move |text: &Self, limits: PromptLimits| {
            let (before, behind) =
                (text.encode(BEFORE, false, &limits)?, text.encode(BEHIND, false, &limits)?);
            let room = limits.context_length.saturating_sub(before.len() + behind.len());
            on_threads(documents, |document| {
                let Judgement { instruction, query, truncate } = &judgement;
                let instruction = instruction.as_deref().unwrap_or(INSTRUCTION);
                let asked = format!("<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}");
                let mut ids = match truncate {
                    true => text.tokenizer().encode_within(&asked, false, &all_of(&limits))?,
                    false => text.encode(&asked, false, &limits)?,
                };
                if *truncate {
                    ids.truncate(room);
                }
                let ids = [&before[..], &ids, &behind].concat();
                check_ids(&ids, &limits)?;
                Ok(ids)
            })
        };
        self.run(limits, prepare).await
    }
}

/// The limits of a text that is cut once it is tokenized.
fn all_of(limits: &PromptLimits) -> EncodeLimits {
    EncodeLimits { max_tokens: usize::MAX, cancel: limits.cancel.clone() }
}
