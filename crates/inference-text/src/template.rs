//! Chat templates of model folders: which files hold them, and what they are given.

mod files;

use std::{path::Path, sync::Arc};

use chat_template::{Environment, ErrorKind, Template};
use inference_core::{CancellationToken, Error, Message, Result, TemplateOptions, backend::ModelFiles};
use serde_json::{Map, Value, json};

use self::files::{DEFAULT, TOOL_USE};
use crate::SpecialTokens;

/// The chat template of a model folder, or several: one for conversations with tools.
///
/// A template is a program from an untrusted folder. [`chat_template`] runs it: it gives the text that transformers gives, and ends
/// with an [`Error::Template`] if it exceeds its limits of time and memory.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    variants: Arc<[Variant]>,
    /// The special tokens, the clock, and the caller's wish to stop.
    environment: Environment,
}

#[derive(Debug)]
struct Variant {
    name: String,
    source: String,
    template: Template,
}

impl ChatTemplate {
    /// Reads the template of a model folder: chat_template.jinja, tokenizer_config.json's `chat_template` (a text, or a list of
    /// named ones), or chat_template.json; or that of a GGUF file. `None` where there is none.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the file that cannot be read; [`Error::Template`]: it is no Jinja2 template.
    pub fn load(path: &Path, special: &SpecialTokens) -> Result<Option<Self>> {
        Self::from_files(&ModelFiles::open(path)?, special)
    }

    /// [`load`](Self::load) of these files.
    pub(crate) fn from_files(files: &ModelFiles, special: &SpecialTokens) -> Result<Option<Self>> {
        let sources = files::sources(files)?;
        if sources.is_empty() { Ok(None) } else { Self::from_sources(sources, special).map(Some) }
    }

    /// A template from its source.
    ///
    /// # Errors
    /// [`Error::Template`]: it is no Jinja2 template.
    pub fn new(source: impl Into<String>, special: &SpecialTokens) -> Result<Self> {
        Self::from_sources(vec![(DEFAULT.to_owned(), source.into())], special)
    }

    /// The text of a conversation, up to where the assistant begins to speak if `add_generation_prompt`; up to the end of the
    /// last message's content if the options continue it. Encode it without special tokens: the template has put them in.
    ///
    /// # Errors
    /// [`Error::Template`]: the template refuses the conversation, fails, exceeds its limits, or does not write the message that
    /// is to be continued as it stands. [`Error::Cancelled`] with a token [of the caller's](Self::with_cancel).
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
        let continues = options.continue_final_message;
        variables.insert("add_generation_prompt".to_owned(), json!(add_generation_prompt && !continues));
        variables.extend(options.variables.iter().flat_map(|given| given.as_ref().clone()));
        let text = self.render_variables(&variables)?;
        if continues { up_to_final_message(text, messages) } else { Ok(text) }
    }

    /// Renders with these variables, on top of the special tokens; `tools` chooses the template for tools.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn render_variables(&self, variables: &Map<String, Value>) -> Result<String> {
        let tools = variables.get("tools").is_some_and(|tools| !tools.is_null());
        let named = |name: &str| self.variants.iter().find(|variant| variant.name == name);
        let variant = named(TOOL_USE).filter(|_| tools).or_else(|| named(DEFAULT));
        let Some(variant) = variant else {
            return Err(failure(&"there is no default template"));
        };
        variant.template.render_in(&self.environment, variables).map_err(|error| match error.kind() {
            ErrorKind::Cancelled => Error::Cancelled,
            _ => failure(&error),
        })
    }

    /// The sources of all its variants.
    pub(crate) fn sources(&self) -> impl Iterator<Item = &str> {
        self.variants.iter().map(|variant| variant.source.as_str())
    }

    /// The same template with a clock that stands still, for texts that do not change from day to day.
    ///
    /// # Errors
    /// [`Error::Template`]: `now` is not of the form `2025-03-14T15:09:26`.
    pub fn at(mut self, now: &str) -> Result<Self> {
        self.environment = self.environment.at(now).map_err(|error| failure(&error))?;
        Ok(self)
    }

    /// The same template, whose renderings end with [`Error::Cancelled`] soon after this token is cancelled.
    #[must_use]
    pub fn with_cancel(&self, cancel: CancellationToken) -> Self {
        let environment = self.environment.clone().cancelled(move || cancel.is_cancelled());
        Self { variants: self.variants.clone(), environment }
    }

    fn from_sources(sources: Vec<(String, String)>, special: &SpecialTokens) -> Result<Self> {
        let mut environment = Environment::new();
        for (name, text) in special.iter() {
            environment = environment.global(name, Value::from(text));
        }
        if !special.additional().is_empty() {
            environment = environment.global("additional_special_tokens", json!(special.additional()));
        }
        let variant = |(name, source): (String, String)| {
            let template = Template::parse(&source).map_err(|error| failure(&error))?;
            Ok(Variant { name, source, template })
        };
        let variants = sources.into_iter().map(variant).collect::<Result<_>>()?;
        Ok(Self { variants, environment })
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

/// The rendered text up to the end of the last message's content, as transformers' `continue_final_message` has it: without
/// what the template writes behind it, an end of turn say. White space at the end of the content counts unless the template
/// leaves it out.
fn up_to_final_message(mut text: String, messages: &[Message]) -> Result<String> {
    let content = messages.last().map_or("", |message| message.content.as_str());
    if content.trim().is_empty() {
        return Err(failure(&"the last message is to be continued, but it has no content"));
    }
    let found = [content, content.trim_end(), content.trim()]
        .into_iter()
        .find_map(|content| text.rfind(content).map(|at| at + content.len()));
    let Some(end) = found else {
        return Err(failure(
            &"the last message is to be continued, but the template does not write it as it is",
        ));
    };
    text.truncate(end);
    Ok(text)
}

fn failure(reason: &dyn std::fmt::Display) -> Error {
    Error::template(reason.to_string())
}
