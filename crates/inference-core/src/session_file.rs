//! A session on disk: one safetensors file.
//!
//! Its metadata has `format` (`inference-session-2`), `model` (the fingerprint of the weights), `layout` (how the backend keeps
//! keys and values), `metadata` (the program's own) and `sha256` (the checksum of all of it). Its tensors are `tokens`, `[n]` of
//! u32, and the backend's.

use std::{
    collections::BTreeMap,
    io::{BufWriter, Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
};

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    Dtype, Error, Result,
    safetensors::{METADATA, Opened, TensorInfo, open},
    system::free_memory,
};

const FORMAT: &str = "inference-session-2";
const TOKENS: &str = "tokens";

/// What a saved session holds, in memory.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct SessionFile {
    /// The weights it belongs to: [`ModelManifest::fingerprint`](crate::ModelManifest::fingerprint).
    pub model: String,
    /// How the backend keeps keys and values, in its own words: a file of another layout is refused.
    pub layout: String,
    /// The program's own metadata.
    pub metadata: String,
    /// The text.
    pub tokens: Vec<u32>,
    /// The backend's tensors, by name.
    pub tensors: BTreeMap<String, SessionTensor>,
}

/// One tensor of a saved session.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SessionTensor {
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its extent in each dimension, outermost first.
    pub shape: Vec<usize>,
    /// Its elements, little-endian, row by row.
    pub bytes: Vec<u8>,
}

impl SessionTensor {
    /// A tensor of these elements, little-endian, row by row.
    #[must_use]
    pub fn new(dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8>) -> Self {
        Self { dtype, shape, bytes }
    }
}

impl SessionFile {
    /// A session without tensors.
    pub fn new(model: impl Into<String>, layout: impl Into<String>, tokens: Vec<u32>) -> Self {
        Self { model: model.into(), layout: layout.into(), tokens, ..Self::default() }
    }

    /// Writes a temporary file in the same folder, and renames it when it is complete and on disk.
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
        let mut checksum = self.checksum();
        tensors()
            .for_each(|(name, tensor)| checksum.tensor(name, tensor.dtype, &tensor.shape, &tensor.bytes));
        header.insert(
            METADATA.to_owned(),
            json!({
                "format": FORMAT, "model": self.model, "layout": self.layout, "metadata": self.metadata,
                "sha256": checksum.finish(),
            }),
        );
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

