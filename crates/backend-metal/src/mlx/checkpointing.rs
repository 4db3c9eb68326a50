//! Functions whose gradient is not that of their operations one by one.

use std::rc::Rc;

use mlx_rs::{Array, error::Result};

use super::vjp::{Closure, after};

/// `function(inputs)`, which is called again where its gradient is taken: what lies between the inputs and the output is not kept
/// for the backward pass (Chen et al. 2016, arXiv 1604.06174). It may depend on traced arrays through `inputs` alone, and it
/// lives as long as the graph.
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
        // Not before that gradient is there: MLX would compute all such functions of a model anew first, and hold what they need.
        move |inputs, g| again.gradient(&after(inputs, g)?, g),
    )
}

/// `function(inputs)`, whose gradient `gradient` computes: of the inputs and the gradient by the output, one by each input. As for
/// [`recomputed`], both see traced arrays as arguments alone, and live as long as the graph.
pub(crate) fn differentiated<F, B>(inputs: &[Array], function: F, gradient: B) -> Result<Array>
where
    F: Fn(&[Array]) -> Result<Array> + 'static,
    B: Fn(&[Array], &Array) -> Result<Vec<Array>> + 'static,
{
    Closure::new(function).with_gradient(gradient)?.apply(inputs)
}
