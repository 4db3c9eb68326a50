//! The header of a safetensors file, read without its data and without trusting it.

use std::{fs, io::Read as _, ops::Range, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Result};

/// Where one tensor lies and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// The index of its file in [`ModelManifest::files`](crate::ModelManifest::files).
    pub file: usize,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its extent in each dimension, outermost first.
    pub shape: Vec<usize>,
    /// Its bytes in the file, from the file's start.
    pub range: Range<u64>,
}

/// Element types, by safetensors' own names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the documentation")]
#[serde(rename_all = "UPPERCASE")]
#[non_exhaustive]
pub enum Dtype {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F16,
    Bf16,
    F32,
    F64,
    #[serde(rename = "F8_E4M3")]
    F8E4m3,
    #[serde(rename = "F8_E5M2")]
    F8E5m2,
    #[serde(rename = "F8_E8M0")]
    F8E8m0,
}

impl Dtype {
    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 | Self::F8E4m3 | Self::F8E5m2 | Self::F8E8m0 => 1,
            Self::U16 | Self::I16 | Self::F16 | Self::Bf16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }
}

#[derive(Deserialize)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

/// Reads the tensors that the file's header lists; `file` is the index they are given.
pub(crate) fn read_header(path: &Path, file: usize) -> Result<Vec<(String, TensorInfo)>> {
    let metadata = fs::metadata(path).map_err(|source| Error::io("read", path, source))?;
    if !metadata.is_file() {
        return Err(Error::invalid_file(path, "is no regular file"));
    }
    let mut reader = fs::File::open(path).map_err(|source| Error::io("read", path, source))?;
    let mut length = [0; 8];
    reader
        .read_exact(&mut length)
        .map_err(|_| Error::invalid_file(path, "is shorter than a safetensors header"))?;
    let length = u64::from_le_bytes(length);
    if length > metadata.len().saturating_sub(8) {
        let reason = format!("claims a header of {length} bytes, the file has {}", metadata.len());
        return Err(Error::invalid_file(path, reason));
    }
    let mut header = vec![0; length as usize];
    reader.read_exact(&mut header).map_err(|source| Error::io("read", path, source))?;
    let header: serde_json::Map<String, Value> = serde_json::from_slice(&header)
        .map_err(|error| Error::invalid_file(path, format!("header: {error}")))?;
    let start = 8 + length;
    let mut tensors = Vec::with_capacity(header.len());
    for (name, entry) in header {
        if name == "__metadata__" {
            continue;
        }
        let invalid = |reason: String| Error::invalid_key(path, name.clone(), reason);
        let Entry { dtype, shape, data_offsets: [begin, end] } =
            serde_json::from_value(entry).map_err(|error| invalid(error.to_string()))?;
        let bytes = shape.iter().try_fold(dtype.size() as u64, |bytes, n| bytes.checked_mul(*n as u64));
        if end < begin || Some(end - begin) != bytes || end > metadata.len() - start {
            return Err(invalid(format!("offsets {begin}..{end} do not fit its shape or the file")));
        }
        tensors.push((name, TensorInfo { file, dtype, shape, range: start + begin..start + end }));
    }
    Ok(tensors)
}
