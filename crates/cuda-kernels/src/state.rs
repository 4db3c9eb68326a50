//! Memory of a decoder besides its weights: where rows stand, and what passes from kernel to kernel.

use std::{mem, sync::Arc};

use crate::{
    Buffer, Device, DevicePtr, Error, Options, Result, Sampling, class::MAX_ROWS, memory::HostBuffer,
    spec::DecoderSpec,
};

/// Clusters that share the positions of a head, at most.
pub(crate) const MAX_CLUSTERS: usize = 8;

/// Columns that share a scale, at least.
const SMALLEST_GROUP: usize = 32;
/// Products of a layer, at most: three projections, the output, the router, and those of a dense or shared block.
const PRODUCTS: usize = 8;

/// The buffers. Those of rows hold [`MAX_ROWS`].
#[derive(Debug)]
pub(crate) struct State {
    /// The token that each row reads next, i32.
    pub(crate) token: Buffer,
    /// Its position, i32; negative where the row is idle.
    pub(crate) position: Buffer,
    /// Tokens that each row has chosen, i32, the last [`Self::history_len`] of them; -1 where logits were not finite.
    pub(crate) history: Arc<HostBuffer>,
    /// How many it has chosen, i32.
    pub(crate) steps: Buffer,
    pub(crate) history_len: usize,
    pub(crate) tables: CacheTables,
    /// The residual, by turns, f32.
    pub(crate) x: [Buffer; 2],
    /// What a block adds to it, f32.
    pub(crate) y: Buffer,
    pub(crate) qkv: Buffer,
    /// What was attended to, halves.
    pub(crate) attended: Buffer,
    /// Gated activations, halves, and those of a shared expert.
    pub(crate) gated: Buffer,
    pub(crate) shared: Buffer,
    /// Scores of experts, f32; those that each row has picked, i32, and their weights, f32.
    pub(crate) scores: Buffer,
    pub(crate) picks: Buffer,
    pub(crate) pick_weights: Buffer,
    /// Normalised rows for products that read them so, halves.
    pub(crate) normed: Buffer,
    /// Rows in the order in which [`Instance::Batch`](crate::instance::Instance::Batch) multiplies them, halves, and the sums of groups, f32.
    pub(crate) packed: Buffer,
    pub(crate) packed_sums: Buffer,
    /// `[MAX_ROWS][vocabulary]`, f32, unless the caller keeps them.
    pub(crate) own_logits: Option<Buffer>,
    /// Where logits are stored.
    pub(crate) logits: DevicePtr,
    /// Parts of attention: sums, and their maxima and totals.
    pub(crate) part: Buffer,
    pub(crate) part_state: Buffer,
    /// Counters of blocks, all zero between kernels.
    pub(crate) tickets: Buffer,
    /// How each row chooses its tokens: see [`Sampling::words`].
    pub(crate) draws: Buffer,
    /// Counters of tiles, u32, one for each product of a step; all zero between kernels.
    pub(crate) tiles: Buffer,
    /// The best token of each block.
    pub(crate) best: Buffer,
    pub(crate) best_index: Buffer,
    /// Frequencies of each rope, f32.
    pub(crate) ropes: Vec<Buffer>,
}

/// Where the caches are, `[layers][MAX_ROWS]`, on the host and on the GPU.
#[derive(Debug)]
pub(crate) struct CacheTables {
    host: (Vec<u64>, Vec<u64>, Vec<i32>),
    /// Whether the host has entries that the GPU has not.
    stale: bool,
    /// Addresses of keys.
    pub(crate) keys: Buffer,
    /// Addresses of values.
    pub(crate) values: Buffer,
    /// Positions, i32.
    pub(crate) capacity: Buffer,
}

impl CacheTables {
    fn new(device: &Device, count: usize) -> Result<Self> {
        let host = (vec![0; count], vec![0; count], vec![0; count]);
        let [keys, values] = [Buffer::of(device, &host.0)?, Buffer::of(device, &host.1)?];
        Ok(Self { keys, values, capacity: Buffer::of(device, &host.2)?, host, stale: false })
    }

    /// Sets an entry on the host.
    pub(crate) fn set(&mut self, place: usize, [keys, values]: [u64; 2], capacity: i32) {
        (self.host.0[place], self.host.1[place], self.host.2[place]) = (keys, values, capacity);
        self.stale = true;
    }

