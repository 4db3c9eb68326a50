//! From examples to tokens with a mask of what is learnt.

use inference_core::{
    CancellationToken, Error, Message, ModelInfo, Result, Role, TemplateOptions,
    train::{Example, ExampleKind, LossOn, TokenExample, TrainOptions, TrainingData, Truncation},
};

use crate::{EncodeLimits, TextPipeline, Tokenizer};

/// [`TrainingData`], tokenised, checked and within the longest length.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenData {
    /// Examples to learn from.
    pub train: Vec<TokenExample>,
    /// Examples to validate on.
    pub validation: Vec<TokenExample>,
    /// How many of both were cut.
    pub truncated: usize,
}

impl TextPipeline {
    /// Tokenises examples: at least one learnt token in each, all within the model's vocabulary, no longer than the options
    /// and the model's context allow.
    ///
    /// # Errors
    /// [`Error::InvalidData`] names the first example that cannot be learnt from; [`Error::Cancelled`].
    pub fn encode_training(
        &self,
        data: TrainingData,
        options: &TrainOptions,
        model: &ModelInfo,
        cancel: &CancellationToken,
    ) -> Result<TokenData> {
        let mut truncated = 0;
        let longest = options.max_length.min(model.context_length);
        let mut encode = |examples: Vec<Example>| -> Result<Vec<TokenExample>> {
            let numbered = (1..).zip(examples);
            let encoded = numbered.map(|(number, example)| {
                let tokens = self.encode_example(&example, options.loss_on, cancel);
                let mut tokens = tokens.map_err(|error| match error {
                    Error::Cancelled => error,
                    error => example.invalid(number, error.to_string()),
                })?;
                let invalid = |reason: String| Err(example.invalid(number, reason));
                if let Some(id) = tokens.tokens.iter().find(|id| **id as usize >= model.vocab_size) {
                    return invalid(format!("token {id} is outside the vocabulary of {}", model.vocab_size));
                }
                let (length, learnt) = (tokens.tokens.len(), tokens.learnt_tokens());
                if learnt == 0 {
                    return invalid("has nothing to learn: its answer has no tokens".to_owned());
                }
                if length > longest && options.truncation == Truncation::Refuse {
                    return invalid(format!("has {length} tokens, expected at most {longest}"));
                }
                truncated += usize::from(tokens.truncate(longest));
                if tokens.learnt_tokens() == 0 {
                    return invalid(format!(
                        "has {length} tokens, and its answer begins after the {longest} that are kept: give a \
                         larger max_length"
                    ));
                }
                Ok(tokens)
            });
            encoded.collect()
        };
        let (train, validation) = (encode(data.train)?, encode(data.validation)?);
        Ok(TokenData { train, validation, truncated })
    }

    /// Tokenises one example, of any length.
    ///
    /// A text gets the special tokens that the tokenizer adds and, where it lacks it, the token that ends a text. What is
    /// given in a prompt or conversation is what its tokens have in common with those of the conversation without the
    /// answer, up to where the assistant begins to speak.
    ///
    /// # Errors
    /// [`Error::Template`], [`Error::InvalidPrompt`]: the conversation cannot be rendered, the text not tokenised;
    /// [`Error::Cancelled`].
    pub fn encode_example(
        &self,
        example: &Example,
        learn: LossOn,
        cancel: &CancellationToken,
    ) -> Result<TokenExample> {
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let limits = EncodeLimits { cancel: cancel.clone(), ..EncodeLimits::default() };
        match &example.kind {
            ExampleKind::Tokens(tokens) => Ok(tokens.clone()),
            ExampleKind::Text(text) => {
                let mut tokens = self.tokenizer().encode_within(text, true, &limits)?;
                let end = end_of_text(self.tokenizer());
                tokens.extend(end.filter(|end| tokens.last() != Some(end)));
                Ok(TokenExample::from_answer(tokens, 0))
            }
            ExampleKind::Completion { prompt, completion, tools } => {
                let messages = [Message::user(prompt), Message::assistant(completion)];
                self.encode_conversation(&messages, &template_options(tools.clone()), learn, &limits)
            }
            ExampleKind::Chat { messages, tools } => {
                self.encode_conversation(messages, &template_options(tools.clone()), learn, &limits)
            }
            other => {
                let reason = format!("{other:?} is of a kind that this backend does not know");
                Err(Error::invalid_prompt(reason))
            }
        }
    }

    fn encode_conversation(
        &self,
        messages: &[Message],
        template: &TemplateOptions,
        learn: LossOn,
        limits: &EncodeLimits,
    ) -> Result<TokenExample> {
        let Some((last, given)) = messages.split_last() else {
            return Err(Error::invalid_prompt("the conversation has no messages"));
        };
        let tokens = self.encode_chat(messages, template, false, limits)?;
        if learn == LossOn::Everything {
            return Ok(TokenExample::from_answer(tokens, 0));
        }
        if last.role != Role::Assistant {
            let reason =
                format!("the last message is of role {:?}, expected the assistant's to learn", last.role);
            return Err(Error::invalid_prompt(reason));
        }
        // Templates may refuse a conversation of nothing: an answer that nobody asked for is learnt with its header.
        if given.is_empty() {
            return Ok(TokenExample::from_answer(tokens, 0));
        }
        let prompt = self.encode_chat(given, template, true, limits)?;
        let common = prompt.iter().zip(&tokens).take_while(|(one, other)| one == other).count();
        Ok(TokenExample::from_answer(tokens, common))
    }
}

fn template_options(tools: Option<std::sync::Arc<[serde_json::Value]>>) -> TemplateOptions {
    let mut options = TemplateOptions::default();
    options.tools = tools;
    options
}

/// The token that ends a text: the tokenizer's own, as named, else the first that generation stops at.
fn end_of_text(tokenizer: &Tokenizer) -> Option<u32> {
    let named = tokenizer.special_tokens().get("eos_token").and_then(|token| tokenizer.token_to_id(token));
    named.or_else(|| tokenizer.eos_ids().first().copied())
}
