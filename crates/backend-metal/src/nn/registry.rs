//! The registry of a model's trainable parameters.

use std::{cell::RefCell, rc::Rc};

use super::{adapter::AdapterSlot, parameter::Weight};

/// All weights, adapter slots and quantised matrices of a model.
#[derive(Debug, Default)]
pub(crate) struct ParamRegistry {
    parameters: RefCell<Vec<Weight>>,
    slots: RefCell<Vec<Rc<AdapterSlot>>>,
    /// Quantised tensors, which cannot be trained themselves.
    packed: RefCell<Vec<String>>,
}

impl ParamRegistry {
    /// Adds a weight.
    pub(crate) fn add_weight(&self, parameter: Weight) {
        self.parameters.borrow_mut().push(parameter);
    }

    /// Adds an adapter slot.
    pub(crate) fn add_slot(&self, slot: Rc<AdapterSlot>) {
        self.slots.borrow_mut().push(slot);
    }

    /// Adds the name of a quantised matrix.
    pub(crate) fn add_quantized(&self, name: String) {
        self.packed.borrow_mut().push(name);
    }

    /// The weights, which are floats.
    pub(crate) fn parameters(&self) -> Vec<Weight> {
        self.parameters.borrow().clone()
    }

    /// The adapter slots.
    pub(crate) fn slots(&self) -> Vec<Rc<AdapterSlot>> {
        self.slots.borrow().clone()
    }

    /// The names of quantised matrices.
    pub(crate) fn packed(&self) -> Vec<String> {
        self.packed.borrow().clone()
    }
}
