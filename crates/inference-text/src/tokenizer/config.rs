//! The other JSON files of a tokenizer: tokenizer_config.json, special_tokens_map.json, generation_config.json.

use std::path::Path;

use inference_core::{Result, backend::read_json};
use serde_json::{Map, Value};

use super::limits::MAX_CONFIG_JSON;

/// Reads a file that holds one JSON object; empty where there is no such file.
pub(crate) fn read_config(folder: &Path, name: &str) -> Result<Map<String, Value>> {
    let path = folder.join(name);
    if path.exists() { read_json(&path, MAX_CONFIG_JSON) } else { Ok(Map::new()) }
}
