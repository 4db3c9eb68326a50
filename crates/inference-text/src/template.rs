//! Chat templates: Jinja2 programs of a model folder that turn a conversation into the text the model was trained on.

mod environment;
mod files;
mod python;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

use inference_core::{Error, Message, Result, TemplateOptions};
use minijinja::Environment;
use serde_json::{Map, Value, json};

use crate::SpecialTokens;

/// The name of the template that is used where tools are given.
const TOOL_USE: &str = "tool_use";
const DEFAULT: &str = "default";

/// The chat template of a model folder, or several: one for conversations with tools.
///
/// Set up as transformers sets up Jinja2, so that a template written for that gives the same text: trimmed blocks, loop
/// controls, `raise_exception`, `strftime_now`, `tojson`, `{% generation %}`, and Python's methods and way of printing.
///
/// A template is a program from an untrusted folder. It has no access to files, and its source, steps and output are
/// bounded: one that does not end is an [`Error::Template`] within a second or so.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    /// Variables that every rendering has: the special tokens.
    constants: Arc<Map<String, Value>>,
}

impl ChatTemplate {
    /// Reads the template of a model folder: chat_template.jinja, tokenizer_config.json's `chat_template` (a text, or a list of
    /// named ones), or chat_template.json. `None` where the folder has none.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the file that cannot be read; [`Error::Template`]: it is no Jinja2 template.
    pub fn load(folder: &Path, special: &SpecialTokens) -> Result<Option<Self>> {
        let sources = files::sources(folder)?;
        if sources.is_empty() { Ok(None) } else { Self::from_sources(sources, special).map(Some) }
    }

    /// A template from its source.
    ///
    /// # Errors
    /// [`Error::Template`]: it is no Jinja2 template.
    pub fn new(source: impl Into<String>, special: &SpecialTokens) -> Result<Self> {
        Self::from_sources(vec![(DEFAULT.to_owned(), source.into())], special)
    }

    /// The text of a conversation, up to where the assistant begins to speak if `add_generation_prompt`. Encode it without
    /// special tokens: the template has put them in.
    ///
    /// # Errors
    /// [`Error::Template`]: the template refuses the conversation, fails, or exceeds its limits.
    pub fn render(
        &self,
        messages: &[Message],
        options: &TemplateOptions,
        add_generation_prompt: bool,
    ) -> Result<String> {
        let mut variables = Map::new();
        variables.insert("messages".to_owned(), json!(messages));
        variables
            .insert("tools".to_owned(), options.tools.as_ref().map_or(Value::Null, |tools| json!(**tools)));
        variables.insert("documents".to_owned(), Value::Null);
        variables.insert("add_generation_prompt".to_owned(), json!(add_generation_prompt));
        variables.extend(options.variables.iter().flat_map(|given| given.as_ref().clone()));
        self.render_variables(&variables)
    }

    /// Renders with these variables, on top of the special tokens; `tools` chooses the template for tools.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn render_variables(&self, variables: &Map<String, Value>) -> Result<String> {
        let mut context = self.constants.as_ref().clone();
        context.extend(variables.clone());
        let tools = context.get("tools").is_some_and(|tools| !tools.is_null());
        let name = if tools && self.environment.get_template(TOOL_USE).is_ok() { TOOL_USE } else { DEFAULT };
        environment::render(&self.environment, name, context)
    }

    /// The same template with a clock that stands still, for texts that do not change from day to day.
    ///
    /// # Errors
    /// [`Error::Template`]: `now` is not of the form `2025-03-14T15:09:26`.
    pub fn at(mut self, now: &str) -> Result<Self> {
        let now = now
            .parse()
            .map_err(|error| Error::Template { reason: format!("{now:?} is no time: {error}") })?;
        environment::set_clock(Arc::make_mut(&mut self.environment), Some(now));
        Ok(self)
    }

    fn from_sources(sources: Vec<(String, String)>, special: &SpecialTokens) -> Result<Self> {
        let mut constants: Map<String, Value> =
            special.iter().map(|(name, text)| (name.to_owned(), Value::from(text))).collect();
        if !special.additional().is_empty() {
            constants.insert("additional_special_tokens".to_owned(), json!(special.additional()));
        }
        // minijinja is a large program that reads a hostile one.
        let environment =
            catch_unwind(AssertUnwindSafe(|| environment::new(sources))).unwrap_or_else(|_| {
                Err(Error::Template { reason: "the template cannot be parsed".to_owned() })
            })?;
        Ok(Self { environment: Arc::new(environment), constants: Arc::new(constants) })
    }
}
