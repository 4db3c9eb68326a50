//! The registered backends, and the choice of one for a model.

use std::{
    future::IntoFuture,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{FutureExt as _, future::BoxFuture};

use crate::{
    Error, LoadOptions, ModelManifest, Outcome, Result, TextModel, Verdict,
    adapter::AdapterManifest,
    checked::{CheckedModel, refuse_missing},
    engine::{Backend, Support},
    printable::Printable,
    spawn_blocking::spawn_blocking,
};

/// A backend's entry in the registry: what is known before it is opened.
///
/// A backend crate registers itself with [`register_backend!`](crate::backend::register_backend); a program links it by naming the
/// crate (`use backend_metal as _;`): a crate that no code names is not linked, and registers nothing.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct BackendDescriptor {
    /// The name by which it is asked for: lower-case, digits, underscores.
    pub id: &'static str,
    /// Higher is preferred; a negative one is used only when named.
    pub priority: i32,
    /// Whether it can run on this machine. Cheap, synchronous, and starts nothing.
    pub probe: fn() -> Availability,
    /// Makes the backend. Called only where the probe said yes.
    pub open: fn() -> Result<Arc<dyn Backend>>,
}

impl BackendDescriptor {
    /// A descriptor, for a `static` or for [`Registry::with`].
    #[must_use]
    pub const fn new(
        id: &'static str,
        priority: i32,
        probe: fn() -> Availability,
        open: fn() -> Result<Arc<dyn Backend>>,
    ) -> Self {
        Self { id, priority, probe, open }
    }
}

inventory::collect!(BackendDescriptor);

/// Registers a [`BackendDescriptor`] at link time.
///
/// ```
/// use inference_core::{Error, backend::{Availability, BackendDescriptor, register_backend}};
///
/// register_backend!(BackendDescriptor::new(
///     "abacus",
///     -1,
///     || Availability::Unavailable("no beads on this machine".into()),
///     || Err(Error::Closed),
/// ));
/// assert!(inference_core::Registry::linked().get("abacus").is_ok());
/// ```
#[macro_export]
macro_rules! register_backend {
    ($descriptor:expr) => {
        $crate::__inventory::submit! { $descriptor }
    };
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Availability {
    /// The backend runs here, on this device.
    Available(String),
    /// It does not; the reason says what is missing and, where it can be had, how.
    Unavailable(String),
}

/// A set of backends in order of preference: priority descending, then id.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    descriptors: Vec<BackendDescriptor>,
}

impl Registry {
    /// The backends linked into this program.
    #[must_use]
    pub fn linked() -> Self {
        inventory::iter::<BackendDescriptor>.into_iter().copied().fold(Self::empty(), Self::with)
    }

    /// No backends.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// This registry and one more backend, which takes the place of one with the same id.
    #[must_use]
    pub fn with(mut self, descriptor: BackendDescriptor) -> Self {
        self.descriptors.retain(|known| known.id != descriptor.id);
        self.descriptors.push(descriptor);
        self.descriptors.sort_by(|a, b| b.priority.cmp(&a.priority).then(a.id.cmp(b.id)));
        self
    }

    /// The backends, preferred ones first.
    pub fn iter(&self) -> impl Iterator<Item = &BackendDescriptor> {
        self.descriptors.iter()
    }

    /// The backend with this id.
    ///
    /// # Errors
    /// [`Error::UnknownBackend`] lists those that exist.
    pub fn get(&self, id: &str) -> Result<&BackendDescriptor> {
        self.iter().find(|descriptor| descriptor.id == id).ok_or_else(|| {
            Error::unknown_backend(id, self.iter().map(|descriptor| descriptor.id.to_owned()).collect())
        })
    }

    /// Opens the backend with this id.
    ///
    /// # Errors
    /// It does not exist, is not available here, or fails to open.
    pub fn open(&self, id: &str) -> Result<Arc<dyn Backend>> {
        let descriptor = self.get(id)?;
        match (descriptor.probe)() {
            Availability::Available(_) => (descriptor.open)(),
            Availability::Unavailable(reason) => Err(Error::unavailable(id, reason)),
        }
    }

    /// The verdict of every backend on a model, in order of preference.
    #[must_use]
    pub fn explain(&self, model: &ModelManifest) -> Vec<Verdict> {
        self.iter().map(|descriptor| judge(descriptor, model).0).collect()
    }

    /// Loads the model in a folder: await it, or set options first.
    pub fn load_model(&self, path: impl Into<PathBuf>) -> Load {
        Load { registry: self.clone(), path: path.into(), backend: None, options: LoadOptions::new() }
    }

    fn select(&self, model: &ModelManifest) -> Result<Arc<dyn Backend>> {
        let mut candidates = Vec::new();
        for descriptor in self.iter() {
            let (verdict, backend) = judge(descriptor, model);
            match backend {
                Some(backend) if verdict.outcome == Outcome::Usable => return Ok(backend),
                _ => candidates.push(verdict),
            }
        }
        Err(Error::no_backend(model.path(), candidates))
    }
}

