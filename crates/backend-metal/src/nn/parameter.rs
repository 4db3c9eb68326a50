//! What of a model can be trained: the tensors of its checkpoint, and the adapters beside them.
//!
//! A gradient is taken by putting traced arrays in place of the real ones while a graph is built. A [`Leaf`] is such a place.

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

use super::{
    adapter::Site,
    ops::{scalar, slice},
};

/// One trainable tensor, by its name in a checkpoint or in an adapter's file.
#[derive(Debug)]
pub(crate) struct Leaf {
    name: String,
    value: RefCell<Option<Array>>,
}

impl Leaf {
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

/// Other values in some leaves, until it is dropped.
pub(crate) struct Swapped<'a> {
    leaves: &'a [Rc<Leaf>],
    before: Vec<Option<Array>>,
}

impl<'a> Swapped<'a> {
    /// Puts `values[i]` into `leaves[i]`.
    pub(crate) fn new(leaves: &'a [Rc<Leaf>], values: &[Array]) -> Self {
        debug_assert_eq!(leaves.len(), values.len());
        let before = leaves.iter().zip(values).map(|(leaf, value)| leaf.value.replace(Some(value.clone())));
        Self { leaves, before: before.collect() }
    }
}

impl Drop for Swapped<'_> {
    fn drop(&mut self) {
        for (leaf, value) in self.leaves.iter().zip(self.before.drain(..)) {
            leaf.value.replace(value);
        }
    }
}

/// How a tensor of the checkpoint is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As it is stored.
    Stored,
    /// With its last two axes swapped.
    Transposed,
    /// With one added to each element.
    PlusOne,
}

impl Form {
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
pub(crate) struct Parameter(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The tensors of the checkpoint, whose rows lie one below the other, and how many rows each has.
    parts: Vec<(Rc<Leaf>, i32)>,
    stored: Array,
    bound: Array,
    form: Form,
}

impl Deref for Parameter {
    type Target = Array;

    fn deref(&self) -> &Array {
        &self.0.bound
    }
}

/// An array that belongs to no checkpoint, and is not trained.
#[cfg(test)]
impl From<Array> for Parameter {
    fn from(bound: Array) -> Self {
        Self(Rc::new(Inner { parts: Vec::new(), stored: bound.clone(), bound, form: Form::Stored }))
    }
}

impl Parameter {
    /// The parameter of these tensors, each with its rows, that are `stored` in one array, perhaps with the rows stacked.
    pub(crate) fn new(parts: Vec<(String, usize)>, stored: Array, form: Form) -> Result<Self> {
        let bound = form.bind(&stored)?;
        if form == Form::PlusOne {
            bound.eval()?;
        }
        let parts = parts.into_iter().map(|(name, rows)| (Leaf::new(name, None), rows as i32)).collect();
        Ok(Self(Rc::new(Inner { parts, stored, bound, form })))
    }

    /// The array, or what training put in its place.
    pub(crate) fn get(&self) -> Result<Array> {
        let Inner { parts, stored, bound, form } = &*self.0;
        if !parts.iter().any(|(leaf, _)| leaf.is_set()) {
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
    pub(crate) fn leaves(&self) -> impl Iterator<Item = &Rc<Leaf>> {
        self.0.parts.iter().map(|(leaf, _)| leaf)
    }

    /// Their values, in the form and shape that the checkpoint has them in.
    pub(crate) fn values(&self) -> impl Iterator<Item = Result<Array>> {
        let Inner { parts, stored, .. } = &*self.0;
        let mut start = 0;
        parts.iter().map(move |(leaf, rows)| {
            let end = start + rows;
            let range = start..end;
            start = end;
            if let Some(value) = leaf.peek().as_ref() {
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

/// Everything in a model that training can get hold of.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    parameters: RefCell<Vec<Parameter>>,
    sites: RefCell<Vec<Rc<Site>>>,
    /// Quantised tensors, which cannot be trained themselves.
    packed: RefCell<Vec<String>>,
}

impl Inventory {
    /// Adds a tensor of the checkpoint.
    pub(crate) fn add_parameter(&self, parameter: Parameter) {
        self.parameters.borrow_mut().push(parameter);
    }

    /// Adds a place for an adapter.
    pub(crate) fn add_site(&self, site: Rc<Site>) {
        self.sites.borrow_mut().push(site);
    }

    /// Adds the name of a quantised matrix.
    pub(crate) fn add_packed(&self, name: String) {
        self.packed.borrow_mut().push(name);
    }

    /// The tensors of the checkpoint that are floats.
    pub(crate) fn parameters(&self) -> Vec<Parameter> {
        self.parameters.borrow().clone()
    }

    /// The layers that can have an adapter.
    pub(crate) fn sites(&self) -> Vec<Rc<Site>> {
        self.sites.borrow().clone()
    }

    /// The quantised matrices.
    pub(crate) fn packed(&self) -> Vec<String> {
        self.packed.borrow().clone()
    }
}

/// `x` with a share `rate` of its elements zeroed and the others scaled up to make good for them. The key decides which.
pub(crate) fn drop_out(x: &Array, rate: f32, key: &Array) -> Result<Array> {
    let keep = 1.0 - rate;
    let kept = mlx_rs::random::bernoulli(&Array::from_f32(keep), x.shape(), key)?;
    let scaled = x.multiply(scalar(keep.recip(), x.dtype())?)?;
    ops::select(&kept, &scaled, scalar(0.0, x.dtype())?)
}
