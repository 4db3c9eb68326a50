//! What a caller may ask of a load, a generation or a classification.
//!
//! Every field is optional: zero is a value, unset is another. A set field that the backend lacks is refused before any
//! work; values are checked once, here, when the call is made.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::Arc,
};

use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::{Error, Feature, Result};

/// Tokens generated where [`GenerateOptions::max_tokens`] is unset.
pub const DEFAULT_MAX_TOKENS: usize = 256;

/// Tokens looked back over by penalties where [`SamplingOptions::penalty_window`] is unset.
pub const DEFAULT_PENALTY_WINDOW: usize = 64;

/// Options of a load.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct LoadOptions {
    /// Tokens of prompt and answer together; unset: the model's own.
    pub context_length: Option<usize>,
    /// The folder of a LoRA adapter to apply.
    pub adapter: Option<PathBuf>,
    /// Requests decoded at once; unset: the backend's choice.
    pub max_batch: Option<usize>,
    /// Prompt tokens computed at once; unset: the backend's choice.
    pub prefill_chunk: Option<usize>,
    /// Bytes of keys and values kept of ended texts, for prompts that begin as they did; 0 keeps none; unset: the backend's
    /// choice.
    pub prefix_cache: Option<u64>,
    /// Bytes that the engine may use; process-wide where its allocator is.
    pub memory_limit: Option<u64>,
    /// Bytes that the engine's allocator may keep for reuse.
    pub cache_limit: Option<u64>,
    /// Is told how far the load has come; a backend that cannot tell never calls it.
    pub on_progress: Option<Progress>,
    /// Cancels the load.
    pub cancel: CancellationToken,
    /// Options of one backend, by type.
    pub extensions: Extensions,
}

impl LoadOptions {
    /// Options with nothing set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Holds prompt and answer to this many tokens together.
    #[must_use]
    pub fn context_length(mut self, tokens: usize) -> Self {
        self.context_length = Some(tokens);
        self
    }

    /// Applies the LoRA adapter in this folder.
    #[must_use]
    pub fn adapter(mut self, folder: impl Into<PathBuf>) -> Self {
        self.adapter = Some(folder.into());
        self
    }

    /// Decodes at most this many requests at once; more wait.
    #[must_use]
    pub fn max_batch(mut self, requests: usize) -> Self {
        self.max_batch = Some(requests);
        self
    }

    /// Computes prompts in chunks of this many tokens.
    #[must_use]
    pub fn prefill_chunk(mut self, tokens: usize) -> Self {
        self.prefill_chunk = Some(tokens);
        self
    }

    /// Keeps at most this many bytes of keys and values of ended texts: a prompt that begins as one of them did computes only
    /// what is new. 0 keeps none.
    #[must_use]
    pub fn prefix_cache(mut self, bytes: u64) -> Self {
        self.prefix_cache = Some(bytes);
        self
    }

    /// Limits the engine's memory to this many bytes.
    #[must_use]
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// Limits what the engine's allocator keeps for reuse to this many bytes; 0 keeps nothing.
    #[must_use]
    pub fn cache_limit(mut self, bytes: u64) -> Self {
        self.cache_limit = Some(bytes);
        self
    }

    /// Calls this as the load goes on, from a thread of the backend: it must be quick and must not block.
    #[must_use]
    pub fn on_progress(mut self, callback: impl Fn(LoadProgress) + Send + Sync + 'static) -> Self {
        self.on_progress = Some(Progress(Arc::new(callback)));
        self
    }

    /// Cancels the load when this token is cancelled.
    #[must_use]
    pub fn cancel(mut self, token: CancellationToken) -> Self {
        self.cancel = token;
        self
    }

    /// Adds an option of one backend; see the backend's documentation for its types.
    #[must_use]
    pub fn extension<T: Any + Send + Sync>(mut self, option: T) -> Self {
        self.extensions.insert(option);
        self
    }

    /// Checks the values.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] names the first that makes no sense.
    pub fn validate(&self) -> Result<()> {
        positive("context_length", self.context_length)?;
        positive("max_batch", self.max_batch)?;
        positive("prefill_chunk", self.prefill_chunk)
    }

    /// The features that the set fields need.
    pub fn required_features(&self) -> impl Iterator<Item = Feature> {
        [
            self.context_length.map(|_| Feature::ContextLength),
            self.adapter.as_ref().map(|_| Feature::Adapter),
            self.max_batch.map(|_| Feature::MaxBatch),
            self.prefill_chunk.map(|_| Feature::PrefillChunk),
            self.prefix_cache.map(|_| Feature::PrefixCache),
            self.memory_limit.map(|_| Feature::MemoryLimit),
            self.cache_limit.map(|_| Feature::CacheLimit),
        ]
        .into_iter()
        .flatten()
    }
}

