//! Gradient checkpointing, and functions with custom gradients.

use std::rc::Rc;

use mlx_rs::{Array, error::Result};

use super::vjp::{Closure, after};

/// Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): `function(inputs)`, which the backward pass calls again instead of
/// keeping its activations. It may depend on traced arrays through `inputs` alone, and it lives as long as the graph.
pub(crate) fn recomputed<F>(inputs: &[Array], function: F) -> Result<Array>
where
    F: Fn(&[Array]) -> Result<Array> + 'static,
{
    let function = Rc::new(function);
    let again = Closure::new({
        let function = function.clone();
        move |inputs: &[Array]| function(inputs)
    });
    differentiated(
        inputs,
        move |inputs| function(inputs),
        // After the gradient of the output: MLX would otherwise recompute all functions of a model first and hold their activations.
        move |inputs, g| again.gradient(&after(inputs, g)?, g),
    )
}

/// `function(inputs)` with a custom gradient: `gradient(inputs, by_output)` returns one gradient for each input. As in
/// [`recomputed`], both depend on traced arrays through their arguments alone, and live as long as the graph.
pub(crate) fn differentiated<F, B>(inputs: &[Array], function: F, gradient: B) -> Result<Array>
where
    F: Fn(&[Array]) -> Result<Array> + 'static,
    B: Fn(&[Array], &Array) -> Result<Vec<Array>> + 'static,
{
    Closure::new(function).with_gradient(gradient)?.apply(inputs)
}
