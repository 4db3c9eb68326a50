//! What is put to the test, and how.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{future::BoxFuture, lock::Mutex};
use inference_core::{
    Dtype, Feature, GenerateOptions, Load, LoadOptions, Message, ModelManifest, Prompt, Registry, Result,
    TextModel,
    backend::{Backend, BackendDescriptor, Capabilities},
};

type Loader = Arc<dyn Fn(Load) -> BoxFuture<'static, Result<Arc<dyn TextModel>>> + Send + Sync>;

/// How far numbers of equal requests may differ that are computed in single precision.
const SINGLE: f64 = 1e-3;

/// A backend and a model, with what the kit needs to know of them. Cheap to clone.
#[derive(Clone)]
pub struct Subject {
    descriptor: BackendDescriptor,
    folder: PathBuf,
    load_options: LoadOptions,
    loader: Option<Loader>,
    model: Arc<Mutex<Option<Arc<dyn TextModel>>>>,
    embedder_folder: Option<PathBuf>,
    embedder: Arc<Mutex<Option<Arc<dyn TextModel>>>>,
    reranker_folder: Option<PathBuf>,
    reranker: Arc<Mutex<Option<Arc<dyn TextModel>>>>,
    pub(crate) expected: BTreeMap<String, String>,
    pub(crate) deadline: Duration,
    pub(crate) prompt: Prompt,
    pub(crate) ending_prompt: Option<Prompt>,
    pub(crate) rendering: Option<(Vec<Message>, Vec<u32>)>,
    pub(crate) long_prompt: usize,
    pub(crate) prefill_chunk: usize,
    pub(crate) draws: usize,
    tolerance: Option<f64>,
}

impl Subject {
    /// A backend, and the folder of a model that it can load.
    pub fn new(descriptor: BackendDescriptor, folder: impl Into<PathBuf>) -> Self {
        Self {
            descriptor,
            folder: folder.into(),
            load_options: LoadOptions::new(),
            loader: None,
            model: Arc::default(),
            embedder_folder: None,
            embedder: Arc::default(),
            reranker_folder: None,
            reranker: Arc::default(),
            expected: BTreeMap::new(),
            deadline: Duration::from_secs(60),
            prompt: "The quick brown fox jumps over the lazy dog, and then it runs back to the".into(),
            ending_prompt: None,
            rendering: None,
            long_prompt: 4096,
            prefill_chunk: 512,
            draws: 400,
            tolerance: None,
        }
    }

    /// A backend that the program links, by its id.
    ///
    /// # Errors
    /// [`UnknownBackend`](inference_core::Error::UnknownBackend): it is not linked. A crate that no code names registers nothing.
    pub fn linked(id: &str, folder: impl Into<PathBuf>) -> Result<Self> {
        Ok(Self::new(*Registry::linked().get(id)?, folder))
    }

    /// Loads with these options wherever a clause has no reason for its own.
    #[must_use]
    pub fn load_options(mut self, options: LoadOptions) -> Self {
        self.load_options = options;
        self
    }