/// How far a load has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadProgress {
    /// Bytes of weights that are in place.
    pub loaded_bytes: u64,
    /// Bytes of all weights.
    pub total_bytes: u64,
}

impl LoadProgress {
    /// So many bytes of so many.
    #[must_use]
    pub fn new(loaded_bytes: u64, total_bytes: u64) -> Self {
        Self { loaded_bytes, total_bytes }
    }
}

/// Who is told how far a load has come. Cheap to clone.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(LoadProgress) + Send + Sync>);

impl Progress {
    /// Tells it.
    pub fn report(&self, progress: LoadProgress) {
        (self.0)(progress);
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}

/// How the next token is chosen. Unset temperature is 0: the likeliest token.
///
/// The order is part of the contract, so that every backend gives one distribution: logit bias → repetition, presence,
/// frequency penalties → on log-probabilities: top-p → min-p → XTC → top-k → temperature → draw.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct SamplingOptions {
    /// The divisor of log-probabilities before the draw; 0 takes the likeliest token.
    pub temperature: Option<f32>,
    /// Keeps the likeliest tokens whose probabilities add up to this, in (0, 1].
    pub top_p: Option<f32>,
    /// Drops tokens less likely than this share of the likeliest one's probability, in [0, 1].
    pub min_p: Option<f32>,
    /// Keeps this many of the likeliest tokens; 0 keeps all.
    pub top_k: Option<usize>,
    /// Excludes top choices.
    pub xtc: Option<Xtc>,
    /// Makes the request reproducible, whatever runs beside it; unset: another draw each time.
    pub seed: Option<u64>,
    /// Added to the logits of these ids.
    pub logit_bias: Option<Arc<[(u32, f32)]>>,
    /// Divides positive and multiplies negative logits of tokens seen within the window; 1 changes nothing.
    pub repetition_penalty: Option<f32>,
    /// Subtracted once from the logit of each token seen within the window.
    pub presence_penalty: Option<f32>,
    /// Subtracted from a token's logit once for each time it was seen within the window.
    pub frequency_penalty: Option<f32>,
    /// How many of the last tokens, prompt included, the penalties look at; unset: [`DEFAULT_PENALTY_WINDOW`].
    pub penalty_window: Option<usize>,
}

/// Exclude top choices: with a probability, all tokens above the threshold but the least likely of them are dropped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Xtc {
    /// How often the filter acts, in [0, 1].
    pub probability: f32,
    /// The probability above which a token counts as a top choice, in [0, 0.5].
    pub threshold: f32,
}

impl SamplingOptions {
    /// The temperature that applies; 0 where unset.
    #[must_use]
    pub fn temperature_or_greedy(&self) -> f32 {
        self.temperature.unwrap_or(0.0)
    }

    /// The penalties' window that applies.
    #[must_use]
    pub fn window(&self) -> usize {
        self.penalty_window.unwrap_or(DEFAULT_PENALTY_WINDOW)
    }

    /// Whether any penalty looks at earlier tokens.
    #[must_use]
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty.is_some_and(|p| p != 1.0)
            || self.presence_penalty.is_some_and(|p| p != 0.0)
            || self.frequency_penalty.is_some_and(|p| p != 0.0)
    }

    fn validate(&self) -> Result<()> {
        within("temperature", self.temperature, "a finite number from 0", |t| t >= 0.0)?;
        within("top_p", self.top_p, "above 0, up to 1", |p| p > 0.0 && p <= 1.0)?;
        within("min_p", self.min_p, "from 0 to 1", |p| (0.0..=1.0).contains(&p))?;
        within("xtc probability", self.xtc.map(|x| x.probability), "from 0 to 1", |p| {
            (0.0..=1.0).contains(&p)
        })?;
        within("xtc threshold", self.xtc.map(|x| x.threshold), "from 0 to 0.5", |p| {
            (0.0..=0.5).contains(&p)
        })?;
        within("repetition_penalty", self.repetition_penalty, "a finite number above 0", |p| p > 0.0)?;
        within("presence_penalty", self.presence_penalty, "a finite number", |_| true)?;
        within("frequency_penalty", self.frequency_penalty, "a finite number", |_| true)?;
        let biases = self.logit_bias.iter().flat_map(|biases| biases.iter());
        // −∞ is how a token is banned.
        if let Some((id, bias)) = biases.into_iter().find(|(_, b)| b.is_nan() || *b == f32::INFINITY) {
            let reason = format!("token {id} has {bias}; expected a number, or −∞ to ban the token");
            return Err(Error::InvalidOption { option: "logit_bias", reason });
        }
        Ok(())
    }

    fn required_features(&self) -> impl Iterator<Item = Feature> {
        [
            self.temperature.filter(|t| *t > 0.0).map(|_| Feature::Sampling),
            self.top_p.map(|_| Feature::TopP),
            self.min_p.map(|_| Feature::MinP),
            self.top_k.map(|_| Feature::TopK),
            self.xtc.map(|_| Feature::Xtc),
            self.seed.map(|_| Feature::Seed),
            self.logit_bias.as_ref().map(|_| Feature::LogitBias),
            self.repetition_penalty.map(|_| Feature::RepetitionPenalty),
            self.presence_penalty.map(|_| Feature::PresencePenalty),
            self.frequency_penalty.map(|_| Feature::FrequencyPenalty),
        ]
        .into_iter()
        .flatten()
    }
}

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
    /// How tokens are chosen.
    pub sampling: SamplingOptions,
    /// Strings that end the text, themselves left out of it.
    pub stop: Option<Arc<[String]>>,
    /// Token ids that end the text besides the model's own.
    pub stop_tokens: Option<Arc<[u32]>>,
    /// Whether to go on past the model's end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Log-probabilities: `Some(0)` of the chosen token, `Some(n)` of the n likeliest too.
    pub log_probabilities: Option<usize>,
    /// What the chat template is given besides the messages.
    pub template: TemplateOptions,
    /// Cancels the generation, which then ends with `FinishReason::Cancelled`.
    pub cancel: CancellationToken,
    /// Options of one backend, by type.
    pub extensions: Extensions,
}

