//! Chat templates: Jinja2 programs of a model folder that turn a conversation into the text the model was trained on.

mod budget;
mod checks;
mod eval;
mod files;
mod filters;
mod format;
mod functions;
mod lists;
mod methods;
mod ops;
mod parse;
mod print;
mod value;

use std::{path::Path, sync::Arc};

use inference_core::{Error, Message, Result, TemplateOptions};
use jiff::{Zoned, civil::DateTime};
use serde_json::{Map, Value, json};

use crate::SpecialTokens;

/// The name of the template that is used where tools are given.
const TOOL_USE: &str = "tool_use";
const DEFAULT: &str = "default";

/// The chat template of a model folder, or several: one for conversations with tools.
///
/// A template written for transformers gives the same text here: Jinja2's and Python's rules, trimmed blocks, loop
/// controls, `raise_exception`, `strftime_now`, `tojson`, `{% generation %}`. minijinja parses it; it is run by an
/// interpreter of our own, since minijinja's bounds the steps of a template, but neither its memory nor its stack.
///
/// A template is a program from an untrusted folder. It has no access to files, and its source, work and output are
/// bounded: one that does not end is an [`Error::Template`] within a second or so.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    /// Sources by name.
    sources: Arc<[(String, String)]>,
    /// Variables that every rendering has: the special tokens.
    constants: Arc<Map<String, Value>>,
    /// What `strftime_now` tells, where not the local time.
    now: Option<DateTime>,
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
        variables.insert("messages".to_owned(), messages.iter().map(with_reasoning).collect());
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
        let named = |name: &str| self.sources.iter().find(|(known, _)| known == name);
        let source = named(TOOL_USE).filter(|_| tools).or_else(|| named(DEFAULT));
        let Some((_, source)) = source else {
            return Err(failure("there is no default template".to_owned()));
        };
        let now = self.now.unwrap_or_else(|| Zoned::now().datetime());
        parse::render(source, &context, now).map_err(failure)
    }

    /// The sources of all its variants, by name.
    pub(crate) fn sources(&self) -> impl Iterator<Item = &str> {
        self.sources.iter().map(|(_, source)| source.as_str())
    }

    /// The same template with a clock that stands still, for texts that do not change from day to day.
    ///
    /// # Errors
    /// [`Error::Template`]: `now` is not of the form `2025-03-14T15:09:26`.
    pub fn at(mut self, now: &str) -> Result<Self> {
        self.now = Some(now.parse().map_err(|error| failure(format!("{now:?} is no time: {error}")))?);
        Ok(self)
    }

    fn from_sources(sources: Vec<(String, String)>, special: &SpecialTokens) -> Result<Self> {
        let mut constants: Map<String, Value> =
            special.iter().map(|(name, text)| (name.to_owned(), Value::from(text))).collect();
        if !special.additional().is_empty() {
            constants.insert("additional_special_tokens".to_owned(), json!(special.additional()));
        }
        for (_, source) in &sources {
            if source.len() as u64 > files::MAX_SOURCE {
                return Err(failure(format!(
                    "it has {} bytes, expected at most {}",
                    source.len(),
                    files::MAX_SOURCE
                )));
            }
            parse::check(source).map_err(failure)?;
        }
        Ok(Self { sources: sources.into(), constants: Arc::new(constants), now: None })
    }
}

/// A message whose reasoning goes by all the names that templates read, as transformers arranges it.
fn with_reasoning(message: &Message) -> Value {
    let mut message = json!(message);
    let names = ["reasoning_content", "thinking", "reasoning"];
    let reasoning = names.iter().find_map(|name| message.get(name).filter(|text| !text.is_null())).cloned();
    if let (Some(reasoning), Some(fields)) = (reasoning, message.as_object_mut()) {
        fields.entry("thinking").or_insert_with(|| reasoning.clone());
        fields.insert("reasoning_content".to_owned(), reasoning);
    }
    message
}

fn failure(reason: String) -> Error {
    Error::Template { reason }
}
