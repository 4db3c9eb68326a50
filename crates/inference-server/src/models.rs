//! The models of a server: loaded by name on demand, unloaded where memory runs short.

mod entry;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use axum::http::StatusCode;
use inference_core::{Error, TextModel};
use tokio::sync::Notify;

use self::entry::Source;
pub use self::entry::{ModelEntry, ModelLoader};
use crate::{
    error::{ApiError, ApiResult},
    queue::Queue,
};

/// Answers that run at once on one model where nothing else is said.
const RUNNING: usize = 64;
/// Requests that wait for one model where nothing else is said.
const WAITING: usize = 256;

/// The models of a server. A clone shares them.
#[derive(Debug, Clone)]
pub struct Models(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    entries: Vec<Arc<Entry>>,
    names: HashMap<String, usize>,
    memory_budget: Option<u64>,
    /// Held while a model is loaded: what fits is decided for one model at a time.
    loading: tokio::sync::Mutex<()>,
    /// A model is used by nobody any more.
    idle: Notify,
    /// Models to be loaded at the start that are not yet.
    preloading: AtomicUsize,
}

#[derive(Debug)]
pub(crate) struct Entry {
    spec: ModelEntry,
    pub(crate) queue: Queue,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    loaded: Option<Loaded>,
    /// Why the last load failed.
    failure: Option<String>,
}

#[derive(Debug)]
struct Loaded {
    model: Arc<dyn TextModel>,
    bytes: u64,
    users: usize,
    last_used: Instant,
}

/// What limits the models of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelLimits {
    /// Bytes of weights that may be loaded at once; a load beyond it unloads what was not used for longest.
    pub memory_budget: Option<u64>,
    /// Answers that run at once on one model.
    pub max_running: usize,
    /// Requests that wait for one model; more are told to come back later.
    pub max_waiting: usize,
}

impl Default for ModelLimits {
    fn default() -> Self {
        Self { memory_budget: None, max_running: RUNNING, max_waiting: WAITING }
    }
}

/// Two models have the same name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("two models are called {0:?}; names and aliases have to differ")]
pub struct DuplicateName(pub String);

impl Models {
    /// These models; the first one answers requests that name none.
    ///
    /// # Errors
    /// Two of them have the same name or alias.
    pub fn new(
        entries: impl IntoIterator<Item = ModelEntry>,
        limits: ModelLimits,
    ) -> Result<Self, DuplicateName> {
        let entries: Vec<_> = entries.into_iter().map(|spec| Arc::new(Entry::new(spec, limits))).collect();
        let mut names = HashMap::new();
        for (number, entry) in entries.iter().enumerate() {
            for name in entry.spec.aliases.iter().chain([&entry.spec.name]) {
                if names.insert(name.clone(), number).is_some() {
                    return Err(DuplicateName(name.clone()));
                }
            }
        }
        Ok(Self(Arc::new(Inner {
            preloading: AtomicUsize::new(entries.iter().filter(|entry| entry.spec.preload).count()),
            entries,
            names,
            memory_budget: limits.memory_budget,
            loading: tokio::sync::Mutex::default(),
            idle: Notify::new(),
        })))
    }

    /// One model that is loaded.
    pub fn single(name: impl Into<String>, model: Arc<dyn TextModel>) -> Self {
        let entry = Arc::new(Entry::new(ModelEntry::loaded(name, model), ModelLimits::default()));
        Self(Arc::new(Inner {
            names: HashMap::from([(entry.spec.name.clone(), 0)]),
            entries: vec![entry],
            memory_budget: None,
            loading: tokio::sync::Mutex::default(),
            idle: Notify::new(),
            preloading: AtomicUsize::new(0),
        }))
    }

