//! The JSON files beside tokenizer.json.

use std::path::Path;

use inference_core::{Error, Result, backend::read_value};
use serde_json::{Map, Value};

use super::limits::MAX_CONFIG_JSON;

/// Reads a file that holds one JSON object; empty where there is no such file.
pub(crate) fn read_config(folder: &Path, name: &str) -> Result<Map<String, Value>> {
    let path = folder.join(name);
    if !path.exists() {
        return Ok(Map::new());
    }
    match read_value(&path, MAX_CONFIG_JSON)? {
        Value::Object(config) => Ok(config),
        _ => Err(Error::invalid_file(path, "is no JSON object")),
    }
}
