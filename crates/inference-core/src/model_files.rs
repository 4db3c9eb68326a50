//! The text files of a model: those of its folder, or those that a GGUF file stands for.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::de::DeserializeOwned;

use crate::{
    Error, Result,
    files::{parse_json, read_json, read_regular},
    manifest::{TEXT_FILES, metadata, models, text_file},
};

/// The files beside a model's weights by name: tokenizer, chat template, settings. For a GGUF file, those that its metadata stands
/// for: tokenizer.json, tokenizer_config.json and generation_config.json.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    path: PathBuf,
    gguf: Option<Arc<Gguf>>,
}

#[derive(Debug)]
struct Gguf {
    path: PathBuf,
    metadata: gguf::Metadata,
}

impl ModelFiles {
    /// Those of a folder, of a GGUF file, or of the one GGUF model that a folder without a tokenizer.json holds.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] and [`Error::Io`] about the GGUF file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = if path.is_file() { Some(path.to_owned()) } else { only_gguf(path) };
        let gguf = match file {
            Some(path) => Some(Arc::new(Gguf { metadata: metadata(&path)?, path })),
            None => None,
        };
        Ok(Self { path: path.to_owned(), gguf })
    }

    /// Whether there is such a file.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        match &self.gguf {
            Some(_) => TEXT_FILES.contains(&name),
            None => self.path.join(name).exists(),
        }
    }

    /// The path of a file, for errors about it; of what a GGUF file stands for, its own.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.gguf.as_ref().map_or_else(|| self.path.join(name), |gguf| gguf.path.clone())
    }

    /// Reads a file of at most `limit` bytes.
    ///
    /// # Errors
    /// As [`read_regular`](crate::backend::read_regular); [`Error::InvalidModel`] names the key of a GGUF file that makes no sense.
    pub fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let Some(gguf) = &self.gguf else { return read_regular(&self.path.join(name), limit) };
        let Some(bytes) = text_file(&gguf.path, &gguf.metadata, name)? else {
            return Err(Error::io("read", self.path.join(name), io::ErrorKind::NotFound.into()));
        };
        match bytes.len() as u64 {
            length if length > limit => {
                let reason = format!("stands for a {name} of {length} bytes, expected at most {limit}");
                Err(Error::invalid_file(&gguf.path, reason))
            }
            _ => Ok(bytes),
        }
    }

    /// Reads a JSON file of at most `limit` bytes.
    ///
    /// # Errors
    /// As [`read`](Self::read) and [`read_json`](crate::backend::read_json).
    pub fn read_json<T: DeserializeOwned>(&self, name: &str, limit: u64) -> Result<T> {
        if self.gguf.is_none() {
            return read_json(&self.path.join(name), limit);
        }
        let bytes = self.read(name, limit)?;
        parse_json(&self.path(name), &String::from_utf8_lossy(&bytes))
    }

    /// The files that a GGUF file stands for, by name; none where the files are those of a folder.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn made(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let names = TEXT_FILES.iter().filter(|_| self.gguf.is_some());
        names.map(|name| Ok((*name, self.read(name, u64::MAX)?))).collect()
    }
}

/// The one GGUF model of a folder that has no tokenizer of its own.
fn only_gguf(folder: &Path) -> Option<PathBuf> {
    if folder.join("tokenizer.json").exists() {
        return None;
    }
    let entries = fs::read_dir(folder).ok()?;
    let names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    if names.iter().any(|name| name.ends_with(".safetensors")) {
        return None;
    }
    match models(folder, names.into_iter()).as_slice() {
        [file] => Some(file.clone()),
        _ => None,
    }
}
