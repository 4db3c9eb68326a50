//! Decode steps on the keys and values that rows lend.

use std::{path::PathBuf, sync::Arc};

use cuda_kernels::{
    BUCKETS, Cache, Compiler, Device, DevicePtr, Executor, Layout, Logits, Options, Pending, Row,
};
use mlx_rs::{
    Array, Dtype, Stream,
    error::{Exception, Result},
    ops, transforms,
};

use super::spec::Description;
use crate::{
    mlx::{self, device_address, exception, scalar, slice},
    nn::cache::KvCache,
};

/// Tokens of each row that the GPU remembers: more than are ever unread.
const HISTORY: usize = 64;

/// Rows of one replayed graph.
const LANE: usize = BUCKETS[BUCKETS.len() - 1];

/// Lanes at most. With more rows MLX's products, which read the matrices once for all, are faster.
const LANES: usize = 4;

/// Bytes of matrices in half precision that the lanes of a step may read together. An estimate: with 32 rows of Qwen3-0.6B a step of
/// MLX takes 10 ms on an H100, which reads 24 GB in 8 ms; larger models were not measured. Quantised matrices take MLX far longer.
const DENSE_BYTES: usize = 24 << 30;

/// Computes decode steps.
///
/// Rows are computed in lanes of up to eight, each a graph on a stream of its own. A step writes to memory that rows lend: the
/// arrays are held by the lanes until the steps that write to them are done, so that MLX does not use the memory meanwhile.
#[derive(Debug)]
pub(crate) struct CudaDecoder {
    // Dropped before the weights: they wait for their steps.
    lanes: Vec<Lane>,
    compiler: Arc<Compiler>,
    description: Description,
    stream: Stream,
}

/// Up to eight rows.
#[derive(Debug)]
pub(crate) struct Lane {
    executor: Executor,
    rows: Vec<Borrowed>,
    /// `[8, vocabulary]`, f32: what steps that keep logits write to.
    logits: Array,
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
    /// A decoder of the model, ready for one row. Kernels that are compiled are kept in `folder`, where one is given.
    ///
    /// # Errors
    /// There is no GPU, driver or compiler for the kernels, or no memory.
    pub(crate) fn new(description: Description, folder: Option<PathBuf>, stream: Stream) -> Result<Self> {
        let device = Device::probe(0).map_err(exception)?;
        let compiler = Arc::new(Compiler::new(&device, folder));
        let mut decoder = Self { lanes: Vec::new(), compiler, description, stream };
        decoder.add_lane()?.executor.prepare(1, 1, Logits::Discard).map_err(exception)?;
        Ok(decoder)
    }

    fn add_lane(&mut self) -> Result<&mut Lane> {
        let spec = self.description.spec.clone();
        let shape = [LANE as i32, spec.vocabulary() as i32];
        let logits = ops::zeros_dtype(&shape, Dtype::Float32)?;
        let options = Options { history: HISTORY, logits: Some(address(&logits)?), ..Options::default() };
        // SAFETY: the addresses are those of the description's arrays, which are dropped after the lanes, and of the logits;
        // `borrow` and `release` see to it that the rows' arrays live as long as steps write to them.
        let executor = unsafe { Executor::new(self.compiler.clone(), spec, options) }.map_err(exception)?;
        let lane = Lane { executor, rows: Vec::new(), logits, stream: self.stream.clone() };
        Ok(self.lanes.push_mut(lane))
    }

    /// Whether it is worth while to compute so many rows here. Where kernels for them are still compiled, it is not yet.
    ///
    /// # Errors
    /// The kernels cannot be compiled.
    pub(crate) fn takes(&mut self, rows: usize) -> Result<bool> {
        let lanes = rows.div_ceil(LANE);
        let spec = &self.description.spec;
        let dense = spec.layers.iter().any(|layer| layer.mlp.down.layout == Layout::Dense);
        if rows == 0 || lanes > LANES || lanes > 1 && dense && lanes * spec.weight_bytes() > DENSE_BYTES {
            return Ok(false);
        }
        self.lanes[0].executor.is_compiled(rows.min(LANE)).map_err(exception)
    }

