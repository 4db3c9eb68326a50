//! Where values come from. Everything that makes one charges the budget first.

use std::{cell::RefCell, fmt, rc::Rc};

use num_bigint::BigInt;
use num_traits::ToPrimitive;

use super::{
    list::Items,
    text::{Text, TextBuilder},
    types::{Held, MacroValue, Missing, Name, Seq, Value},
};
use crate::{
    budget::{Budget, ELEMENT, Hold},
    environment::{Cancelled, Limits},
    error::{Error, Result, runtime},
};

/// About what a small object on the heap takes.
const OBJECT: usize = 64;

/// The values of one rendering.
#[derive(Debug)]
pub(crate) struct Heap {
    budget: Rc<Budget>,
    /// The fields of namespaces, in order. They stay until the rendering ends.
    namespaces: RefCell<Namespaces>,
}

#[derive(Debug)]
struct Namespaces {
    fields: Vec<Vec<(Name, Value)>>,
    hold: Hold,
}

impl Heap {
    pub(crate) fn new(limits: Limits, cancelled: Option<Cancelled>) -> Self {
        let budget = Budget::new(limits, cancelled);
        let hold = budget.hold_nothing();
        Self { budget, namespaces: RefCell::new(Namespaces { fields: Vec::new(), hold }) }
    }

    /// Takes units of work that is about to be done.
    pub(crate) fn charge(&self, units: usize) -> Result<()> {
        self.budget.charge(units)
    }

    /// Takes units for elements that are about to be looked at.
    pub(crate) fn charge_elements(&self, count: usize) -> Result<()> {
        self.budget.charge_product(count, ELEMENT)
    }

    pub(crate) fn charge_product(&self, a: usize, b: usize) -> Result<()> {
        self.budget.charge_product(a, b)
    }

    /// Memory for what is not a value: scopes, buffers.
    pub(crate) fn hold(&self, bytes: usize) -> Result<Hold> {
        self.budget.hold(bytes)
    }

    pub(crate) fn builder(&self) -> TextBuilder {
        TextBuilder::new(&self.budget)
    }

    pub(crate) fn items(&self) -> Items {
        Items::new(&self.budget)
    }

    pub(crate) fn text(&self, text: &str) -> Result<Text> {
        let mut builder = self.builder();
        builder.push_str(text)?;
        builder.finish()
    }

    pub(crate) fn str(&self, text: &str) -> Result<Value> {
        self.text(text).map(Value::Str)
    }

    /// A short text, such as a number.
    pub(crate) fn written(&self, written: fmt::Arguments<'_>) -> Result<Value> {
        let mut builder = self.builder();
        builder.write(written)?;
        builder.finish().map(Value::Str)
    }

    pub(crate) fn int(&self, int: usize) -> Value {
        Value::Int(i64::try_from(int).unwrap_or(i64::MAX))
    }

    /// The smallest kind of integer that holds it.
    pub(crate) fn integer(&self, int: BigInt) -> Result<Value> {
        match int.to_i64() {
            Some(int) => Ok(Value::Int(int)),
            None => {
                let bytes = usize::try_from(int.bits() / 8).unwrap_or(usize::MAX);
                let hold = self.budget.hold(bytes.saturating_add(OBJECT))?;
                Ok(Value::BigInt(Rc::new(Held { inner: int, _hold: hold })))
            }
        }
    }

    /// Something small that a value points to.
    pub(crate) fn held<T>(&self, inner: T) -> Result<Rc<Held<T>>> {
        let hold = self.budget.hold(size_of::<Held<T>>() + 2 * size_of::<usize>())?;
        Ok(Rc::new(Held { inner, _hold: hold }))
    }

    /// Two values in a tuple.
    pub(crate) fn pair(&self, first: Value, second: Value) -> Result<Value> {
        let mut items = self.items();
        items.push(first)?;
        items.push(second)?;
        items.tuple()
    }

    pub(crate) fn undefined(&self, missing: Missing) -> Result<Value> {
        self.held(missing).map(Value::Undefined)
    }

    pub(crate) fn macro_value(&self, id: usize, scope: usize) -> Result<Value> {
        self.held(MacroValue { id, scope }).map(Value::Macro)
    }

    /// Whether two names or keys are equal.
    pub(crate) fn same_text(&self, a: &str, b: &str) -> Result<bool> {
        if a.len() != b.len() {
            self.budget.charge(1)?;
            return Ok(false);
        }
        self.budget.charge(a.len() + 1)?;
        Ok(a == b)
    }

    /// The elements that a loop sees.
    pub(crate) fn iterate(&self, value: &Value) -> Result<Rc<Seq>> {
        let mut items = self.items();
        match value {
            Value::List(seq) | Value::Tuple(seq) | Value::Iter(seq) => return Ok(Rc::clone(seq)),
            Value::Undefined(_) => {}
            Value::Dict(dict) => {
                for (key, _) in dict.iter() {
                    items.push(key.clone())?;
                }
            }
            Value::Str(text) => {
                for c in text.chars() {
                    items.push(self.str(c.encode_utf8(&mut [0; 4]))?)?;
                }
            }
            other => return Err(runtime!("'{}' object is not iterable", other.type_name())),
        }
        items.seq()
    }

    /// Python's `len`.
    pub(crate) fn length(&self, value: &Value) -> Result<usize> {
        match value {
            Value::Undefined(_) => Ok(0),
            Value::Str(text) => text.chars_count(),
            Value::List(seq) | Value::Tuple(seq) => Ok(seq.len()),
            Value::Dict(dict) => Ok(dict.len()),
            Value::Namespace(_) | Value::Macro(_) => Err(not_sized(value)),
            Value::Loop(state) => Ok(state.items.len()),
            other => Err(not_sized(other)),
        }
    }

    /// An empty namespace.
    pub(crate) fn namespace(&self) -> Result<usize> {
        let namespaces = &mut *self.namespaces.borrow_mut();
        self.budget.charge(OBJECT)?;
        namespaces.hold.make_room(&mut namespaces.fields, 1)?;
        namespaces.fields.push(Vec::new());
        Ok(namespaces.fields.len() - 1)
    }

    /// A field of a namespace.
    pub(crate) fn field(&self, namespace: usize, name: &str) -> Result<Option<Value>> {
        let namespaces = self.namespaces.borrow();
        let Some(fields) = namespaces.fields.get(namespace) else { return Ok(None) };
        for (known, value) in fields {
            if self.same_text(known, name)? {
                return Ok(Some(value.clone()));
            }
        }
        Ok(None)
    }

    /// Sets a field of a namespace.
    pub(crate) fn set_field(&self, namespace: usize, name: Name, value: Value) -> Result<()> {
        let Namespaces { fields, hold } = &mut *self.namespaces.borrow_mut();
        let Some(fields) = fields.get_mut(namespace) else { return Ok(()) };
        for (known, old) in &mut *fields {
            if self.same_text(known, &name)? {
                *old = value;
                return Ok(());
            }
        }
        hold.make_room(fields, 1)?;
        fields.push((name, value));
        Ok(())
    }
}

fn not_sized(value: &Value) -> Error {
    runtime!("object of type '{}' has no len()", value.type_name())
}
