//! Decode steps by CUDA graphs, where model and requests allow it.

use std::rc::Rc;

use mlx_rs::{Stream, error::Result};

use super::{decode::choose, in_flight::InFlight, row::Row};
use crate::{
    mlx,
    nn::{Architecture, CudaDecoder, KvCache},
};

/// An extension of [`LoadOptions`](inference_core::LoadOptions): MLX computes decode steps on CUDA, too.
#[derive(Debug, Clone, Copy)]
pub struct DisableCudaGraphs;

/// A model's decode steps on the CUDA kernels, if those know the model.
#[derive(Debug)]
pub(super) struct CudaSteps(Option<CudaDecoder>);

impl CudaSteps {
    /// No steps: MLX computes all.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// The steps of this model, whose stream is in scope.
    pub(super) fn new(model: &dyn Architecture, stream: &Stream) -> Self {
        if !mlx::on_cuda() {
            return Self::none();
        }
        let folder = directories::ProjectDirs::from("", "", "inference");
        let folder = folder.map(|folders| folders.cache_dir().join("cuda-kernels"));
        let decoder = model.describe().map_err(|why| why.to_string()).and_then(|description| {
            CudaDecoder::new(description, folder, stream.clone()).map_err(|why| why.to_string())
        });
        match decoder {
            Ok(decoder) => Self(Some(decoder)),
            Err(why) => {
                tracing::info!("MLX computes decode steps operation by operation: {why}");
                Self::none()
            }
        }
    }

    /// Whether steps of these rows are computed here.
    fn serves(&self, rows: &[Row]) -> bool {
        self.0.is_some()
            && rows.len() <= CudaDecoder::MOST_ROWS
            && rows.iter().all(|row| row.cache.can_lend())
    }

    /// Submits the next token of every row, without waiting for it; `false` if MLX has to compute it.
    pub(super) fn decode(&mut self, rows: &mut [Row]) -> Result<bool> {
        let serves = self.serves(rows);
        let Some(decoder) = &mut self.0 else { return Ok(false) };
        if !serves {
            decoder.release()?;
            return Ok(false);
        }
        rows.sort_by_key(|row| row.id);
        let greedy = rows.iter().all(Row::is_greedy);
        let continues = decoder.continues(rows.iter().map(|row| (row.id.0, row.cache.len())));
        // What was chosen here is on the GPU already; what MLX chose is read.
        let chosen_here = continues && rows.iter().all(|row| row.in_flight.back().is_some_and(InFlight::is_cuda));
        let tokens = if greedy && chosen_here {
            Vec::new()
        } else {
            rows.iter().map(Row::last_id).collect::<Result<Vec<_>>>()?
        };
        let keys: Vec<u64> = rows.iter().map(|row| row.id.0).collect();
        let mut caches: Vec<&mut KvCache> = rows.iter_mut().map(|row| &mut row.cache).collect();
        if !continues || greedy && !chosen_here {
            decoder.borrow(&keys, &mut caches, &tokens)?;
        }
        if greedy {
            let pending = Rc::new(decoder.step(&mut caches)?);
            for (place, row) in rows.iter_mut().enumerate() {
                row.in_flight.push_back(InFlight::Cuda(pending.clone(), place));
            }
            return Ok(true);
        }
        // MLX may still read the logits of the step before.
        decoder.wait_for_mlx()?;
        let logits = decoder.logits(&mut caches, &tokens)?;
        choose(&mut rows.iter_mut().collect::<Vec<_>>(), &logits)?;
        Ok(true)
    }

    /// Gives the memory of rows that no longer run back to MLX.
    pub(super) fn retain(&mut self, rows: &[Row]) -> Result<()> {
        let Some(decoder) = &mut self.0 else { return Ok(()) };
        decoder.retain(|key| rows.iter().any(|row| row.id.0 == key))
    }
}
