//! The Hub and its cache.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

use tokio_util::sync::CancellationToken;

use crate::{
    CachedModel, HubError, ModelName, Result,
    blob::Fetch,
    cache::{self, ModelFolder},
    client::Client,
    files::RemoteFile,
    retry::Tries,
};

const ENDPOINT: &str = "https://huggingface.co";
/// Files that are downloaded side by side.
const SIDE_BY_SIDE: usize = 4;

/// The Hub and the cache of what was downloaded from it.
#[derive(Clone)]
pub struct Hub {
    endpoint: String,
    token: Option<String>,
    cache: PathBuf,
    offline: bool,
}

/// How a model is downloaded.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct PullOptions {
    /// Is told how far it has come, from several threads.
    pub on_progress: Option<Arc<dyn Fn(PullProgress) + Send + Sync>>,
    /// Ends the download; what there is of it stays for the next one.
    pub cancel: CancellationToken,
}

/// How far a download has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PullProgress {
    /// Bytes that are there, those of earlier downloads included.
    pub bytes: u64,
    /// Bytes of all files.
    pub total_bytes: u64,
}

impl PullOptions {
    /// Nothing is told, nothing cancels.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells this how far the download has come; it must be quick.
    #[must_use]
    pub fn on_progress(mut self, callback: impl Fn(PullProgress) + Send + Sync + 'static) -> Self {
        self.on_progress = Some(Arc::new(callback));
        self
    }

    /// Ends the download when this token is cancelled.
    #[must_use]
    pub fn cancel(mut self, token: CancellationToken) -> Self {
        self.cancel = token;
        self
    }
}

impl fmt::Debug for PullOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullOptions").field("cancel", &self.cancel).finish_non_exhaustive()
    }
}

/// Without the token.
impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, cache, offline, token: _ } = self;
        let mut hub = f.debug_struct("Hub");
        hub.field("endpoint", endpoint)
            .field("cache", cache)
            .field("offline", offline)
            .finish_non_exhaustive()
    }
}

impl Hub {
    /// The Hub as the environment says: `HF_ENDPOINT`, `HF_TOKEN` or the file that `HF_TOKEN_PATH` names, `HF_HUB_CACHE`,
    /// `HF_HOME`, `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// The user has no home folder, and no variable names a cache.
    pub fn from_env() -> Result<Self> {
        let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let folder = |name: &str| set(name).map(PathBuf::from);
        let home = || {
            folder("HF_HOME").or_else(|| {
                let cache = folder("XDG_CACHE_HOME");
                let own = || Some(directories::BaseDirs::new()?.home_dir().join(".cache"));
                Some(cache.or_else(own)?.join("huggingface"))
            })
        };
        let named = folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE"));
        let Some(cache) = named.or_else(|| Some(home()?.join("hub"))) else {
            let source = std::io::Error::other("there is no home folder; set HF_HOME");
            return Err(HubError::Io { action: "find", path: "huggingface".into(), source });
        };
        let kept = || {
            let file = folder("HF_TOKEN_PATH").or_else(|| Some(home()?.join("token")))?;
            fs::read_to_string(file).ok()
        };
        let token = set("HF_TOKEN").or_else(kept).map(|token| token.trim().to_owned());
        let hub = Self::new(set("HF_ENDPOINT").as_deref().unwrap_or(ENDPOINT), cache);
        let offline = set("HF_HUB_OFFLINE")
            .is_some_and(|value| ["1", "true", "yes", "on"].contains(&value.to_ascii_lowercase().as_str()));
        Ok(hub.token(token.filter(|token| !token.is_empty())).offline(offline))
    }

    /// The Hub at this address, and this cache.
    pub fn new(endpoint: impl Into<String>, cache: impl Into<PathBuf>) -> Self {
        Self { endpoint: endpoint.into(), token: None, cache: cache.into(), offline: false }
    }

    /// Gives this token with each request to the Hub itself.
    #[must_use]
    pub fn token(mut self, token: Option<String>) -> Self {
        self.token = token;
        self
    }

    /// Whether nothing may be downloaded.
    #[must_use]
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// The cache's folder.
    #[must_use]
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// The folder of a model that is in the cache.
    #[must_use]
    pub fn find(&self, name: &ModelName) -> Option<PathBuf> {
        ModelFolder::new(&self.cache, name).find(name.revision())
    }

    /// Downloads what is missing of a model, and returns its folder. Blocks: call it from a thread that may wait.
    ///
    /// # Errors
    /// The model does not exist or may not be read; the network fails several times in a row; a file is damaged; the disk is
    /// full; the caller cancelled. Where nothing may be downloaded, the model is not in the cache.
    pub fn pull(&self, name: &ModelName, options: &PullOptions) -> Result<PathBuf> {
        if self.offline {
            let offline = || HubError::Offline { name: name.to_string(), cache: self.cache.clone() };
            return self.find(name).ok_or_else(offline);
        }
        let client = Client::new(&self.endpoint, self.token.clone());
        let mut tries = Tries::default();
        let listing = loop {
            match client.list(name) {
                Ok(listing) => break listing,
                Err(error) => tries.again(error, false, &options.cancel)?,
            }
        };
        let files = listing.files(&name.to_string())?;
        let folder = ModelFolder::new(&self.cache, name);
        folder.create()?;
        let total_bytes = files.iter().map(|file| file.size).fold(0, u64::saturating_add);
        let done = AtomicU64::new(0);
        let on_bytes = |bytes: u64| {
            let bytes = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
            if let Some(callback) = &options.on_progress {
                callback(PullProgress { bytes: bytes.min(total_bytes), total_bytes });
            }
        };
        let fetch = |file: &RemoteFile| {
            let (commit, cancel, on_bytes) = (&listing.sha, &options.cancel, &on_bytes);
            let fetch = Fetch { client: &client, name, commit, file, cancel, on_bytes };
            fetch.run(&folder.blob(file), &folder.lock(file))
        };
        for_each(&files, fetch)?;
        folder.publish(&listing.sha, name.revision(), &files)
    }

    /// The models in the cache, in the order of their names.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub fn list(&self) -> Result<Vec<CachedModel>> {
        cache::list(&self.cache)
    }

    /// Deletes a model from the cache, with all of its revisions; the bytes that it took.
    ///
    /// # Errors
    /// It cannot be deleted.
    pub fn remove(&self, name: &ModelName) -> Result<u64> {
        ModelFolder::new(&self.cache, name).remove()
    }
}

/// Does this for each file, a few at once. After an error no further file is begun.
fn for_each(files: &[RemoteFile], work: impl Fn(&RemoteFile) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let failed = || failure.lock().unwrap_or_else(PoisonError::into_inner);
    thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE.min(files.len()) {
            scope.spawn(|| {
                while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if failed().is_some() {
                        return;
                    }
                    if let Err(error) = work(file) {
                        failed().get_or_insert(error);
                    }
                }
            });
        }
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
