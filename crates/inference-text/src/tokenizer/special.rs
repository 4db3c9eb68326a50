//! The tokens that a folder gives a name, flags or a role: BOS, EOS, those of tokenizer_config.json.

use std::{collections::BTreeMap, path::Path};

use inference_core::{Error, Result, backend::ModelFiles};
use serde_json::{Map, Value};

use super::{added::AddedToken, config::read_config, limits::MAX_ADDED_TOKENS};

/// The tokens that a model folder gives a name, as chat templates see them: `bos_token`, `eos_token`, `pad_token`, ….
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    named: BTreeMap<String, String>,
    additional: Vec<String>,
}

impl SpecialTokens {
    /// The text of a named token: `get("bos_token")`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.named.get(name).map(String::as_str)
    }

    /// All named tokens with their texts.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.named.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// Further special tokens, which have no name.
    #[must_use]
    pub fn additional(&self) -> &[String] {
        &self.additional
    }

    /// Adds what a configuration file names; what is known already stays.
    pub(super) fn merge(&mut self, config: &Map<String, Value>) {
        for (name, value) in config {
            // A token is its text, or an object with the text and how it is matched.
            let text = value.as_str().or_else(|| value.get("content")?.as_str());
            if let Some(text) = text.filter(|_| name.ends_with("_token")) {
                self.named.entry(name.clone()).or_insert_with(|| text.to_owned());
            }
        }
        if let Some(tokens) = config.get("additional_special_tokens").and_then(Value::as_array)
            && self.additional.is_empty()
        {
            let text =
                |token: &Value| Some(token.as_str().or_else(|| token.get("content")?.as_str())?.to_owned());
            self.additional = tokens.iter().filter_map(text).collect();
        }
    }
}

/// A token of tokenizer_config.json's `added_tokens_decoder`.
#[derive(Debug, Clone)]
pub(super) struct ConfiguredToken {
    id: u32,
    pub(super) token: AddedToken,
}

/// The tokens that tokenizer_config.json lists, in the order of their ids. Its flags count, as they do for transformers: a
/// token that tokenizer.json has already gets them.
///
/// # Errors
/// [`Error::InvalidModel`] names the entry.
pub(super) fn configured_tokens(
    config: &Map<String, Value>,
    special: &SpecialTokens,
    path: &Path,
) -> Result<Vec<ConfiguredToken>> {
    let listed = match config.get("added_tokens_decoder") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(listed)) => listed,
        Some(_) => {
            return Err(Error::invalid_key(path, "added_tokens_decoder", "expected an object of token ids"));
        }
    };
    if listed.len() > MAX_ADDED_TOKENS {
        let reason = format!("has {} tokens, expected at most {MAX_ADDED_TOKENS}", listed.len());
        return Err(Error::invalid_key(path, "added_tokens_decoder", reason));
    }
    let mut tokens = Vec::with_capacity(listed.len());
    for (key, entry) in listed {
        let invalid =
            |reason: String| Error::invalid_key(path, format!("added_tokens_decoder.{key}"), reason);
        let id = key.parse().map_err(|_| invalid("expected a token id as the key".to_owned()))?;
        let content = entry.get("content").and_then(Value::as_str);
        let content = content.ok_or_else(|| invalid("has no string `content`".to_owned()))?;
        let flag = |name: &str, unset: bool| match entry.get(name) {
            None | Some(Value::Null) => Ok(unset),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(invalid(format!("`{name}` is {other}, expected true or false"))),
        };
        // A token with a name is special, whatever its entry says.
        let named = special.iter().any(|(_, text)| text == content)
            || special.additional().iter().any(|text| text == content);
        let marked = flag("special", false)?;
        let token = AddedToken {
            content: content.to_owned(),
            single_word: flag("single_word", false)?,
            lstrip: flag("lstrip", false)?,
            rstrip: flag("rstrip", false)?,
            normalized: flag("normalized", !marked)?,
            special: marked || named,
        };
        tokens.push(ConfiguredToken { id, token });
    }
    tokens.sort_by_key(|token| token.id);
    Ok(tokens)
}

/// Checks that the configuration's tokens have the ids that it gives them.
///
/// # Errors
/// [`Error::InvalidModel`] names the entry.
pub(super) fn check_ids(
    tokens: &[ConfiguredToken],
    id_of: impl Fn(&str) -> Option<u32>,
    path: &Path,
) -> Result<()> {
    for ConfiguredToken { id, token } in tokens {
        let found = id_of(&token.content);
        if found != Some(*id) {
            let found = found.map_or("none".to_owned(), |id| id.to_string());
            let reason = format!("{:?} has id {found} in tokenizer.json; expected {id}", token.content);
            return Err(Error::invalid_key(path, format!("added_tokens_decoder.{id}"), reason));
        }
    }
    Ok(())
}

/// The ids that begin and end a text.
pub(super) fn ends(
    files: &ModelFiles,
    special: &SpecialTokens,
    id_of: impl Fn(&str) -> Option<u32>,
) -> Result<(Option<u32>, Vec<u32>)> {
    let generation = read_config(files, "generation_config.json")?;
    let config = read_config(files, "config.json")?;
    let text_config = config.get("text_config").and_then(Value::as_object).cloned().unwrap_or_default();
    // The first of these that says anything is the model's own answer.
    let sources = [
        ("generation_config.json", "", &generation),
        ("config.json", "", &config),
        ("config.json", "text_config.", &text_config),
    ];
    let ids_of = |key: &str| -> Result<Vec<u32>> {
        for (file, at, object) in sources {
            let ids = match object.get(key) {
                None | Some(Value::Null) => continue,
                Some(Value::Array(ids)) => ids.iter().map(token_id).collect::<Option<Vec<_>>>(),
                Some(id) => token_id(id).map(|id| vec![id]),
            };
            let reason = "expected a token id, or a list of them";
            return ids.ok_or_else(|| Error::invalid_key(files.path(file), format!("{at}{key}"), reason));
        }
        Ok(vec![])
    };
    let named = |name: &str| special.get(name).and_then(&id_of);
    let bos = match named("bos_token") {
        Some(id) => Some(id),
        None => ids_of("bos_token_id")?.first().copied(),
    };
    let mut eos = ids_of("eos_token_id")?;
    eos.extend(named("eos_token"));
    eos.sort_unstable();
    eos.dedup();
    Ok((bos, eos))
}

fn token_id(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}
