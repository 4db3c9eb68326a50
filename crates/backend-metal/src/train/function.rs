//! A function of arrays that a run calls again and again.

use mlx_rs::{Array, error::Result, transforms::compile::compile};

use crate::mlx::on_cpu;

type OfArrays = dyn FnMut(&[Array]) -> Result<Vec<Array>>;

/// A function of arrays alone: what it captures stays the same from call to call.
pub(crate) struct Function(Box<OfArrays>);

impl Function {
    /// Compiled where MLX brings all that this takes. On the CPU it would start a compiler, which a user's machine may lack.
    pub(crate) fn new(function: impl FnMut(&[Array]) -> Result<Vec<Array>> + 'static) -> Self {
        if on_cpu() { Self(Box::new(function)) } else { Self::compiled(function) }
    }

    /// Its graph is built once for each combination of its arguments' shapes, and what works element by element is fused.
    pub(crate) fn compiled(function: impl FnMut(&[Array]) -> Result<Vec<Array>> + 'static) -> Self {
        let mut compiled = compile(function, None);
        Self(Box::new(move |arguments| compiled(arguments)))
    }

    /// The function's results, lazy.
    pub(crate) fn call(&mut self, arguments: &[Array]) -> Result<Vec<Array>> {
        (self.0)(arguments)
    }
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Function")
    }
}
