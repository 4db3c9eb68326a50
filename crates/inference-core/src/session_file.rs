//! A session on disk: one safetensors file.
//!
//! Its metadata says what it is of: `format` (`inference-session-1`), `model` (the fingerprint of the weights), `layout` (how the
//! backend keeps keys and values) and `metadata` (the program's own). Its tensors are `tokens`, `[n]` of u32, and the backend's.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Read as _, Seek as _, Write as _},
    path::Path,
};

use serde_json::{Map, Value, json};

use crate::{
    Dtype, Error, Result,
    safetensors::{METADATA, TensorInfo, read_with_metadata},
};

const FORMAT: &str = "inference-session-1";
const TOKENS: &str = "tokens";

/// What a saved session holds, in memory.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct SessionFile {
    /// Of which weights it is: [`ModelManifest::fingerprint`](crate::ModelManifest::fingerprint).
    pub model: String,
    /// How the backend keeps keys and values, in its own words: a file of another layout is refused.
    pub layout: String,
    /// The program's own remark.
    pub metadata: String,
    /// The text.
    pub tokens: Vec<u32>,
    /// The backend's tensors, by name.
    pub tensors: BTreeMap<String, SessionTensor>,
}

/// One tensor of a saved session.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionTensor {
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its extent in each dimension, outermost first.
    pub shape: Vec<usize>,
    /// Its elements, little-endian, row by row.
    pub bytes: Vec<u8>,
}

impl SessionFile {
    /// A session without tensors.
    pub fn new(model: impl Into<String>, layout: impl Into<String>, tokens: Vec<u32>) -> Self {
        Self { model: model.into(), layout: layout.into(), tokens, ..Self::default() }
    }

    /// Writes the file beside its place and moves it there once it is whole and on disk.
    ///
    /// # Errors
    /// [`Error::Io`] names the file.
    pub fn write(&self, path: &Path) -> Result<()> {
        let io = |source| Error::io("write", path, source);
        let tokens: Vec<u8> = self.tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        let tokens = SessionTensor { dtype: Dtype::U32, shape: vec![self.tokens.len()], bytes: tokens };
        let tensors =
            || std::iter::once((TOKENS, &tokens)).chain(self.tensors.iter().map(|(n, t)| (n.as_str(), t)));
        let mut header = Map::new();
        let metadata =
            json!({"format": FORMAT, "model": self.model, "layout": self.layout, "metadata": self.metadata});
        header.insert(METADATA.to_owned(), metadata);
        let mut start = 0;
        for (name, SessionTensor { dtype, shape, bytes }) in tensors() {
            let end = start + bytes.len();
            header.insert(
                name.to_owned(),
                json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}),
            );
            start = end;
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');

        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = BufWriter::new(tempfile::NamedTempFile::new_in(folder).map_err(io)?);
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
        file.write_all(&header).map_err(io)?;
        for (_, tensor) in tensors() {
            file.write_all(&tensor.bytes).map_err(io)?;
        }
        let file = file.into_inner().map_err(|error| io(error.into_error()))?;
        file.as_file().sync_all().map_err(io)?;
        file.persist(path).map_err(|error| io(error.error))?;
        Ok(())
    }

    /// Reads the file, of this model and this layout. Its header is checked as a weights file's is, and nothing of its data is
    /// read before the header is found to be the right one; whether the tensors are those of the layout is the caller's to
    /// check, and that the model has the tokens.
    ///
    /// # Errors
    /// [`Error::InvalidSession`] says what is wrong with the file; [`Error::Io`].
    pub fn read(path: &Path, model: &str, layout: &str) -> Result<Self> {
        let invalid = |reason: String| Error::invalid_session(path, reason);
        let (infos, mut metadata) = read_with_metadata(path, 0).map_err(|error| match error {
            Error::InvalidModel { key, reason, .. } => {
                invalid(key.map_or_else(|| reason.clone(), |key| format!("{key}: {reason}")))
            }
            other => other,
        })?;
        let mut remark = |key: &str| metadata.remove(key).unwrap_or_default();
        let format = remark("format");
        if format != FORMAT {
            return Err(invalid(format!("its format is {format:?}, expected {FORMAT:?}")));
        }
        for (what, expected) in [("model", model), ("layout", layout)] {
            let found = remark(what);
            if found != expected {
                let reason = match what {
                    "model" => format!("it is of other weights: of {found:?}, expected {expected:?}"),
                    _ => format!("its keys and values are laid out as {found:?}, expected {expected:?}"),
                };
                return Err(invalid(reason));
            }
        }
        let mut session = Self::new(model, layout, Vec::new());
        session.metadata = remark("metadata");

        let mut file = File::open(path).map_err(|source| Error::io("open", path, source))?;
        for (name, TensorInfo { dtype, shape, range, .. }) in infos {
            // The header was checked against the file's length: no more is allocated than the file has.
            let mut bytes = vec![0; (range.end - range.start) as usize];
            let read =
                file.seek(std::io::SeekFrom::Start(range.start)).and_then(|_| file.read_exact(&mut bytes));
            read.map_err(|source| Error::io("read", path, source))?;
            session.tensors.insert(name, SessionTensor { dtype, shape, bytes });
        }
        match session.tensors.remove(TOKENS) {
            Some(SessionTensor { dtype: Dtype::U32, shape, bytes }) if shape.len() == 1 => {
                let (words, _) = bytes.as_chunks();
                session.tokens = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
                Ok(session)
            }
            _ => Err(invalid(format!("{TOKENS}: expected a list of u32"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> SessionFile {
        let mut session = SessionFile::new("abc", "plain", vec![1, 2, 300_000]);
        session.metadata = "a \"note\"\n".to_owned();
        let tensor = SessionTensor { dtype: Dtype::Bf16, shape: vec![1, 2], bytes: vec![1, 2, 3, 4] };
        session.tensors.insert("0.keys".to_owned(), tensor);
        session
    }

    fn reason(result: Result<SessionFile>) -> String {
        match result {
            Err(Error::InvalidSession { reason, .. }) => reason,
            other => panic!("expected InvalidSession, got {other:?}"),
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.session");
        session().write(&path).unwrap();
        assert_eq!(SessionFile::read(&path, "abc", "plain").unwrap(), session());
        let mut other = session();
        other.tokens.clear();
        other.write(&path).unwrap();
        assert_eq!(SessionFile::read(&path, "abc", "plain").unwrap(), other);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn another_models_session_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.session");
        session().write(&path).unwrap();
        assert!(reason(SessionFile::read(&path, "xyz", "plain")).contains("of other weights"));
        assert!(reason(SessionFile::read(&path, "abc", "rotating")).contains("laid out as \"plain\""));
    }

    #[test]
    fn no_damage_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.session");
        session().write(&path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 7, 20, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            reason(SessionFile::read(&path, "abc", "plain"));
        }
        for (found, replaced) in [("session-1", "session-2"), ("\"U32\"", "\"I32\""), ("tokens", "totems")] {
            let text = String::from_utf8_lossy(&whole[8..]).replace(found, replaced);
            let bytes = [&whole[..8], text.as_bytes()].concat();
            if bytes.len() == whole.len() {
                std::fs::write(&path, bytes).unwrap();
                reason(SessionFile::read(&path, "abc", "plain"));
            }
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(SessionFile::read(&path, "abc", "plain"), Err(Error::Io { .. })));
    }
}
