//! Lists in the making.

use std::{ops::Deref, rc::Rc};

use super::types::{Nesting, Seq, Value};
use crate::{
    budget::{Budget, ELEMENT, Hold},
    error::Result,
};

/// What the header of a list takes.
const OVERHEAD: usize = 96;

/// Elements that are charged for as they come.
#[derive(Debug)]
pub(crate) struct Items {
    values: Vec<Value>,
    hold: Hold,
}

impl Items {
    pub(super) fn new(budget: &Rc<Budget>) -> Self {
        Self { values: Vec::new(), hold: budget.hold_nothing() }
    }

    pub(crate) fn push(&mut self, value: Value) -> Result<()> {
        self.hold.budget().charge(ELEMENT)?;
        self.hold.make_room(&mut self.values, 1)?;
        self.values.push(value);
        Ok(())
    }

    pub(crate) fn extend(&mut self, values: &[Value]) -> Result<()> {
        self.hold.budget().charge_product(values.len(), ELEMENT)?;
        self.hold.make_room(&mut self.values, values.len())?;
        self.values.extend_from_slice(values);
        Ok(())
    }

    pub(crate) fn swap(&mut self, a: usize, b: usize) {
        self.values.swap(a, b);
    }

    fn finish(mut self) -> Result<Rc<Seq>> {
        self.hold.budget().charge(self.values.len())?;
        self.hold.grow(OVERHEAD)?;
        let nesting = Nesting::around(self.values.iter())?;
        Ok(Rc::new(Seq { items: self.values, nesting, _hold: self.hold }))
    }

    pub(crate) fn seq(self) -> Result<Rc<Seq>> {
        self.finish()
    }

    pub(crate) fn list(self) -> Result<Value> {
        self.finish().map(Value::List)
    }

    pub(crate) fn tuple(self) -> Result<Value> {
        self.finish().map(Value::Tuple)
    }

    pub(crate) fn iter_value(self) -> Result<Value> {
        self.finish().map(Value::Iter)
    }
}

impl Deref for Items {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        &self.values
    }
}