/// A load that is being set up; `.await` runs it.
#[derive(Debug, Clone)]
#[must_use = "a load does nothing until it is awaited"]
pub struct Load {
    registry: Registry,
    path: PathBuf,
    backend: Option<String>,
    options: LoadOptions,
}

impl Load {
    /// Uses this backend instead of the first that is available and supports the model.
    pub fn backend(mut self, id: impl Into<String>) -> Self {
        self.backend = Some(id.into());
        self
    }

    /// Loads with these options.
    pub fn options(mut self, options: LoadOptions) -> Self {
        self.options = options;
        self
    }

    async fn run(self) -> Result<Arc<dyn TextModel>> {
        self.options.validate()?;
        // An unknown backend is said before the folder is read.
        let named = self.backend.as_deref().map(|id| self.registry.open(id)).transpose()?;
        let cancel = self.options.cancel.clone();
        let Self { registry, path, options, .. } = self;
        let (model, backend) = spawn_blocking(move || {
            let model = ModelManifest::read(&path)?;
            let backend = match named {
                Some(backend) => match backend.supports(&model) {
                    Support::Yes => backend,
                    Support::No(reason) => {
                        return Err(Error::unsupported_model(backend.info().id, reason));
                    }
                },
                None => registry.select(&model)?,
            };
            Ok((model, backend))
        })
        .await?;
        let id = backend.info().id;
        refuse_missing(id, backend.capabilities(), options.required_features())?;
        options.extensions.check(id, backend.extensions())?;
        let model = match options.adapter.clone() {
            Some(folder) => {
                spawn_blocking(move || AdapterManifest::read(folder, &model).map(|_| model)).await?
            }
            None => model,
        };
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let span =
            tracing::info_span!("load", backend = id, model = %Printable(&model.path().to_string_lossy()));
        let generation = model.generation_config().clone();
        let model = tracing::Instrument::instrument(backend.load(model, options), span).await?;
        Ok(Arc::new(CheckedModel::with_generation_config(model, &*backend, generation)))
    }
}

impl IntoFuture for Load {
    type Output = Result<Arc<dyn TextModel>>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        self.run().boxed()
    }
}

/// Loads the model in a folder with the best of the linked backends: await it, or set options first.
///
/// ```no_run
/// # async fn example() -> inference_core::Result<()> {
/// let model = inference_core::load_model("models/demo").await?;
/// let same = inference_core::load_model("models/demo").backend("mlx_lm").await?;
/// # Ok(()) }
/// ```
pub fn load_model(path: impl Into<PathBuf>) -> Load {
    Registry::linked().load_model(path)
}

/// The verdict of each linked backend on the model in a folder, in order of preference.
///
/// # Errors
/// The folder is not a model.
pub fn explain(path: impl AsRef<Path>) -> Result<Vec<Verdict>> {
    Ok(Registry::linked().explain(&ModelManifest::read(path)?))
}

fn judge(descriptor: &BackendDescriptor, model: &ModelManifest) -> (Verdict, Option<Arc<dyn Backend>>) {
    let verdict =
        |outcome| Verdict { backend: descriptor.id.to_owned(), priority: descriptor.priority, outcome };
    if let Availability::Unavailable(reason) = (descriptor.probe)() {
        return (verdict(Outcome::Unavailable(reason)), None);
    }
    let backend = match (descriptor.open)() {
        Ok(backend) => backend,
        Err(error) => return (verdict(Outcome::Unavailable(error.to_string())), None),
    };
    let outcome = match backend.supports(model) {
        Support::Yes if descriptor.priority < 0 => Outcome::OnlyWhenNamed,
        Support::Yes => Outcome::Usable,
        Support::No(reason) => Outcome::Unsupported(reason),
    };
    (verdict(outcome), Some(backend))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(id: &'static str, priority: i32) -> BackendDescriptor {
        BackendDescriptor::new(
            id,
            priority,
            || Availability::Unavailable("a test".into()),
            || Err(Error::Closed),
        )
    }

    #[test]
    fn order_is_priority_then_id_and_the_last_of_an_id_wins() {
        let registry = Registry::empty()
            .with(descriptor("b", 1))
            .with(descriptor("a", 1))
            .with(descriptor("c", 9))
            .with(descriptor("c", 0));
        assert_eq!(registry.iter().map(|d| d.id).collect::<Vec<_>>(), ["a", "b", "c"]);
    }

    #[test]
    fn an_unknown_backend_lists_the_known() {
        let error = Registry::empty().with(descriptor("a", 1)).open("z").unwrap_err();
        assert!(error.to_string().ends_with("available: a"), "{error}");
    }

    #[test]
    fn an_unavailable_backend_says_why() {
        let error = Registry::empty().with(descriptor("a", 1)).open("a").unwrap_err();
        assert_eq!(error.to_string(), "backend a is not usable here: a test");
    }
}