/// What a chat template is given besides the messages.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct TemplateOptions {
    /// Definitions of tools (JSON schema objects).
    pub tools: Option<Arc<[Value]>>,
    /// Further variables: `enable_thinking`, say.
    pub variables: Option<Arc<Map<String, Value>>>,
}

impl TemplateOptions {
    fn required_features(&self) -> impl Iterator<Item = Feature> {
        (self.tools.is_some() || self.variables.is_some()).then_some(Feature::ChatTemplateOptions).into_iter()
    }

    fn set_variable(&mut self, name: impl Into<String>, value: impl Into<Value>) {
        let mut variables = self.variables.take().map(Arc::unwrap_or_clone).unwrap_or_default();
        variables.insert(name.into(), value.into());
        self.variables = Some(Arc::new(variables));
    }
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
    /// Options with nothing set: greedy, [`DEFAULT_MAX_TOKENS`].
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

    /// Adds to the logits of these ids; −∞ bans a token.
    #[must_use]
    pub fn logit_bias(mut self, biases: impl IntoIterator<Item = (u32, f32)>) -> Self {
        self.sampling.logit_bias = Some(biases.into_iter().collect());
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

    /// Checks the values.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] names the first that makes no sense.
    pub fn validate(&self) -> Result<()> {
        self.sampling.validate()?;
        if self.stop.iter().any(|stop| stop.iter().any(String::is_empty)) {
            let reason = "an empty string would end every text at once".to_owned();
            return Err(Error::InvalidOption { option: "stop", reason });
        }
        if let (Some(min), max) = (self.min_tokens, self.max_tokens_or_default())
            && min > max
        {
            let reason = format!("{min} is above max_tokens, which is {max}");
            return Err(Error::InvalidOption { option: "min_tokens", reason });
        }
        Ok(())
    }

    /// The features that the set fields need.
    pub fn required_features(&self) -> impl Iterator<Item = Feature> {
        let own = [
            self.min_tokens.map(|_| Feature::MinTokens),
            (self.stop.is_some() || self.stop_tokens.is_some() || self.ignore_eos).then_some(Feature::Stop),
            self.log_probabilities.map(|_| Feature::LogProbabilities),
        ];
        own.into_iter()
            .flatten()
            .chain(self.sampling.required_features())
            .chain(self.template.required_features())
    }
}

/// Options of one classification: a single forward pass over each prompt.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ClassifyOptions {
    /// Texts to score as the continuation of each prompt; unset: only the likeliest next token is returned.
    pub labels: Option<Arc<[String]>>,
    /// Whether to return the logits of the next token, one for each id of the vocabulary.
    pub logits: bool,
    /// What the chat template is given besides the messages.
    pub template: TemplateOptions,
    /// Cancels the call, which then fails with [`Error::Cancelled`].
    pub cancel: CancellationToken,
    /// Options of one backend, by type.
    pub extensions: Extensions,
}

impl ClassifyOptions {
    /// Options with nothing set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Scores each of these texts as the continuation of each prompt.
    #[must_use]
    pub fn labels<S: Into<String>>(mut self, labels: impl IntoIterator<Item = S>) -> Self {
        self.labels = Some(labels.into_iter().map(Into::into).collect());
        self
    }

    /// Returns the next token's logits.
    #[must_use]
    pub fn logits(mut self, logits: bool) -> Self {
        self.logits = logits;
        self
    }

    /// Gives the chat template a variable.
    #[must_use]
    pub fn template_variable(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.template.set_variable(name, value);
        self
    }

