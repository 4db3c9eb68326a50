//! The client of one child process: sends requests and routes each event to the call that waits for it.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use child_process::{Child, Deadline, Handle, Launch, Watcher, excerpt};
use futures::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use inference_core::{Error, Result};
use tokio::sync::{mpsc, oneshot};

use crate::{
    ID,
    protocol::{self, Event, Hello, Memory, Request},
};

/// How long a child may take to close.
const CLOSING_TIME: Duration = Duration::from_secs(5);

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection to one child. Dropping it ends the child.
#[derive(Debug)]
pub(crate) struct Client {
    handle: Handle,
    shared: Arc<Shared>,
    tasks: mpsc::UnboundedSender<Task>,
}

/// The events that answer one request. The channel closes when the child ends.
#[derive(Debug)]
pub(crate) struct Answers {
    pub(crate) id: u64,
    events: mpsc::UnboundedReceiver<Event>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    hang_timeout: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    hello: Option<oneshot::Sender<Hello>>,
    routes: HashMap<u64, Route>,
    /// The next request's id.
    next: u64,
    /// When the child was last heard, or got work after it had none.
    last_heard: Instant,
    /// Why the supervisor must kill the child at once.
    protocol_violation: Option<String>,
    /// When a closing child is killed.
    closing: Option<Instant>,
    memory: Memory,
    /// Why the child ended.
    ended: Option<String>,
}

#[derive(Debug)]
struct Route {
    events: mpsc::UnboundedSender<Event>,
    /// Whether the child must answer. It need not while a generation has no credit.
    awaiting_reply: bool,
    /// When the caller of a cancelled request stops waiting for the child's last message.
    abandon_at: Option<Instant>,
}

impl Client {
    /// Starts a child and waits for its greeting.
    pub(crate) async fn start(launch: Launch, hang_timeout: Duration) -> Result<(Self, Hello)> {
        let (greeted, hello) = oneshot::channel();
        let state = State {
            hello: Some(greeted),
            routes: HashMap::new(),
            next: 1,
            last_heard: Instant::now(),
            protocol_violation: None,
            closing: None,
            memory: Memory::default(),
            ended: None,
        };
        let shared = Arc::new(Shared { hang_timeout, state: Mutex::new(state) });
        let no_thread = |error| Error::backend(ID, "start a thread", error);
        let handle = child_process::start(launch, shared.clone()).map_err(no_thread)?;
        let (tasks, receiver) = mpsc::unbounded_channel();
        let driver = std::thread::Builder::new().name("mlx_lm".to_owned());
        driver.spawn(move || futures::executor::block_on(drive(receiver))).map_err(no_thread)?;
        let client = Self { handle, shared, tasks };
        match hello.await {
            Ok(hello) => Ok((client, hello)),
            Err(_) => Err(client.shared.stopped()),
        }
    }

    /// Assigns an id, sends the request that `request` builds with it, and returns the channel of its events.
    pub(crate) fn request(&self, request: impl FnOnce(u64) -> Request) -> Answers {
        let (sender, events) = mpsc::unbounded_channel();
        let mut state = self.shared.lock();
        let id = state.next;
        state.next += 1;
        if state.ended.is_none() {
            state.start_waiting();
            state.routes.insert(id, Route { events: sender, awaiting_reply: true, abandon_at: None });
        }
        drop(state);
        self.handle.wake();
        self.send(&request(id));
        Answers { id, events, shared: self.shared.clone() }
    }

    /// Sends a request without waiting for an answer.
    pub(crate) fn send(&self, request: &Request) {
        match serde_json::to_string(request) {
            Ok(line) => self.handle.send(line),
            Err(error) => tracing::error!("a request cannot be written: {error}"),
        }
    }

    /// Sets whether the child must answer this request now; the hang timeout runs only while it must.
    pub(crate) fn set_awaiting_reply(&self, id: u64, awaiting_reply: bool) {
        let mut state = self.shared.lock();
        if awaiting_reply {
            state.start_waiting();
        }
        if let Some(route) = state.routes.get_mut(&id) {
            route.awaiting_reply = awaiting_reply;
        }
        drop(state);
        self.handle.wake();
    }

    /// Asks the child to cancel a request. Its events end after `grace`, whether the child has answered or not.
    pub(crate) fn cancel(&self, id: u64, grace: Duration) {
        if let Some(route) = self.shared.lock().routes.get_mut(&id) {
            route.abandon_at.get_or_insert(Instant::now() + grace);
        }
        self.set_awaiting_reply(id, true);
        self.send(&Request::Cancel { id });
    }

