//! The other JSON files of a tokenizer: tokenizer_config.json, special_tokens_map.json, generation_config.json.

use inference_core::{Result, backend::ModelFiles};
use serde_json::{Map, Value};

use super::limits::MAX_CONFIG_JSON;

/// Reads a file that holds one JSON object; empty where there is no such file.
pub(crate) fn read_config(files: &ModelFiles, name: &str) -> Result<Map<String, Value>> {
    if files.has(name) { files.read_json(name, MAX_CONFIG_JSON) } else { Ok(Map::new()) }
}
