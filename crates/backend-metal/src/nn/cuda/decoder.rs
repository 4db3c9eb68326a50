//! Decode steps on the keys and values that rows lend.

use std::{path::PathBuf, sync::Arc};

use cuda_kernels::{BUCKETS, Cache, Compiler, Device, DevicePtr, Executor, Logits, Options, Pending, Row};
use mlx_rs::{
    Array, Dtype, Stream,
    error::{Exception, Result},
    ops, transforms,
};

use super::spec::Description;
use crate::{
    mlx::{self, device_address, exception, slice},
    nn::cache::KvCache,
};

/// Tokens of each row that the GPU remembers: more than are ever unread.
const HISTORY: usize = 64;

/// Computes decode steps of up to [`MOST_ROWS`](Self::MOST_ROWS) rows.
///
/// A step writes to memory that rows lend. The arrays are held here until the steps that write to them are done, so that MLX does
/// not use the memory for something else meanwhile.
#[derive(Debug)]
pub(crate) struct CudaDecoder {
    // Dropped first: it waits for its steps.
    executor: Executor,
    rows: Vec<Borrowed>,
    /// `[MOST_ROWS, vocabulary]`, f32: what steps that keep logits write to.
    logits: Array,
    _weights: Vec<Array>,
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
    _arrays: Vec<[Array; 2]>,
}

impl CudaDecoder {
    /// The most rows of a step.
    pub(crate) const MOST_ROWS: usize = BUCKETS[BUCKETS.len() - 1];

    /// A decoder of the model. Kernels that are compiled are kept in `folder`, where one is given.
    ///
    /// # Errors
    /// There is no GPU, driver or compiler for the kernels, or no memory.
    pub(crate) fn new(
        description: Description,
        folder: Option<PathBuf>,
        stream: Stream,
    ) -> cuda_kernels::Result<Self> {
        let Description { spec, arrays } = description;
        let compiler = Arc::new(Compiler::new(&Device::probe(0)?, folder));
        let logits = logits(spec.vocabulary()).map_err(|error| cuda_kernels::Error::Invalid {
            what: "memory for logits".to_owned(),
            found: error.to_string(),
            expected: "an array".to_owned(),
        })?;
        let options = Options { history: HISTORY, logits: Some(logits.1), ..Options::default() };
        // SAFETY: the addresses are those of `arrays`, which are dropped after the executor; `borrow` and `release` see to it
        // that the rows' arrays live as long as steps write to them.
        let mut executor = unsafe { Executor::new(compiler, spec, options)? };
        executor.prepare(1, 1, Logits::Discard)?;
        Ok(Self { executor, logits: logits.0, rows: Vec::new(), _weights: arrays, stream })
    }

    /// Whether these are the rows of the step before, in their order, each with its key and the length of its cache, and with room
    /// for another token. If not, they have to be [borrowed](Self::borrow) first.
    pub(crate) fn continues(&self, rows: impl ExactSizeIterator<Item = (u64, usize)>) -> bool {
        rows.len() == self.rows.len()
            && self.rows.iter().zip(rows).all(|(row, (key, len))| {
                (row.key, row.len) == (key, len) && len < row.room
            })
    }

    /// Takes rows over, each with its last token, which is not in its cache yet.
    pub(crate) fn borrow(&mut self, keys: &[u64], caches: &mut [&mut KvCache], tokens: &[u32]) -> Result<()> {
        self.release()?;
        let lent = caches.iter_mut().map(|cache| cache.lend()).collect::<Result<Vec<_>>>()?;
        transforms::eval(lent.iter().flatten().flatten())?;
        // What MLX computes with them runs on another stream.
        self.wait_for_mlx()?;
        for (index, arrays) in lent.into_iter().enumerate() {
            let places = arrays.iter().map(place).collect::<Result<Vec<_>>>()?;
            self.executor.set_caches(index, &places).map_err(exception)?;
            let (len, room) = (caches[index].len(), caches[index].room());
            let next = Row { token: tokens[index], position: len };
            self.executor.set_row(index, Some(next)).map_err(exception)?;
            self.rows.push(Borrowed { key: keys[index], len, room, _arrays: arrays });
        }
        for index in keys.len()..Self::MOST_ROWS {
            self.executor.set_row(index, None).map_err(exception)?;
        }
        Ok(())
    }

    /// Enqueues a step of the borrowed rows, each of which reads what it chose in the step before: one token for each, the
    /// likeliest.
    pub(crate) fn step(&mut self, caches: &mut [&mut KvCache]) -> Result<Pending> {
        self.submit(caches, Logits::Discard)
    }

    /// The logits of a step of the borrowed rows, each of which reads its one of `tokens`: `[rows, vocabulary]`, f32. Waits for the
    /// step. Before the next one, MLX must be done with what it computes of them.
    pub(crate) fn logits(&mut self, caches: &mut [&mut KvCache], tokens: &[u32]) -> Result<Array> {
        self.executor.set_tokens(tokens).map_err(exception)?;
        self.submit(caches, Logits::Keep)?.wait().map_err(exception)?;
        slice(&self.logits, 0, 0, self.rows.len() as i32)
    }

    /// Waits for what MLX computes.
    pub(crate) fn wait_for_mlx(&self) -> Result<()> {
        mlx::synchronize(&self.stream)
    }

    fn submit(&mut self, caches: &mut [&mut KvCache], logits: Logits) -> Result<Pending> {
        let pending = self.executor.submit(self.rows.len(), logits).map_err(exception)?;
        for (row, cache) in self.rows.iter_mut().zip(caches) {
            cache.advance(1);
            row.len += 1;
        }
        Ok(pending)
    }

    /// Gives all memory back if a row's is no longer wanted.
    pub(crate) fn retain(&mut self, is_wanted: impl Fn(u64) -> bool) -> Result<()> {
        if self.rows.iter().all(|row| is_wanted(row.key)) { Ok(()) } else { self.release() }
    }

    /// Waits for all steps, and gives all memory back to the rows.
    pub(crate) fn release(&mut self) -> Result<()> {
        if !self.rows.is_empty() {
            self.executor.stream().synchronize().map_err(exception)?;
            self.rows.clear();
        }
        Ok(())
    }
}

/// Memory for the logits of a step, and its address.
fn logits(vocabulary: usize) -> Result<(Array, DevicePtr)> {
    let logits = ops::zeros_dtype(&[CudaDecoder::MOST_ROWS as i32, vocabulary as i32], Dtype::Float32)?;
    match device_address(&logits, false)? {
        Some(address) => Ok((logits, DevicePtr(address))),
        None => Err(Exception::custom("the memory for logits is not in one piece")),
    }
}

/// Where keys and values of a layer are, `[1, kv_heads, capacity, head_dim]` each.
fn place([keys, values]: &[Array; 2]) -> Result<Cache> {
    let address = |array| {
        let address = device_address(array, false)?;
        address.map(DevicePtr).ok_or_else(|| Exception::custom("keys and values are not in one piece"))
    };
    Ok(Cache { keys: address(keys)?, values: address(values)?, capacity: keys.dim(2) as usize })
}
