//! One child: its start, its requests, its end.

use std::{
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use child_process::{Child, Deadline, Handle, KillOnDrop, Killer, Watcher};
use hyper::Method;
use inference_core::{
    CancellationToken, Error, LoadProgress, MemoryUsage, Result,
    backend::{BoxError, Progress},
};
use rand::distr::{Alphanumeric, SampleString as _};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    command::Setup,
    events::EventReader,
    failure::{failed_load, refused},
    http::{Address, Answer},
    protocol::{Part, Refusal},
    slots::Slots,
};

/// Bytes of an answer that is no stream.
const LONGEST_ANSWER: usize = 256 << 20;

/// How long a child that closed a connection may take to end.
const GRACE: Duration = Duration::from_secs(2);

/// Between two questions whether the model is loaded.
const LOAD_POLL: Duration = Duration::from_millis(10);

/// Bytes of the path of a socket: `sun_path` has 104 on macOS, with its end.
const LONGEST_SOCKET: usize = 103;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection to one child. Dropping it ends the child.
#[derive(Debug)]
pub(crate) struct Client {
    handle: Handle,
    shared: Arc<Shared>,
    tasks: mpsc::UnboundedSender<Task>,
    address: Address,
    pub(crate) slots: Arc<Slots>,
    hang_timeout: Duration,
    /// Holds the socket, and slots while they are saved or restored.
    folder: tempfile::TempDir,
}

#[derive(Debug)]
struct Shared {
    backend: &'static str,
    /// Why the child ended.
    ended: Mutex<Option<String>>,
    /// Cancelled when the child has ended.
    gone: CancellationToken,
}

impl Client {
    /// Starts a child and waits until it has loaded the model.
    pub(crate) async fn start(
        setup: &Setup,
        progress: Option<&Progress>,
        cancel: &CancellationToken,
    ) -> Result<Arc<Self>> {
        let client = KillOnDrop::new(Arc::new(Self::launch(setup)?));
        let (inner, until) = (client.weak(), Instant::now() + setup.load_timeout());
        let (progress, total) = (progress.cloned(), setup.weight_bytes);
        let loading = client.run(async move { inner.loaded(until, progress.as_ref(), total).await });
        let loaded = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(Error::Cancelled),
            loaded = loading => loaded,
        };
        match loaded {
            Ok(()) => Ok(client.keep()),
            Err(Error::Stopped { reason, .. }) => Err(failed_load(setup.backend, &setup.model, reason)),
            Err(error) => Err(error),
        }
    }

    fn launch(setup: &Setup) -> Result<Self> {
        let backend = setup.backend;
        let io = |action: &'static str| move |error: std::io::Error| Error::backend(backend, action, error);
        let folder = private_folder().map_err(io("make a temporary folder"))?;
        let address = Address {
            socket: folder.path().join("s.sock"),
            key: Alphanumeric.sample_string(&mut rand::rng(), 32).into(),
        };
        let launch = setup.launch(&address.socket, folder.path(), &address.key);
        let shared = Arc::new(Shared { backend, ended: Mutex::default(), gone: CancellationToken::new() });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
        let runtime = runtime.map_err(io("make a runtime"))?;
        let (tasks, incoming) = mpsc::unbounded_channel();
        let named = thread::Builder::new().name(backend.to_owned());
        named.spawn(move || runtime.block_on(drive(incoming))).map_err(io("start a thread"))?;
        let handle = child_process::start(launch, shared.clone()).map_err(io("start a thread"))?;
        let slots = Arc::new(Slots::new(setup.slots));
        Ok(Self { handle, shared, tasks, address, slots, hang_timeout: setup.options.hang_timeout, folder })
    }

    /// The id of the backend.
    pub(crate) fn backend(&self) -> &'static str {
        self.shared.backend
    }

    /// What a request needs of this child, without keeping it alive.
    pub(crate) fn weak(&self) -> Requests {
        Requests {
            address: self.address.clone(),
            shared: self.shared.clone(),
            hang_timeout: self.hang_timeout,
            killer: self.handle.killer(),
            id: self.handle.id(),
        }
    }

    /// Runs a task on the client's own thread, which has a runtime.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        // The thread ends after the last client.
        let _ = self.tasks.send(Box::pin(task));
    }

    /// Runs work on the client's own thread. Dropping the future ends it.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (mut done, outcome) = oneshot::channel();
        self.spawn(async move {
            let result = tokio::select! {
                result = work => result,
                () = done.closed() => return,
            };
            // Whoever waited may have gone.
            let _ = done.send(result);
        });
        outcome.await.unwrap_or_else(|_| Err(self.shared.stopped("its thread is gone")))
    }

    /// The folder in which the child saves and restores slots.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Memory of the child, as far as the system tells.
    pub(crate) fn memory(&self) -> MemoryUsage {
        let mut usage = MemoryUsage::default();
        let status =
            self.handle.id().and_then(|id| std::fs::read_to_string(format!("/proc/{id}/status")).ok());
        if let Some(status) = status {
            (usage.active_bytes, usage.peak_bytes) =
                (kilobytes(&status, "VmRSS:"), kilobytes(&status, "VmHWM:"));
        }
        usage
    }

    /// Ends the child; returns when it is gone.
    pub(crate) async fn close(&self) {
        self.handle.kill();
        self.shared.gone.cancelled().await;
    }
}