    /// The lanes of these rows: those that they are in, or others with room. [`takes`](Self::takes) says whether there are enough.
    ///
    /// # Errors
    /// There is no memory for another lane.
    pub(crate) fn assign(&mut self, keys: &[u64]) -> Result<Vec<usize>> {
        let lane_of =
            |key: &u64| self.lanes.iter().position(|lane| lane.rows.iter().any(|row| row.key == *key));
        let known: Vec<Option<usize>> = keys.iter().map(lane_of).collect();
        let mut used = [0; LANES];
        known.iter().flatten().for_each(|lane| used[*lane] += 1);
        let mut lanes = Vec::with_capacity(keys.len());
        for known in known {
            let Some(lane) = known.or_else(|| used.iter().position(|rows| *rows < LANE)) else {
                let reason = format!("{} rows do not fit in {LANES} lanes", keys.len());
                return Err(Exception::custom(reason));
            };
            used[lane] += usize::from(known.is_none());
            while self.lanes.len() <= lane {
                self.add_lane()?;
            }
            lanes.push(lane);
        }
        Ok(lanes)
    }

    /// A lane that rows were [assigned](Self::assign) to.
    pub(crate) fn lane(&mut self, index: usize) -> &mut Lane {
        &mut self.lanes[index]
    }

    /// Waits for what MLX computes.
    ///
    /// # Errors
    /// MLX's own.
    pub(crate) fn wait_for_mlx(&self) -> Result<()> {
        mlx::synchronize(&self.stream)
    }

    /// Gives the memory of lanes back that have rows which are no longer wanted.
    ///
    /// # Errors
    /// A step failed.
    pub(crate) fn retain(&mut self, is_wanted: impl Fn(u64) -> bool) -> Result<()> {
        let unwanted = |lane: &&mut Lane| !lane.rows.iter().all(|row| is_wanted(row.key));
        self.lanes.iter_mut().filter(unwanted).try_for_each(Lane::release)
    }

    /// Waits for all steps, and gives all memory back to the rows.
    ///
    /// # Errors
    /// A step failed.
    pub(crate) fn release(&mut self) -> Result<()> {
        self.lanes.iter_mut().try_for_each(Lane::release)
    }
}

impl Lane {
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

    /// Takes rows over, each with its last token, which is not in its cache yet. MLX must be done with their caches.
    ///
    /// # Errors
    /// A step failed, or there is no memory for another token.
    pub(crate) fn borrow(&mut self, keys: &[u64], caches: &mut [&mut KvCache], tokens: &[u32]) -> Result<()> {
        self.release()?;
        let lent = caches.iter_mut().map(|cache| cache.lend()).collect::<Result<Vec<_>>>()?;
        transforms::eval(lent.iter().flatten().flatten())?;
        // What MLX computes with them runs on another stream.
        mlx::synchronize(&self.stream)?;
        for (index, arrays) in lent.into_iter().enumerate() {
            let places = arrays.iter().map(place).collect::<Result<Vec<_>>>()?;
            self.executor.set_caches(index, &places).map_err(exception)?;
            let (len, room) = (caches[index].len(), caches[index].room());
            let next = Row { token: tokens[index], position: len };
            self.executor.set_row(index, Some(next)).map_err(exception)?;
            self.rows.push(Borrowed { key: keys[index], len, room, _arrays: arrays });
        }
        (keys.len()..LANE).try_for_each(|index| self.executor.set_row(index, None)).map_err(exception)
    }

    /// Enqueues a step of the borrowed rows, each of which reads what it chose in the step before: one token for each, the
    /// likeliest.
    ///
    /// # Errors
    /// The driver's own.
    pub(crate) fn step(&mut self, caches: &mut [&mut KvCache]) -> Result<Pending> {
        self.submit(caches, Logits::Discard)
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

    fn release(&mut self) -> Result<()> {
        if !self.rows.is_empty() {
            self.executor.stream().synchronize().map_err(exception)?;
            self.rows.clear();
        }
        Ok(())
    }
}

/// Where keys and values of a layer are, `[1, kv_heads, capacity, head_dim]` each.
fn place([keys, values]: &[Array; 2]) -> Result<Cache> {
    Ok(Cache { keys: address(keys)?, values: address(values)?, capacity: keys.dim(2) as usize })
}

fn address(array: &Array) -> Result<DevicePtr> {
    let address = device_address(array, false)?;
    address.map(DevicePtr).ok_or_else(|| Exception::custom("an array is not in one piece"))
}
