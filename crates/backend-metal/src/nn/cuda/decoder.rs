//! Decode steps on the keys and values that rows lend.

use std::{path::PathBuf, sync::Arc};

use cuda_kernels::{
    BUCKETS, Cache, Compiler, Device, DevicePtr, Executor, Logits, Options, Pending, Row, Sampling,
};
use mlx_rs::{
    Array, Dtype, Stream,
    error::{Exception, Result},
    ops, transforms,
};

use super::spec::Description;
use crate::{
    mlx::{self, device_address, exception, scalar, slice},
    nn::cache::{KvCache, Lent},
};

/// Tokens of each row that the GPU remembers: more than are ever unread.
const HISTORY: usize = 64;

/// Rows at most.
const MAX_ROWS: usize = BUCKETS[BUCKETS.len() - 1];

/// Computes decode steps, each a replayed graph on a stream of its own.
///
/// A step writes to memory that rows lend: the arrays are held here until the steps that write to them are done, so that MLX does
/// not use the memory meanwhile.
#[derive(Debug)]
pub(crate) struct CudaDecoder {
    // Dropped before the weights: it waits for its steps.
    executor: Executor,
    rows: Vec<Borrowed>,
    /// `[MAX_ROWS, vocabulary]`, f32: what steps that keep logits write to.
    logits: Array,
    _description: Description,
    stream: Stream,
}

/// What a row lends.
#[derive(Debug)]
struct Borrowed {
    key: u64,
    /// Tokens that are in the cache, or will be once the steps are done.
    len: usize,
    /// Tokens that there is room for.
    room: usize,
    /// Whether its tokens are drawn.
    draws: bool,
    _layers: Vec<Lent>,
}

impl CudaDecoder {
    /// A decoder of the model, ready for one row. Kernels that are compiled are kept in `folder`, where one is given.
    ///
    /// # Errors
    /// There is no GPU, driver or compiler for the kernels, or no memory.
    pub(crate) fn new(description: Description, folder: Option<PathBuf>, stream: Stream) -> Result<Self> {
        let device = Device::probe(0).map_err(exception)?;
        let compiler = Arc::new(Compiler::new(&device, folder));
        let spec = description.spec.clone();
        let logits = ops::zeros_dtype(&[MAX_ROWS as i32, spec.vocabulary() as i32], Dtype::Float32)?;
        let options = Options { history: HISTORY, logits: Some(address(&logits)?), ..Options::default() };
        // SAFETY: the addresses are those of the description's arrays, which are dropped after the executor, and of the logits;
        // `borrow` and `release` see to it that the rows' arrays live as long as steps write to them.
        let mut executor = unsafe { Executor::new(compiler, spec, options) }.map_err(exception)?;
        for logits in [Logits::Draw, Logits::Discard] {
            executor.prepare(1, 1, logits).map_err(exception)?;
        }
        executor.load_kept().map_err(exception)?;
        Ok(Self { executor, rows: Vec::new(), logits, _description: description, stream })
    }

    /// Whether so many rows can be computed here. Where kernels for them are still compiled, they cannot yet.
    ///
    /// # Errors
    /// The kernels cannot be compiled.
    pub(crate) fn takes(&mut self, rows: usize) -> Result<bool> {
        Ok((1..=MAX_ROWS).contains(&rows) && self.executor.is_compiled(rows).map_err(exception)?)
    }

    /// Waits for what MLX computes.
    ///
    /// # Errors
    /// MLX's own.
    pub(crate) fn wait_for_mlx(&self) -> Result<()> {
        mlx::synchronize(&self.stream)
    }

    /// Gives all memory back where a row is no longer wanted.
    ///
    /// # Errors
    /// A step failed.
    pub(crate) fn retain(&mut self, is_wanted: impl Fn(u64) -> bool) -> Result<()> {
        if self.rows.iter().all(|row| is_wanted(row.key)) { Ok(()) } else { self.release() }
    }

    /// Whether these are the rows of the step before, in their order, each with its key and the length of its cache, and with room
    /// for another token. If not, they have to be [borrowed](Self::borrow) first.
    pub(crate) fn continues(&self, rows: impl ExactSizeIterator<Item = (u64, usize)>) -> bool {
        rows.len() == self.rows.len()
            && self
                .rows
                .iter()
                .zip(rows)
                .all(|(row, (key, len))| (row.key, row.len) == (key, len) && len < row.room)
    }