impl Child for Client {
    fn ended(&self) -> Option<Error> {
        let ended = self.shared.lock().is_some();
        ended.then(|| self.shared.stopped(""))
    }

    fn kill(&self) {
        self.handle.kill();
    }
}

/// Requests of one child. They need the client's thread.
#[derive(Debug, Clone)]
pub(crate) struct Requests {
    address: Address,
    shared: Arc<Shared>,
    hang_timeout: Duration,
    killer: Killer,
    id: Option<u32>,
}

/// The parts of a streamed answer. Dropping it cancels the request.
#[derive(Debug)]
pub(crate) struct Parts {
    requests: Requests,
    answer: Answer,
    reader: EventReader,
    ready: std::collections::VecDeque<Value>,
}

impl Requests {
    /// Waits until the model is loaded.
    async fn loaded(&self, until: Instant, progress: Option<&Progress>, total: u64) -> Result<()> {
        let mut reported = u64::MAX;
        loop {
            if let Some(progress) = progress {
                // What it has read is in its memory, or was.
                let bytes = self.resident().min(total);
                if bytes != reported {
                    progress.report(LoadProgress::new(bytes, total));
                    reported = bytes;
                }
            }
            let asked = self.address.send(Method::GET, "/health", None);
            let status = tokio::select! {
                () = self.shared.gone.cancelled() => return Err(self.shared.stopped("")),
                answer = asked => answer.ok().map(|answer| answer.status),
            };
            if status.is_some_and(|status| status.is_success()) {
                if let Some(progress) = progress {
                    progress.report(LoadProgress::new(total, total));
                }
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(self.kill("it did not load the model in time").await);
            }
            sleep(LOAD_POLL).await;
        }
    }

    /// The error of an answer that makes no sense.
    pub(crate) fn failed(&self, action: &'static str, reason: String) -> Error {
        Error::backend(self.shared.backend, action, reason)
    }

    fn resident(&self) -> u64 {
        let status = self.id.and_then(|id| std::fs::read_to_string(format!("/proc/{id}/status")).ok());
        status.map_or(0, |status| kilobytes(&status, "VmRSS:"))
    }

