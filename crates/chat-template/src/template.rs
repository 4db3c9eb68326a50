//! A parsed template.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::{
    environment::Environment,
    error::{Error, Result},
    interpreter::Interpreter,
    syntax::{self, ast::Ast},
};

/// The longest source in bytes. Published templates have up to some 30 KB.
pub const MAX_SOURCE_BYTES: usize = 256 << 10;

/// A template, parsed once and rendered as often as wanted, from any thread.
#[derive(Debug, Clone)]
pub struct Template {
    ast: Arc<Ast>,
}

impl Template {
    /// Parses a source, with blocks trimmed as transformers has it (`trim_blocks`, `lstrip_blocks`).
    ///
    /// # Errors
    /// [`ErrorKind::Syntax`](crate::ErrorKind::Syntax): the source is not a template.
    /// [`ErrorKind::LimitExceeded`](crate::ErrorKind::LimitExceeded): it is longer than [`MAX_SOURCE_BYTES`], or too deeply nested.
    pub fn parse(source: &str) -> Result<Self> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(Error::limit(format_args!(
                "the template has {} bytes, expected at most {MAX_SOURCE_BYTES}",
                source.len()
            )));
        }
        Ok(Self { ast: Arc::new(syntax::parse(source)?) })
    }

    /// The text of these variables, in the default [`Environment`].
    ///
    /// # Errors
    /// As [`render_in`](Self::render_in).
    pub fn render(&self, variables: &Map<String, Value>) -> Result<String> {
        self.render_in(&Environment::default(), variables)
    }

    /// The text of these variables. It ends within the limits of the environment, and needs less than 1 MiB of stack.
    ///
    /// # Errors
    /// Every kind but [`ErrorKind::Syntax`](crate::ErrorKind::Syntax).
    pub fn render_in(&self, environment: &Environment, variables: &Map<String, Value>) -> Result<String> {
        Interpreter::new(&self.ast, environment, variables)?.run()
    }
}
