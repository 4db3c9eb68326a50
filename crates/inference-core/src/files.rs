//! Reading files of a folder that nobody vouches for.

use std::{fs, io::Read as _, path::Path};

use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Reads a regular file of at most `limit` bytes. A pipe or a folder in its place is named, never waited for.
///
/// # Errors
/// The file is missing, no regular file, longer than `limit`, or unreadable.
pub fn read_regular(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let metadata = fs::metadata(path).map_err(|source| Error::io("read", path, source))?;
    if !metadata.is_file() {
        return Err(Error::invalid_file(path, "is no regular file"));
    }
    if metadata.len() > limit {
        let reason = format!("has {} bytes, expected at most {limit}", metadata.len());
        return Err(Error::invalid_file(path, reason));
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    let file = fs::File::open(path).map_err(|source| Error::io("read", path, source))?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|source| Error::io("read", path, source))?;
    if bytes.len() as u64 > limit {
        return Err(Error::invalid_file(path, format!("grew past {limit} bytes while it was read")));
    }
    Ok(bytes)
}

/// Reads a JSON file of at most `limit` bytes.
///
/// # Errors
/// As [`read_regular`]; the file is not the JSON that `T` expects.
pub fn read_json<T: DeserializeOwned>(path: &Path, limit: u64) -> Result<T> {
    let bytes = read_regular(path, limit)?;
    serde_json::from_slice(&bytes).map_err(|error| Error::invalid_file(path, error.to_string()))
}
