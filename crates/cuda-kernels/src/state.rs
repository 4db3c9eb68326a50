//! Memory of a decoder besides its weights: where rows stand, and what passes from kernel to kernel.

use crate::{Buffer, Device, DevicePtr, Error, Result, spec::DecoderSpec};

/// Rows of the largest bucket.
pub(crate) const MAX_ROWS: usize = 8;
/// Clusters that share the positions of a head, at most.
pub(crate) const MAX_CLUSTERS: usize = 8;

/// The buffers. Those of rows hold [`MAX_ROWS`].
#[derive(Debug)]
pub(crate) struct State {
    /// The token that each row reads next, i32.
    pub(crate) token: Buffer,
    /// Its position, i32; negative where the row is idle.
    pub(crate) position: Buffer,
    /// Tokens that each row has chosen, i32, the last [`Self::history_len`] of them.
    pub(crate) history: Buffer,
    /// How many it has chosen, i32.
    pub(crate) steps: Buffer,
    pub(crate) history_len: usize,
    /// Addresses of keys, `[layers][MAX_ROWS]`, and of values.
    pub(crate) keys: Buffer,
    pub(crate) values: Buffer,
    /// The residual, by turns, f32.
    pub(crate) x: [Buffer; 2],
    /// What a block adds to it, f32.
    pub(crate) y: Buffer,
    pub(crate) qkv: Buffer,
    /// What was attended to, halves.
    pub(crate) attended: Buffer,
    /// Gated activations, halves.
    pub(crate) gated: Buffer,
    /// Normalised rows for products that read them so, halves.
    pub(crate) normed: Buffer,
    /// `[MAX_ROWS][vocabulary]`, f32.
    pub(crate) logits: Buffer,
    /// Parts of attention: sums, and their maxima and totals.
    pub(crate) part: Buffer,
    pub(crate) part_state: Buffer,
    /// Counters of blocks, all zero between kernels.
    pub(crate) tickets: Buffer,
    /// The best token of each block.
    pub(crate) best: Buffer,
    pub(crate) best_index: Buffer,
    /// Frequencies of each rope, f32.
    pub(crate) ropes: Vec<Buffer>,
}

impl State {
    pub(crate) fn new(device: &Device, spec: &DecoderSpec, history_len: usize) -> Result<Self> {
        if history_len == 0 {
            return Err(Error::invalid("the length of the history", history_len, "at least 1"));
        }
        let zeroed = |count: usize, bytes: usize| Buffer::zeroed(device, MAX_ROWS * count * bytes);
        let (width, heads) = (spec.heads * spec.head_dim, spec.heads + 2 * spec.kv_heads);
        let blocks = device.multiprocessors() as usize;
        let ropes = spec.ropes.iter().map(|rope| Buffer::of(device, &rope.frequencies));
        let mut position = zeroed(1, 4)?;
        position.write(0, &[-1_i32; MAX_ROWS])?;
        Ok(Self {
            token: zeroed(1, 4)?,
            position,
            history: zeroed(history_len, 4)?,
            steps: zeroed(1, 4)?,
            history_len,
            keys: zeroed(spec.layers.len(), 8)?,
            values: zeroed(spec.layers.len(), 8)?,
            x: [zeroed(spec.hidden, 4)?, zeroed(spec.hidden, 4)?],
            y: zeroed(spec.hidden, 4)?,
            qkv: zeroed(heads * spec.head_dim, 4)?,
            attended: zeroed(width, 2)?,
            gated: zeroed(spec.intermediate(), 2)?,
            normed: zeroed(spec.hidden, 2)?,
            logits: zeroed(spec.vocabulary(), 4)?,
            // A block of heads has at most twice as many as it needs.
            part: zeroed(2 * width * MAX_CLUSTERS, 4)?,
            part_state: zeroed(2 * spec.heads * MAX_CLUSTERS, 8)?,
            tickets: zeroed(spec.heads + 1, 4)?,
            best: zeroed(blocks, 4)?,
            best_index: zeroed(blocks, 4)?,
            ropes: ropes.collect::<Result<_>>()?,
        })
    }

    /// Fills all that passes from kernel to kernel with NaN.
    pub(crate) fn poison(&mut self) -> Result<()> {
        let Self { x: [x, spare], y, qkv, attended, gated, normed, logits, part, part_state, best, .. } =
            self;
        for buffer in [x, spare, y, qkv, attended, gated, normed, logits, part, part_state, best] {
            buffer.write(0, &vec![0xff_u8; buffer.bytes()])?;
        }
        Ok(())
    }

    /// The counter of the head, behind those of attention.
    pub(crate) fn head_ticket(&self, row: usize, heads: usize) -> DevicePtr {
        self.tickets.ptr().offset(4 * (MAX_ROWS * heads + row))
    }
}
