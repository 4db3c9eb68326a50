//! The interpreter: walks the syntax tree by Jinja2's rules.

mod calls;
mod expressions;
mod state;
mod statements;

pub(crate) use state::Interpreter;
