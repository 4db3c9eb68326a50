//! What a path leads to: a folder, a GGUF file, or something else.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    gguf::{is_gguf, models},
    shards,
};
use crate::{Error, Result};

/// What a path leads to.
pub(super) enum Layout {
    /// A folder with config.json and perhaps safetensors files.
    Published,
    /// A GGUF file, or a folder that holds one model in GGUF.
    Gguf(PathBuf),
    /// Weights in another format: why they are no safetensors, and the files.
    Other { reason: &'static str, files: Vec<PathBuf> },
}

/// Looks at a path before its parts are read, and says what is wrong where it cannot be a model.
pub(super) fn look(path: &Path) -> Result<Layout> {
    let metadata = fs::metadata(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => {
            let reason = "does not exist: give the folder of a model, for example one made by \
                          `hf download ORGANISATION/NAME --local-dir FOLDER`";
            Error::invalid_file(path, reason)
        }
        _ => Error::io("read", path, source),
    })?;
    if metadata.is_file() && is_gguf(path) {
        return Ok(Layout::Gguf(path.to_owned()));
    }
    if metadata.is_file() {
        let reason =
            "is a file, but not GGUF: give the folder that holds config.json and the safetensors files";
        return Ok(Layout::Other { reason, files: vec![path.to_owned()] });
    }
    if !metadata.is_dir() {
        let reason = "is no folder: give the folder that holds config.json and the safetensors files";
        return Err(Error::invalid_file(path, reason));
    }
    if let Some((reason, files)) = shards::other_formats(path)? {
        let names = files.iter().filter_map(|file| Some(file.file_name()?.to_str()?.to_owned()));
        return Ok(match models(path, names).as_slice() {
            [file] if is_gguf(file) => Layout::Gguf(file.clone()),
            _ => Layout::Other { reason, files },
        });
    }
    let config = fs::symlink_metadata(path.join("config.json"));
    if config.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        let reason = if path.join("snapshots").is_dir() {
            "is an entry of a Hugging Face cache: give one of the folders in its snapshots/"
        } else {
            "has no config.json: give the folder of a model"
        };
        return Err(Error::invalid_file(path, reason));
    }
    Ok(Layout::Published)
}
