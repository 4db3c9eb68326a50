//! From prompts to ids and back: what every backend does with the text files of a model's folder.

use std::{path::Path, sync::Arc, thread};

use inference_core::{
    ClassifyOptions, Error, GenerateOptions, Message, ModelInfo, Prompt, Result, TemplateOptions,
};

use crate::{
    AnswerFormat, AnswerParser, ChatReader, ChatTemplate, StopStrings, TextAssembler, ThinkingBudget,
    Tokenizer,
};

/// Tokens of a prompt's end that tell whether its answer begins within reasoning: a mark and white space.
const PROMPT_END: usize = 16;

/// Prompts that are worth a thread.
const PROMPTS_EACH: usize = 32;

/// A model folder's tokenizer and, where it has one, its chat template.
#[derive(Debug, Clone)]
pub struct Codec {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    format: Arc<AnswerFormat>,
    /// The ids that end reasoning, where the family marks it.
    thinking_end: Option<Arc<[u32]>>,
}

impl Codec {
    /// Reads the folder's tokenizer and chat template.
    ///
    /// # Errors
    /// As [`Tokenizer::load`] and [`ChatTemplate::load`].
    pub fn load(folder: &Path) -> Result<Self> {
        let tokenizer = Tokenizer::load(folder)?;
        let template = ChatTemplate::load(folder, tokenizer.special_tokens())?;
        let sources: Vec<&str> = template.iter().flat_map(ChatTemplate::sources).collect();
        let format = AnswerFormat::from_template(&sources.concat())?;
        let thinking_end = format.thinking_end().map(|text| tokenizer.encode(text, false)).transpose()?;
        Ok(Self { tokenizer, template, format: Arc::new(format), thinking_end: thinking_end.map(Into::into) })
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The prompt's ids: at least one, all within the model's vocabulary (engines look them up unchecked), with room for
    /// `more` tokens in its context.
    ///
    /// # Errors
    /// [`Error::InvalidPrompt`], [`Error::ContextExceeded`], and [`Error::Template`] for a conversation that the template
    /// refuses or that there is no template for.
    pub fn encode(
        &self,
        prompt: Prompt,
        template: &TemplateOptions,
        model: &ModelInfo,
        more: usize,
    ) -> Result<Vec<u32>> {
        let tokens = match prompt {
            Prompt::Tokens(tokens) => tokens,
            Prompt::Text(text) => self.tokenizer.encode(&text, true)?,
            Prompt::Chat(messages) => self.encode_chat(&messages, template, true)?,
            other => {
                let reason = format!("{other:?} is of a kind that this backend does not know");
                return Err(Error::InvalidPrompt { reason });
            }
        };
        let vocab_size = model.vocab_size;
        if tokens.is_empty() {
            return Err(Error::InvalidPrompt { reason: "it is empty".to_owned() });
        }
        if let Some(id) = tokens.iter().find(|id| **id as usize >= vocab_size) {
            let reason = format!("token {id} is outside the vocabulary of {vocab_size}");
            return Err(Error::InvalidPrompt { reason });
        }
        if tokens.len() + more > model.context_length {
            return Err(Error::ContextExceeded { tokens: tokens.len(), limit: model.context_length });
        }
        Ok(tokens)
    }

    /// [`encode`](Self::encode) for each of the prompts, on as many threads as the machine has where there are enough of them.
    ///
    /// # Errors
    /// Those of the first prompt that has any.
    pub fn encode_all(
        &self,
        prompts: Vec<Prompt>,
        template: &TemplateOptions,
        model: &ModelInfo,
        more: usize,
    ) -> Result<Vec<Vec<u32>>> {
        let encode = |prompts: Vec<Prompt>| -> Result<Vec<Vec<u32>>> {
            prompts.into_iter().map(|prompt| self.encode(prompt, template, model, more)).collect()
        };
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let each = prompts.len().div_ceil(threads).max(PROMPTS_EACH);
        if prompts.len() <= each {
            return encode(prompts);
        }
        let mut prompts = prompts.into_iter();
        let parts: Vec<Vec<Prompt>> =
            std::iter::from_fn(|| Some(prompts.by_ref().take(each).collect::<Vec<_>>()))
                .take_while(|part| !part.is_empty())
                .collect();
        thread::scope(|scope| {
            let parts: Vec<_> = parts.into_iter().map(|part| scope.spawn(|| encode(part))).collect();
            let stopped = |_| {
                Err(Error::Stopped {
                    backend: model.backend.clone(),
                    reason: "a thread that reads prompts panicked".to_owned(),
                })
            };
            let parts = parts.into_iter().map(|part| part.join().unwrap_or_else(stopped));
            Ok(parts.collect::<Result<Vec<_>>>()?.concat())
        })
    }

    /// The ids of a conversation, up to where the assistant begins to speak if `add_generation_prompt`.
    pub(crate) fn encode_chat(
        &self,
        messages: &[Message],
        template: &TemplateOptions,
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>> {
        let Some(chat) = &self.template else {
            let reason = "the model's folder has no chat template; use a text prompt".to_owned();
            return Err(Error::Template { reason });
        };
        self.tokenizer.encode(&chat.render(messages, template, add_generation_prompt)?, false)
    }

    /// The labels' ids, none of them empty.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] names a label without tokens.
    pub fn encode_labels(&self, options: &ClassifyOptions) -> Result<Vec<Vec<u32>>> {
        let labels = options.labels.as_deref().unwrap_or_default();
        let encode = |label: &String| {
            let tokens = self.tokenizer.encode(label, false)?;
            if tokens.is_empty() {
                let reason = format!("{label:?} has no tokens");
                return Err(Error::InvalidOption { option: "labels", reason });
            }
            Ok(tokens)
        };
        labels.iter().map(encode).collect()
    }

    /// What turns a generation's ids into tokens with text, up to the caller's stop strings.
    ///
    /// # Errors
    /// As [`StopStrings::new`].
    pub fn assembler<T>(&self, options: &GenerateOptions) -> Result<TextAssembler<T>> {
        let stops = options.stop.as_ref().map(|stops| StopStrings::new(stops.iter().cloned())).transpose()?;
        Ok(TextAssembler::new(self.tokenizer.detokenizer(true), stops.map(Arc::new)))
    }

    /// What tells the parts of the answer to this prompt apart.
    #[must_use]
    pub fn reader(&self, prompt: &[u32], options: &GenerateOptions) -> ChatReader {
        ChatReader::new(self.parser(prompt, options), self.tokenizer.clone())
    }

    /// What holds the answer to this prompt to the caller's limit on reasoning; `None` where there is none, or where the model's
    /// family marks no reasoning.
    #[must_use]
    pub fn thinking_budget(&self, prompt: &[u32], options: &GenerateOptions) -> Option<ThinkingBudget> {
        let (tokens, closing) = options.thinking_budget.zip(self.thinking_end.clone())?;
        let detokenizer = self.tokenizer.detokenizer(false);
        Some(ThinkingBudget::new(self.parser(prompt, options), detokenizer, tokens, closing))
    }

    fn parser(&self, prompt: &[u32], options: &GenerateOptions) -> AnswerParser {
        let end = self.tokenizer.decode(&prompt[prompt.len().saturating_sub(PROMPT_END)..], false);
        // FNV-1a: what differs from prompt to prompt.
        let seed = prompt.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, id| {
            (hash ^ u64::from(*id)).wrapping_mul(0x0100_0000_01b3)
        });
        let tools = options.template.tools.as_deref().unwrap_or_default();
        AnswerParser::new(self.format.clone(), &end).with_tools(tools).with_id_seed(seed)
    }
}
