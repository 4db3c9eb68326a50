//! Which weights a folder holds, as a short text.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::ModelManifest;
use crate::{Error, Result, adapter::AdapterManifest, files::open_regular, safetensors::TensorInfo};

/// Bytes read at each of [`PLACES`] of a tensor.
const BLOCK: u64 = 4096;

/// Places at which a tensor is read, evenly spread.
const PLACES: u64 = 16;

impl ModelManifest {
    /// A text that two folders share only where they hold the same weights: the SHA-256, in hexadecimal, of the config, of
    /// every tensor's name, type and shape, and of 64 kB of each tensor, spread over it (a shorter one is read whole).
    /// Training changes every element of a tensor that it changes, so the sample tells fine-tuned weights apart; it is no
    /// protection against someone who means to deceive.
    ///
    /// # Errors
    /// [`Error::Io`] names the file that could not be read.
    pub fn fingerprint(&self) -> Result<String> {
        let mut digest = Sha256::new();
        digest.update(self.config.to_string());
        let mut files: Vec<Option<File>> = self.files.iter().map(|_| None).collect();
        for (name, tensor) in &self.tensors {
            digest.update(format!("\0{name}\0{}\0{:?}\0", tensor.dtype, tensor.shape));
            let path = &self.files[tensor.file];
            let file = match &mut files[tensor.file] {
                Some(file) => file,
                none => none.insert(open_regular(path)?.0),
            };
            let stored = tensor.range.end - tensor.range.start;
            let (blocks, block) = match stored {
                short if short <= BLOCK * PLACES => (1, short),
                _ => (PLACES, BLOCK),
            };
            for place in 0..blocks {
                // The first block is the tensor's beginning and the last one its end.
                let start = tensor.range.start + (stored - block) * place / (PLACES - 1);
                let mut bytes = vec![0; block as usize];
                let read = file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(&mut bytes));
                read.map_err(|source| Error::io("read", path, source))?;
                digest.update(&bytes);
            }
        }
        // A model in another format: its files, sampled likewise.
        for path in self.files.iter().filter(|_| self.tensors.is_empty()) {
            let (mut file, length) = open_regular(path)?;
            digest.update(length.to_le_bytes());
            for place in 0..PLACES {
                let start = length.saturating_sub(BLOCK) * place / (PLACES - 1);
                let mut bytes = Vec::new();
                let read = file
                    .seek(SeekFrom::Start(start))
                    .and_then(|_| (&mut file).take(BLOCK).read_to_end(&mut bytes));
                read.map_err(|source| Error::io("read", path, source))?;
                digest.update(&bytes);
            }
        }
        Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The same of the model with an adapter applied: keys and values depend on both.
    ///
    /// # Errors
    /// As [`fingerprint`](Self::fingerprint).
    pub fn fingerprint_with(&self, adapter: &AdapterManifest) -> Result<String> {
        let mut both = self.clone();
        both.config = json!([self.config, format!("{:?}", adapter.config())]);
        both.files.push(adapter.file());
        let tensors = adapter.tensors().iter().map(|(name, tensor)| {
            (format!("adapter.{name}"), TensorInfo { file: self.files.len(), ..tensor.clone() })
        });
        both.tensors.extend(tensors);
        both.fingerprint()
    }
}