    /// Reads the file, of this model and this layout. `limit` says how many bytes of tensors a session of that many tokens can
    /// have at most.
    ///
    /// No tensor is read before the header is found to be the right one and its sizes to be within the limit and the free
    /// memory. Whether the tensors are those of the layout, and whether the model has the tokens, is the caller's to check.
    ///
    /// # Errors
    /// [`Error::InvalidSession`] says what is wrong with the file, down to a single flipped bit; [`Error::OutOfMemory`];
    /// [`Error::Io`].
    pub fn read(path: &Path, model: &str, layout: &str, limit: impl FnOnce(usize) -> u64) -> Result<Self> {
        let invalid = |reason: String| Error::invalid_session(path, reason);
        let Opened { mut file, tensors, mut metadata } = open(path, 0).map_err(|error| match error {
            Error::InvalidModel { key, reason, .. } => {
                invalid(key.map_or_else(|| reason.clone(), |key| format!("{key}: {reason}")))
            }
            other => other,
        })?;
        let mut field = |key: &str| metadata.remove(key).unwrap_or_default();
        let format = field("format");
        if format != FORMAT {
            return Err(invalid(format!(
                "its format is {format:?}, expected {FORMAT:?}: save the session again"
            )));
        }
        for (what, expected) in [("model", model), ("layout", layout)] {
            let found = field(what);
            if found != expected {
                let reason = match what {
                    "model" => format!("it belongs to other weights: {found:?}, expected {expected:?}"),
                    _ => format!("its keys and values are laid out as {found:?}, expected {expected:?}"),
                };
                return Err(invalid(reason));
            }
        }
        let expected = field("sha256");
        let mut session = Self::new(model, layout, Vec::new());
        session.metadata = field("metadata");
        check_sizes(path, &tensors, limit)?;

        let mut checksum = session.checksum();
        let io = |source| Error::io("read", path, source);
        // `tokens` was written first, and the others by name.
        let (first, others): (Vec<_>, Vec<_>) = tensors.into_iter().partition(|(name, _)| name == TOKENS);
        for (name, TensorInfo { dtype, shape, range, .. }) in first.into_iter().chain(others) {
            let bytes = read_range(&mut file, range).map_err(io)?;
            checksum.tensor(&name, dtype, &shape, &bytes);
            session.tensors.insert(name, SessionTensor { dtype, shape, bytes });
        }
        if checksum.finish() != expected {
            return Err(invalid("it is damaged: its checksum does not match its contents".to_owned()));
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

    fn checksum(&self) -> Checksum {
        let mut checksum = Checksum(Sha256::new());
        [FORMAT, &self.model, &self.layout, &self.metadata]
            .iter()
            .for_each(|text| checksum.part(text.as_bytes()));
        checksum
    }
}

/// The SHA-256 of a session's fields and tensors, each with its length.
struct Checksum(Sha256);

impl Checksum {
    fn part(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn tensor(&mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) {
        self.part(name.as_bytes());
        self.part(format!("{dtype} {shape:?}").as_bytes());
        self.part(bytes);
    }

    fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Refuses sizes that no session of the file's tokens has: a sparse file can claim any.
fn check_sizes(
    path: &Path,
    tensors: &BTreeMap<String, TensorInfo>,
    limit: impl FnOnce(usize) -> u64,
) -> Result<()> {
    let tokens = tensors.get(TOKENS).map_or(0, |tokens| tokens.shape.iter().product());
    let needed = tensors.values().map(TensorInfo::bytes).fold(0, u64::saturating_add);
    let most = limit(tokens).saturating_add((tokens as u64).saturating_mul(4));
    if needed > most {
        let reason = format!("its tensors have {needed} bytes, expected at most {most} for {tokens} tokens");
        return Err(Error::invalid_session(path, reason));
    }
    match free_memory() {
        Some(available) if needed > available => {
            let what = format!("the session {}", path.display());
            Err(Error::out_of_memory(what, needed, available))
        }
        _ => Ok(()),
    }
}

fn read_range(file: &mut std::fs::File, range: std::ops::Range<u64>) -> std::io::Result<Vec<u8>> {
    let length = usize::try_from(range.end - range.start).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
    file.seek(SeekFrom::Start(range.start))?;
    file.take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() < length {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
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

    fn read(path: &Path, model: &str, layout: &str) -> Result<SessionFile> {
        SessionFile::read(path, model, layout, |tokens| 8 + 8 * tokens as u64)
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
        assert_eq!(read(&path, "abc", "plain").unwrap(), session());
        let mut other = session();
        other.tokens.clear();
        other.write(&path).unwrap();
        assert_eq!(read(&path, "abc", "plain").unwrap(), other);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn another_models_session_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.session");
        session().write(&path).unwrap();
        assert!(reason(read(&path, "xyz", "plain")).contains("belongs to other weights"));
        assert!(reason(read(&path, "abc", "rotating")).contains("laid out as \"plain\""));
    }

    #[test]
    fn no_damage_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.session");
        session().write(&path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 7, 20, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            reason(read(&path, "abc", "plain"));
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, flipped).unwrap();
            reason(read(&path, "abc", "plain"));
        }
        for (found, replaced) in [("session-2", "session-1"), ("\"U32\"", "\"I32\""), ("tokens", "totems")] {
            let text = String::from_utf8_lossy(&whole[8..]).replace(found, replaced);
            let bytes = [&whole[..8], text.as_bytes()].concat();
            if bytes.len() == whole.len() {
                std::fs::write(&path, bytes).unwrap();
                reason(read(&path, "abc", "plain"));
            }
        }
        session().write(&path).unwrap();
        let large = SessionFile::read(&path, "abc", "plain", |_| 3);
        assert!(reason(large).contains("16 bytes, expected at most 15 for 3 tokens"));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(read(&path, "abc", "plain"), Err(Error::Io { .. })));
    }
}
