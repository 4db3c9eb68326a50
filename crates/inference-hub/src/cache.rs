//! The cache on disk: `models--org--name/{blobs,refs,snapshots}`, as Python's package has it.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{
    HubError, ModelName, Result,
    error::io_error,
    files::{RemoteFile, is_hex},
};

/// Bytes of a file in `refs` at most.
const REF_BYTES: u64 = 200;
/// Bytes of an index of weights at most.
const INDEX_BYTES: u64 = 64 << 20;

/// A model in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CachedModel {
    /// `organisation/name`.
    pub name: String,
    /// The commits that are there, by their full names.
    pub commits: Vec<String>,
    /// What it takes on disk.
    pub bytes: u64,
    /// Its folder in the cache.
    pub path: PathBuf,
}

/// The folder of one model in the cache.
#[derive(Debug, Clone)]
pub(crate) struct ModelFolder {
    path: PathBuf,
    locks: PathBuf,
}

impl ModelFolder {
    pub(crate) fn new(cache: &Path, name: &ModelName) -> Self {
        let folder = name.folder();
        Self { path: cache.join(&folder), locks: cache.join(".locks").join(folder) }
    }

    pub(crate) fn blob(&self, file: &RemoteFile) -> PathBuf {
        self.path.join("blobs").join(file.checksum.as_str())
    }

    pub(crate) fn lock(&self, file: &RemoteFile) -> PathBuf {
        self.locks.join(format!("{}.lock", file.checksum.as_str()))
    }

    pub(crate) fn create(&self) -> Result<()> {
        for folder in ["blobs", "refs", "snapshots"] {
            let folder = self.path.join(folder);
            fs::create_dir_all(&folder).map_err(io_error("write", folder))?;
        }
        Ok(())
    }

    /// The snapshot of a revision, if there is a whole one.
    pub(crate) fn find(&self, revision: &str) -> Option<PathBuf> {
        let commit = if is_hex(revision, 40) {
            revision.to_owned()
        } else {
            let file = self.path.join("refs").join(revision);
            let short = fs::metadata(&file).is_ok_and(|found| found.len() <= REF_BYTES);
            let commit = short.then(|| fs::read_to_string(&file).ok()).flatten()?;
            commit.trim().to_owned()
        };
        let snapshot = is_hex(&commit, 40).then(|| self.path.join("snapshots").join(commit))?;
        is_whole(&snapshot).then_some(snapshot)
    }

    /// Makes the snapshot of these files, whose blobs are there. It appears whole.
    pub(crate) fn publish(&self, commit: &str, revision: &str, files: &[RemoteFile]) -> Result<PathBuf> {
        let snapshots = self.path.join("snapshots");
        let target = snapshots.join(commit);
        if target.is_dir() {
            // Python's package fills a snapshot file by file; what is there stays.
            self.link_all(&target, files)?;
        } else {
            let hidden = tempfile::Builder::new().prefix(".").tempdir_in(&snapshots);
            let hidden = hidden.map_err(io_error("write", &snapshots))?;
            self.link_all(hidden.path(), files)?;
            match fs::rename(hidden.path(), &target) {
                Ok(()) => drop(hidden.keep()),
                // Another process was faster, with the same files.
                Err(_) if target.is_dir() => self.link_all(&target, files)?,
                Err(error) => return Err(io_error("write", &target)(error)),
            }
        }
        self.write_ref(revision, commit)?;
        Ok(target)
    }

    /// Deletes the model; the bytes that it took.
    pub(crate) fn remove(&self) -> Result<u64> {
        if !self.path.is_dir() {
            return Ok(0);
        }
        let bytes = disk_bytes(&self.path.join("blobs"));
        fs::remove_dir_all(&self.path).map_err(io_error("delete", &self.path))?;
        match fs::remove_dir_all(&self.locks) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_error("delete", &self.locks)(error))
            }
            _ => Ok(bytes),
        }
    }

    fn link_all(&self, snapshot: &Path, files: &[RemoteFile]) -> Result<()> {
        for file in files {
            let link = snapshot.join(&file.name);
            if link.exists() {
                continue;
            }
            let linked = link_blob(&self.blob(file), &link);
            match linked {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(io_error("write", link)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if is_hex(revision, 40) {
            return Ok(());
        }
        let file = self.path.join("refs").join(revision);
        let folder = file.parent().unwrap_or(&self.path);
        fs::create_dir_all(folder).map_err(io_error("write", folder))?;
        let mut hidden = tempfile::NamedTempFile::new_in(folder).map_err(io_error("write", folder))?;
        hidden.write_all(commit.as_bytes()).map_err(io_error("write", &file))?;
        hidden.persist(&file).map_err(|error| HubError::Io {
            action: "write",
            path: file,
            source: error.error,
        })?;
        Ok(())
    }
}

/// Whether a snapshot has a configuration and all of its weights. Python's package fills one file by file, and perhaps with some
/// of them alone.
fn is_whole(snapshot: &Path) -> bool {
    if !snapshot.join("config.json").is_file() {
        return false;
    }
    let index = snapshot.join("model.safetensors.index.json");
    if fs::metadata(&index).is_ok_and(|found| found.len() <= INDEX_BYTES) {
        let index = fs::read(index).ok().and_then(|text| serde_json::from_slice::<Index>(&text).ok());
        return index
            .is_some_and(|index| index.weight_map.values().all(|file| snapshot.join(file).is_file()));
    }
    let files = fs::read_dir(snapshot).into_iter().flatten().flatten().map(|file| file.path());
    files.into_iter().any(|file| file.extension().is_some_and(|end| end == "safetensors") && file.is_file())
}

/// Which file has which tensor.
#[derive(Debug, Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// A link that survives a move of the whole cache.
#[cfg(unix)]
fn link_blob(blob: &Path, link: &Path) -> io::Result<()> {
    let name = blob.file_name().unwrap_or_default();
    std::os::unix::fs::symlink(Path::new("../../blobs").join(name), link)
}

/// Links need a permission there that few have.
#[cfg(not(unix))]
fn link_blob(blob: &Path, link: &Path) -> io::Result<()> {
    fs::hard_link(blob, link).or_else(|_| fs::copy(blob, link).map(drop))
}

/// The models in a cache, in the order of their names.
pub(crate) fn list(cache: &Path) -> Result<Vec<CachedModel>> {
    let entries = match fs::read_dir(cache) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error("read", cache)(error)),
    };
    let mut models = Vec::new();
    for entry in entries {
        let path = entry.map_err(io_error("read", cache))?.path();
        let folder = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(name) = folder.strip_prefix("models--") else { continue };
        let snapshots = fs::read_dir(path.join("snapshots")).into_iter().flatten().flatten();
        let commits = snapshots.map(|snapshot| snapshot.file_name().to_string_lossy().into_owned());
        let mut commits: Vec<String> = commits.filter(|commit| is_hex(commit, 40)).collect();
        commits.sort_unstable();
        if commits.is_empty() {
            continue;
        }
        let bytes = disk_bytes(&path.join("blobs"));
        models.push(CachedModel { name: name.replacen("--", "/", 1), commits, bytes, path });
    }
    models.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(models)
}

fn disk_bytes(blobs: &Path) -> u64 {
    let mut seen = HashSet::new();
    let files = fs::read_dir(blobs).into_iter().flatten().flatten();
    let files = files.filter(|file| seen.insert(file.file_name()));
    files.filter_map(|file| file.metadata().ok()).map(|found| found.len()).sum()
}
