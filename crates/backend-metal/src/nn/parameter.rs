//! What of a model can be trained: the tensors of its checkpoint, and the adapters beside them.
//!
//! A gradient is taken by putting traced arrays in place of the real ones while a graph is built. A [`Param`] is such a place.

use std::{
    cell::{Ref, RefCell},
    ops::Deref,
    rc::Rc,
};

use mlx_rs::{
    Array,
    error::{Exception, Result},
    ops::{self, concatenate},
};

use crate::mlx::{scalar, slice};

/// One trainable tensor, by its name in a checkpoint or in an adapter's file.
#[derive(Debug)]
pub(crate) struct Param {
    name: String,
    value: RefCell<Option<Array>>,
}

impl Param {
    /// The tensor of this name; empty where the bound one counts.
    pub(crate) fn new(name: String, value: Option<Array>) -> Rc<Self> {
        Rc::new(Self { name, value: RefCell::new(value) })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The transformer block that it is part of.
    pub(crate) fn layer(&self) -> Option<usize> {
        layer_of(&self.name)
    }

    /// What stands here now.
    ///
    /// # Errors
    /// Nothing does.
    pub(crate) fn get(&self) -> Result<Array> {
        self.value.borrow().clone().ok_or_else(|| Exception::custom(format!("{} has no value", self.name)))
    }

    fn is_set(&self) -> bool {
        self.value.borrow().is_some()
    }

    fn peek(&self) -> Ref<'_, Option<Array>> {
        self.value.borrow()
    }
}

/// The block that a tensor or layer of this name is part of: 3 for `model.layers.3.mlp.down_proj`.
pub(crate) fn layer_of(name: &str) -> Option<usize> {
    let mut parts = name.split('.');
    parts.find(|part| *part == "layers")?;
    parts.next()?.parse().ok()
}

/// Other values in some params, until it is dropped.
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

/// How a tensor of the checkpoint is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WeightTransform {
    /// As it is stored.
    Stored,
    /// With its last two axes swapped.
    Transposed,
    /// With one added to each element.
    PlusOne,
}

impl WeightTransform {
    fn bind(self, stored: &Array) -> Result<Array> {
        match self {
            Self::Stored => Ok(stored.clone()),
            Self::Transposed => stored.swap_axes(-1, -2),
            Self::PlusOne => stored.add(scalar(1.0, stored.dtype())?),
        }
    }
}

/// A tensor of floats that a model is made of, or several of the checkpoint's in one. Reads as the array that was bound;
/// [`get`](Self::get) is the one to build graphs with that may be trained. Clones share what is put in their place.
#[derive(Debug, Clone)]
pub(crate) struct Weight(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The tensors of the checkpoint, whose rows lie one below the other, and how many rows each has.
    parts: Vec<(Rc<Param>, i32)>,
    stored: Array,
    bound: Array,
    form: WeightTransform,
}

impl Deref for Weight {
    type Target = Array;

    fn deref(&self) -> &Array {
        &self.0.bound
    }
}

/// An array that belongs to no checkpoint, and is not trained.
#[cfg(test)]
impl From<Array> for Weight {
    fn from(bound: Array) -> Self {
        Self(Rc::new(Inner {
            parts: Vec::new(),
            stored: bound.clone(),
            bound,
            form: WeightTransform::Stored,
        }))
    }
}

impl Weight {
    /// The parameter of these tensors, each with its rows, that are `stored` in one array, perhaps with the rows stacked.
    pub(crate) fn new(parts: Vec<(String, usize)>, stored: Array, form: WeightTransform) -> Result<Self> {
        let bound = form.bind(&stored)?;
        if form == WeightTransform::PlusOne {
            bound.eval()?;
        }
        let parts = parts.into_iter().map(|(name, rows)| (Param::new(name, None), rows as i32)).collect();
        Ok(Self(Rc::new(Inner { parts, stored, bound, form })))
    }

    /// The array, or what training put in its place.
    pub(crate) fn get(&self) -> Result<Array> {
        let Inner { parts, stored, bound, form } = &*self.0;
        if !parts.iter().any(|(param, _)| param.is_set()) {
            return Ok(bound.clone());
        }
        let values: Vec<_> = self.values().collect::<Result<_>>()?;
        let whole = match values.as_slice() {
            [value] => value.clone(),
            values => concatenate(values, 0)?,
        };
        form.bind(&whole.reshape(stored.shape())?)
    }

    /// The tensors that it is made of.
    pub(crate) fn params(&self) -> impl Iterator<Item = &Rc<Param>> {
        self.0.parts.iter().map(|(param, _)| param)
    }

    /// Their values, in the form and shape that the checkpoint has them in.
    pub(crate) fn values(&self) -> impl Iterator<Item = Result<Array>> {
        let Inner { parts, stored, .. } = &*self.0;
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
            // Stacked rows lie as they would below each other.
            let columns = stored.shape()[1..].last().copied();
            let shape: Vec<_> = std::iter::once(-1).chain(columns).collect();
            let flat = stored.reshape(&shape)?;
            slice(&flat, 0, range.start, range.end)
        })
    }
}

/// `x` with a share `rate` of its elements zeroed and the others scaled up to make good for them. The key decides which.
pub(crate) fn drop_out(x: &Array, rate: f32, key: &Array) -> Result<Array> {
    let keep = 1.0 - rate;
    let kept = mlx_rs::random::bernoulli(&Array::from_f32(keep), x.shape(), key)?;
    let scaled = x.multiply(scalar(keep.recip(), x.dtype())?)?;
    ops::select(&kept, &scaled, scalar(0.0, x.dtype())?)
}