    /// Runs a task on the client's own thread.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        // The thread ends after the last client.
        let _ = self.tasks.send(Box::pin(task));
    }

    /// The memory use that the child reported last. Requests a new report.
    pub(crate) fn memory(&self) -> Memory {
        self.send(&Request::Stats { id: 0 });
        self.shared.lock().memory
    }

    /// Kills the child because it violated the protocol.
    pub(crate) fn report_violation(&self, reason: String) {
        self.shared.lock().protocol_violation.get_or_insert(reason);
        self.handle.wake();
    }

    /// Ends the child; returns when it is gone.
    pub(crate) async fn close(&self) {
        let mut answers = self.request(|id| Request::Close { id });
        self.shared.lock().closing.get_or_insert_with(|| Instant::now() + CLOSING_TIME);
        self.handle.wake();
        while answers.next().await.is_some() {}
    }
}

impl Child for Client {
    fn ended(&self) -> Option<Error> {
        let ended = self.shared.lock().ended.is_some();
        ended.then(|| self.shared.stopped())
    }

    fn kill(&self) {
        self.handle.kill();
    }
}

impl Answers {
    /// The next event; `None` when the child has ended, or a cancelled request has waited long enough.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Whether the child has ended. Otherwise the events end when a cancelled request's grace is over.
    pub(crate) fn has_stopped(&self) -> bool {
        self.shared.lock().ended.is_some()
    }

    /// The error that says why the child ended.
    pub(crate) fn stopped(&self) -> Error {
        self.shared.stopped()
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.shared.lock().routes.remove(&self.id);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> Error {
        let reason = self.lock().ended.clone().unwrap_or_else(|| "the Python process is gone".to_owned());
        Error::stopped(ID, reason)
    }
}

impl State {
    /// Restarts the hang timeout unless it runs already.
    fn start_waiting(&mut self) {
        if !self.is_awaiting_reply() {
            self.last_heard = Instant::now();
        }
    }

    fn is_awaiting_reply(&self) -> bool {
        self.hello.is_some() || self.routes.values().any(|route| route.awaiting_reply)
    }

    fn greet(&mut self, hello: Hello) -> Result<(), String> {
        if hello.protocol != protocol::VERSION {
            return Err(format!(
                "it speaks version {} of the protocol, expected {}",
                hello.protocol,
                protocol::VERSION
            ));
        }
        let Some(greeted) = self.hello.take() else { return Err("it greeted twice".to_owned()) };
        // Whoever waited may have gone.
        let _ = greeted.send(hello);
        Ok(())
    }
}

impl Watcher for Shared {
    fn line(&self, line: &[u8]) -> Result<(), String> {
        let event: Event = serde_json::from_slice(line)
            .map_err(|error| format!("it sent a line that is not a message ({error}): {}", excerpt(line)))?;
        let mut state = self.lock();
        state.last_heard = Instant::now();
        match event {
            Event::Hello(hello) => return state.greet(hello),
            _ if state.hello.is_some() => {
                return Err(format!("it sent a message before its greeting: {}", excerpt(line)));
            }
            Event::Loaded { memory, .. } | Event::Stats { memory, .. } => state.memory = memory,
            Event::Error { id: None, message, .. } => {
                return Err(format!("it rejected a request: {message}"));
            }
            _ => {}
        }
        let Some(id) = event.id() else { return Ok(()) };
        if id >= state.next {
            return Err(format!("it answered a request that was never sent: {}", excerpt(line)));
        }
        // Events of a finished request are dropped: they crossed its cancellation.
        if let Some(route) = state.routes.get(&id) {
            let _ = route.events.send(event);
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Deadline> {
        let mut state = self.lock();
        let now = Instant::now();
        if let Some(reason) = state.protocol_violation.clone() {
            return Some(Deadline { at: now, kill: Some(reason) });
        }
        // Dropping a route ends its events.
        state.routes.retain(|_, route| route.abandon_at.is_none_or(|at| at > now));
        let abandon = state.routes.values().filter_map(|route| route.abandon_at).min();
        let abandon = abandon.map(|at| Deadline { at, kill: None });
        let kill = match state.closing {
            Some(at) => Some(Deadline { at, kill: Some("it did not close".to_owned()) }),
            None => state.is_awaiting_reply().then(|| {
                let seconds = self.hang_timeout.as_secs_f32();
                let reason = format!("it sent nothing for {seconds} s while it had work to do");
                Deadline { at: state.last_heard + self.hang_timeout, kill: Some(reason) }
            }),
        };
        kill.into_iter().chain(abandon).min_by_key(|deadline| deadline.at)
    }

    fn log(&self, line: &str) {
        tracing::debug!(target: "backend_mlxlm::child", "{line}");
    }

    fn ended(&self, reason: String) {
        tracing::debug!("{reason}");
        let mut state = self.lock();
        state.ended = Some(reason);
        state.hello = None;
        state.routes.clear();
    }
}

/// Runs tasks until there are none and none can come.
async fn drive(mut incoming: mpsc::UnboundedReceiver<Task>) {
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(()) = running.next() => {}
            task = incoming.recv() => match task {
                // One task's panic must not end the others'.
                Some(task) => running.push(AssertUnwindSafe(task).catch_unwind().map(drop)),
                None => break,
            },
        }
    }
    while running.next().await.is_some() {}
}
