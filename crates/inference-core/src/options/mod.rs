//! What a caller may ask of a load, a generation, a classification or an embedding.
//!
//! Every field is optional: zero is a value, unset is another. A set field that the backend lacks is refused before any
//! work; values are checked once, here, when the call is made.

mod classify;
mod embed;
mod generate;
mod load;
mod processor;
mod sampling;
mod tools;

use std::{
    any::{Any, TypeId, type_name},
    collections::HashMap,
    fmt,
    sync::Arc,
};

use serde_json::{Map, Value};

pub use self::{
    classify::ClassifyOptions,
    embed::{EmbedOptions, EmbeddingFormat, Pooling, RerankOptions, TextObserver, TextProgress},
    generate::{ContextOverflow, GenerateOptions},
    load::{KvBits, LoadOptions, LoadProgress, Progress},
    processor::{LogitsProcessor, Processor},
    sampling::{SamplingOptions, Xtc},
    tools::ToolChoice,
};
use crate::{Error, Feature, Result};

/// Tokens generated where [`GenerateOptions::max_tokens`] is unset.
pub const DEFAULT_MAX_TOKENS: usize = 256;

/// Tokens looked back over by penalties where [`SamplingOptions::penalty_window`] is unset.
pub const DEFAULT_PENALTY_WINDOW: usize = 64;

/// What a chat template is given besides the messages.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct TemplateOptions {
    /// Definitions of tools (JSON schema objects).
    pub tools: Option<Arc<[Value]>>,
    /// Further variables: `enable_thinking`, say.
    pub variables: Option<Arc<Map<String, Value>>>,
    /// Whether the answer goes on with the last message, in place of a new one.
    pub continue_final_message: bool,
}

impl TemplateOptions {
    /// Options with nothing set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the chat template definitions of tools.
    #[must_use]
    pub fn tools(mut self, tools: impl IntoIterator<Item = Value>) -> Self {
        self.tools = Some(tools.into_iter().collect());
        self
    }

    /// Gives the chat template a variable, such as `enable_thinking`.
    #[must_use]
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.set_variable(name, value);
        self
    }

    /// Goes on with the last message, of which the answer then has only what is new: a beginning that is put into the
    /// model's mouth.
    #[must_use]
    pub fn continue_final_message(mut self, continues: bool) -> Self {
        self.continue_final_message = continues;
        self
    }

    pub(crate) fn required_features(&self) -> impl Iterator<Item = Feature> {
        (self.tools.is_some() || self.variables.is_some() || self.continue_final_message)
            .then_some(Feature::ChatTemplateOptions)
            .into_iter()
    }

    fn set_variable(&mut self, name: impl Into<String>, value: impl Into<Value>) {
        let mut variables = self.variables.take().map(Arc::unwrap_or_clone).unwrap_or_default();
        variables.insert(name.into(), value.into());
        self.variables = Some(Arc::new(variables));
    }
}

/// Options that belong to one backend, at most one value of each type. Cheap to clone. A backend names the types that it
/// reads in [`Backend::extensions`](crate::backend::Backend::extensions); a value of any other type is refused.
#[derive(Clone, Default)]
pub struct Extensions(HashMap<TypeId, Extension>);

#[derive(Clone)]
struct Extension {
    type_name: &'static str,
    value: Arc<dyn Any + Send + Sync>,
}

impl Extensions {
    /// Sets the option of type `T`.
    pub fn insert<T: Any + Send + Sync>(&mut self, option: T) {
        let extension = Extension { type_name: type_name::<T>(), value: Arc::new(option) };
        self.0.insert(TypeId::of::<T>(), extension);
    }

    /// The option of type `T`, if it was set.
    #[must_use]
    pub fn get<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.0.get(&TypeId::of::<T>()).and_then(|option| option.value.downcast_ref())
    }

    /// Refuses values that a backend would ignore.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] names a type that is not among `known`.
    pub fn check(&self, backend: &str, known: &[TypeId]) -> Result<()> {
        let foreign =
            self.0.iter().filter(|(id, _)| !known.contains(id)).map(|(_, extension)| extension.type_name);
        match foreign.min() {
            None => Ok(()),
            Some(name) => {
                let reason = format!("backend {backend} does not read options of type {name}");
                Err(Error::invalid_option("extension", reason))
            }
        }
    }
}

impl fmt::Debug for Extensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.values().map(|extension| extension.type_name)).finish()
    }
}

fn positive(option: &'static str, value: Option<usize>) -> Result<()> {
    if value == Some(0) {
        return Err(Error::invalid_option(option, "0, expected at least 1"));
    }
    Ok(())
}

fn within(option: &'static str, value: Option<f32>, expected: &str, ok: impl Fn(f32) -> bool) -> Result<()> {
    match value {
        Some(value) if !value.is_finite() || !ok(value) => {
            Err(Error::invalid_option(option, format!("{value}, expected {expected}")))
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
        options.extensions.check("mine", &[TypeId::of::<Mine>()]).unwrap();
        let error = options.extensions.check("other", &[TypeId::of::<u8>()]).unwrap_err().to_string();
        assert!(error.starts_with("option extension: backend other") && error.ends_with("Mine"), "{error}");
    }
}
