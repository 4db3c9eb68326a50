//! Tensors that are computed from what files hold, instead of lying in one as they are.

use std::{
    fmt,
    io::{Read as _, Seek as _, SeekFrom},
    path::PathBuf,
};

use crate::{Error, Result, files::open_regular, safetensors::TensorInfo};

/// Reads the files of a model by their index in [`ModelManifest::files`](crate::ModelManifest::files).
pub trait ReadAt: Sync {
    /// Fills `memory` with the bytes of a file from `position` on.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), and [`Error::InvalidModel`](crate::Error::InvalidModel) where the file became shorter.
    fn read_at(&self, file: usize, position: u64, memory: &mut [u8]) -> Result<()>;
}

/// Where the bytes of a tensor come from, if they are no range of a file: blocks of GGUF, or the packed words of other programs.
pub trait TensorSource: fmt::Debug + Send + Sync {
    /// Positions and lengths of [`read`](Self::read) are multiples of so many bytes. Never 0.
    fn unit(&self) -> usize;

    /// Fills `memory` with the tensor's bytes from `position` on, little-endian.
    ///
    /// # Errors
    /// As [`ReadAt::read_at`]; [`Error::InvalidModel`](crate::Error::InvalidModel) names what the tensor's type cannot hold.
    fn read(&self, files: &dyn ReadAt, position: u64, memory: &mut [u8]) -> Result<()>;
}

/// Opens a file for each read.
struct Paths<'a>(&'a [PathBuf]);

impl ReadAt for Paths<'_> {
    fn read_at(&self, file: usize, position: u64, memory: &mut [u8]) -> Result<()> {
        let path = &self.0[file];
        let (mut opened, length) = open_regular(path)?;
        let end = position.saturating_add(memory.len() as u64);
        if end > length {
            let reason = format!("has {length} bytes, expected {end}: it became shorter while it was read");
            return Err(Error::invalid_file(path, reason));
        }
        let read = opened.seek(SeekFrom::Start(position)).and_then(|_| opened.read_exact(memory));
        read.map_err(|source| Error::io("read", path, source))
    }
}

/// The bytes of a tensor of these files, little-endian.
pub(crate) fn read_tensor(files: &[PathBuf], tensor: &TensorInfo) -> Result<Vec<u8>> {
    let files = Paths(files);
    let mut memory = vec![0; tensor.bytes() as usize];
    match &tensor.source {
        Some(source) => source.read(&files, 0, &mut memory)?,
        None => files.read_at(tensor.file, tensor.range.start, &mut memory)?,
    }
    Ok(memory)
}
