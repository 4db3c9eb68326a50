//! Python's two ways of putting values into a text: `"%s" % value` and `"{}".format(value)`.

mod braces;
mod layout;
mod percent;
mod spec;

pub(crate) use braces::{Source, braces};
pub(crate) use percent::percent;