    /// Takes rows over, each with its last token, which is not in its cache yet, and how it draws the next ones, if it does. MLX must
    /// be done with their caches.
    ///
    /// # Errors
    /// A step failed, or there is no memory for another token.
    pub(crate) fn borrow(
        &mut self,
        keys: &[u64],
        caches: &mut [&mut KvCache],
        tokens: &[u32],
        sampling: &[Option<Sampling>],
    ) -> Result<()> {
        self.release()?;
        let lent = caches.iter_mut().map(|cache| cache.lend()).collect::<Result<Vec<_>>>()?;
        transforms::eval(lent.iter().flatten().flat_map(|layer| &layer.arrays))?;
        // What MLX computes with them runs on another stream.
        mlx::synchronize(&self.stream)?;
        for (index, layers) in lent.into_iter().enumerate() {
            let places = layers.iter().map(place).collect::<Result<Vec<_>>>()?;
            self.executor.set_caches(index, &places).map_err(exception)?;
            let (len, room) = (caches[index].len(), caches[index].room());
            let draws = sampling[index].is_some();
            self.rows.push(Borrowed { key: keys[index], len, room, draws, _layers: layers });
        }
        let next = |(row, token): (&Borrowed, &u32)| Some(Row { token: *token, position: row.len });
        let next: Vec<_> = self.rows.iter().zip(tokens).map(next).collect();
        self.executor.set_rows(&next).map_err(exception)?;
        self.executor.set_sampling(sampling).map_err(exception)
    }

    /// Enqueues a step of the borrowed rows, each of which reads what it chose in the step before: one token for each, the likeliest
    /// or a drawn one.
    ///
    /// # Errors
    /// The driver's own.
    pub(crate) fn step(&mut self, caches: &mut [&mut KvCache]) -> Result<Pending> {
        let draw = self.rows.iter().any(|row| row.draws);
        self.submit(caches, if draw { Logits::Draw } else { Logits::Discard })
    }

    /// Enqueues a step of the borrowed rows, each of which reads its one of `tokens`. Returns its logits, `[rows, vocabulary]` in f32,
    /// which may be read once the step is done, and have been read before the next one begins.
    ///
    /// # Errors
    /// The driver's own.
    pub(crate) fn logits(&mut self, caches: &mut [&mut KvCache], tokens: &[u32]) -> Result<(Pending, Array)> {
        self.executor.set_tokens(tokens).map_err(exception)?;
        let pending = self.submit(caches, Logits::Keep)?;
        // A copy: whoever reads an array on the host has MLX move it there, and steps write to where it was.
        let logits = slice(&self.logits, 0, 0, self.rows.len() as i32)?.add(scalar(0.0, Dtype::Float32)?)?;
        Ok((pending, logits))
    }

    fn submit(&mut self, caches: &mut [&mut KvCache], logits: Logits) -> Result<Pending> {
        let pending = self.executor.submit(self.rows.len(), logits).map_err(exception)?;
        for (row, cache) in self.rows.iter_mut().zip(caches) {
            cache.advance(1);
            row.len += 1;
        }
        Ok(pending)
    }

    /// Waits for all steps, and gives all memory back to the rows.
    ///
    /// # Errors
    /// A step failed.
    pub(crate) fn release(&mut self) -> Result<()> {
        if !self.rows.is_empty() {
            self.executor.stream().synchronize().map_err(exception)?;
            self.rows.clear();
        }
        Ok(())
    }
}

/// Where keys and values of a row are in a layer, `[kv_heads, capacity, head_dim]` each.
fn place(Lent { arrays: [keys, values], row }: &Lent) -> Result<Cache> {
    let of_row = |array: &Array| -> Result<_> {
        Ok(address(array)?.offset(row * array.nbytes() / array.dim(0) as usize))
    };
    Ok(Cache { keys: of_row(keys)?, values: of_row(values)?, capacity: keys.dim(2) as usize })
}

fn address(array: &Array) -> Result<DevicePtr> {
    let address = device_address(array, false)?;
    address.map(DevicePtr).ok_or_else(|| Exception::custom("an array is not in one piece"))
}
