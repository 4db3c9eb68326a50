//! The output folder of a run, which one run writes to at a time.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use inference_core::{Error, Result, backend::Printable};

use super::checkpoint;
use crate::load::lock_folder;

/// Keeps other runs from an output folder.
#[derive(Debug)]
pub(super) struct OutputLock {
    /// The folder, if this run created it.
    new: Option<PathBuf>,
    _file: File,
}

impl OutputLock {
    /// Creates the output folder and keeps other runs from it. Removes what a run that was killed left half written.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if another run writes to it; [`Error::Io`].
    pub(super) fn take(output: &Path) -> Result<Self> {
        let new = !output.exists();
        fs::create_dir_all(output).map_err(|source| Error::io("create", output, source))?;
        let file = lock_folder(output).map_err(|source| Error::io("lock", output, source))?;
        let file = file.ok_or_else(|| {
            let output = Printable(&output.to_string_lossy()).to_string();
            let reason = format!(
                "another training run writes to {output}: wait for it to end, or name another folder"
            );
            Error::invalid_option("output", reason)
        })?;
        let lock = Self { new: new.then(|| output.to_owned()), _file: file };
        checkpoint::remove_partial(output)?;
        Ok(lock)
    }
}

impl Drop for OutputLock {
    fn drop(&mut self) {
        if let Some(folder) = &self.new {
            // A run that wrote nothing leaves no folder. One with files in it is not removed by this.
            let _ = fs::remove_dir(folder);
        }
    }
}