    /// Cancels the call when this token is cancelled.
    #[must_use]
    pub fn cancel(mut self, token: CancellationToken) -> Self {
        self.cancel = token;
        self
    }

    /// Checks the values.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if the labels are an empty list, or one of them is empty or stands twice.
    pub fn validate(&self) -> Result<()> {
        let Some(labels) = &self.labels else { return Ok(()) };
        let invalid = |reason: String| Err(Error::InvalidOption { option: "labels", reason });
        if labels.is_empty() {
            return invalid("the list is empty; leave it unset to get only the likeliest token".to_owned());
        }
        for (i, label) in labels.iter().enumerate() {
            if label.is_empty() {
                return invalid(format!("label {i} is empty"));
            }
            if labels[..i].contains(label) {
                return invalid(format!("{label:?} stands twice"));
            }
        }
        Ok(())
    }

    /// The features that the set fields need.
    pub fn required_features(&self) -> impl Iterator<Item = Feature> {
        self.logits.then_some(Feature::Logits).into_iter().chain(self.template.required_features())
    }
}

/// Options that belong to one backend, at most one value of each type. Cheap to clone.
#[derive(Clone, Default)]
pub struct Extensions(HashMap<TypeId, Arc<dyn Any + Send + Sync>>);

impl Extensions {
    /// Sets the option of type `T`.
    pub fn insert<T: Any + Send + Sync>(&mut self, option: T) {
        self.0.insert(TypeId::of::<T>(), Arc::new(option));
    }

    /// The option of type `T`, if it was set.
    #[must_use]
    pub fn get<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.0.get(&TypeId::of::<T>()).and_then(|option| option.downcast_ref())
    }
}

impl fmt::Debug for Extensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Extensions({})", self.0.len())
    }
}

fn positive(option: &'static str, value: Option<usize>) -> Result<()> {
    if value == Some(0) {
        return Err(Error::InvalidOption { option, reason: "0, expected at least 1".to_owned() });
    }
    Ok(())
}

fn within(option: &'static str, value: Option<f32>, expected: &str, ok: impl Fn(f32) -> bool) -> Result<()> {
    match value {
        Some(value) if !value.is_finite() || !ok(value) => {
            Err(Error::InvalidOption { option, reason: format!("{value}, expected {expected}") })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option_of(result: Result<()>) -> &'static str {
        match result {
            Err(Error::InvalidOption { option, .. }) => option,
            other => panic!("expected InvalidOption, got {other:?}"),
        }
    }

    #[test]
    fn values_that_make_no_sense_are_named() {
        let options = GenerateOptions::new;
        assert_eq!(option_of(options().temperature(-1.0).validate()), "temperature");
        assert_eq!(option_of(options().temperature(f32::NAN).validate()), "temperature");
        assert_eq!(option_of(options().top_p(0.0).validate()), "top_p");
        assert_eq!(option_of(options().min_p(1.5).validate()), "min_p");
        assert_eq!(option_of(options().repetition_penalty(0.0).validate()), "repetition_penalty");
        assert_eq!(option_of(options().logit_bias([(3, f32::NAN)]).validate()), "logit_bias");
        assert_eq!(option_of(options().stop([""]).validate()), "stop");
        assert_eq!(option_of(options().min_tokens(9).max_tokens(3).validate()), "min_tokens");
        assert_eq!(option_of(LoadOptions::new().max_batch(0).validate()), "max_batch");
        assert_eq!(option_of(ClassifyOptions::new().labels(["a", "a"]).validate()), "labels");
        assert_eq!(option_of(ClassifyOptions::new().labels::<String>([]).validate()), "labels");
    }

    #[test]
    fn zero_is_a_value_and_unset_another() {
        assert_eq!(GenerateOptions::new().required_features().count(), 0);
        let zeros =
            GenerateOptions::new().temperature(0.0).top_k(0).seed(0).logit_bias([(1, f32::NEG_INFINITY)]);
        zeros.validate().unwrap();
        let needs: Vec<_> = zeros.required_features().collect();
        assert_eq!(needs, [Feature::TopK, Feature::Seed, Feature::LogitBias]);
    }

    #[test]
    fn progress_reaches_every_clone_of_the_options() {
        let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
        let sink = seen.clone();
        let options = LoadOptions::new().on_progress(move |progress| sink.lock().unwrap().push(progress));
        options.clone().on_progress.unwrap().report(LoadProgress::new(1, 4));
        assert_eq!(*seen.lock().unwrap(), [LoadProgress::new(1, 4)]);
    }

    #[test]
    fn extensions_are_found_by_type() {
        #[derive(Debug, PartialEq)]
        struct Mine(u8);
        let options = LoadOptions::new().extension(Mine(3));
        assert_eq!(options.extensions.get::<Mine>(), Some(&Mine(3)));
        assert_eq!(options.extensions.get::<u8>(), None);
    }
}