    /// Loads the models that are to be loaded at the start, and says of each what came of it. A model that fails is tried
    /// again by requests for it.
    pub async fn preload(&self) -> Vec<(String, inference_core::Result<()>)> {
        let mut results = Vec::new();
        for entry in self.0.entries.iter().filter(|entry| entry.spec.preload) {
            let loaded = self.load(entry).await.map(drop);
            results.push((entry.spec.name.clone(), loaded));
            let _ = self.0.preloading.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1));
        }
        results
    }

    /// Closes every model that is loaded. Running requests end as cancelled.
    pub async fn close(&self) {
        for entry in &self.0.entries {
            let model = match &entry.spec.source {
                Source::Loaded(model) => Some(model.clone()),
                Source::OnDemand(_) => entry.state().loaded.take().map(|loaded| loaded.model),
            };
            close(&entry.spec.name, model).await;
        }
    }

    /// Whether models are still being loaded at the start.
    pub(crate) fn is_starting(&self) -> bool {
        self.0.preloading.load(Ordering::Acquire) > 0
    }

    pub(crate) fn entries(&self) -> &[Arc<Entry>] {
        &self.0.entries
    }

    /// The model that a request names, or the first one; the entry `model:adapter` where it names an adapter as well.
    ///
    /// # Errors
    /// There is none of that name, or it has no such adapter.
    pub(crate) fn find(&self, name: Option<&str>, adapter: Option<&str>) -> ApiResult<&Arc<Entry>> {
        let name = name.unwrap_or_default();
        let model = self.named(name).ok_or_else(|| self.unknown("model", name))?;
        match adapter {
            None | Some("") => Ok(model),
            Some(adapter) => {
                let variant = format!("{}:{adapter}", model.name());
                self.named(&variant).ok_or_else(|| self.unknown("adapter", &variant))
            }
        }
    }

    /// The entry of this name or alias; the first one where the name is empty. An alias may have an adapter's name behind it.
    fn named(&self, name: &str) -> Option<&Arc<Entry>> {
        if name.is_empty() {
            return self.0.entries.first();
        }
        let entry = |name: &str| self.0.names.get(name).and_then(|number| self.0.entries.get(*number));
        entry(name).or_else(|| {
            let (model, adapter) = name.rsplit_once(':')?;
            entry(&format!("{}:{adapter}", entry(model)?.name()))
        })
    }

    fn unknown(&self, param: &str, name: &str) -> ApiError {
        let known: Vec<&str> = self.0.entries.iter().map(|entry| entry.name()).collect();
        let message = format!("there is no model {name:?}; here are: {}", known.join(", "));
        ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message).with_param(param)
    }

    /// The model behind an entry, loaded if it is not.
    ///
    /// # Errors
    /// It cannot be loaded.
    pub(crate) async fn load(&self, entry: &Arc<Entry>) -> inference_core::Result<Lease> {
        if let Some(lease) = self.try_lease(entry) {
            return Ok(lease);
        }
        let _loading = self.0.loading.lock().await;
        if let Some(lease) = self.try_lease(entry) {
            return Ok(lease);
        }
        let Source::OnDemand(loader) = &entry.spec.source else { return Err(Error::Closed) };
        let loaded = async {
            let bytes = loader.bytes().await?;
            self.make_room(entry, bytes).await?;
            Ok((loader.load().await?, bytes))
        };
        match loaded.await {
            Ok((model, bytes)) => {
                let loaded = Loaded { model: model.clone(), bytes, users: 1, last_used: Instant::now() };
                *entry.state() = State { loaded: Some(loaded), failure: None };
                Ok(Lease { model, entry: entry.clone(), models: self.clone() })
            }
            Err(error) => {
                let failure = ApiError::from(&error).message;
                tracing::error!(model = entry.name(), "cannot load: {failure}");
                entry.state().failure = Some(failure);
                Err(error)
            }
        }
    }

    /// [`load`](Self::load), with an error that names the model.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub(crate) async fn lease(&self, entry: &Arc<Entry>) -> ApiResult<Lease> {
        self.load(entry).await.map_err(|error| {
            let failure = ApiError::from(&error);
            // Whatever was wrong with the folder, it is not the request.
            let status = if failure.status.is_client_error() {
                StatusCode::INTERNAL_SERVER_ERROR
            } else {
                failure.status
            };
            let message = format!("the model {} cannot be loaded: {}", entry.name(), failure.message);
            ApiError { status, message, param: Some("model".to_owned()), ..failure }
        })
    }

    fn try_lease(&self, entry: &Arc<Entry>) -> Option<Lease> {
        let model = match &entry.spec.source {
            Source::Loaded(model) => model.clone(),
            Source::OnDemand(_) => {
                let mut state = entry.state();
                let loaded = state.loaded.as_mut()?;
                loaded.users += 1;
                loaded.model.clone()
            }
        };
        Some(Lease { model, entry: entry.clone(), models: self.clone() })
    }

    /// Unloads what was not used for longest until this many bytes fit, and waits for models in use where nothing else is left.
    async fn make_room(&self, wanted: &Entry, bytes: u64) -> inference_core::Result<()> {
        let Some(budget) = self.0.memory_budget else { return Ok(()) };
        loop {
            let mut idle = std::pin::pin!(self.0.idle.notified());
            idle.as_mut().enable();
            let used = |pinned: bool| -> u64 {
                let entries = self.0.entries.iter().filter(|entry| !pinned || entry.stays());
                entries.map(|entry| entry.bytes()).sum()
            };
            if used(false).saturating_add(bytes) <= budget {
                return Ok(());
            }
            let available = budget.saturating_sub(used(true));
            if bytes > available {
                let what = format!("the model {}", wanted.name());
                return Err(Error::out_of_memory(what, bytes, available));
            }
            let unused = self.0.entries.iter().filter(|entry| !entry.stays());
            let oldest = unused.filter_map(|e| Some((e.unused_since()?, e))).min_by_key(|(since, _)| *since);
            match oldest {
                Some((_, entry)) => {
                    let model = entry.state().loaded.take_if(|loaded| loaded.users == 0);
                    close(entry.name(), model.map(|loaded| loaded.model)).await;
                }
                None => idle.await,
            }
        }
    }
}

