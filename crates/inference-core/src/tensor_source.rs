//! Tensors that are computed from what files hold, instead of lying in one as they are.

use std::fmt;

use crate::Result;

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
