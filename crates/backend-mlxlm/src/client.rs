//! The conversation with one child: requests out, events in, each to whoever waits for it.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use inference_core::{Error, Result};
use tokio::sync::{mpsc, oneshot};

use crate::{
    ID,
    process::{self, Deadline, Handle, Launch, Watcher, excerpt},
    protocol::{self, Event, Hello, Memory, Request},
};

/// How long a child that was told to close may take.
const CLOSING_TIME: Duration = Duration::from_secs(5);

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One child and the conversation with it. Dropping it ends the child.
#[derive(Debug)]
pub(crate) struct Client {
    handle: Handle,
    shared: Arc<Shared>,
    tasks: mpsc::UnboundedSender<Task>,
}

/// The events that answer one request; it ends with the child.
#[derive(Debug)]
pub(crate) struct Answers {
    pub(crate) id: u64,
    events: mpsc::UnboundedReceiver<Event>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    patience: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    hello: Option<oneshot::Sender<Hello>>,
    routes: HashMap<u64, Route>,
    /// The next request's id.
    next: u64,
    /// Since when the child has had work and has been silent.
    quiet_since: Instant,
    /// Why the child is to be killed at once.
    breach: Option<String>,
    /// When the child is to be gone.
    closing: Option<Instant>,
    memory: Memory,
    /// Why the child ended.
    ended: Option<String>,
}

#[derive(Debug)]
struct Route {
    events: mpsc::UnboundedSender<Event>,
    /// Whether the child owes something; a generation without credit is none of its business.
    owed: bool,
}

impl Client {
    /// Starts a child and waits for its greeting.
    pub(crate) async fn start(launch: Launch, patience: Duration) -> Result<(Self, Hello)> {
        let (greeted, hello) = oneshot::channel();
        let state = State {
            hello: Some(greeted),
            routes: HashMap::new(),
            next: 1,
            quiet_since: Instant::now(),
            breach: None,
            closing: None,
            memory: Memory::default(),
            ended: None,
        };
        let shared = Arc::new(Shared { patience, state: Mutex::new(state) });
        let no_thread = |error| Error::backend(ID, "start a thread", error);
        let handle = process::start(launch, shared.clone()).map_err(no_thread)?;
        let (tasks, receiver) = mpsc::unbounded_channel();
        let driver = std::thread::Builder::new().name("mlx_lm".to_owned());
        driver.spawn(move || futures::executor::block_on(drive(receiver))).map_err(no_thread)?;
        let client = Self { handle, shared, tasks };
        match hello.await {
            Ok(hello) => Ok((client, hello)),
            Err(_) => Err(client.shared.stopped()),
        }
    }

    /// Sends a request, made for the id that it gets.
    pub(crate) fn request(&self, request: impl FnOnce(u64) -> Request) -> Answers {
        let (sender, events) = mpsc::unbounded_channel();
        let mut state = self.shared.lock();
        let id = state.next;
        state.next += 1;
        if state.ended.is_none() {
            state.owe();
            state.routes.insert(id, Route { events: sender, owed: true });
        }
        drop(state);
        self.handle.wake();
        self.send(&request(id));
        Answers { id, events, shared: self.shared.clone() }
    }

    /// Sends a request that nobody waits for an answer to.
    pub(crate) fn send(&self, request: &Request) {
        match serde_json::to_string(request) {
            Ok(line) => self.handle.send(line),
            Err(error) => tracing::error!("a request cannot be written: {error}"),
        }
    }

    /// Says whether the child owes something to this request.
    pub(crate) fn set_owed(&self, id: u64, owed: bool) {
        let mut state = self.shared.lock();
        if owed {
            state.owe();
        }
        if let Some(route) = state.routes.get_mut(&id) {
            route.owed = owed;
        }
        drop(state);
        self.handle.wake();
    }

    /// Runs a task on the client's own thread.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        // The thread ends after the last client.
        let _ = self.tasks.send(Box::pin(task));
    }

    /// What the child last said of its memory; asks for news.
    pub(crate) fn memory(&self) -> Memory {
        self.send(&Request::Stats { id: 0 });
        self.shared.lock().memory
    }

    /// Why the child ended, if it has.
    pub(crate) fn ended(&self) -> Option<Error> {
        let ended = self.shared.lock().ended.is_some();
        ended.then(|| self.shared.stopped())
    }

    /// Kills the child for a breach of the protocol.
    pub(crate) fn breach(&self, reason: String) {
        self.shared.lock().breach.get_or_insert(reason);
        self.handle.wake();
    }

    pub(crate) fn kill(&self) {
        self.handle.kill();
    }

    /// Ends the child; returns when it is gone.
    pub(crate) async fn close(&self) {
        let mut answers = self.request(|id| Request::Close { id });
        self.shared.lock().closing.get_or_insert_with(|| Instant::now() + CLOSING_TIME);
        self.handle.wake();
        while answers.next().await.is_some() {}
    }
}

impl Answers {
    /// The next event; `None` when the child is gone.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The error that tells why the child is gone.
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
        Error::Stopped { backend: ID.to_owned(), reason }
    }
}

impl State {
    /// The child owes something from now on.
    fn owe(&mut self) {
        if !self.is_owed() {
            self.quiet_since = Instant::now();
        }
    }

    fn is_owed(&self) -> bool {
        self.hello.is_some() || self.routes.values().any(|route| route.owed)
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
            .map_err(|error| format!("it sent what is no message ({error}): {}", excerpt(line)))?;
        let mut state = self.lock();
        state.quiet_since = Instant::now();
        match event {
            Event::Hello(hello) => return state.greet(hello),
            _ if state.hello.is_some() => {
                return Err(format!("it began without a greeting: {}", excerpt(line)));
            }
            Event::Loaded { memory, .. } | Event::Stats { memory, .. } => state.memory = memory,
            Event::Error { id: None, message, .. } => {
                return Err(format!("it did not understand a request: {message}"));
            }
            _ => {}
        }
        let Some(id) = event.id() else { return Ok(()) };
        if id >= state.next {
            return Err(format!("it answered a request that was not made: {}", excerpt(line)));
        }
        // What comes for a request that is over crossed its cancellation.
        if let Some(route) = state.routes.get(&id) {
            let _ = route.events.send(event);
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Deadline> {
        let state = self.lock();
        let silence = || format!("it had work to do and said nothing for {} s", self.patience.as_secs_f32());
        if let Some(reason) = state.breach.clone() {
            return Some(Deadline { at: Instant::now(), reason });
        }
        if let Some(at) = state.closing {
            return Some(Deadline { at, reason: "it did not close".to_owned() });
        }
        state.is_owed().then(|| Deadline { at: state.quiet_since + self.patience, reason: silence() })
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