    /// The folder of a model that embeds, where the subject's own does not.
    #[must_use]
    pub fn embedder_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.embedder_folder = Some(folder.into());
        self
    }

    /// The folder of a model that reranks, where the subject's own does not.
    #[must_use]
    pub fn reranker_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.reranker_folder = Some(folder.into());
        self
    }

    /// Awaits each [`Load`] in this way: for a front door of one's own, or models that wrap the backend's and keep the
    /// contract by passing it on.
    #[must_use]
    pub fn loaded_by(
        mut self,
        loader: impl Fn(Load) -> BoxFuture<'static, Result<Arc<dyn TextModel>>> + Send + Sync + 'static,
    ) -> Self {
        self.loader = Some(Arc::new(loader));
        self
    }

    /// Expects this clause (`cancelling::during_decode`) to fail. The report says so with the reason, and fails if the
    /// clause is kept after all.
    #[must_use]
    pub fn expect_failure(mut self, clause: impl Into<String>, reason: impl Into<String>) -> Self {
        self.expected.insert(clause.into(), reason.into());
        self
    }

    /// How long one clause may take; 60 seconds where unset. A clause that hangs fails, and the run goes on.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The prompt of most requests, of at least eight tokens; an English sentence where unset.
    #[must_use]
    pub fn prompt(mut self, prompt: impl Into<Prompt>) -> Self {
        self.prompt = prompt.into();
        self
    }

    /// A prompt that the model greedily ends itself within 64 tokens. Needed where the backend has no logit bias to force
    /// an end with.
    #[must_use]
    pub fn ending_prompt(mut self, prompt: impl Into<Prompt>) -> Self {
        self.ending_prompt = Some(prompt.into());
        self
    }

    /// A conversation and the ids that its rendering comes to, generation prompt included. Lets the kit compare the chat
    /// with the bare ids.
    #[must_use]
    pub fn rendering(mut self, messages: Vec<Message>, ids: Vec<u32>) -> Self {
        self.rendering = Some((messages, ids));
        self
    }

    /// Tokens of the prompt that is cancelled during its prefill: several of the engine's chunks (4096 where unset; never
    /// more than half of the context).
    #[must_use]
    pub fn long_prompt(mut self, tokens: usize) -> Self {
        self.long_prompt = tokens;
        self
    }

    /// The chunk in which the engine computes prompts by itself (512 where unset): how much work a cancellation may cost.
    #[must_use]
    pub fn prefill_chunk(mut self, tokens: usize) -> Self {
        self.prefill_chunk = tokens;
        self
    }

    /// Draws of one token for each clause about a distribution; 400 where unset. More find smaller faults.
    #[must_use]
    pub fn draws(mut self, draws: usize) -> Self {
        self.draws = draws;
        self
    }

    /// How far log-probabilities and logits of equal requests may differ. Where unset, 1e-3; for a model in half precision the
    /// distance of neighbouring numbers between 16 and 32, of which size the largest logits are: 1/8 in bf16, 1/64 in f16. Equal requests may be
    /// computed in different ways, and each rounds its logits by up to half of that.
    #[must_use]
    pub fn tolerance(mut self, tolerance: f64) -> Self {
        self.tolerance = Some(tolerance);
        self
    }

    /// How far they may differ: see [`tolerance`](Self::tolerance).
    pub(crate) fn log_tolerance(&self) -> Result<f64> {
        let of_type = || {
            Ok(match ModelManifest::read(&self.folder)?.float_dtype() {
                Some(Dtype::Bf16) => 16.0 / 128.0,
                Some(Dtype::F16) => 16.0 / 1024.0,
                _ => SINGLE,
            })
        };
        self.tolerance.map_or_else(of_type, Ok)
    }

    /// How far numbers may differ that are computed from the same logits, and cosines of vectors.
    pub(crate) fn single_tolerance(&self) -> f64 {
        self.tolerance.unwrap_or(SINGLE)
    }

    /// The backend's entry.
    #[must_use]
    pub fn descriptor(&self) -> &BackendDescriptor {
        &self.descriptor
    }

    /// The model's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A registry of this backend alone.
    #[must_use]
    pub fn registry(&self) -> Registry {
        Registry::empty().with(self.descriptor)
    }

    /// The backend, opened again.
    ///
    /// # Errors
    /// It is not available here.
    pub fn backend(&self) -> Result<Arc<dyn Backend>> {
        self.registry().open(self.descriptor.id)
    }

    /// What the backend says it can do.
    ///
    /// # Errors
    /// The backend is not available here.
    pub fn capabilities(&self) -> Result<Capabilities> {
        Ok(self.backend()?.capabilities())
    }

    /// The model that clauses share, loaded at the first call.
    ///
    /// # Errors
    /// It cannot be loaded.
    pub async fn model(&self) -> Result<Arc<dyn TextModel>> {
        let mut model = self.model.lock().await;
        if let Some(model) = &*model {
            return Ok(model.clone());
        }
        let loaded = self.load(self.load_options.clone()).await?;
        *model = Some(loaded.clone());
        Ok(loaded)
    }

    /// The model that reranks, loaded at the first call: the subject's own where no other was given.
    ///
    /// # Errors
    /// It cannot be loaded.
    pub async fn reranker(&self) -> Result<Arc<dyn TextModel>> {
        self.other(self.reranker_folder.as_ref(), &self.reranker).await
    }

    /// The model that embeds, loaded at the first call: the subject's own where no other was given.
    ///
    /// # Errors
    /// It cannot be loaded.
    pub async fn embedder(&self) -> Result<Arc<dyn TextModel>> {
        self.other(self.embedder_folder.as_ref(), &self.embedder).await
    }

    async fn other(
        &self,
        folder: Option<&PathBuf>,
        model: &Mutex<Option<Arc<dyn TextModel>>>,
    ) -> Result<Arc<dyn TextModel>> {
        let Some(folder) = folder else { return self.model().await };
        let mut model = model.lock().await;
        if let Some(model) = &*model {
            return Ok(model.clone());
        }
        let loaded = self.load_folder(folder, self.base_load_options()).await?;
        *model = Some(loaded.clone());
        Ok(loaded)
    }

    /// The model loaded for the caller alone, with the subject's options.
    ///
    /// # Errors
    /// It cannot be loaded.
    pub async fn fresh_model(&self) -> Result<Arc<dyn TextModel>> {
        self.load(self.load_options.clone()).await
    }

    /// The model loaded for the caller alone, with other options, behind the checks of the core.
    ///
    /// # Errors
    /// It cannot be loaded.
    pub async fn load(&self, options: LoadOptions) -> Result<Arc<dyn TextModel>> {
        self.load_folder(&self.folder, options).await
    }

    pub(crate) async fn load_folder(
        &self,
        folder: &Path,
        options: LoadOptions,
    ) -> Result<Arc<dyn TextModel>> {
        self.awaited(self.registry().load_model(folder).backend(self.descriptor.id).options(options)).await
    }

    pub(crate) async fn awaited(&self, load: Load) -> Result<Arc<dyn TextModel>> {
        match &self.loader {
            Some(loader) => loader(load).await,
            None => load.await,
        }
    }

    /// Greedy options for exactly this many tokens: past an end of sequence, where the backend can go on, and whatever the
    /// model's generation_config.json says.
    ///
    /// # Errors
    /// The backend is not available here.
    pub fn greedy(&self, max_tokens: usize) -> Result<GenerateOptions> {
        let options = GenerateOptions::new().max_tokens(max_tokens).temperature(0.0).generation_config(false);
        Ok(if self.capabilities()?.has(Feature::Stop) { options.ignore_eos(true) } else { options })
    }

    /// The load options that apply where a clause adds to them.
    pub(crate) fn base_load_options(&self) -> LoadOptions {
        self.load_options.clone()
    }

    /// The subject without the model that clauses have shared: the next clause loads a new one.
    #[must_use]
    pub fn without_model(&self) -> Self {
        Self { model: Arc::default(), embedder: Arc::default(), reranker: Arc::default(), ..self.clone() }
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject")
            .field("backend", &self.descriptor.id)
            .field("folder", &self.folder)
            .field("expected", &self.expected)
            .finish_non_exhaustive()
    }
}
