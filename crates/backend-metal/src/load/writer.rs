//! Safetensors files as MLX's programs write them.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
};

use inference_core::{Dtype, Error, Result};
use mlx_rs::Array;
use serde_json::{Map, json};

use crate::mlx::with_bytes;

/// A file that is being written: its header is, and the tensors come one by one.
pub(crate) struct Writer<'a> {
    path: &'a Path,
    file: BufWriter<File>,
}

impl<'a> Writer<'a> {
    /// Begins the file of tensors with these names, types and shapes, which follow in this order.
    ///
    /// # Errors
    /// [`Error::Io`]
    pub(crate) fn create<'t>(
        path: &'a Path,
        tensors: impl Iterator<Item = &'t (String, Dtype, Vec<usize>)>,
    ) -> Result<Self> {
        let mut header = Map::new();
        header.insert("__metadata__".to_owned(), json!({"format": "mlx"}));
        let mut offset = 0;
        for tensor @ (name, dtype, shape) in tensors {
            let end = offset + size(tensor);
            header
                .insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}));
            offset = end;
        }
        let mut header = serde_json::Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let io = |source| Error::io("write", path, source);
        let mut file = BufWriter::new(File::create(path).map_err(io)?);
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
        file.write_all(&header).map_err(io)?;
        Ok(Self { path, file })
    }

    /// Adds the next tensor.
    ///
    /// # Errors
    /// [`Error::Io`], and MLX's own, since it is evaluated.
    pub(crate) fn add(&mut self, array: &Array) -> Result<()> {
        with_bytes(array, |bytes| self.file.write_all(bytes))
            .map_err(|error| Error::backend("mlx", "compute a tensor", error))?
            .map_err(|source| Error::io("write", self.path, source))
    }

    /// Ends the file, which then is on the disk.
    ///
    /// # Errors
    /// [`Error::Io`]
    pub(crate) fn finish(self) -> Result<()> {
        let io = |source| Error::io("write", self.path, source);
        let file = self.file.into_inner().map_err(|error| io(error.into_error()))?;
        file.sync_all().map_err(io)
    }
}

/// Bytes of a tensor; `u64::MAX` where they are more.
pub(crate) fn size((_, dtype, shape): &(String, Dtype, Vec<usize>)) -> u64 {
    shape.iter().map(|n| *n as u64).fold(dtype.size() as u64, u64::saturating_mul)
}
