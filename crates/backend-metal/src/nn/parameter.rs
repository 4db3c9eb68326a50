//! Trainable parameters, and the weights that are made of them.
//!
//! To take a gradient, training puts traced arrays into [`Param`]s while the graph is built: see [`ParamOverride`].

use std::{
    cell::{Cell, Ref, RefCell},
    rc::Rc,
};

use mlx_rs::{
    Array,
    error::{Exception, Result},
    ops::{self, concatenate},
};

use super::exec::ExecMode;
use crate::mlx::{scalar, slice};

/// One trainable tensor, with its name in the checkpoint or in the adapter's file.
#[derive(Debug)]
pub(crate) struct Param {
    name: String,
    value: RefCell<Option<Array>>,
    /// Whether the value was asked for: see [`params_used`].
    used: Cell<bool>,
}

impl Param {
    /// The tensor of this name. `None`: the weight's bound array is used.
    pub(crate) fn new(name: String, value: Option<Array>) -> Rc<Self> {
        Rc::new(Self { name, value: RefCell::new(value), used: Cell::new(false) })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The index of its transformer block.
    pub(crate) fn layer(&self) -> Option<usize> {
        layer_of(&self.name)
    }

    /// The current value.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn get(&self) -> Result<Array> {
        self.peek().clone().ok_or_else(|| Exception::custom(format!("{} has no value", self.name)))
    }

    fn is_set(&self) -> bool {
        self.value.borrow().is_some()
    }

    fn peek(&self) -> Ref<'_, Option<Array>> {
        self.used.set(true);
        self.value.borrow()
    }
}

/// The params whose values `work` asks for.
pub(crate) fn params_used(params: &[Rc<Param>], work: impl FnOnce() -> Result<()>) -> Result<Vec<Rc<Param>>> {
    params.iter().for_each(|param| param.used.set(false));
    work()?;
    Ok(params.iter().filter(|param| param.used.get()).cloned().collect())
}

/// The index of the block in the name of a tensor or layer: 3 for `model.layers.3.mlp.down_proj`.
pub(crate) fn layer_of(name: &str) -> Option<usize> {
    let mut parts = name.split('.');
    parts.find(|part| *part == "layers")?;
    parts.next()?.parse().ok()
}

/// A guard that gives params other values until it is dropped.
pub(crate) struct ParamOverride<'a> {
    params: &'a [Rc<Param>],
    before: Vec<Option<Array>>,
}

impl<'a> ParamOverride<'a> {
    /// Puts `values[i]` into `params[i]`.
    pub(crate) fn new(params: &'a [Rc<Param>], values: &[Array]) -> Self {
        debug_assert_eq!(params.len(), values.len());
        let before = params.iter().zip(values).map(|(param, value)| param.value.replace(Some(value.clone())));
        Self { params, before: before.collect() }
    }
}

impl Drop for ParamOverride<'_> {
    fn drop(&mut self) {
        for (param, value) in self.params.iter().zip(self.before.drain(..)) {
            param.value.replace(value);
        }
    }
}

/// How a stored tensor is transformed when it is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WeightTransform {
    /// Not at all.
    Stored,
    /// Not at all, and it keeps its type.
    Exact,
    /// The last two axes are swapped.
    Transposed,
    /// One is added to each element.
    PlusOne,
}

impl WeightTransform {
    fn bind(self, stored: &Array) -> Result<Array> {
        match self {
            Self::Stored | Self::Exact => Ok(stored.clone()),
            Self::Transposed => stored.swap_axes(-1, -2),
            Self::PlusOne => stored.add(scalar(1.0, stored.dtype())?),
        }
    }
}

/// A tensor of floats as the model uses it: one of the checkpoint's, or several in one. Clones share their params.
#[derive(Debug, Clone)]
pub(crate) struct Weight(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The tensors of the checkpoint, stacked by rows, and the number of rows of each.
    parts: Vec<(Rc<Param>, i32)>,
    stored: RefCell<Array>,
    bound: RefCell<Array>,
    form: WeightTransform,
}

