//! The MLX thread: one per process, shared by all models and devices.
//!
//! MLX keeps its streams per thread, and a lazy array can be evaluated only where it was built. So one thread owns every
//! model. A load does not stop the others: while weights are read from the disk, they go on.

use std::{
    collections::{BTreeMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::{Either, select, select_all};
use inference_core::{Error, LoadProgress, Result};
use tokio::sync::{
    mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    oneshot,
};

use super::{
    classify::{ClassifyJob, ClassifyRequest},
    embed::{EmbedJob, EmbedRequest},
    guard::panic_text,
    load::{Load, Loaded, load_model},
    row::Request,
    scheduler::{Progress, Scheduler},
    session::SessionCommand,
};
use crate::{
    load,
    mlx::{self, Device},
    train::{TrainJob, TrainRequest},
};

/// The thread's name.
const NAME: &str = "mlx";

/// How long other models go on between two looks at a load.
const SHARE: Duration = Duration::from_millis(10);

/// A model on the thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ModelId(pub(super) u64);

/// What a handle asks of the thread.
#[derive(Debug)]
pub(super) enum Command {
    Load {
        model: ModelId,
        load: Box<Load>,
        reply: oneshot::Sender<Result<Loaded>>,
    },
    Generate {
        model: ModelId,
        request: Box<Request>,
    },
    Classify {
        model: ModelId,
        request: ClassifyRequest,
    },
    Embed {
        model: ModelId,
        request: EmbedRequest,
    },
    Session {
        model: ModelId,
        command: SessionCommand,
    },
    Train {
        model: ModelId,
        request: Box<TrainRequest>,
    },
    Close {
        model: ModelId,
        reply: Option<oneshot::Sender<()>>,
    },
    /// The process ends: release everything and never touch MLX again.
    Exit {
        reply: std::sync::mpsc::Sender<()>,
    },
}

static THREAD: OnceLock<std::result::Result<UnboundedSender<Command>, String>> = OnceLock::new();

/// The way to the thread, which is started at the first call.
///
/// # Errors
/// The system gives no thread.
pub(super) fn start(device: Device) -> Result<&'static UnboundedSender<Command>> {
    let started = THREAD.get_or_init(|| {
        mlx::choose_settings();
        let (sender, commands) = unbounded_channel();
        let run = move || Engine { models: BTreeMap::new(), commands, deferred: VecDeque::new() }.run();
        let spawned = std::thread::Builder::new().name(NAME.to_owned()).spawn(run);
        spawned.map(|_| sender).map_err(|error| error.to_string())
    });
    started.as_ref().map_err(|reason| Error::backend(device.id(), "start the MLX thread", reason.clone()))
}

/// Has the thread release MLX before the process destroys MLX's static objects: a thread that still works on them would crash
/// the exit.
///
/// Handlers run in the reverse order of registration, mixed with the destructors of static objects, of which MLX makes some at
/// first use. So it is registered again after each load, and the first to run does the work.
fn quit_at_exit() {
    static QUIT: AtomicBool = AtomicBool::new(false);
    extern "C" fn quit() {
        if std::thread::current().name() == Some(NAME) {
            // A callback of the caller's, on the thread itself, ends the process: there is nobody to wait for.
            return;
        }
        if let Some(Ok(commands)) = THREAD.get()
            && !QUIT.swap(true, Ordering::AcqRel)
        {
            let (reply, done) = std::sync::mpsc::channel();
            if commands.send(Command::Exit { reply }).is_ok() {
                // A step that takes longer than this is not worth waiting for.
                let _ = done.recv_timeout(Duration::from_secs(10));
            }
        }
    }
    mlx::at_exit(quit);
}

/// What the thread owns. `!Send`: see the test.
struct Engine {
    models: BTreeMap<ModelId, Scheduler>,
    commands: UnboundedReceiver<Command>,
    /// Commands that came while a model was loaded and wait for its end.
    deferred: VecDeque<Command>,
}

impl Engine {
    fn run(mut self) {
        loop {
            while let Some(command) = self.deferred.pop_front().or_else(|| self.commands.try_recv().ok()) {
                self.take(command);
            }
            let next = match self.step() {
                Progress::Worked => continue,
                Progress::Blocked => {
                    let Self { models, commands, .. } = &mut self;
                    let received = pin!(commands.recv());
                    match futures::executor::block_on(select(received, pin!(unblocked(models)))) {
                        Either::Left((command, _)) => command,
                        Either::Right(_) => continue,
                    }
                }
                Progress::Idle => self.commands.blocking_recv(),
            };
            let Some(command) = next else { return };
            self.take(command);
        }
    }

    /// One step of every model.
    fn step(&mut self) -> Progress {
        let mut overall = Progress::Idle;
        for scheduler in self.models.values_mut() {
            match scheduler.step() {
                Progress::Worked => overall = Progress::Worked,
                Progress::Blocked if overall == Progress::Idle => overall = Progress::Blocked,
                Progress::Blocked | Progress::Idle => {}
            }
        }
        overall
    }

    /// A model that takes requests.
    fn open(&mut self, model: ModelId) -> Option<&mut Scheduler> {
        self.models.get_mut(&model).filter(|scheduler| !scheduler.is_closed)
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Load { model, load, reply } => self.load(model, *load, reply),
            Command::Generate { model, request } => match self.open(model) {
                Some(scheduler) => scheduler.push(*request),
                None => request.refuse(Error::Closed),
            },
            Command::Classify { model, request } => match self.open(model) {
                Some(scheduler) => scheduler.push_job(ClassifyJob::new(request)),
                None => ClassifyJob::new(request).end(Err(Error::Closed)),
            },
            Command::Embed { model, request } => match self.open(model) {
                Some(scheduler) => scheduler.push_embedding(EmbedJob::new(request)),
                None => EmbedJob::new(request).end(Err(Error::Closed)),
            },
            // A model that is closed answers nothing, and its sessions know what that means.
            Command::Session { model, command } => {
                if let Some(scheduler) = self.models.get_mut(&model) {
                    scheduler.command(command);
                }
            }
            Command::Train { model, request } => match self.open(model) {
                Some(scheduler) => scheduler.push_training(TrainJob::new(*request)),
                None => TrainJob::new(*request).end(Err(Error::Closed)),
            },
            Command::Close { model, reply } => {
                if let Some(scheduler) = self.models.remove(&model) {
                    scheduler.close();
                }
                if let Some(reply) = reply {
                    // Nobody waits any more: that is fine.
                    let _ = reply.send(());
                }
            }
            Command::Exit { reply } => {
                std::mem::take(&mut self.models).into_values().for_each(Scheduler::close);
                // The process that waits for it may be gone.
                let _ = reply.send(());
                loop {
                    std::thread::park();
                }
            }
        }
    }

    /// Loads a model, and serves the others meanwhile.
    fn load(&mut self, model: ModelId, load: Load, reply: oneshot::Sender<Result<Loaded>>) {
        let backend = load.device.id();
        let (callback, cancel) = (load.options.on_progress.clone(), load.options.cancel.clone());
        let mut reported = None;
        let mut is_closed = false;
        let mut observe = |progress: load::Progress| {
            if reported != Some(progress)
                && let Some(callback) = &callback
            {
                callback.report(LoadProgress::new(progress.bytes, progress.total));
            }
            reported = Some(progress);
            is_closed |= self.serve_others(model);
            !(is_closed || cancel.is_cancelled() || reply.is_closed())
        };
        let loaded =
            catch_unwind(AssertUnwindSafe(|| load_model(load, &mut observe))).unwrap_or_else(|panic| {
                let text = format!("panicked: {}", panic_text(panic.as_ref()));
                Err(Error::backend(backend, "load the model", text))
            });
        let result = loaded.map(|(scheduler, loaded)| {
            self.models.insert(model, scheduler);
            loaded
        });
        quit_at_exit();
        // A caller that went away has dropped its handle, and the close is on its way.
        let _ = reply.send(result);
    }

    /// Takes commands and does the work of the models that are loaded, for a while or until nothing is left; whether the model
    /// that is being loaded is not wanted any more.
    fn serve_others(&mut self, loading: ModelId) -> bool {
        let since = Instant::now();
        let mut is_closed = false;
        loop {
            while let Ok(command) = self.commands.try_recv() {
                match command {
                    Command::Load { .. } => self.deferred.push_back(command),
                    Command::Close { model, .. } if model == loading => {
                        is_closed = true;
                        self.deferred.push_back(command);
                    }
                    Command::Exit { .. } => {
                        is_closed = true;
                        self.deferred.push_back(command);
                    }
                    other => self.take(other),
                }
            }
            if self.step() != Progress::Worked || since.elapsed() >= SHARE {
                return is_closed;
            }
        }
    }
}

/// Waits until a reader that was behind has made room.
async fn unblocked(models: &BTreeMap<ModelId, Scheduler>) {
    let blocked = models.values().filter(|scheduler| scheduler.is_blocked());
    select_all(blocked.map(|scheduler| Box::pin(scheduler.unblocked()))).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compiles only while `Engine` is not `Send`: with both impls the call below would be ambiguous.
    #[test]
    fn the_engine_cannot_leave_its_thread() {
        trait Ambiguous<A> {
            fn probe() {}
        }
        impl<T: ?Sized> Ambiguous<()> for T {}
        struct IsSend;
        impl<T: ?Sized + Send> Ambiguous<IsSend> for T {}
        <Engine as Ambiguous<_>>::probe();
    }
}
