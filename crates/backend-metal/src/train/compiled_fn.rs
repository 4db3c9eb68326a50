//! A function of arrays that is called at every step, compiled where MLX can.

use mlx_rs::{Array, error::Result, transforms::compile::compile};

use crate::mlx::on_cpu;

type ArrayFn = dyn FnMut(&[Array]) -> Result<Vec<Array>>;

/// A function of arrays whose captures do not change between calls.
pub(crate) struct CompiledFn(Box<ArrayFn>);

impl CompiledFn {
    /// Compiles the function on GPUs. On the CPU MLX would start a C++ compiler, which a user's machine may lack, so the function
    /// runs as it is.
    pub(crate) fn new(function: impl FnMut(&[Array]) -> Result<Vec<Array>> + 'static) -> Self {
        if on_cpu() { Self(Box::new(function)) } else { Self::compiled(function) }
    }

    /// Compiles the function: its graph is built once for each combination of argument shapes, and element-wise operations are
    /// fused.
    pub(crate) fn compiled(function: impl FnMut(&[Array]) -> Result<Vec<Array>> + 'static) -> Self {
        let mut compiled = compile(function, None);
        Self(Box::new(move |arguments| compiled(arguments)))
    }

    /// The function's results, lazy.
    pub(crate) fn call(&mut self, arguments: &[Array]) -> Result<Vec<Array>> {
        (self.0)(arguments)
    }
}

impl std::fmt::Debug for CompiledFn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CompiledFn")
    }
}
