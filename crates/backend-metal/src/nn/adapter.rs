//! Low-rank adapters of layers, in mlx_lm's format: LoRA (Hu et al. 2021, arXiv 2106.09685) and DoRA (Liu et al. 2024, arXiv
//! 2402.09353).

use std::{
    cell::{OnceCell, RefCell},
    fmt::Debug,
    rc::Rc,
};

use mlx_rs::{
    Array, Dtype,
    error::{Exception, Result},
    ops::{self, concatenate},
    stop_gradient,
};

use super::{
    exec::on_cpu,
    ops::matmul,
    parameter::{Param, drop_out},
};
use crate::mlx::scalar;

/// A matrix whose rows can be read, dequantised if needed.
pub(crate) trait RowSource: Debug {
    /// The rows `start..end`: `[end - start, inputs]`.
    ///
    /// # Errors
    /// MLX's own.
    fn rows_in_full(&self, start: i32, end: i32) -> Result<Array>;
}

/// A layer that can have an adapter: mlx_lm calls such layers LoRA targets.
#[derive(Debug)]
pub(crate) struct AdapterSlot {
    name: String,
    kind: SlotKind,
    inputs: usize,
    outputs: usize,
    /// The matrix that holds its rows, and the first of them.
    rows: OnceCell<(Rc<dyn RowSource>, i32)>,
    adapter: RefCell<Option<Rc<Adapter>>>,
}

/// The kind of layer, which decides the shapes of the adapter's matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SlotKind {
    /// A linear map: A `[inputs, rank]`, B `[rank, outputs]`.
    Linear,
    /// A stack of this many linear maps: A `[experts, rank, inputs]`, B `[experts, outputs, rank]`.
    Experts(usize),
    /// A table of `inputs` rows: A `[inputs, rank]`, B `[rank, outputs]`.
    Embedding,
}

/// An adapter: adds scale · (x · A) · B to its layer's output.
#[derive(Debug)]
pub(crate) struct Adapter {
    /// `lora_a`
    pub(crate) a: Rc<Param>,
    /// `lora_b`
    pub(crate) b: Rc<Param>,
    /// DoRA's `m`, `[outputs]`: the norms of the adapted matrix's rows.
    pub(crate) magnitude: Option<Rc<Param>>,
    /// Factor of the adapter's output.
    pub(crate) scale: f32,
    /// Dropout rate of the inputs and random key.
    pub(crate) dropout: RefCell<Option<(f32, Array)>>,
    /// DoRA without training: the norms of the adapted rows before `m`, computed once.
    pub(crate) norms: Option<RefCell<Option<Array>>>,
}

impl AdapterSlot {
    /// The layer of this name and size.
    pub(crate) fn new(name: String, kind: SlotKind, inputs: usize, outputs: usize) -> Rc<Self> {
        let (rows, adapter) = Default::default();
        Rc::new(Self { name, kind, inputs, outputs, rows, adapter })
    }

    /// The layer's name in mlx_lm: the same as in the checkpoint except for experts.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The kind of layer.
    pub(crate) fn kind(&self) -> SlotKind {
        self.kind
    }

    /// The shapes of A and B with this rank.
    pub(crate) fn shapes(&self, rank: usize) -> [Vec<usize>; 2] {
        let Self { inputs, outputs, .. } = *self;
        match self.kind {
            SlotKind::Linear | SlotKind::Embedding => [vec![inputs, rank], vec![rank, outputs]],
            SlotKind::Experts(n) => [vec![n, rank, inputs], vec![n, outputs, rank]],
        }
    }

    /// Input features.
    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Output features.
    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Sets the matrix that holds the layer's rows, from row `start` on.
    pub(crate) fn bind(&self, matrix: Rc<dyn RowSource>, start: usize) {
        // Bound once, when the layer is loaded.
        let _ = self.rows.set((matrix, start as i32));
    }

    /// The norms of its rows, in float32: `[outputs]`.
    ///
    /// # Errors
    /// It is no linear layer.
    pub(crate) fn row_norms(&self) -> Result<Array> {
        norms(&self.weight()?)
    }

    /// Sets or removes the adapter.
    pub(crate) fn set(&self, adapter: Option<Rc<Adapter>>) {
        self.adapter.replace(adapter);
    }

    /// The adapter.
    pub(crate) fn adapter(&self) -> Option<Rc<Adapter>> {
        self.adapter.borrow().clone()
    }

    /// The layer's matrix, dequantised, in float32: `[outputs, inputs]`.
    fn weight(&self) -> Result<Array> {
        let (matrix, start) = self.rows.get().ok_or_else(|| {
            Exception::custom(format!("{} is no linear layer, DoRA is for those only", self.name))
        })?;
        matrix.rows_in_full(*start, start + self.outputs as i32)?.as_dtype(Dtype::Float32)
    }
}

/// The adapter slots of a layer: one, or one for each part of a fused projection.
#[derive(Debug, Clone, Default)]
pub(crate) struct AdapterSlots(Vec<Rc<AdapterSlot>>);

impl AdapterSlots {
    /// The slots of the parts, in order.
    pub(crate) fn new(slots: Vec<Rc<AdapterSlot>>) -> Self {
        Self(slots)
    }

    /// Whether no slot has an adapter.
    pub(crate) fn is_plain(&self) -> bool {
        self.0.iter().all(|slot| slot.adapter.borrow().is_none())
    }