async fn close(name: &str, model: Option<Arc<dyn TextModel>>) {
    let Some(model) = model else { return };
    match model.close().await {
        Ok(()) => tracing::info!(model = name, "unloaded"),
        Err(error) => tracing::error!(model = name, "failed to close: {error}"),
    }
}

impl Entry {
    fn new(spec: ModelEntry, limits: ModelLimits) -> Self {
        Self { spec, queue: Queue::new(limits.max_running, limits.max_waiting), state: Mutex::default() }
    }

    pub(crate) fn name(&self) -> &str {
        &self.spec.name
    }

    pub(crate) fn aliases(&self) -> &[String] {
        &self.spec.aliases
    }

    /// The model, if it is loaded.
    pub(crate) fn loaded(&self) -> Option<Arc<dyn TextModel>> {
        match &self.spec.source {
            Source::Loaded(model) => Some(model.clone()),
            Source::OnDemand(_) => self.state().loaded.as_ref().map(|loaded| loaded.model.clone()),
        }
    }

    /// Why the last load failed.
    pub(crate) fn failure(&self) -> Option<String> {
        self.state().failure.clone()
    }

    fn stays(&self) -> bool {
        self.spec.pinned || matches!(self.spec.source, Source::Loaded(_))
    }

    /// What it takes of the budget now.
    fn bytes(&self) -> u64 {
        match &self.spec.source {
            Source::Loaded(model) => model.info().weight_bytes,
            Source::OnDemand(_) => self.state().loaded.as_ref().map_or(0, |loaded| loaded.bytes),
        }
    }

    /// Since when nobody has used the loaded model.
    fn unused_since(&self) -> Option<Instant> {
        let state = self.state();
        state.loaded.as_ref().filter(|loaded| loaded.users == 0).map(|loaded| loaded.last_used)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A model in use: it is not unloaded for another one until this is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) model: Arc<dyn TextModel>,
    entry: Arc<Entry>,
    models: Models,
}

impl Lease {
    /// Forgets a model whose engine is gone; the next request loads it again.
    pub(crate) fn discard(&self) {
        self.entry.state().loaded.take_if(|loaded| Arc::ptr_eq(&loaded.model, &self.model));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(loaded) =
            self.entry.state().loaded.as_mut().filter(|loaded| Arc::ptr_eq(&loaded.model, &self.model))
        {
            loaded.users = loaded.users.saturating_sub(1);
            loaded.last_used = Instant::now();
        }
        self.models.0.idle.notify_waiters();
    }
}
