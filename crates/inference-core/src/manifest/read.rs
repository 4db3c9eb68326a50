//! Reads tensors as a whole.

use std::{
    io::{Read as _, Seek as _, SeekFrom},
    path::PathBuf,
};

use crate::{Error, Result, files::open_regular, safetensors::TensorInfo, tensor_source::ReadAt};

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