    /// Copies entries to the GPU, where some were set.
    pub(crate) fn write(&mut self) -> Result<()> {
        if !mem::take(&mut self.stale) {
            return Ok(());
        }
        self.keys.write(0, &self.host.0)?;
        self.values.write(0, &self.host.1)?;
        self.capacity.write(0, &self.host.2)
    }
}

impl State {
    pub(crate) fn new(device: &Device, spec: &DecoderSpec, options: Options) -> Result<Self> {
        let history_len = options.history;
        if history_len == 0 {
            return Err(Error::invalid("the length of the history", history_len, "at least 1"));
        }
        let zeroed = |count: usize, bytes: usize| Buffer::zeroed(device, MAX_ROWS * count * bytes);
        let (width, heads) = (spec.heads * spec.head_dim, spec.heads + 2 * spec.kv_heads);
        let ([gated, shared], [experts, top_k]) = (spec.gated(), spec.experts());
        let widest = width.max(spec.hidden).max(gated).max(shared);
        let blocks = device.multiprocessors() as usize;
        let ropes = spec.ropes.iter().map(|rope| Buffer::of(device, &rope.frequencies));
        let own_logits = options.logits.is_none().then(|| zeroed(spec.vocabulary(), 4)).transpose()?;
        let logits = options.logits.or(own_logits.as_ref().map(Buffer::ptr)).unwrap_or_default();
        let mut position = zeroed(1, 4)?;
        position.write(0, &[-1_i32; MAX_ROWS])?;
        Ok(Self {
            token: zeroed(1, 4)?,
            position,
            history: Arc::new(HostBuffer::new(device, MAX_ROWS * history_len)?),
            steps: zeroed(1, 4)?,
            history_len,
            tables: CacheTables::new(device, MAX_ROWS * spec.layers.len())?,
            x: [zeroed(spec.hidden, 4)?, zeroed(spec.hidden, 4)?],
            y: zeroed(spec.hidden, 4)?,
            qkv: zeroed(heads * spec.head_dim, 4)?,
            attended: zeroed(width, 2)?,
            gated: zeroed(gated, 2)?,
            shared: zeroed(shared, 2)?,
            scores: zeroed(experts, 4)?,
            picks: zeroed(top_k, 4)?,
            pick_weights: zeroed(top_k, 4)?,
            normed: zeroed(spec.hidden, 2)?,
            packed: zeroed(widest, 2)?,
            packed_sums: zeroed(widest / SMALLEST_GROUP, 4)?,
            logits,
            own_logits,
            // A block of heads has at most twice as many as it needs.
            part: zeroed(2 * width * MAX_CLUSTERS, 4)?,
            part_state: zeroed(2 * spec.heads * MAX_CLUSTERS, 8)?,
            tickets: zeroed(spec.heads + 1, 4)?,
            draws: zeroed(size_of_val(&Sampling::GREEDY), 1)?,
            tiles: zeroed(PRODUCTS * spec.layers.len() + 1, 4)?,
            best: zeroed(blocks, 4)?,
            best_index: zeroed(blocks, 4)?,
            ropes: ropes.collect::<Result<_>>()?,
        })
    }

    /// Fills all that passes from kernel to kernel with NaN.
    pub(crate) fn poison(&mut self) -> Result<()> {
        let Self { x: [x, spare], y, qkv, attended, gated, shared, normed, packed, packed_sums, .. } = self;
        let of_products = [x, spare, y, qkv, attended, gated, shared, normed, packed, packed_sums];
        let Self { scores, pick_weights, part, part_state, best, own_logits, .. } = self;
        let buffers = of_products.into_iter().chain([scores, pick_weights, part, part_state, best]);
        buffers.chain(own_logits).try_for_each(|buffer| {
            let bytes = buffer.bytes();
            buffer.write(0, &vec![0xff_u8; bytes])
        })
    }

    /// The counter of the head, behind those of attention.
    pub(crate) fn head_ticket(&self, row: usize, heads: usize) -> DevicePtr {
        self.tickets.ptr().offset(4 * (MAX_ROWS * heads + row))
    }
}
