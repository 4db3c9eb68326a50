//! From prompts to ids and back: what every backend does with the text files of a model's folder.

use std::{path::Path, sync::Arc};

use inference_core::{ClassifyOptions, Error, GenerateOptions, ModelInfo, Prompt, Result, TemplateOptions};

use crate::{ChatTemplate, StopStrings, TextAssembler, Tokenizer};

/// A model folder's tokenizer and, where it has one, its chat template.
#[derive(Debug, Clone)]
pub struct Codec {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

impl Codec {
    /// Reads the folder's tokenizer and chat template.
    ///
    /// # Errors
    /// As [`Tokenizer::load`] and [`ChatTemplate::load`].
    pub fn load(folder: &Path) -> Result<Self> {
        let tokenizer = Tokenizer::load(folder)?;
        let template = ChatTemplate::load(folder, tokenizer.special_tokens())?;
        Ok(Self { tokenizer, template })
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
            Prompt::Chat(messages) => {
                let Some(chat) = &self.template else {
                    let reason = "the model's folder has no chat template; use a text prompt".to_owned();
                    return Err(Error::Template { reason });
                };
                self.tokenizer.encode(&chat.render(&messages, template, true)?, false)?
            }
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
}
