//! The arguments of a call.

use crate::{
    budget::{ELEMENT, Hold},
    error::{Result, runtime},
    value::{Heap, Items, Name, Value},
};

#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) positional: Items,
    named: Vec<(Name, Value)>,
    hold: Hold,
}

impl Args {
    pub(crate) fn new(heap: &Heap) -> Result<Self> {
        Ok(Self { positional: heap.items(), named: Vec::new(), hold: heap.hold(0)? })
    }

    pub(crate) fn push_named(&mut self, name: Name, value: Value) -> Result<()> {
        self.hold.budget().charge(ELEMENT)?;
        self.hold.make_room(&mut self.named, 1)?;
        self.named.push((name, value));
        Ok(())
    }

    pub(crate) fn named(&self) -> &[(Name, Value)] {
        &self.named
    }

    /// Takes out the argument of that name.
    pub(crate) fn take_named(&mut self, name: &str) -> Result<Option<Value>> {
        self.hold.budget().charge(self.named.len() + 1)?;
        for at in 0..self.named.len() {
            if self.named[at].0.len() == name.len() {
                self.hold.budget().charge(name.len())?;
                if *self.named[at].0 == *name {
                    return Ok(Some(self.named.swap_remove(at).1));
                }
            }
        }
        Ok(None)
    }

    /// The same arguments without the first ones.
    pub(crate) fn without_first(&self, count: usize, heap: &Heap) -> Result<Self> {
        let mut rest = Self::new(heap)?;
        rest.positional.extend(self.positional.get(count..).unwrap_or_default())?;
        for (name, value) in &self.named {
            rest.push_named(name.clone(), value.clone())?;
        }
        Ok(rest)
    }

    /// The arguments by their names, in order; those not given are `None`.
    pub(crate) fn bind<const N: usize>(&self, callee: &str, names: [&str; N]) -> Result<[Option<Value>; N]> {
        let positional = &self.positional;
        if positional.len() > N {
            return Err(runtime!("{callee}() takes at most {N} arguments, {} were given", positional.len()));
        }
        self.hold.budget().charge(self.named.len())?;
        let mut bound = [const { None }; N];
        for (place, value) in bound.iter_mut().zip(positional.iter()) {
            *place = Some(value.clone());
        }
        for (name, value) in &self.named {
            let Some(at) = names.iter().position(|known| **known == **name) else {
                return Err(runtime!("{callee}() got an unexpected keyword argument '{}'", &**name));
            };
            if bound[at].replace(value.clone()).is_some() {
                return Err(runtime!("{callee}() got multiple values for argument '{}'", &**name));
            }
        }
        Ok(bound)
    }
}

/// Whether an argument was given and is true.
pub(crate) fn is_true(value: Option<&Value>) -> bool {
    value.is_some_and(Value::is_true)
}
