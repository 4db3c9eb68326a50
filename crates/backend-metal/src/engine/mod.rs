//! The MLX thread: one per process, shared by all models and devices.
//!
//! MLX keeps its streams per thread, and a lazy array can be evaluated only where it was built. So one thread owns every
//! model, and what crosses over to it is plain data and the ends of channels.

mod classify;
mod constraints;
mod prefix;
mod row;
mod sampler;
mod scheduler;
mod session;
mod stats;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::{Either, select};
use inference_core::{
    Error, KvBits, LoadOptions, LoadProgress, ModelManifest, Result, backend::AdapterManifest,
};
use mlx_rs::with_stream;
use tokio::sync::{mpsc, oneshot};

use self::{
    classify::ClassifyJob,
    scheduler::{EngineConfig, Progress, Scheduler},
};
pub(crate) use self::{
    classify::ClassifyRequest,
    row::Request,
    session::{SessionCommand, SessionId, SessionTurn},
    stats::Stats,
};
use crate::{
    load,
    mlx::{self, Device, Memory, Mode, Scheme, memory},
    nn::ModelConfig,
    train::{TrainJob, TrainRequest},
};

/// Requests decoded at once where the caller sets no limit.
const DEFAULT_MAX_BATCH: usize = 32;

/// Prompt tokens computed at once where the caller sets none.
const DEFAULT_PREFILL_CHUNK: usize = 1024;

/// Bytes of keys and values kept of ended texts where the caller sets no budget.
const DEFAULT_PREFIX_CACHE: u64 = 512 << 20;

/// An extension of [`LoadOptions`]: MLX's own operations compute everything, as they do on a GPU. On the CPU they take the place of
/// this crate's kernels, which are many times as fast.
#[derive(Debug, Clone, Copy)]
pub struct DisableCpuKernels;

/// A model that lives on the MLX thread. Dropping it releases the model.
#[derive(Debug)]
pub(crate) struct Handle {
    model: ModelId,
    device: Device,
    commands: mpsc::UnboundedSender<Command>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct ModelId(u64);

#[derive(Debug)]
enum Command {
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
    /// The process ends: let go of everything and never touch MLX again.
    Exit {
        reply: std::sync::mpsc::Sender<()>,
    },
}

#[derive(Debug)]
struct Load {
    device: Device,
    manifest: ModelManifest,
    options: LoadOptions,
    eos: Vec<u32>,
    stats: Arc<Stats>,
}

/// What is known of a model once it is loaded.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: ModelConfig,
    /// How it keeps keys and values.
    pub(crate) layout: String,
}

impl Handle {
    /// Loads a model. `eos` are the ids that end a text, and `stats` is kept up to date.
    pub(crate) async fn load(
        device: Device,
        manifest: ModelManifest,
        options: LoadOptions,
        eos: Vec<u32>,
        stats: Arc<Stats>,
    ) -> Result<(Self, Loaded)> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let model = ModelId(NEXT.fetch_add(1, Ordering::Relaxed));
        // From here on a caller that goes away while it waits drops the handle, which releases the model.
        let handle = Self { model, device, commands: thread(device)?.clone() };
        let (reply, loaded) = oneshot::channel();
        let load = Box::new(Load { device, manifest, options, eos, stats });
        handle.send(Command::Load { model, load, reply })?;
        let loaded = loaded.await.map_err(|_| handle.stopped())??;
        Ok((handle, loaded))
    }

    /// Hands over a generation; its stream tells the rest.
    pub(crate) fn generate(&self, request: Request) -> Result<()> {
        self.send(Command::Generate { model: self.model, request: Box::new(request) })
    }

    /// Hands over a classification; its channel tells the rest.
    pub(crate) fn classify(&self, request: ClassifyRequest) -> Result<()> {
        self.send(Command::Classify { model: self.model, request })
    }

    /// Hands over what is to be done to a session.
    pub(crate) fn session(&self, command: SessionCommand) -> Result<()> {
        self.send(Command::Session { model: self.model, command })
    }

    /// Hands over a run of training; its channel tells the rest.
    pub(crate) fn train(&self, request: TrainRequest) -> Result<()> {
        self.send(Command::Train { model: self.model, request: Box::new(request) })
    }

    /// Ends all requests and releases the model; returns when that is done.
    pub(crate) async fn close(&self) -> Result<()> {
        let (reply, closed) = oneshot::channel();
        self.send(Command::Close { model: self.model, reply: Some(reply) })?;
        closed.await.map_err(|_| self.stopped())
    }

    /// The device that the model is on.
    pub(crate) fn device(&self) -> Device {
        self.device
    }

    /// The error of a thread that is gone.
    pub(crate) fn stopped(&self) -> Error {
        Error::Stopped { backend: self.device.id().to_owned(), reason: "the MLX thread has ended".to_owned() }
    }

    fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| self.stopped())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // A thread that is gone holds no model.
        let _ = self.send(Command::Close { model: self.model, reply: None });
    }
}

/// The MLX thread's name.
const NAME: &str = "mlx";

static THREAD: OnceLock<std::result::Result<mpsc::UnboundedSender<Command>, String>> = OnceLock::new();

/// The way to the thread, which is started at the first call.
fn thread(device: Device) -> Result<&'static mpsc::UnboundedSender<Command>> {
    let started = THREAD.get_or_init(|| {
        let (commands, received) = mpsc::unbounded_channel();
        let spawned =
            std::thread::Builder::new().name(NAME.to_owned()).spawn(move || Engine::default().run(received));
        spawned.map(|_| commands).map_err(|error| error.to_string())
    });
    started.as_ref().map_err(|reason| Error::backend(device.id(), "start the MLX thread", reason.clone()))
}

