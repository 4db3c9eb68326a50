//! What of a model can be trained.

use std::{cell::RefCell, rc::Rc};

use super::{adapter::AdapterSlot, parameter::Weight};

/// Everything in a model that training can get hold of.
#[derive(Debug, Default)]
pub(crate) struct ParamRegistry {
    parameters: RefCell<Vec<Weight>>,
    slots: RefCell<Vec<Rc<AdapterSlot>>>,
    /// Quantised tensors, which cannot be trained themselves.
    packed: RefCell<Vec<String>>,
}

impl ParamRegistry {
    /// Adds a tensor of the checkpoint.
    pub(crate) fn add_weight(&self, parameter: Weight) {
        self.parameters.borrow_mut().push(parameter);
    }

    /// Adds a place for an adapter.
    pub(crate) fn add_slot(&self, slot: Rc<AdapterSlot>) {
        self.slots.borrow_mut().push(slot);
    }

    /// Adds the name of a quantised matrix.
    pub(crate) fn add_quantized(&self, name: String) {
        self.packed.borrow_mut().push(name);
    }

    /// The tensors of the checkpoint that are floats.
    pub(crate) fn parameters(&self) -> Vec<Weight> {
        self.parameters.borrow().clone()
    }

    /// The layers that can have an adapter.
    pub(crate) fn slots(&self) -> Vec<Rc<AdapterSlot>> {
        self.slots.borrow().clone()
    }

    /// The quantised matrices.
    pub(crate) fn packed(&self) -> Vec<String> {
        self.packed.borrow().clone()
    }
}
