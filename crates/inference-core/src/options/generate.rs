//! Options of one generation.

use std::{any::Any, sync::Arc};

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{
    DEFAULT_MAX_TOKENS, Extensions, LogitsProcessor, Processor, SamplingOptions, TemplateOptions, ToolChoice,
    Xtc, tools::is_strict,
};
use crate::{Constraint, Error, Feature, Result};

/// Options of one generation. Cheap to clone.
///
/// ```
/// use inference_core::GenerateOptions;
///
/// let options = GenerateOptions::new().max_tokens(64).temperature(0.7).top_p(0.9).seed(1).stop(["\n\n"]);
/// assert_eq!(options.max_tokens, Some(64));
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct GenerateOptions {
    /// Tokens generated at most; unset: [`DEFAULT_MAX_TOKENS`].
    pub max_tokens: Option<usize>,
    /// Tokens before which no end-of-sequence token may be chosen.
    pub min_tokens: Option<usize>,
    /// The largest number of reasoning tokens, for families with delimiters for reasoning. Then the end delimiter is forced.
    pub thinking_budget: Option<usize>,
    /// How tokens are chosen.
    pub sampling: SamplingOptions,
    /// Whether sampling values that are unset come from the model's generation_config.json; unset: they do.
    pub generation_config: Option<bool>,
    /// Edits the logits after bias and penalties, before anything else.
    pub logits_processor: Option<Processor>,
    /// The shape that the answer is held to.
    pub constraint: Option<Constraint>,
    /// Whether and which tools the answer calls; unset: [`ToolChoice::Auto`].
    pub tool_choice: Option<ToolChoice>,
    /// Strings that end the text, themselves left out of it.
    pub stop: Option<Arc<[String]>>,
    /// Token ids that end the text besides the model's own.
    pub stop_tokens: Option<Arc<[u32]>>,
    /// Whether to go on past the model's end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Log-probabilities: `Some(0)` of the chosen token, `Some(n)` of the n likeliest too.
    pub log_probabilities: Option<usize>,
    /// What becomes of a text that outgrows the context; unset: [`ContextOverflow::Stop`].
    pub context_overflow: Option<ContextOverflow>,
    /// What the chat template is given besides the messages.
    pub template: TemplateOptions,
    /// Cancels the generation, which then ends with `FinishReason::Cancelled`.
    pub cancel: CancellationToken,
    /// Options of one backend, by type.
    pub extensions: Extensions,
}

/// What becomes of a text that outgrows the context. Nothing is cut in silence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ContextOverflow {
    /// A request is refused whose prompt and `max_tokens` together do not fit.
    Refuse,
    /// A prompt that does not fit is refused; a text that fills the context ends with `FinishReason::Length`.
    #[default]
    Stop,
    /// The text goes on, and so does a prompt that is longer: attention sees the first `keep` tokens and the latest ones, as many
    /// as the context holds, and those between are forgotten. Positions go on counting. The first few tokens draw so
    /// much attention that a text falls apart without them (Xiao et al. 2023, "attention sinks"): 4 are enough.
    Rotate {
        /// Tokens at the beginning of the text that are never forgotten; fewer than half of the context.
        keep: usize,
    },
}

macro_rules! sampling_setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)+) => {
        $($(#[$doc])*
        #[must_use]
        pub fn $name(mut self, value: $type) -> Self {
            self.sampling.$name = Some(value);
            self
        })+
    };
}

impl GenerateOptions {
    /// Options with nothing set: [`DEFAULT_MAX_TOKENS`], and sampling as the model's generation_config.json has it, or greedy
    /// where it has none.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends after this many tokens; 0 computes the prompt and generates nothing.
    #[must_use]
    pub fn max_tokens(mut self, tokens: usize) -> Self {
        self.max_tokens = Some(tokens);
        self
    }

    /// Lets no end-of-sequence token be chosen before this many tokens.
    #[must_use]
    pub fn min_tokens(mut self, tokens: usize) -> Self {
        self.min_tokens = Some(tokens);
        self
    }

    /// Ends the model's reasoning after this many tokens, so that it answers: the family's end delimiter, such as `</think>`, is
    /// forced. It has no effect on families without delimiters for reasoning.
    #[must_use]
    pub fn thinking_budget(mut self, tokens: usize) -> Self {
        self.thinking_budget = Some(tokens);
        self
    }

    sampling_setters! {
        /// Divides log-probabilities by this before the draw; 0 takes the likeliest token.
        temperature: f32,
        /// Keeps the likeliest tokens whose probabilities add up to this.
        top_p: f32,
        /// Drops tokens less likely than this share of the likeliest one's probability.
        min_p: f32,
        /// Keeps this many of the likeliest tokens; 0 keeps all.
        top_k: usize,
        /// Makes the request reproducible.
        seed: u64,
        /// Divides positive and multiplies negative logits of recent tokens.
        repetition_penalty: f32,
        /// Subtracted once from the logit of each recent token.
        presence_penalty: f32,
        /// Subtracted from a recent token's logit for each time it was seen.
        frequency_penalty: f32,
        /// How many of the last tokens the penalties look at.
        penalty_window: usize,
        /// Excludes top choices.
        xtc: Xtc,
    }

    /// Whether sampling values that are unset come from the model's generation_config.json
    /// ([`GenerationConfig`](crate::GenerationConfig)). With `false` they do not, and unset temperature is greedy.
    #[must_use]
    pub fn generation_config(mut self, applies: bool) -> Self {
        self.generation_config = Some(applies);
        self
    }

    /// Adds to the logits of these ids; −∞ bans a token.
    #[must_use]
    pub fn logit_bias(mut self, biases: impl IntoIterator<Item = (u32, f32)>) -> Self {
        self.sampling.logit_bias = Some(biases.into_iter().collect());
        self
    }

