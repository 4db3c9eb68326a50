//! The engine: models that live on one thread, and the handles by which callers reach them.
//!
//! - `thread`: the MLX thread, which owns every model. What crosses over to it is plain data and the ends of channels.
//! - `load`: from options to a model and its scheduler.
//! - `scheduler`: one model's requests, each a `row`. `plan` decides what a step does, `execute` does it, with `prefill` and `decode`.
//!   Where `cuda` serves the model, the rows' steps are replayed CUDA graphs. `in_flight` is what was chosen and not yet read.
//! - `pace`, `budget`: how much a step computes, and how much memory requests may take.
//! - `sampler`, `constraints`: from logits to tokens.
//! - `prefix`, `session`: keys and values that outlive their request.
//! - `classify`: classification. `embed`: embeddings and relevance.

mod budget;
mod classify;
mod constraints;
mod cuda;
mod decode;
mod embed;
mod execute;
mod guard;
mod in_flight;
mod load;
mod pace;
mod plan;
mod prefill;
mod prefix;
mod row;
mod sampler;
mod scheduler;
mod session;
#[cfg(test)]
mod tests;
mod thread;

use std::sync::atomic::{AtomicU64, Ordering};

use inference_core::{Error, LoadOptions, ModelManifest, Result};
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::{
    classify::ClassifyRequest,
    embed::{EmbedRequest, EmbedText, Wanted},
    load::Loaded,
    row::Request,
    session::{SessionCommand, SessionId, SessionTurn},
};
pub use self::{cuda::DisableCudaGraphs, load::DisableCpuKernels};
use self::{
    load::Load,
    thread::{Command, ModelId},
};
use crate::{mlx::Device, train::TrainRequest};

/// A model that lives on the MLX thread. Dropping it releases the model.
#[derive(Debug)]
pub(crate) struct Handle {
    model: ModelId,
    device: Device,
    commands: mpsc::UnboundedSender<Command>,
}

impl Handle {
    /// Loads a model. Dropping the future cancels the load.
    pub(crate) async fn load(
        device: Device,
        manifest: ModelManifest,
        options: LoadOptions,
    ) -> Result<(Self, Loaded)> {
        let handle = Self::new(device, thread::start(device)?.clone());
        let (reply, loaded) = oneshot::channel();
        let load = Box::new(Load { device, manifest, options });
        // From here on a caller that goes away while it waits drops the handle, which releases the model.
        handle.send(Command::Load { model: handle.model, load, reply })?;
        let loaded = loaded.await.map_err(|_| handle.stopped())??;
        Ok((handle, loaded))
    }

    /// The handle of a model that is not loaded yet, on the thread at the other end of the channel.
    fn new(device: Device, commands: mpsc::UnboundedSender<Command>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { model: ModelId(NEXT.fetch_add(1, Ordering::Relaxed)), device, commands }
    }

    /// A handle whose thread takes one command, and ends with it.
    #[cfg(test)]
    pub(crate) fn of_a_thread_that_ends(device: Device) -> Self {
        let (commands, mut received) = mpsc::unbounded_channel();
        std::thread::spawn(move || drop(received.blocking_recv()));
        Self::new(device, commands)
    }

    /// Hands over a generation; its stream tells the rest.
    pub(crate) fn generate(&self, request: Request) -> Result<()> {
        self.send(Command::Generate { model: self.model, request: Box::new(request) })
    }

    /// Hands over a classification; its channel tells the rest.
    pub(crate) fn classify(&self, request: ClassifyRequest) -> Result<()> {
        self.send(Command::Classify { model: self.model, request })
    }

    /// Hands over texts for embeddings or relevance; its channel tells the rest.
    pub(crate) fn embed(&self, request: EmbedRequest) -> Result<()> {
        self.send(Command::Embed { model: self.model, request })
    }

    /// Hands over a command about a session.
    pub(crate) fn session(&self, command: SessionCommand) -> Result<()> {
        self.send(Command::Session { model: self.model, command })
    }

    /// Hands over a training run; its channel tells the rest.
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
        Error::stopped(self.device.id(), "the MLX thread has ended")
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