/// An array of no checkpoint, which is not trained.
#[cfg(test)]
impl From<Array> for Weight {
    fn from(bound: Array) -> Self {
        Self(Rc::new(Inner {
            parts: Vec::new(),
            stored: RefCell::new(bound.clone()),
            bound: RefCell::new(bound),
            form: WeightTransform::Stored,
        }))
    }
}

impl Weight {
    /// The weight of these tensors, each with its number of rows. `stored` holds them all, perhaps as a stack of matrices.
    pub(crate) fn new(parts: Vec<(String, usize)>, stored: Array, form: WeightTransform) -> Result<Self> {
        let bound = form.bind(&stored)?;
        if form == WeightTransform::PlusOne {
            bound.eval()?;
        }
        let parts = parts.into_iter().map(|(name, rows)| (Param::new(name, None), rows as i32)).collect();
        let (stored, bound) = (RefCell::new(stored), RefCell::new(bound));
        Ok(Self(Rc::new(Inner { parts, stored, bound, form })))
    }

    /// What the checkpoint's tensors were bound to.
    pub(crate) fn bound(&self) -> Array {
        self.0.bound.borrow().clone()
    }

    /// Gives the checkpoint's tensors up. From here on only training can use the weight: all else finds zeros in it.
    pub(crate) fn release(&self) -> Result<()> {
        let Inner { stored, bound, .. } = &*self.0;
        for array in [stored, bound] {
            let (dtype, shape) = (array.borrow().dtype(), array.borrow().shape().to_vec());
            array.replace(ops::broadcast_to(scalar(0.0, dtype)?, &shape)?);
        }
        Ok(())
    }

    /// The bound array, or one made of the params' values if training set them.
    pub(crate) fn get(&self) -> Result<Array> {
        let Inner { parts, stored, form, .. } = &*self.0;
        if !parts.iter().any(|(param, _)| param.is_set()) {
            return Ok(self.bound());
        }
        let values: Vec<_> = self.values().collect::<Result<_>>()?;
        let whole = match values.as_slice() {
            [value] => value.clone(),
            values => concatenate(values, 0)?,
        };
        form.bind(&whole.reshape(stored.borrow().shape())?)
    }

    /// Whether it is made of several values that training set: joining them would copy them in each step. With the CPU's kernels it is
    /// never apart, since one product is faster there than several.
    pub(crate) fn is_apart(&self) -> bool {
        let parts = &self.0.parts;
        ExecMode::current().is_mlx() && parts.len() > 1 && parts.iter().any(|(param, _)| param.is_set())
    }

    /// What it is made of, each as [`get`](Self::get) would give it alone.
    pub(crate) fn get_parts(&self) -> impl Iterator<Item = Result<Array>> {
        self.values().map(|value| self.0.form.bind(&value?))
    }

    /// The params that it is made of.
    pub(crate) fn params(&self) -> impl Iterator<Item = &Rc<Param>> {
        self.0.parts.iter().map(|(param, _)| param)
    }

    /// The params' values, as the checkpoint stores them.
    pub(crate) fn values(&self) -> impl Iterator<Item = Result<Array>> {
        let Inner { parts, stored, .. } = &*self.0;
        let stored = stored.borrow().clone();
        let mut start = 0;
        parts.iter().map(move |(param, rows)| {
            let end = start + rows;
            let range = start..end;
            start = end;
            if let Some(value) = param.peek().as_ref() {
                return Ok(value.clone());
            }
            if parts.len() == 1 {
                return Ok(stored.clone());
            }
            // A stack of matrices has the memory layout of one tall matrix.
            let columns = stored.shape()[1..].last().copied();
            let shape: Vec<_> = std::iter::once(-1).chain(columns).collect();
            let flat = stored.reshape(&shape)?;
            slice(&flat, 0, range.start, range.end)
        })
    }
}

/// Dropout: zeroes elements of `x` with probability `rate` and scales the others by `1 / (1 - rate)`. `key` is the random key.
pub(crate) fn drop_out(x: &Array, rate: f32, key: &Array) -> Result<Array> {
    let keep = 1.0 - rate;
    let kept = mlx_rs::random::bernoulli(&Array::from_f32(keep), x.shape(), key)?;
    let scaled = x.multiply(scalar(keep.recip(), x.dtype())?)?;
    ops::select(&kept, &scaled, scalar(0.0, x.dtype())?)
}