    /// Has this edit the logits of each token after bias and penalties, before log-probabilities and filters.
    ///
    /// It costs the engine its overlap of host and device: each token's logits are copied to the host (4 bytes for each id of the
    /// vocabulary) and back. The next step waits for that, also for other requests in the batch.
    ///
    /// ```
    /// use inference_core::GenerateOptions;
    ///
    /// // Says nothing twice.
    /// let once = |_prompt: &[u32], answer: &[u32], logits: &mut [f32]| {
    ///     answer.iter().for_each(|id| logits[*id as usize] = f32::NEG_INFINITY);
    /// };
    /// let options = GenerateOptions::new().max_tokens(64).logits_processor(once);
    /// ```
    #[must_use]
    pub fn logits_processor(mut self, processor: impl LogitsProcessor + 'static) -> Self {
        self.logits_processor = Some(Processor::new(processor));
        self
    }

    /// Holds the answer to a shape: a JSON schema, say. The masks of tokens are computed while the device computes their logits.
    #[must_use]
    pub fn constraint(mut self, constraint: Constraint) -> Self {
        self.constraint = Some(constraint);
        self
    }

    /// Has the answer call tools, or leaves that to the model. It needs [`tools`](Self::tools), and a model whose calls have a
    /// notation that is known.
    #[must_use]
    pub fn tool_choice(mut self, choice: ToolChoice) -> Self {
        self.tool_choice = Some(choice);
        self
    }

    /// Ends the text before any of these strings.
    #[must_use]
    pub fn stop<S: Into<String>>(mut self, strings: impl IntoIterator<Item = S>) -> Self {
        self.stop = Some(strings.into_iter().map(Into::into).collect());
        self
    }

    /// Ends the text at any of these ids too.
    #[must_use]
    pub fn stop_tokens(mut self, ids: impl IntoIterator<Item = u32>) -> Self {
        self.stop_tokens = Some(ids.into_iter().collect());
        self
    }

    /// Goes on past the model's end-of-sequence tokens, for measurements.
    #[must_use]
    pub fn ignore_eos(mut self, ignore: bool) -> Self {
        self.ignore_eos = ignore;
        self
    }

    /// Delivers the chosen token's log-probability, and those of the `top` likeliest.
    #[must_use]
    pub fn log_probabilities(mut self, top: usize) -> Self {
        self.log_probabilities = Some(top);
        self
    }

    /// Does this where the text outgrows the context.
    #[must_use]
    pub fn context_overflow(mut self, policy: ContextOverflow) -> Self {
        self.context_overflow = Some(policy);
        self
    }

    /// Gives the chat template definitions of tools.
    #[must_use]
    pub fn tools(mut self, tools: impl IntoIterator<Item = Value>) -> Self {
        self.template.tools = Some(tools.into_iter().collect());
        self
    }

    /// Gives the chat template a variable, such as `enable_thinking`.
    #[must_use]
    pub fn template_variable(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.template.set_variable(name, value);
        self
    }

    /// Cancels the generation when this token is cancelled.
    #[must_use]
    pub fn cancel(mut self, token: CancellationToken) -> Self {
        self.cancel = token;
        self
    }

    /// Adds an option of one backend.
    #[must_use]
    pub fn extension<T: Any + Send + Sync>(mut self, option: T) -> Self {
        self.extensions.insert(option);
        self
    }

    /// The limit on tokens that applies.
    #[must_use]
    pub fn max_tokens_or_default(&self) -> usize {
        self.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS)
    }

    /// Whether tokens are held to a shape: by a [`Constraint`], by strict tools, or because calls are required.
    #[must_use]
    pub fn is_constrained(&self) -> bool {
        let tools = self.template.tools.as_deref().unwrap_or_default();
        let calls = self.tool_choice.as_ref().is_some_and(|choice| *choice != ToolChoice::Auto);
        self.constraint.is_some() || calls || tools.iter().any(is_strict)
    }

    /// Checks the values.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] names the first that makes no sense.
    pub fn validate(&self) -> Result<()> {
        self.sampling.validate()?;
        if let Some(constraint) = &self.constraint {
            constraint.validate()?;
        }
        if self.is_constrained() && self.ignore_eos {
            let reason = "a text that is held to a shape ends by an end-of-sequence token".to_owned();
            return Err(Error::invalid_option("ignore_eos", reason));
        }
        if self.stop.iter().any(|stop| stop.iter().any(String::is_empty)) {
            let reason = "an empty string would end every text at once".to_owned();
            return Err(Error::invalid_option("stop", reason));
        }
        if let (Some(min), max) = (self.min_tokens, self.max_tokens_or_default())
            && min > max
        {
            let reason = format!("{min} is above max_tokens, which is {max}");
            return Err(Error::invalid_option("min_tokens", reason));
        }
        Ok(())
    }

    /// The features that the set fields need.
    pub fn required_features(&self) -> impl Iterator<Item = Feature> {
        let own = [
            self.min_tokens.map(|_| Feature::MinTokens),
            (self.stop.is_some() || self.stop_tokens.is_some() || self.ignore_eos).then_some(Feature::Stop),
            self.log_probabilities.map(|_| Feature::LogProbabilities),
            self.context_overflow.filter(|p| *p != ContextOverflow::Stop).map(|_| Feature::ContextOverflow),
            self.thinking_budget.map(|_| Feature::ThinkingBudget),
            self.logits_processor.as_ref().map(|_| Feature::LogitsProcessor),
            self.is_constrained().then_some(Feature::Constraint),
        ];
        own.into_iter()
            .flatten()
            .chain(self.sampling.required_features())
            .chain(self.template.required_features())
    }
}
