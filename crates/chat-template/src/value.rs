//! The values of a template: Python's, as far as templates see them.
//!
//! Texts, lists and dicts have no public constructors: they come from a [`Heap`], which charges the budget for them.

mod compare;
mod dict;
mod heap;
mod json;
mod list;
mod text;
mod types;

pub(crate) use compare::{compare, contains, equals};
pub(crate) use dict::{DictBuilder, get, get_by_name};
pub(crate) use heap::Heap;
pub(crate) use json::from_json;
pub(crate) use list::Items;
pub(crate) use text::{Text, TextBuilder};
pub(crate) use types::{
    Cycler, Dict, Held, Joiner, LoopState, MacroValue, Method, Missing, Name, Seq, Value, missing,
};
