//! Locks on folders, so that two processes do not write to one.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

/// Locks a folder until the returned file is dropped. `None` if another process holds the lock, or removed the folder meanwhile.
/// On a filesystem without locks every process gets one.
///
/// # Errors
/// The folder cannot be opened.
pub(crate) fn lock_folder(path: &Path) -> io::Result<Option<File>> {
    let folder = File::open(path)?;
    if matches!(folder.try_lock(), Err(TryLockError::WouldBlock)) {
        return Ok(None);
    }
    let own = folder.metadata()?;
    let same = |found: fs::Metadata| found.dev() == own.dev() && found.ino() == own.ino();
    Ok(fs::metadata(path).is_ok_and(same).then_some(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_lock() {
        let folder = tempfile::tempdir().unwrap();
        let lock = lock_folder(folder.path()).unwrap().unwrap();
        assert!(lock_folder(folder.path()).unwrap().is_none());
        drop(lock);
        assert!(lock_folder(folder.path()).unwrap().is_some());
        assert!(lock_folder(&folder.path().join("missing")).is_err());
    }
}
