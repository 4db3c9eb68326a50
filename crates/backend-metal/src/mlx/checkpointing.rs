//! Gradient checkpointing, and functions with custom gradients.

use std::{rc::Rc, slice};

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
        move |inputs: &[Array]| Ok(vec![function(inputs)?])
    });
    differentiated(
        inputs,
        move |inputs| function(inputs),
        // After the gradient of the output: MLX would otherwise recompute all functions of a model first and hold their activations.
        move |inputs, g| again.gradient(&after(inputs, slice::from_ref(g))?, g),
    )
}

/// `function(inputs)` with a custom gradient: `gradient(inputs, by_output)` returns one gradient for each input. As in
/// [`recomputed`], both depend on traced arrays through their arguments alone, and live as long as the graph.
pub(crate) fn differentiated<F, B>(inputs: &[Array], function: F, gradient: B) -> Result<Array>
where
    F: Fn(&[Array]) -> Result<Array> + 'static,
    B: Fn(&[Array], &Array) -> Result<Vec<Array>> + 'static,
{
    let function = Closure::new(move |inputs: &[Array]| Ok(vec![function(inputs)?]));
    function.with_gradient(move |inputs, g, _| gradient(inputs, g))?.apply(inputs)
}

/// A loss whose gradients are computed with it: `function(inputs)` returns the loss, then its gradient by each input. It may depend on
/// traced arrays through `inputs` alone. The loss must be what is differentiated in the end: nothing may be made of it.
pub(crate) fn loss_with_gradients<F>(inputs: &[Array], function: F) -> Result<Array>
where
    F: Fn(&[Array]) -> Result<Vec<Array>> + 'static,
{
    Closure::new(function).with_gradient(|_, _, outputs| Ok(outputs[1..].to_vec()))?.apply(inputs)
}
