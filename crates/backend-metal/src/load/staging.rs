//! A new folder, written under a temporary name and renamed once it is complete.
//!
//! The temporary name is random, and the folder is locked while it is written. So no process publishes what another one wrote,
//! and a folder that nobody locks was left by a process that died: the next run for the same target removes it.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use inference_core::{Error, Result, backend::Printable};

use super::lock::lock_folder;

const SUFFIX: &str = ".partial";

/// Hexadecimal digits of a random name.
const DIGITS: usize = 16;

/// Each attempt fails only if another process removes the new folder before it is locked.
const ATTEMPTS: usize = 10;

/// A folder under its temporary name. Dropping this removes the folder, unless it was published.
#[derive(Debug)]
pub(super) struct Staging {
    path: PathBuf,
    target: PathBuf,
    /// Holds the lock.
    _folder: File,
}

impl Staging {
    /// Creates the folder beside `target`, and removes what dead processes left there for the same target.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if the target exists; [`Error::Io`].
    pub(super) fn new(target: &Path) -> Result<Self> {
        let name = target.file_name().ok_or_else(|| exists(target))?;
        if target.symlink_metadata().is_ok() {
            return Err(exists(target));
        }
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(|source| Error::io("create", parent, source))?;
        remove_leftovers(parent, name);
        for _ in 0..ATTEMPTS {
            let path = parent.join(temporary_name(name));
            fs::create_dir(&path).map_err(|source| Error::io("create", &path, source))?;
            let folder = lock_folder(&path).map_err(|source| Error::io("lock", &path, source));
            // Without a lock, another process took the new folder for a leftover and removes it.
            if let Some(folder) = folder? {
                return Ok(Self { path, target: target.to_owned(), _folder: folder });
            }
        }
        let source = io::Error::other("other processes keep removing it");
        Err(Error::io("create", parent.join(temporary_name(name)), source))
    }

    /// The folder to write to.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the folder the target's name.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if the target was created meanwhile; [`Error::Io`].
    pub(super) fn publish(self) -> Result<()> {
        rename_new(&self.path, &self.target).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists
            | io::ErrorKind::DirectoryNotEmpty
            | io::ErrorKind::NotADirectory => exists(&self.target),
            _ => Error::io("create", &self.target, source),
        })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After publishing there is nothing under this name. A folder that cannot be removed now is removed by a later run.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn exists(target: &Path) -> Error {
    let reason = format!("{} exists already: name a new folder", Printable(&target.to_string_lossy()));
    Error::invalid_option("target", reason)
}

fn temporary_name(name: &OsStr) -> OsString {
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{:0DIGITS$x}{SUFFIX}", rand::random::<u64>()));
    temporary
}

fn is_temporary_name(found: &OsStr, name: &OsStr) -> bool {
    let digits = found.as_bytes().strip_prefix(b".").and_then(|rest| rest.strip_prefix(name.as_bytes()));
    let digits = digits.and_then(|rest| rest.strip_prefix(b".")?.strip_suffix(SUFFIX.as_bytes()));
    digits.is_some_and(|digits| digits.len() == DIGITS && digits.iter().all(u8::is_ascii_hexdigit))
}

/// Removes the temporary folders of this target whose process has died. Failures do not stop the run: what stays only takes space.
fn remove_leftovers(parent: &Path, name: &OsStr) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_folder || !is_temporary_name(&entry.file_name(), name) {
            continue;
        }
        let path = entry.path();
        let Ok(folder) = File::open(&path) else { continue };
        if folder.try_lock().is_ok()
            && let Err(error) = fs::remove_dir_all(&path)
        {
            tracing::warn!(folder = ?path, %error, "cannot remove what an interrupted run left");
        }
    }
}

/// Renames a folder; fails if `to` exists, even as an empty folder.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    {
        use rustix::{
            fs::{CWD, RenameFlags, renameat_with},
            io::Errno,
        };
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // The filesystem or the kernel lacks the flag.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
            result => return Ok(result?),
        }
    }
    fs::rename(from, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_appears_complete_or_not_at_all() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("new/out");
        let staging = Staging::new(&target).unwrap();
        fs::write(staging.path().join("a"), "1").unwrap();
        assert!(!target.exists());
        staging.publish().unwrap();
        assert_eq!(names(&target), ["a"]);
        assert_eq!(names(&parent.path().join("new")), ["out"]);
        let error = Staging::new(&target).unwrap_err().to_string();
        assert!(error.contains("exists already"), "{error}");

        drop(Staging::new(&parent.path().join("other")).unwrap());
        assert_eq!(names(parent.path()), ["new"]);
    }

    #[test]
    fn leftovers_of_the_dead_are_removed_and_those_of_the_living_are_not() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("out");
        let dead = parent.path().join(temporary_name(OsStr::new("out")));
        let of_another_target = parent.path().join(temporary_name(OsStr::new("out2")));
        let foreign = parent.path().join(".out.mine.partial");
        for folder in [&dead, &of_another_target, &foreign] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("model.safetensors.index.json"), "{}").unwrap();
        }
        let living = Staging::new(&target).unwrap();
        assert!(!dead.exists() && of_another_target.exists() && foreign.exists());
        let second = Staging::new(&target).unwrap();
        assert!(living.path().exists() && living.path() != second.path());
        living.publish().unwrap();
        let error = second.publish().unwrap_err().to_string();
        assert!(error.contains("exists already"), "{error}");
        assert!(names(&target).is_empty());
    }
}
