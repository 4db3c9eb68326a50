//! Decode steps by CUDA graphs, where model and requests allow it.

use std::{fmt, rc::Rc};

use mlx_rs::{Array, Stream, error::Result};

use super::{decode::choose, in_flight::InFlight, row::Row};
use crate::{
    mlx::{self, exception},
    nn::{Architecture, CudaDecoder, KvCache, Pending},
};

/// An extension of [`LoadOptions`](inference_core::LoadOptions): MLX computes decode steps on CUDA, too.
#[derive(Debug, Clone, Copy)]
pub struct DisableCudaGraphs;

/// A model's decode steps on the CUDA kernels, or why MLX computes them.
#[derive(Debug)]
pub(super) struct CudaSteps(std::result::Result<CudaDecoder, String>);

/// What computes decode steps.
impl fmt::Display for CudaSteps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Ok(_) => f.write_str("CUDA graphs"),
            Err(why) => write!(f, "MLX's operations: {why}"),
        }
    }
}

impl CudaSteps {
    /// No steps: MLX computes all, because of this.
    pub(super) fn none(why: impl Into<String>) -> Self {
        Self(Err(why.into()))
    }

    /// The steps of this model, whose stream is in scope.
    pub(super) fn new(model: &dyn Architecture, stream: &Stream) -> Self {
        if !mlx::on_cuda() {
            return Self::none("no CUDA here");
        }
        let folder = directories::ProjectDirs::from("", "", "inference");
        let folder = folder.map(|folders| folders.cache_dir().join("cuda-kernels"));
        let decoder = model.describe().map_err(|why| why.to_string()).and_then(|description| {
            CudaDecoder::new(description, folder, stream.clone()).map_err(|why| why.to_string())
        });
        if let Err(why) = &decoder {
            tracing::info!("MLX computes decode steps operation by operation: {why}");
        }
        Self(decoder)
    }

    /// Submits the next token of every row, without waiting for it; `false` if MLX has to compute it.
    pub(super) fn decode(&mut self, rows: &mut [Row]) -> Result<bool> {
        let Ok(decoder) = &mut self.0 else { return Ok(false) };
        if !rows.iter().all(|row| row.cache.can_lend()) || !decoder.takes(rows.len())? {
            decoder.release()?;
            return Ok(false);
        }
        rows.sort_by_key(|row| row.id);
        let replayed = |row: &Row| !row.is_shaped() && (row.is_greedy() || row.replayed_draws().is_some());
        if rows.iter().all(replayed) {
            step(decoder, rows)?;
            return Ok(true);
        }
        // MLX may still read the logits of the step before.
        decoder.wait_for_mlx()?;
        let (pending, logits) = logits(decoder, rows)?;
        // While the GPU computes the logits.
        rows.iter_mut().try_for_each(Row::compute_mask)?;
        pending.wait().map_err(exception)?;
        choose(&mut rows.iter_mut().collect::<Vec<_>>(), &logits)?;
        Ok(true)
    }

    /// Gives the memory of rows that no longer run back to MLX.
    pub(super) fn retain(&mut self, rows: &[Row]) -> Result<()> {
        let Ok(decoder) = &mut self.0 else { return Ok(()) };
        decoder.retain(|key| rows.iter().any(|row| row.id.0 == key))
    }
}

/// Chooses a token for each row. What it chose in the step before is on the GPU already.
fn step(decoder: &mut CudaDecoder, rows: &mut [Row]) -> Result<()> {
    let continues = decoder.continues(rows.iter().map(|row| (row.id.0, row.cache.len())));
    let chosen_here = rows.iter().all(|row| row.in_flight.back().is_some_and(InFlight::is_cuda));
    if !(continues && chosen_here) {
        borrow(decoder, rows)?;
    }
    let mut caches: Vec<&mut KvCache> = rows.iter_mut().map(|row| &mut row.cache).collect();
    let pending = Rc::new(decoder.step(&mut caches)?);
    for (place, row) in rows.iter_mut().enumerate() {
        row.in_flight.push_back(InFlight::Cuda(pending.clone(), place));
    }
    Ok(())
}

/// Computes the logits of the rows.
fn logits(decoder: &mut CudaDecoder, rows: &mut [Row]) -> Result<(Pending, Array)> {
    if !decoder.continues(rows.iter().map(|row| (row.id.0, row.cache.len()))) {
        borrow(decoder, rows)?;
    }
    let tokens = rows.iter().map(Row::last_id).collect::<Result<Vec<_>>>()?;
    let mut caches: Vec<&mut KvCache> = rows.iter_mut().map(|row| &mut row.cache).collect();
    decoder.logits(&mut caches, &tokens)
}

fn borrow(decoder: &mut CudaDecoder, rows: &mut [Row]) -> Result<()> {
    let tokens = rows.iter().map(Row::last_id).collect::<Result<Vec<_>>>()?;
    let keys: Vec<u64> = rows.iter().map(|row| row.id.0).collect();
    let sampling: Vec<_> = rows.iter().map(Row::replayed_draws).collect();
    let mut caches: Vec<&mut KvCache> = rows.iter_mut().map(|row| &mut row.cache).collect();
    decoder.borrow(&keys, &mut caches, &tokens, &sampling)
}