    /// The answer to a question.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.answer(Method::GET, path, None, "say what it has").await
    }

    /// The answer to a request.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
        action: &str,
    ) -> Result<T> {
        self.answer(Method::POST, path, Some(body), action).await
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        action: &str,
    ) -> Result<T> {
        let answer = self.send(method, path, body, action).await?;
        let bytes = self.heard(answer.bytes(LONGEST_ANSWER)).await?;
        match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(value),
            Err(error) => {
                let shown = child_process::excerpt(&bytes);
                Err(self.kill(&format!("it answered {path} with something else ({error}): {shown}")).await)
            }
        }
    }

    /// The streamed answer to a completion.
    pub(crate) async fn stream(&self, body: &Value) -> Result<Parts> {
        let answer = self.send(Method::POST, "/completion", Some(body), "generate").await?;
        let (requests, reader) = (self.clone(), EventReader::default());
        Ok(Parts { requests, answer, reader, ready: std::collections::VecDeque::new() })
    }

    /// Sends a request; an answer that refuses it is the error.
    async fn send(&self, method: Method, path: &str, body: Option<&Value>, action: &str) -> Result<Answer> {
        let answer = self.heard(self.address.send(method, path, body)).await?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        let status = answer.status;
        let bytes = self.heard(answer.bytes(LONGEST_ANSWER)).await?;
        match serde_json::from_slice::<Refusal>(&bytes) {
            Ok(refusal) if !refusal.error.message.is_empty() => {
                Err(refused(self.shared.backend, action, &refusal.error))
            }
            _ => {
                let shown = child_process::excerpt(&bytes);
                Err(self.kill(&format!("it answered {path} with {status}: {shown}")).await)
            }
        }
    }

    /// Waits for the child, which must say something within its time.
    async fn heard<T>(&self, saying: impl Future<Output = Result<T, BoxError>>) -> Result<T> {
        match timeout(self.hang_timeout, saying).await {
            Ok(Ok(said)) => Ok(said),
            Ok(Err(error)) => Err(self.lost(&error).await),
            Err(_) => {
                let seconds = self.hang_timeout.as_secs_f32();
                Err(self.kill(&format!("it sent nothing for {seconds} s while it had work to do")).await)
            }
        }
    }

    /// The error of a connection that broke: mostly the child has ended, and says why in a moment.
    async fn lost(&self, error: &BoxError) -> Error {
        // It may also have closed a single connection.
        let _ = timeout(GRACE, self.shared.gone.cancelled()).await;
        self.shared.stopped(&format!("the connection to llama-server broke: {error}"))
    }

    /// Has the child killed for this reason; the error that says so.
    async fn kill(&self, reason: &str) -> Error {
        self.killer.kill(reason);
        let _ = timeout(GRACE, self.shared.gone.cancelled()).await;
        self.shared.stopped(reason)
    }
}

impl Parts {
    /// The next part; `None` at the end of the answer.
    pub(crate) async fn next(&mut self) -> Result<Option<Part>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return self.part(event).await.map(Some);
            }
            let requests = self.requests.clone();
            let Some(bytes) = requests.heard(self.answer.chunk()).await? else { return Ok(None) };
            match self.reader.push(&bytes) {
                Ok(events) => self.ready.extend(events),
                Err(reason) => return Err(requests.kill(&reason).await),
            }
        }
    }

    async fn part(&self, event: Value) -> Result<Part> {
        match serde_json::from_value::<Part>(event) {
            Ok(Part { error: Some(error), .. }) => {
                Err(refused(self.requests.shared.backend, "generate", &error))
            }
            Ok(part) => Ok(part),
            Err(error) => {
                Err(self.requests.kill(&format!("a part of its answer makes no sense: {error}")).await)
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The error that says why the child ended, or this reason where it lives.
    fn stopped(&self, otherwise: &str) -> Error {
        let ended = self.lock().clone();
        let reason = ended.unwrap_or_else(|| otherwise.to_owned());
        Error::stopped(self.backend, reason)
    }
}

impl Watcher for Shared {
    fn line(&self, line: &[u8]) -> Result<(), String> {
        self.log(&String::from_utf8_lossy(line));
        Ok(())
    }

    fn deadline(&self) -> Option<Deadline> {
        // Who waits for an answer keeps the time.
        None
    }

    fn log(&self, line: &str) {
        tracing::debug!(target: "backend_llamacpp::child", "{line}");
    }

    fn ended(&self, reason: String) {
        tracing::debug!("{reason}");
        *self.lock() = Some(reason);
        self.gone.cancel();
    }
}

/// Runs tasks until there are none and none can come.
async fn drive(mut incoming: mpsc::UnboundedReceiver<Task>) {
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = running.join_next() => {}
            task = incoming.recv() => match task {
                Some(task) => drop(running.spawn(task)),
                None => break,
            },
        }
    }
    while running.join_next().await.is_some() {}
}

/// A temporary folder that only the user can enter, with a path that is short enough for a socket in it.
fn private_folder() -> std::io::Result<tempfile::TempDir> {
    let named = || tempfile::Builder::new().prefix("llama-").clone();
    let folder = named().tempdir()?;
    if folder.path().as_os_str().len() + "/s.sock".len() <= LONGEST_SOCKET {
        return Ok(folder);
    }
    named().tempdir_in("/tmp")
}

/// A field of `/proc/<id>/status`, in bytes.
fn kilobytes(status: &str, field: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    number.unwrap_or(0).saturating_mul(1024)
}
