//! The learnt activation of Apertus: transformers has its parameters as tensors, files in their metadata.

use super::config::Fields;
use crate::{Error, Result};

/// A tensor of one element.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Constant {
    /// Its name.
    pub name: String,
    /// Its extents.
    pub shape: Vec<usize>,
    /// Its element.
    pub value: f32,
}

/// The parameters of all layers.
///
/// # Errors
/// [`Error::Invalid`] names the list that is missing, or does not have as many numbers as there are layers.
pub(super) fn constants(fields: &Fields<'_>) -> Result<Vec<Constant>> {
    let mut constants = Vec::new();
    for (part, shape) in [("alpha_p", &[1][..]), ("alpha_n", &[1]), ("beta", &[]), ("eps", &[])] {
        let key = format!("xielu.{part}");
        let values = fields.metadata.floats(&key)?.ok_or_else(|| Error::at(&key, "is missing"))?;
        if values.len() as u64 != fields.layers {
            let reason = format!("has {} numbers for {} layers", values.len(), fields.layers);
            return Err(Error::at(key, reason));
        }
        constants.extend(values.iter().enumerate().map(|(layer, value)| Constant {
            name: format!("{}.{layer}.mlp.act_fn.{part}", fields.family.layers),
            shape: shape.to_vec(),
            value: *value,
        }));
    }
    Ok(constants)
}
