//! One file of the Hub, downloaded into the cache.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use sha1::Sha1;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::{
    HubError, ModelName, Result,
    client::Client,
    error::io_error,
    files::{Checksum, RemoteFile},
    retry::Tries,
};

const BUFFER: usize = 1 << 16;

/// A download of one file.
pub(crate) struct Fetch<'a> {
    pub(crate) client: &'a Client,
    pub(crate) name: &'a ModelName,
    pub(crate) commit: &'a str,
    pub(crate) file: &'a RemoteFile,
    pub(crate) cancel: &'a CancellationToken,
    /// Is told of each further piece, in bytes.
    pub(crate) on_bytes: &'a (dyn Fn(u64) + Sync),
}

impl Fetch<'_> {
    /// Downloads the file to `blob`, unless it is there; `lock` is held meanwhile, against other processes.
    pub(crate) fn run(&self, blob: &Path, lock: &Path) -> Result<()> {
        let _lock = lock_file(lock)?;
        if std::fs::metadata(blob).is_ok_and(|found| found.len() == self.file.size) {
            (self.on_bytes)(self.file.size);
            return Ok(());
        }
        let mut path = blob.as_os_str().to_owned();
        path.push(".incomplete");
        let path = PathBuf::from(path);
        let part = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut part = part.map_err(io_error("write", &path))?;
        self.fill(&mut part, &path)?;
        self.verify(&mut part, &path)?;
        part.sync_all().map_err(io_error("write", &path))?;
        std::fs::rename(&path, blob).map_err(io_error("write", blob))
    }

    /// Fills the file up to its size, over several connections if need be.
    fn fill(&self, part: &mut File, path: &Path) -> Result<()> {
        let mut have = part.metadata().map_err(io_error("read", path))?.len();
        if have > self.file.size {
            part.set_len(0).map_err(io_error("write", path))?;
            have = 0;
        }
        (self.on_bytes)(have);
        let mut tries = Tries::default();
        while have < self.file.size {
            let before = have;
            if let Err(error) = self.go_on(part, path, &mut have) {
                tries.again(error, have > before, self.cancel)?;
            }
        }
        Ok(())
    }

    /// Appends what one connection gives.
    fn go_on(&self, part: &mut File, path: &Path, have: &mut u64) -> Result<()> {
        let what = format!("{}: {}", self.name, self.file.name);
        let mut download = self.client.download(self.name, self.commit, &self.file.name, *have)?;
        let size = self.file.size;
        if let Some(total) = download.total.filter(|total| *total != size) {
            return Err(self.damaged("length", total.to_string(), size.to_string()));
        }
        if download.start != *have {
            // It begins where the Hub likes; only its beginning is known to fit.
            if download.start != 0 {
                return Err(HubError::InvalidAnswer {
                    what,
                    reason: format!("a part begins at byte {}, expected {have}", download.start),
                });
            }
            part.set_len(0).map_err(io_error("write", path))?;
            *have = 0;
        }
        part.seek(SeekFrom::Start(*have)).map_err(io_error("write", path))?;
        let mut buffer = vec![0; BUFFER];
        loop {
            if self.cancel.is_cancelled() {
                return Err(HubError::Cancelled);
            }
            let read = match download.reader.read(&mut buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(HubError::Network { what, reason: error.to_string() }),
            };
            if read == 0 {
                break;
            }
            if *have + read as u64 > size {
                part.set_len(0).map_err(io_error("write", path))?;
                return Err(self.damaged("length", format!("above {size}"), size.to_string()));
            }
            part.write_all(&buffer[..read]).map_err(io_error("write", path))?;
            *have += read as u64;
            (self.on_bytes)(read as u64);
        }
        if *have < size {
            let reason = format!("the connection ended after {have} of {size} bytes");
            return Err(HubError::Network { what, reason });
        }
        Ok(())
    }

    fn verify(&self, part: &mut File, path: &Path) -> Result<()> {
        part.seek(SeekFrom::Start(0)).map_err(io_error("read", path))?;
        let found = match &self.file.checksum {
            Checksum::Sha256(_) => self.hash(part, Sha256::new()),
            Checksum::GitSha1(_) => {
                self.hash(part, Sha1::new().chain_update(format!("blob {}\0", self.file.size)))
            }
        };
        let found = found.map_err(io_error("read", path))?;
        if found == self.file.checksum.as_str() {
            return Ok(());
        }
        part.set_len(0).map_err(io_error("write", path))?;
        Err(self.damaged("checksum", found, self.file.checksum.as_str().to_owned()))
    }

    fn hash(&self, part: &mut File, mut hasher: impl Digest) -> io::Result<String> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = part.read(&mut buffer)?;
            if read == 0 {
                return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
            }
            hasher.update(&buffer[..read]);
        }
    }

    fn damaged(&self, check: &'static str, found: String, expected: String) -> HubError {
        let what = format!("{}: {}", self.name, self.file.name);
        HubError::Damaged { what, check, found, expected }
    }
}

/// Holds a lock for as long as the file is open; Python's package honours the same one.
fn lock_file(path: &Path) -> Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(io_error("write", folder))?;
    }
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    let file = file.map_err(io_error("write", path))?;
    file.lock().map_err(io_error("lock", path))?;
    Ok(file)
}
