//! Where a model folder keeps its chat templates.

use chat_template::MAX_SOURCE_BYTES;
use inference_core::{Error, Result, backend::ModelFiles};
use serde_json::{Map, Value};

use crate::tokenizer::read_config;

/// The name of the template for conversations with tools.
pub(super) const TOOL_USE: &str = "tool_use";
/// The name of the template for all other conversations.
pub(super) const DEFAULT: &str = "default";

/// The templates of a folder by name; `default` is always among them where there is any.
pub(super) fn sources(files: &ModelFiles) -> Result<Vec<(String, String)>> {
    let mut sources = Vec::new();
    if files.has("chat_template.jinja") {
        sources.push((DEFAULT.to_owned(), text(files, "chat_template.jinja")?));
        let tools = format!("additional_chat_templates/{TOOL_USE}.jinja");
        if files.has(&tools) {
            sources.push((TOOL_USE.to_owned(), text(files, &tools)?));
        }
        return Ok(sources);
    }
    for name in ["tokenizer_config.json", "chat_template.json"] {
        let config = read_config(files, name)?;
        sources = from_config(&config)
            .map_err(|reason| Error::invalid_key(files.path(name), "chat_template", reason))?;
        if !sources.is_empty() {
            break;
        }
    }
    Ok(sources)
}

fn text(files: &ModelFiles, name: &str) -> Result<String> {
    let bytes = files.read(name, MAX_SOURCE_BYTES as u64)?;
    String::from_utf8(bytes)
        .map_err(|error| Error::invalid_file(files.path(name), format!("is no UTF-8 text: {error}")))
}

/// `chat_template`: a text, or a list of `{"name": …, "template": …}`.
fn from_config(config: &Map<String, Value>) -> Result<Vec<(String, String)>, String> {
    let mut sources = Vec::new();
    match config.get("chat_template") {
        None | Some(Value::Null) => {}
        Some(Value::String(source)) => sources.push((DEFAULT.to_owned(), source.clone())),
        Some(Value::Array(list)) => {
            for entry in list {
                let field = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
                let (Some(name), Some(template)) = (field("name"), field("template")) else {
                    return Err(
                        "expected a list of objects with the strings `name` and `template`".to_owned()
                    );
                };
                sources.push((name, template));
            }
            if !sources.iter().any(|(name, _)| name == DEFAULT) {
                return Err("the list has no template named `default`".to_owned());
            }
        }
        Some(_) => return Err("expected a string or a list".to_owned()),
    }
    match sources.iter().find(|(_, source)| source.len() > MAX_SOURCE_BYTES) {
        Some((name, source)) => {
            Err(format!("{name} has {} bytes, expected at most {MAX_SOURCE_BYTES}", source.len()))
        }
        None => Ok(sources),
    }
}
