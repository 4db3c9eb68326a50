//! Reading config.json: names and types checked, the styles of transformers 4 and 5, text models nested in others.

use std::path::Path;

use serde_json::Value;

use crate::{Error, Result};

/// config.json with the path for its errors.
pub(super) struct Config<'a> {
    path: &'a Path,
    value: &'a Value,
}

/// A value that is there, with its full key for errors.
pub(super) struct Found<'a> {
    pub(super) key: String,
    pub(super) value: &'a Value,
}

impl<'a> Config<'a> {
    pub(super) fn new(path: &'a Path, value: &'a Value) -> Self {
        Self { path, value }
    }

    /// The first of `names` that is set, at the top or in `text_config`; null is unset.
    pub(super) fn find(&self, names: &[&str]) -> Option<Found<'a>> {
        let scopes = [("", Some(self.value)), ("text_config.", self.value.get("text_config"))];
        scopes.into_iter().find_map(|(prefix, scope)| {
            names.iter().find_map(|name| {
                let value = scope?.get(name).filter(|value| !value.is_null())?;
                Some(Found { key: format!("{prefix}{name}"), value })
            })
        })
    }

    /// The first of `names` that is set, as a whole number from 1 to 2³¹ − 1: no size of a model is beyond.
    pub(super) fn count(&self, names: &[&str]) -> Result<Option<usize>> {
        let Some(Found { key, value }) = self.find(names) else { return Ok(None) };
        let count = value.as_u64().and_then(|n| i32::try_from(n).ok()).filter(|n| *n > 0);
        let Some(count) = count.and_then(|n| usize::try_from(n).ok()) else {
            return Err(self.wrong(key, value, "a whole number from 1 to 2147483647"));
        };
        Ok(Some(count))
    }

    /// A token id, or a list of them.
    pub(super) fn ids(&self, name: &str) -> Result<Option<Vec<u32>>> {
        let Some(Found { key, value }) = self.find(&[name]) else { return Ok(None) };
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match value {
            Value::Array(list) => list.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        };
        ids.map(Some).ok_or_else(|| self.wrong(key, value, "a token id or a list of token ids"))
    }

    pub(super) fn model_type(&self) -> Result<&'a str> {
        let expected = "the architecture's name, such as \"llama\"";
        match self.value.get("model_type") {
            None => Err(self.invalid("model_type", format!("is missing, expected {expected}"))),
            Some(Value::String(name)) if !name.is_empty() => Ok(name),
            Some(value) => Err(self.wrong("model_type", value, expected)),
        }
    }

    /// Refuses a config that wants code of its folder, or of another, to be run.
    pub(super) fn refuse_code(&self, model_type: &str) -> Result<()> {
        let refused = "code from a model's folder is never run";
        if let Some(value) = self.value.get("trust_remote_code").filter(|value| **value != Value::Bool(false))
        {
            return Err(self.invalid("trust_remote_code", format!("is {}, but {refused}", shown(value))));
        }
        // mlx_lm imports the file that this key names.
        if let Some(value) = self.value.get("model_file").filter(|value| !value.is_null()) {
            return Err(self.invalid("model_file", format!("is {}, but {refused}", shown(value))));
        }
        let classes = match self.value.get("auto_map") {
            None | Some(Value::Null) => return Ok(()),
            Some(Value::Object(classes)) => classes,
            Some(value) => return Err(self.wrong("auto_map", value, "an object of class names")),
        };
        // Some publishers name their modules by an older architecture, or in another way, which is built in as well.
        let module = match model_type {
            "deepseek_v3" | "kimi_k2" => "deepseek",
            "nomic_bert" => "hf_nomic_bert",
            own => own,
        };
        let own = [model_type, module];
        let own = own.iter().flat_map(|name| [format!("configuration_{name}"), format!("modeling_{name}")]);
        let own: Vec<_> = own.collect();
        let models =
            classes.iter().filter(|(role, _)| *role == "AutoConfig" || role.starts_with("AutoModel"));
        for (role, class) in models {
            let module = class.as_str().map(|class| class.rsplit("--").next().unwrap_or(class));
            let module = module.and_then(|class| class.split_once('.')).map(|(module, _)| module);
            if !module.is_some_and(|module| own.iter().any(|own| own == module)) {
                let reason = format!(
                    "asks for {} to be run, but {refused}: use a model whose architecture is built in",
                    shown(class)
                );
                return Err(self.invalid(format!("auto_map.{role}"), reason));
            }
        }
        Ok(())
    }

    pub(super) fn invalid(&self, key: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::invalid_key(self.path, key, reason)
    }

    /// The error about a value of the wrong type or size.
    pub(super) fn wrong(&self, key: impl Into<String>, value: &Value, expected: &str) -> Error {
        self.invalid(key, format!("is {}, expected {expected}", shown(value)))
    }
}

/// A value on one short line.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) if text.chars().count() > 80 => {
            format!("{:?}…", text.chars().take(80).collect::<String>())
        }
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}