/// Has the thread let go of MLX before the process takes down MLX's static objects: a thread that was still at work on them
/// would crash the exit.
///
/// Handlers run in the reverse order of registration, mixed with the destructors of static objects, of which MLX makes some
/// at first use. So it is registered anew after each load, and the first to run does the work.
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
#[derive(Default)]
struct Engine {
    models: BTreeMap<ModelId, Scheduler>,
}

impl Engine {
    fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        loop {
            while let Ok(command) = commands.try_recv() {
                self.take(command);
            }
            let mut overall = Progress::Idle;
            for scheduler in self.models.values_mut() {
                match scheduler.step() {
                    Progress::Worked => overall = Progress::Worked,
                    Progress::Blocked if overall == Progress::Idle => overall = Progress::Blocked,
                    Progress::Blocked | Progress::Idle => {}
                }
            }
            match overall {
                Progress::Worked => {}
                Progress::Blocked => {
                    let next = {
                        let received = pin!(commands.recv());
                        match futures::executor::block_on(select(received, pin!(self.unblocked()))) {
                            Either::Left((command, _)) => command,
                            Either::Right(_) => continue,
                        }
                    };
                    let Some(command) = next else { return };
                    self.take(command);
                }
                Progress::Idle => {
                    let Some(command) = commands.blocking_recv() else { return };
                    self.take(command);
                }
            }
        }
    }

    async fn unblocked(&self) {
        let waits = self
            .models
            .values()
            .filter(|scheduler| scheduler.is_blocked())
            .map(|scheduler| Box::pin(scheduler.unblocked()));
        futures::future::select_all(waits).await;
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Load { model, load, reply } => {
                let backend = load.device.id();
                let loaded = catch_unwind(AssertUnwindSafe(|| load_model(*load))).unwrap_or_else(|panic| {
                    let text = format!("panicked: {}", scheduler::panic_text(panic.as_ref()));
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
            Command::Generate { model, request } => match self.models.get_mut(&model) {
                Some(scheduler) => scheduler.push(*request),
                None => request.sink.end(Err(Error::Closed)),
            },
            Command::Classify { model, request } => match self.models.get_mut(&model) {
                Some(scheduler) => scheduler.push_job(ClassifyJob::new(request)),
                None => ClassifyJob::new(request).end(Err(Error::Closed)),
            },
            // A model that is closed answers nothing, and its sessions know what that means.
            Command::Session { model, command } => {
                if let Some(scheduler) = self.models.get_mut(&model) {
                    scheduler.command(command);
                }
            }
            Command::Train { model, request } => match self.models.get_mut(&model) {
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
}

fn load_model(load: Load) -> Result<(Scheduler, Loaded)> {
    let Load { device, manifest, options, eos, stats } = load;
    set_limits(device, &options)?;
    if device == Device::Cpu {
        memory::heap::keep();
    }
    if let Some(free) = device.free_memory() {
        // The least that is of use: the weights and one request, of the context that was asked for.
        manifest.estimate(options.context_length.unwrap_or(1), 1, options.kv_bits)?.check(free)?;
    }
    let adapter =
        options.adapter.as_ref().map(|folder| AdapterManifest::read(folder, &manifest)).transpose()?;
    let manifest = load::with_trained_weights(manifest, adapter.as_ref())?;
    let stream = device.stream();
    let mut observe = |progress: load::Progress| {
        if let Some(callback) = &options.on_progress {
            callback.report(LoadProgress::new(progress.bytes, progress.total));
        }
        !options.cancel.is_cancelled()
    };
    let model = with_stream(&stream, || {
        let model = load::load(device.id(), &manifest, &mut observe)?;
        if let Some(adapter) = &adapter {
            load::attach(&*model, adapter)?;
        }
        Ok::<_, Error>(model)
    })?;
    let mut config = model.config().clone();
    let context_length = options.context_length.unwrap_or(config.context_length);
    if context_length > config.context_length {
        let reason = format!("{context_length}, the model holds {}", config.context_length);
        return Err(Error::InvalidOption { option: "context_length", reason });
    }
    config.context_length = context_length;
    let scheme = |bits: KvBits| {
        let group_size =
            bits.group_size(config.head_dim).ok_or_else(|| bits.unsupported_error(config.head_dim))?;
        Ok::<_, Error>(Scheme { mode: Mode::Affine, bits: bits.get(), group_size })
    };
    let kv_scheme = options.kv_bits.map(scheme).transpose()?;
    let engine_config = EngineConfig {
        backend: device.id(),
        max_batch: options.max_batch.unwrap_or(DEFAULT_MAX_BATCH),
        prefill_chunk: options.prefill_chunk.unwrap_or(DEFAULT_PREFILL_CHUNK),
        prefix_cache: options.prefix_cache.unwrap_or(DEFAULT_PREFIX_CACHE),
        kv_scheme,
        context_length,
        eos,
        disable_cpu_kernels: options.extensions.get::<DisableCpuKernels>().is_some(),
    };
    let scheduler = Scheduler::new(model.into(), stream, engine_config, stats);
    let layout = scheduler.new_cache().format_id();
    Ok((scheduler, Loaded { config, layout }))
}

fn set_limits(device: Device, options: &LoadOptions) -> Result<()> {
    use inference_core::backend::MemoryControl as _;
    let mut limits = inference_core::backend::MemoryLimits::new();
    limits.memory = options.memory_limit;
    limits.cache = options.cache_limit;
    Memory
        .set_limits(limits)
        .map(|_| ())
        .map_err(|error| Error::backend(device.id(), "set memory limits", error))
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
