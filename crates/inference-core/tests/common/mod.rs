//! Model folders made for a test.
#![allow(dead_code, clippy::unwrap_used, reason = "for tests, each of which uses a part")]

use std::path::{Path, PathBuf};

use inference_core::{Error, ModelManifest};
use tempfile::TempDir;

/// A folder that is removed with the value.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// One that holds a model with the tensors `a` and `b`.
    pub(crate) fn with_model() -> Self {
        let folder = Self::new();
        folder.write("config.json", r#"{"model_type":"llama"}"#);
        folder.write("model.safetensors", tensors(&[("a", "F32", &[2, 2]), ("b", "BF16", &[3])]));
        folder
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Writes a file, and the folders above it.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn manifest(&self) -> inference_core::Result<ModelManifest> {
        ModelManifest::read(self.path())
    }
}

/// A safetensors file of this header and data.
pub(crate) fn file(header: impl AsRef<[u8]>, data: &[u8]) -> Vec<u8> {
    let header = header.as_ref();
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// A valid safetensors file of zeros with these tensors.
pub(crate) fn tensors(list: &[(&str, &str, &[usize])]) -> Vec<u8> {
    let (header, length) = header(list);
    file(header, &vec![0; length])
}

/// The header of a file with these tensors, and the bytes of its data.
pub(crate) fn header(list: &[(&str, &str, &[usize])]) -> (String, usize) {
    let mut end = 0;
    let entries = list.iter().map(|(name, dtype, shape)| {
        let size = match *dtype {
            "F32" | "U32" => 4,
            "BF16" | "F16" => 2,
            "U8" => 1,
            other => panic!("{other} is no dtype of these tests"),
        };
        let begin = end;
        end += shape.iter().product::<usize>() * size;
        format!(r#"{name:?}:{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#)
    });
    let entries: Vec<_> = entries.collect();
    (format!("{{{}}}", entries.join(",")), end)
}

/// The whole error in one line, with its sources.
pub(crate) fn message(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Asserts that the error speaks of `file` and says each of `parts`.
#[track_caller]
pub(crate) fn assert_says(case: &str, error: &Error, file: &str, parts: &[&str]) {
    let text = message(error);
    for part in parts.iter().chain([&file]) {
        assert!(text.contains(part), "{case}: {part:?} is not in: {text}");
    }
    assert!(matches!(error, Error::InvalidModel { .. } | Error::Io { .. }), "{case}: {error:?}");
}
