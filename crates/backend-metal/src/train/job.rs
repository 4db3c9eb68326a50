//! A training run as the scheduler sees it: one batch at a time, between other requests.

use std::rc::Rc;

use inference_core::{
    Error, Result,
    train::{TrainEnd, TrainEvent},
};
use mlx_rs::{error::Exception, memory::cache_memory};

use super::{
    prepare::prepare,
    run::{Run, TrainRequest},
};
use crate::{
    mlx::{memory as mlx_memory, on_cpu},
    nn::Architecture,
};

/// Bytes that MLX's allocator may keep for the next batch. On a GPU, where allocating is slow, a quarter of the `free` memory. On the
/// CPU batches are not padded to few sizes, so freed buffers seldom fit again.
fn cache_bytes(free: Option<u64>) -> usize {
    const LEAST: usize = 1 << 30;
    let share = free.filter(|_| !on_cpu()).map_or(0, |free| usize::try_from(free / 4).unwrap_or(LEAST));
    share.max(LEAST)
}

/// A training run in progress.
#[derive(Debug)]
pub(crate) struct TrainJob {
    request: TrainRequest,
    run: Option<Run>,
}

impl TrainJob {
    pub(crate) fn new(request: TrainRequest) -> Self {
        Self { request, run: None }
    }

    /// Whether the model is closed for everything else, once the run is prepared.
    pub(crate) fn closes_model(&self) -> bool {
        self.request.options.close_model
    }

    /// Whether the run is prepared.
    pub(crate) fn is_prepared(&self) -> bool {
        self.run.is_some()
    }

    /// Computes one batch. Returns whether the run has ended.
    ///
    /// # Errors
    /// Each ends the run: an option that does not fit the model, a checkpoint that cannot be read or written, a failure of MLX.
    pub(crate) fn advance(&mut self, model: &Rc<dyn Architecture>, backend: &str) -> Result<bool> {
        let Self { request, run } = self;
        let Some(run) = run else {
            let (fresh, plan) = prepare(model, request, backend)?;
            self.run = Some(fresh);
            self.request.tell(TrainEvent::Started(plan));
            return Ok(false);
        };
        let failed = |error: Exception| Error::backend(backend, "train", error);
        if request.options.cancel.is_cancelled() || request.events.is_closed() {
            run.settle(request).map_err(failed)?;
            run.check_converging(backend)?;
            run.end(&**model, request, TrainEnd::Cancelled)?;
            return Ok(true);
        }
        if run.validation.is_some() {
            run.validate(model, request).map_err(failed)?;
            run.check_converging(backend)?;
        } else if run.step < run.steps {
            run.learn(request).map_err(failed)?;
            run.check_converging(backend)?;
            if run.accumulating.is_none() && run.is_due(request) {
                run.settle(request).map_err(failed)?;
                run.check_converging(backend)?;
                run.after_step(&**model, request)?;
            }
        }
        if run.step == run.steps && run.validation.is_none() {
            run.end(&**model, request, TrainEnd::Completed)?;
            return Ok(true);
        }
        if cache_memory().is_ok_and(|bytes| bytes > cache_bytes(request.free_bytes)) {
            // The cache only saves time: failing to clear it is harmless.
            let _ = mlx_rs::memory::clear_cache();
        }
        Ok(false)
    }

    /// Takes note of a measured memory peak, in bytes.
    pub(crate) fn peaked(&mut self, peak: u64) {
        if let Some(run) = &mut self.run {
            run.peak = run.peak.max(peak);
        }
    }

    /// Ends the run, and reports the failure that ended it.
    pub(crate) fn end(self, result: Result<()>) {
        let Self { request, run } = self;
        drop(run);
        // The run's buffers do not fit other requests; if clearing fails they only stay longer.
        let _ = mlx_memory::clear_cache();
        if let Err(error) = result {
            // The receiver may be gone.
            let _ = request.events.unbounded_send(Err(error));
        }
    }
}