    /// Applies the adapters to the layer's output `y` `[.., outputs]` for `x` `[.., inputs]`.
    pub(crate) fn adapt(&self, x: &Array, y: Array) -> Result<Array> {
        if self.is_plain() {
            return Ok(y);
        }
        let y = self.add(&y, |slot, adapter| {
            let x = adapter.dropped(x)?;
            let (a, b) = (adapter.a.get()?, adapter.b.get()?);
            if slot.kind == SlotKind::Embedding {
                return matmul(&matmul(&x, &b.swap_axes(-1, -2)?)?, &a.swap_axes(-1, -2)?);
            }
            matmul(&matmul(&x, &a)?, &b)
        })?;
        self.rescale(y)
    }

    /// The same for experts: `picks` has one expert for each matrix of x, `sorted` says whether they ascend.
    pub(crate) fn adapt_gathered(&self, x: &Array, y: Array, picks: &Array, sorted: bool) -> Result<Array> {
        if self.is_plain() {
            return Ok(y);
        }
        self.add(&y, |_, adapter| {
            let gather = |x: &Array, matrix: Array| {
                // MLX's gather on the CPU knows float32 only, and aborts the process otherwise.
                let dtype = if on_cpu() { Dtype::Float32 } else { matrix.dtype() };
                let transposed = matrix.as_dtype(dtype)?.swap_axes(-1, -2)?;
                ops::gather_mm(x.as_dtype(dtype)?, transposed, None, picks, sorted)
            };
            gather(&gather(&adapter.dropped(x)?, adapter.a.get()?)?, adapter.b.get()?)
        })
    }

    /// The same for an embedding: `y` are the rows of `ids`.
    pub(crate) fn adapt_rows(&self, ids: &Array, y: Array) -> Result<Array> {
        if self.is_plain() {
            return Ok(y);
        }
        self.add(&y, |_, adapter| {
            let rows = adapter.a.get()?.take_axis(ids, 0)?.matmul(adapter.b.get()?)?;
            adapter.dropped(&rows)
        })
    }

    /// `y` plus the adapters' outputs, part by part.
    fn add(&self, y: &Array, delta: impl Fn(&AdapterSlot, &Adapter) -> Result<Array>) -> Result<Array> {
        let dtype = y.dtype();
        let deltas = self.0.iter().map(|slot| match &*slot.adapter.borrow() {
            Some(adapter) => {
                let delta = delta(slot, adapter)?;
                delta.multiply(scalar(adapter.scale, delta.dtype())?)?.as_dtype(dtype)
            }
            None => {
                let mut shape = y.shape().to_vec();
                if let Some(last) = shape.last_mut() {
                    *last = slot.outputs as i32;
                }
                ops::zeros_dtype(&shape, dtype)
            }
        });
        match deltas.collect::<Result<Vec<_>>>()?.as_slice() {
            [delta] => y.add(delta),
            deltas => y.add(concatenate(deltas, -1)?),
        }
    }

    /// DoRA: scales outputs so that the adapted rows have the norms `m`.
    fn rescale(&self, y: Array) -> Result<Array> {
        let magnitudes =
            |slot: &Rc<AdapterSlot>| slot.adapter().filter(|adapter| adapter.magnitude.is_some());
        if !self.0.iter().any(|slot| magnitudes(slot).is_some()) {
            return Ok(y);
        }
        let factors = self.0.iter().map(|slot| match magnitudes(slot) {
            Some(adapter) => adapter.factor(slot)?.as_dtype(y.dtype()),
            None => ops::ones_dtype(&[slot.outputs as i32], y.dtype()),
        });
        match factors.collect::<Result<Vec<_>>>()?.as_slice() {
            [factor] => y.multiply(factor),
            factors => y.multiply(concatenate(factors, 0)?),
        }
    }
}

impl Adapter {
    fn dropped(&self, x: &Array) -> Result<Array> {
        match &*self.dropout.borrow() {
            Some((rate, key)) if *rate > 0.0 => drop_out(x, *rate, key),
            _ => Ok(x.clone()),
        }
    }

    /// `m / |row|` for each adapted row of the layer.
    fn factor(&self, slot: &AdapterSlot) -> Result<Array> {
        let magnitude = self.magnitude.as_ref().ok_or_else(|| Exception::custom("it is no DoRA"))?.get()?;
        let Some(known) = &self.norms else {
            // As in the paper: no gradient flows through the norms.
            return magnitude.divide(stop_gradient(self.row_norms(slot)?)?);
        };
        if known.borrow().is_none() {
            let norms = self.row_norms(slot)?;
            norms.eval()?;
            known.replace(Some(norms));
        }
        match &*known.borrow() {
            Some(norms) => magnitude.divide(norms),
            None => Err(Exception::custom("the norms are missing")),
        }
    }

    fn row_norms(&self, slot: &AdapterSlot) -> Result<Array> {
        let delta = self.a.get()?.matmul(self.b.get()?)?.swap_axes(-1, -2)?;
        let delta = delta.multiply(scalar(self.scale, delta.dtype())?)?;
        norms(&slot.weight()?.add(delta)?)
    }
}

/// The L2 norms of rows: `[rows, columns]` → `[rows]`.
fn norms(rows: &Array) -> Result<Array> {
    rows.square()?.sum_axis(-1, false)?.sqrt()
}
